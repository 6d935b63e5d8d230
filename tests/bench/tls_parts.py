# SPDX-License-Identifier: Apache-2.0
"""
What TLS in the kernel would cost on this machine, from parts that can be timed on it, where its kernel has no TLS: the daemon's
processor seconds per GB of a plain body by splice and of an HTTPS body through user space, and of decryption alone, rounds
interleaved. Plain splice, decryption and the clearing of the memory it decrypts into are what the kernel has to do at the
least. An estimate, not a measurement of kTLS: what its record layer costs besides is not in it.
usage: python3 tests/bench/tls_parts.py [BYTES [ROUNDS]]
"""
import ctypes
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "e2e"))
os.environ.setdefault("SLUICE_BUILD", str(Path(__file__).parent.parent.parent / "build"))
from lib import certs  # noqa: E402
from lib.origin import Origin  # noqa: E402
from lib.sluice import Sluice  # noqa: E402

SUITES = {"ECDHE-ECDSA-AES128-GCM-SHA256": "aes-128-gcm", "ECDHE-ECDSA-CHACHA20-POLY1305": "chacha20-poly1305"}


def used(d):
    return sum(int((t / "schedstat").read_text().split()[0]) for t in Path(f"/proc/{d.pid}/task").iterdir()) / 1e9


def decryption(name):
    """OpenSSL's own speed over records, as seconds per GB."""
    out = subprocess.run(["openssl", "speed", "-seconds", "1", "-bytes", "16384", "-decrypt", "-evp", name], check=True,
                         capture_output=True, text=True).stdout
    return 1e6 / float(re.search(r"([\d.]+)k\s*$", out)[1])


def clearing():
    """Seconds per GB of clearing memory that is in the caches, as recycled pages are."""
    n, times = 1 << 18, 4000
    buffer = ctypes.create_string_buffer(n)
    began = time.process_time()
    for _ in range(times):
        ctypes.memset(buffer, 0, n)
    return (time.process_time() - began) * 1e9 / (n * times)


def main():
    n, rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000_000, int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as name:
        ca = certs.demo(Path(name))
        for cipher, evp in SUITES.items():
            where = Path(name) / evp
            where.mkdir()
            origin = Origin(where, "one", ca, tls=True, more=["--tls-max", "1.2", "--ciphers", cipher])
            tls = {"verify": True, "ca_file": str(ca / "ca.pem"), "sni": "one.demo", "ktls": "off"}
            daemons = {
                "user": Sluice(where, {"one": {"servers": [{"address": origin.tls_address}], "tls": tls}}, threads=1),
                "splice": Sluice(where, {"one": {"servers": [{"address": origin.address}]}}, splice={"engine": "splice"}, threads=1)}
            cost = {part: [] for part in ("user", "splice", "decryption", "clearing")}
            for _ in range(rounds):
                for way, d in daemons.items():
                    before = used(d)
                    assert d.get(f"/bytes/{n}", keep=False).length == n
                    cost[way].append((used(d) - before) * 1e9 / n)
                cost["decryption"].append(decryption(evp))
                cost["clearing"].append(clearing())
            for d in daemons.values():
                d.stop()
            origin.stop()
            m = {part: statistics.median(c) for part, c in cost.items()}
            least = m["splice"] + m["decryption"] + m["clearing"]
            print(f"{evp}: seconds per GB: " + ", ".join(f"{p} {v:.3f} ({min(cost[p]):.3f} to {max(cost[p]):.3f})" for p, v in m.items()))
            print(f"{evp}: kernel / user: {least / m['user']:.2f} at the least", flush=True)


main()
