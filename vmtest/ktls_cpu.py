# SPDX-License-Identifier: Apache-2.0
"""
What a byte from an HTTPS backend costs the daemon: TLS in the kernel and splice against TLS in user space and copy, same
load, same run, rounds interleaved. Prints processor seconds per GB and their ratio; the ratio alone means something in
an emulated machine, and there even that only as far as emulated AES costs alike inside and outside the kernel.
usage: sh vmtest/run.sh -k trixie vmtest/ktls_cpu.sh
"""
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "e2e"))
from lib import certs  # noqa: E402
from lib.origin import Origin  # noqa: E402
from lib.sluice import Sluice  # noqa: E402

SIZE, ROUNDS = int(os.environ.get("KTLS_CPU_BYTES", 64_000_000)), 3
WAYS = {"kernel": ("require", "splice"), "user": ("off", "copy")}


def seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


with tempfile.TemporaryDirectory() as name:
    directory = Path(name)
    ca = certs.demo(directory)
    origin = Origin(directory, "one", ca, tls=True)
    daemons = {way: Sluice(directory, {"one": {
        "servers": [{"address": origin.tls_address}],
        "tls": {"verify": True, "ca_file": str(ca / "ca.pem"), "sni": "one.demo", "ktls": ktls}}},
        splice={"engine": engine}, threads=1) for way, (ktls, engine) in WAYS.items()}
    cost = {way: [] for way in WAYS}
    for d in daemons.values():
        d.get("/bytes/1000000")
    for _ in range(ROUNDS):
        for way, d in daemons.items():
            before = seconds(d.pid)
            assert d.get(f"/bytes/{SIZE}", keep=False).length == SIZE
            cost[way].append((seconds(d.pid) - before) * 1e9 / SIZE)
    engines = {way: {e: int(d.metrics().bodies(e, "response")) for e in ("copy", "splice")} for way, d in daemons.items()}
    for d in daemons.values():
        d.stop()
    origin.stop()
    middle = {way: statistics.median(c) for way, c in cost.items()}
    print(f"bytes by engine: {engines}")
    print("processor seconds per GB: " + ", ".join(f"{w} {middle[w]:.2f} {[round(x, 2) for x in cost[w]]}" for w in WAYS))
    print(f"ratio kernel / user: {middle['kernel'] / middle['user']:.2f}")
