# SPDX-License-Identifier: Apache-2.0
"""The first thing anybody tries: two HTTPS origins behind one port, in turns."""
import shutil

from lib import build
from lib.client import get
from lib.sluice import free_port
from lib.process import Process
from lib.sluice import environment
from lib.wait import wait_until


def test_requests_alternate_between_two_https_origins(sluice, origin, origin_two, certs_dir):
    d = sluice({"one": {"tls": {"sni": "one.demo", "verify": True, "ca_file": str(certs_dir / "ca.pem")}, "host": "one.demo",
                        "servers": [{"address": origin.tls_address}, {"address": origin_two.tls_address}],
                        "health_check": {"type": "tcp", "interval": "1s"}}}, threads=3)
    bodies = [d.get("/").body for _ in range(8)]
    assert set(bodies) == {b"Hello from one\n", b"Hello from two\n"}
    assert all(a != b for a, b in zip(bodies, bodies[1:])), f"not in turns: {bodies}"


def test_the_quickstart_file_serves(tmp_path, certs_dir, origin, origin_two):
    """conf/quickstart.yaml as it is, but for ports that are free here."""
    text = (build.ROOT / "conf" / "quickstart.yaml").read_text()
    port, admin = free_port(), free_port()
    for old, new in (("0.0.0.0:6188", f"127.0.0.1:{port}"), ("127.0.0.1:6189", f"127.0.0.1:{admin}"),
                     ("127.0.0.1:6443", origin.tls_address), ("127.0.0.1:6444", origin_two.tls_address),
                     ("/tmp/sluice-quickstart.sock", str(tmp_path / "admin.sock")),
                     ("/sys/fs/bpf/sluice-quickstart", f"/sys/fs/bpf/sluice-quickstart-{port}")):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "quickstart.yaml").write_text(text)
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
