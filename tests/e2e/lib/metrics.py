# SPDX-License-Identifier: Apache-2.0
"""The Prometheus text of /metrics as numbers."""
import re

_SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$')
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|$)')


class Metrics:
    def __init__(self, text):
        self.samples = []  # (name, {label: value}, number)
        self.types = {}
        self.text = text
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ", 3)
                assert name not in self.types, f"two TYPE lines for {name}"
                self.types[name] = kind
                continue
            if not line or line.startswith("#"):
                continue
            m = _SAMPLE.match(line)
            assert m, f"not a sample: {line!r}"
            labels = dict(_LABEL.findall(m.group(2) or ""))
            self.samples.append((m.group(1), labels, float(m.group(3))))

    def total(self, name, **labels):
        """The sum over all series of that name whose labels contain those given; 0 when there are none."""
        return sum(v for n, have, v in self.samples if n == name and all(have.get(k) == w for k, w in labels.items()))

    def has(self, name):
        return any(n == name for n, _, _ in self.samples)

    def bodies(self, engine=None, direction=None):
        labels = {k: v for k, v in (("engine", engine), ("direction", direction)) if v}
        return self.total("sluice_body_bytes_total", **labels)
