# SPDX-License-Identifier: Apache-2.0
"""What operators read and do: the admin pages, the metrics' names, sluicectl."""
import json
import re
import subprocess

import pytest

from lib import build
from lib.client import Client, request_bytes
from lib.sluice import Moved, environment
from lib.wait import wait_until

SERIES = {
    "sluice_requests_total": {"upstream", "code"}, "sluice_body_bytes_total": {"engine", "direction"},
    "sluice_backend_up": {"upstream", "backend"}, "sluice_backend_requests_total": {"upstream", "backend"},
    "sluice_flow_spills_total": set(), "sluice_flow_trims_total": set(), "sluice_flow_outstanding_bytes": set(),
    "sluice_ktls_connections_total": {"direction"}, "sluice_active_connections": set(), "sluice_upgrades_total": set(),
}


@pytest.fixture(scope="module")
def proxy(module_sluice, origin, origin_two):
    d = module_sluice([origin.address, origin_two.address])
    for _ in range(4):
        assert d.get("/bytes/100000").length == 100000
    return d


def test_metrics_have_the_series_that_others_read(proxy):
    m = proxy.metrics()
    for name, labels in SERIES.items():
        found = [have for n, have, _ in m.samples if n == name]
        assert found, f"no series {name}"
        assert all(labels <= set(have) for have in found), (name, found)
        assert m.types.get(name) == ("counter" if name.endswith("_total") else "gauge"), name
    assert {h["engine"] for n, h, _ in m.samples if n == "sluice_body_bytes_total"} == {"sockmap", "splice", "copy"}
    assert {h["direction"] for n, h, _ in m.samples if n == "sluice_body_bytes_total"} == {"request", "response"}
    assert {h["direction"] for n, h, _ in m.samples if n == "sluice_ktls_connections_total"} == {"tx", "rx", "both", "none"}


def test_metrics_are_prometheus_text(proxy):
    status, body, kind = proxy.admin("/metrics")
    assert status == 200 and kind.startswith("text/plain")
    assert body.endswith(b"\n") and b"# HELP " in body


def test_counters_count(proxy, origin, origin_two):
    before = proxy.metrics()
    moved = Moved(proxy, "response")
    for _ in range(10):
        proxy.get("/bytes/1000")
    proxy.get("/status/404")

    def told():
        m = proxy.metrics()

        def delta(name, **labels):
            return m.total(name, **labels) - before.total(name, **labels)
        return (delta("sluice_requests_total", upstream="one", code="200"), delta("sluice_requests_total", upstream="one", code="404"),
                delta("sluice_backend_requests_total", upstream="one")) == (10, 1, 11)
    wait_until(told, "ten and one requests in the counters")
    moved.counted(10 * 1000 + 7)
    m = proxy.metrics()
    for o in (origin, origin_two):
        assert m.total("sluice_backend_requests_total", upstream="one", backend=o.address) > 0


def test_status_is_json_with_listeners_and_backends(proxy, origin):
    status, body, kind = proxy.admin("/status")
    assert status == 200 and kind.startswith("application/json")
    text = body.decode()
    json.loads(text)
    assert origin.address in text and f":{proxy.port}" in text


def test_healthz(proxy):
    status, body, _ = proxy.admin("/healthz")
    assert status == 200 and body


def test_the_page_for_people(proxy, origin):
    status, body, kind = proxy.admin("/")
    assert status == 200 and kind.startswith("text/html")
    assert b"/status" in body or origin.address.encode() in body, "it shows the backends, or fetches them"
    loads = re.findall(rb"""(?:src|href|action)\s*=\s*["']?(?:https?:)?//|url\(["']?(?:https?:)?//|@import""", body)
    assert not loads, "the page must not load anything from elsewhere"


def test_unknown_paths_and_methods(proxy):
    assert proxy.admin("/nothing")[0] == 404
    with Client(("127.0.0.1", proxy.admin_port)) as c:
        c.send(request_bytes("POST", "/metrics", body=b""))
        assert c.read_response().status == 405
    with Client(("127.0.0.1", proxy.admin_port)) as c:
        r = c.request("HEAD", "/metrics")
        assert r.status == 200 and r.body == b""
    with Client(("127.0.0.1", proxy.admin_port)) as c:
        c.send(b"garbage\r\n\r\n")
        assert c.read_response().status in (400, 405, 505)
    with Client(("127.0.0.1", proxy.admin_port)) as c:
        c.send(request_bytes("POST", "/metrics", body=b"hello"))
        assert c.read_response().status in (400, 405, 413)


def test_a_slow_reader_of_the_admin_page_disturbs_nobody(proxy):
    idle = [Client(("127.0.0.1", proxy.admin_port)) for _ in range(20)]
    for c in idle:
        c.send(b"GET /metr")
    assert proxy.get("/").status == 200
    for c in idle:
        c.close()
    assert proxy.admin("/healthz")[0] == 200


