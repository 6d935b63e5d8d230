# SPDX-License-Identifier: Apache-2.0
"""
What a byte from an HTTPS backend costs the daemon: TLS in the kernel and splice against TLS in user space and copy, the
same load in the same run, rounds interleaved, for each cipher. KTLS_CPU_CASES=all adds TLS 1.3 and uploads. Prints processor seconds per GB (of the daemon's threads,
which also do what the kernel does for them), the ratio of the medians with its spread, and what the calls of one body
moved. The ratio means something only where time does: run it with run.sh -c, which makes the VM count instructions
instead. What fails it is not time: the kernel must move every byte behind the start, and no call may carry one.
usage: sh vmtest/run.sh -c -k trixie vmtest/ktls_cpu.sh
"""
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "e2e"))
from lib import certs, pattern  # noqa: E402
from lib.origin import Origin  # noqa: E402
from lib.sluice import Moved, Sluice  # noqa: E402
from lib.trace import GIVES, TAKES, Traced  # noqa: E402

SIZE, ROUNDS = int(os.environ.get("KTLS_CPU_BYTES", 16_000_000)), int(os.environ.get("KTLS_CPU_ROUNDS", 5))
START = 70_000  # what comes together with the head is copied
WAYS = {"kernel": ("require", "splice"), "user": ("off", "copy")}
CASES = [("1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", "download"), ("1.2", "ECDHE-ECDSA-CHACHA20-POLY1305", "download")]
if os.environ.get("KTLS_CPU_CASES") == "all":
    CASES += [("1.3", "TLS_AES_256_GCM_SHA384", "download"), ("1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", "upload")]


def seconds(pid):
    return sum(int((t / "schedstat").read_text().split()[0]) for t in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def transfer(d, direction, n):
    if direction == "download":
        assert d.get(f"/bytes/{n}", keep=False).length == n
        return
    with d.client() as c:
        r = c.request("POST", "/sha256", body=pattern.body(n))
    assert json.loads(r.body)["bytes"] == n


def measure(directory, ca, version, cipher, direction):
    suite = ["--ciphers", cipher] if version == "1.2" else []
    origin = Origin(directory, "one", ca, tls=True, more=["--tls-max", version, *suite])
    daemons = {way: Sluice(directory, {"one": {
        "servers": [{"address": origin.tls_address}],
        "tls": {"verify": True, "ca_file": str(ca / "ca.pem"), "sni": "one.demo", "ktls": ktls}}},
        splice={"engine": engine}, threads=1) for way, (ktls, engine) in WAYS.items()}
    what = f"TLS {version} {cipher} {direction}"
    cost = {way: [] for way in WAYS}
    for d in daemons.values():
        transfer(d, direction, 1_000_000)
    for _ in range(ROUNDS):
        for way, d in daemons.items():
            before = seconds(d.pid)
            transfer(d, direction, SIZE)
            cost[way].append((seconds(d.pid) - before) * 1e9 / SIZE)
    middle = {way: statistics.median(c) for way, c in cost.items()}
    ratios = sorted(k / u for k, u in zip(*(cost[w] for w in WAYS)))
    print(f"{what}: processor seconds per GB: " + ", ".join(f"{w} {middle[w]:.2f} {[round(x, 2) for x in cost[w]]}" for w in WAYS))
    for way, d in daemons.items():
        (directory / way).mkdir(exist_ok=True)
        moved = Moved(d, "response" if direction == "download" else "request")
        with Traced(d, directory / way) as t:
            transfer(d, direction, SIZE)
        counted = moved.counted(SIZE)
        calls = sum(t.calls.values()) * 1e6 / SIZE
        print(f"{what}: {way}: {t.sum(TAKES)} bytes taken and {t.sum(GIVES)} given by user space, "
              f"{t.moved.get('splice', 0)} spliced, {calls:.0f} such calls per MB; counted {counted}")
        if way == "kernel":
            assert t.sum(TAKES) < START and t.sum(GIVES) < START and counted["splice"] >= SIZE - START
    for d in daemons.values():
        d.stop()
    origin.stop()
    print(f"ratio kernel / user, {what}: {middle['kernel'] / middle['user']:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)


with tempfile.TemporaryDirectory() as name:
    ca = certs.demo(Path(name))
    for number, case in enumerate(CASES):
        where = Path(name) / str(number)
        where.mkdir()
        measure(where, ca, *case)
