# SPDX-License-Identifier: Apache-2.0
"""The first thing anybody tries: two HTTPS origins behind one port, in turns."""
import re
import shutil
import signal
import subprocess

import pytest

from lib import build
from lib.client import get
from lib.process import Process, pid_alive
from lib.sluice import environment, free_port
from lib.wait import DEADLINE, wait_until


def test_requests_alternate_between_two_https_origins(sluice, origin, origin_two, certs_dir):
    d = sluice({"one": {"tls": {"sni": "one.demo", "verify": True, "ca_file": str(certs_dir / "ca.pem")}, "host": "one.demo",
                        "servers": [{"address": origin.tls_address}, {"address": origin_two.tls_address}],
                        "health_check": {"type": "tcp", "interval": "1s"}}}, threads=3)
    bodies = [d.get("/").body for _ in range(8)]
    assert set(bodies) == {b"Hello from one\n", b"Hello from two\n"}
    assert all(a != b for a, b in zip(bodies, bodies[1:])), f"not in turns: {bodies}"


def quickstart(tmp_path, one, two, ca="build/demo/ca.pem"):
    """conf/quickstart.yaml as it is, but for ports and paths that are free here. The port it listens on."""
    text = (build.ROOT / "conf" / "quickstart.yaml").read_text()
    port, admin = free_port(), free_port()
    for old, new in (("0.0.0.0:6188", f"127.0.0.1:{port}"), ("127.0.0.1:6189", f"127.0.0.1:{admin}"),
                     ("127.0.0.1:6443", one), ("127.0.0.1:6444", two), ("build/demo/ca.pem", ca),
                     ("/tmp/sluice-quickstart.sock", str(tmp_path / "admin.sock")),
                     ("/sys/fs/bpf/sluice-quickstart", f"/sys/fs/bpf/sluice-quickstart-{port}")):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "quickstart.yaml").write_text(text)
    return port


def test_the_quickstart_file_serves(tmp_path, certs_dir, origin, origin_two):
    port = quickstart(tmp_path, origin.tls_address, origin_two.tls_address)
    (tmp_path / "build").mkdir()
    shutil.copytree(certs_dir, tmp_path / "build" / "demo")
    p = Process([build.SLUICE, "-c", "quickstart.yaml"], tmp_path / "out", cwd=tmp_path, env=environment())
    try:
        wait_until(lambda: "event=ready" in p.text() or not p.alive(), "the start")
        assert p.alive(), p.text()
        bodies = {get(("127.0.0.1", port)).body for _ in range(20)}
        assert bodies == {b"Hello from one\n", b"Hello from two\n"}
    finally:
        assert p.stop() == 0


def test_the_demonstration_goes_on_after_an_upgrade_and_leaves_nothing_behind(tmp_path):
    """What `make run` runs: sluicectl upgrade puts another process in the place of the one it started."""
    one, two = free_port(), free_port()
    port = quickstart(tmp_path, f"127.0.0.1:{one}", f"127.0.0.1:{two}", str(tmp_path / "ca.pem"))
    demo = Process(["/bin/sh", build.ROOT / "tools" / "demo.sh", tmp_path / "quickstart.yaml"], tmp_path / "out", cwd=build.ROOT,
                   env=environment(SLUICE_BUILD=str(build.BUILD), ORIGIN_ONE=str(one), ORIGIN_TWO=str(two), DEMO_DIR=str(tmp_path)))
    second = None
    try:
        wait_until(lambda: "Ctrl-C" in demo.text() or not demo.alive(), "the demonstration to run")
        assert demo.alive(), demo.text()
        subprocess.run([build.SLUICECTL, "-s", tmp_path / "admin.sock", "upgrade"], check=True, env=environment(), timeout=DEADLINE)
        second = int(wait_until(lambda: re.search(r"event=handed_over pid=\d+ to=(\d+)", demo.text()), "the hand-over").group(1))
        wait_until(lambda: "how=\"the last session ended\"" in demo.text(), "the end of the first process")
        assert {get(("127.0.0.1", port)).body for _ in range(20)} == {b"Hello from one\n", b"Hello from two\n"}
        assert demo.alive(), demo.text()
    finally:
        assert demo.stop(signal.SIGINT) == 0, demo.text()
    assert second and not pid_alive(second)
    with pytest.raises(ConnectionRefusedError):
        get(("127.0.0.1", one))