def test_the_control_socket_is_the_owners(proxy):
    import stat
    mode = proxy.control.stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) & 0o077 == 0


# ---- sluicectl

def test_ctl_status_and_backends(proxy, origin):
    assert str(proxy.pid) in proxy.ctl("status").stdout
    out = proxy.ctl("backends").stdout
    assert origin.address in out and "one" in out
    json.loads(proxy.ctl("status", "--json").stdout)
    assert origin.address in json.dumps(json.loads(proxy.ctl("backends", "--json").stdout))


def test_ctl_stats(proxy):
    assert proxy.ctl("stats").stdout
    json.loads(proxy.ctl("stats", "--json").stdout)


def test_ctl_drain_and_enable(proxy, origin):
    for name in (origin.address, f"one/{origin.address}"):
        proxy.ctl("drain", name)
        assert {proxy.get("/").body for _ in range(8)} == {b"Hello from two\n"}
        proxy.ctl("enable", name)
        assert {proxy.get("/").body for _ in range(8)} == {b"Hello from one\n", b"Hello from two\n"}


def test_ctl_drain_lets_running_requests_end(proxy, origin):
    with proxy.client() as a, proxy.client() as b:
        for c in (a, b):
            c.send(request_bytes(path="/slow?bytes=60000&rate=60000&ms=50"))
        firsts = [c.read_head() for c in (a, b)]
        assert {r.get("x-origin") for r in firsts} <= {"one", "two"}
        proxy.ctl("drain", origin.address)
        try:
            for c, r in zip((a, b), firsts):
                assert c.read_body(r).length == 60000
        finally:
            proxy.ctl("enable", origin.address)


def test_ctl_weight(sluice, origin, origin_two):
    d = sluice([origin.address, origin_two.address], threads=1)
    d.ctl("weight", origin.address, 3)
    seen = [d.get("/").body for _ in range(40)]
    assert seen.count(b"Hello from one\n") == 30


def test_ctl_reload(sluice, origin, origin_two):
    d = sluice([origin.address])
    d.upstreams = {"one": {"servers": [{"address": origin_two.address}]}}
    d.write_config()
    d.ctl("reload")
    wait_until(lambda: d.get("/").body == b"Hello from two\n", "the new upstream")
    d.config.write_text("version: 1\nnonsense: true\n")
    done = d.ctl("reload", check=False)
    assert done.returncode != 0 and "nonsense" in done.stdout + done.stderr
    assert d.get("/").body == b"Hello from two\n"


@pytest.mark.parametrize("args, says", [(["drain", "10.1.2.3:4"], "10.1.2.3:4"), (["drain"], ""), (["fly"], "fly"),
                                        (["weight", "x"], ""), (["weight", "10.1.2.3:4", "many"], "many")])
def test_ctl_says_what_is_wrong(proxy, args, says):
    done = proxy.ctl(*args, check=False)
    assert done.returncode != 0
    assert says in done.stdout + done.stderr and (done.stdout + done.stderr).strip()


def test_ctl_without_a_daemon(tmp_path):
    done = subprocess.run([build.SLUICECTL, "-s", tmp_path / "none.sock", "status"], capture_output=True, text=True,
                          env=environment(), timeout=60)
    assert done.returncode != 0 and "none.sock" in done.stderr


def test_the_access_log(sluice, origin, tmp_path):
    path = tmp_path / "access.log"
    d = sluice([origin.address], access_log={"path": str(path), "format": "json"})
    d.get('/bytes/1000?q="\\x')
    with d.client() as c:
        c.send(b"GARBAGE\r\n\r\n")
        c.read_response()
    lines = wait_until(lambda: path.exists() and len(path.read_text().splitlines()) == 2 and path.read_text().splitlines(), "two lines")
    first, second = sorted((json.loads(line) for line in lines), key=lambda e: e["status"])  # two workers, either order
    assert first["status"] == 200 and '/bytes/1000?q="\\x' in json.dumps(first).replace('\\"', '"').replace("\\\\", "\\")
    assert second["status"] == 400
    path.rename(tmp_path / "access.log.1")
    import signal
    d.send_signal(signal.SIGUSR1)
    d.wait_event("logs_reopened")
    d.get("/")
    wait_until(lambda: path.exists() and path.read_text().count("\n") == 1, "a line in the new file")
    assert (tmp_path / "access.log.1").read_text().count("\n") == 2


def test_the_access_log_as_text(sluice, origin, tmp_path):
    path = tmp_path / "access.log"
    d = sluice([origin.address], access_log={"path": str(path), "format": "text"})
    d.get("/bytes/1000")
    line = wait_until(lambda: path.exists() and path.read_text(), "a line")
    assert "/bytes/1000" in line and "200" in line and line.count("\n") == 1
