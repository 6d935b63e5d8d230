# SPDX-License-Identifier: Apache-2.0
"""Another configuration while it runs: all of it or nothing, and nothing that did not change is touched."""
import os
import shutil
import signal
import socket
import ssl

import pytest

from conftest import MIN_BYTES, WINDOW, require_engine
from lib import certs, pattern
from lib.backend import response
from lib.client import Client, get
from lib.load import Load
from lib.sluice import free_port
from lib.wait import wait_until

LONG = bool(os.environ.get("SLUICE_LONG"))
MANY = 100 if LONG else 10


def reload(d, n=1):
    """Writes the configuration and waits for the n-th reload."""
    d.write_config()
    d.send_signal(signal.SIGHUP)
    d.wait_event("reloaded", n)


def route(d):
    return [{"upstream": next(iter(d.upstreams))}]


@pytest.mark.slow
@pytest.mark.parametrize("moved_by", ["copy", "splice", "sockmap"])
def test_reloads_under_load(sluice, origin, origin_two, moved_by):
    """Upstreams, listeners and settings change back and forth; the listener under load stays."""
    if LONG:
        signal.alarm(600)
    d = sluice([origin.address], splice={"engine": moved_by, "min_bytes": MIN_BYTES, "window": WINDOW})
    require_engine(d, moved_by)
    other = free_port()
    one = d.upstreams
    two = {"another": {"servers": [{"address": origin_two.address}, {"address": origin.address}], "balance": "random"}}
    with Load(d.address) as load:
        for i in range(MANY):
            d.upstreams = (two, one)[i % 2]
            d.more_listeners = ([{"address": f"127.0.0.1:{other}", "routes": route(d)}], [])[i % 2]
            d.top["graceful_shutdown_timeout_seconds"] = 100 + i
            reload(d, i + 1)
            load.wait_more(20)
        load.stop()
    load.check()
    assert d.metrics().bodies(moved_by, "response") > 0
    assert load.closed_after == 0, "a reload told clients to go whose listener did not change"


def test_new_upstreams_take_requests_and_connections_stay(sluice, backend):
    a, b = backend(response(b"from a")), backend(response(b"from b"))
    d = sluice([a.address])
    with d.client() as c:
        assert c.get().body == b"from a"
        d.upstreams = {"two": {"servers": [{"address": b.address}]}}
        reload(d)
        wait_until(lambda: c.get().body == b"from b", "the other upstream to answer on the same connection")
    assert d.metrics().total("sluice_requests_total", upstream="one") >= 1, "what was counted is lost"


def test_connections_to_backends_and_counts_are_kept(sluice, backend):
    a = backend(response(b"from a"))
    d = sluice([a.address], threads=1)
    with d.client() as c:
        for i in range(4):
            assert c.get().body == b"from a"
            d.top["graceful_shutdown_timeout_seconds"] = 50 + i
            reload(d, i + 1)
    assert len(a.connections) == 1, "the idle connection to the backend did not survive"
    assert d.metrics().total("sluice_backend_requests_total", backend=a.address) == 4


def test_listeners_come_and_go(sluice, origin):
    d = sluice([origin.address])
    port, path = free_port(), str(d.directory / "l.sock")
    d.more_listeners = [{"address": f"127.0.0.1:{port}", "routes": route(d)}, {"address": f"unix:{path}", "routes": route(d)}]
    reload(d)
    new = ("127.0.0.1", port)
    with Client(new) as kept, d.client() as stays:
        assert kept.get("/bytes/10").status == stays.get("/bytes/10").status == get(path, "/bytes/10").status == 200
        d.more_listeners = []
        reload(d, 2)

        def refused():
            try:
                Client(new).close()
                return False
            except ConnectionRefusedError:
                return True
        wait_until(refused, "the removed listener to be closed")
        wait_until(lambda: not os.path.exists(path), "the socket file to go")
        r = kept.get("/bytes/1000")
        assert (r.status, r.get("Connection"), r.sha256) == (200, "close", pattern.sha256(1000))
        assert stays.get("/bytes/10").get("Connection") is None
    d.more_listeners = [{"address": f"127.0.0.1:{port}", "routes": route(d)}, {"address": f"unix:{path}", "routes": route(d)}]
    reload(d, 3)
    assert get(new, "/bytes/10").status == get(path, "/bytes/10").status == 200


def test_a_listener_that_goes_takes_what_is_in_its_queue(sluice, origin):
    """A connection made a moment before the reload is answered, whichever comes first."""
    d = sluice([origin.address])
    port = free_port()
    for i in range(10):
        d.more_listeners = [{"address": f"127.0.0.1:{port}", "routes": route(d)}]
        reload(d, 2 * i + 1)
        wait_until(lambda: _connects(port), "the listener")
        d.more_listeners = []
        d.write_config()
        clients = [Client(("127.0.0.1", port)) for _ in range(8)]
        d.send_signal(signal.SIGHUP)
        for c in clients:
            assert c.get("/bytes/10").status == 200
            c.close()
        d.wait_event("reloaded", 2 * i + 2)


def _connects(port):
    try:
        Client(("127.0.0.1", port)).close()
        return True
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize("what", ["syntax", "unknown_key", "taken_address", "taken_admin", "certificate", "access_log"])
def test_what_can_not_be_done_changes_nothing(sluice, backend, what):
    a, b = backend(response(b"from a")), backend(response(b"from b"))
    d = sluice([a.address])
    good = d.document()
    taken = socket.create_server(("127.0.0.1", 0))
    busy = f"127.0.0.1:{taken.getsockname()[1]}"
    d.upstreams = {"two": {"servers": [{"address": b.address}]}}
    bad, port = d.document(), free_port()
    bad["listeners"].append({"address": f"127.0.0.1:{port}", "routes": route(d)})
    if what == "unknown_key":
        bad["listeners"][0]["rutes"] = []
    elif what == "taken_address":
        bad["listeners"].append({"address": busy, "routes": route(d)})
    elif what == "taken_admin":
        bad["admin"]["http"] = busy
    elif what == "certificate":
        bad["listeners"][1]["tls"] = {"certificates": [{"cert": "/nonexistent.pem", "key": "/nonexistent.key"}]}
    elif what == "access_log":
        bad["access_log"] = {"path": "/nonexistent/dir/access.log"}
    d.write_config(bad)
    if what == "syntax":
        d.config.write_text(d.config.read_text() + "\nlisteners: [\n")
    d.send_signal(signal.SIGHUP)
    e = d.wait_event("reload_failed")
    if what in ("syntax", "unknown_key"):
        assert f"{d.config}:" in e["line"], "the error names no line and column"
    for _ in range(4):
        assert d.get().body == b"from a"
    assert not _connects(port), "a listener of a configuration that was refused is open"
    assert d.admin("/healthz")[0] == 200
    done = d.ctl("reload", check=False)
    assert done.returncode != 0 and "old configuration stays" in done.stdout + done.stderr
    d.write_config(good)
    d.ctl("reload")
    assert d.get().body == b"from a"
    taken.close()


def test_certificates_are_read_again(sluice, origin, certs_dir, tmp_path):
    cert, key = certs.self_signed(tmp_path, "first")
    d = sluice([origin.address], listener={"tls": {"certificates": [{"cert": str(cert), "key": str(key)}]}})
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def shown():
        with Client(d.address, tls=context, server_name="one.demo") as c:
            assert c.get("/bytes/10").status == 200
            return c.sock.getpeercert(binary_form=True)
    first = shown()
    with Client(d.address, tls=context, server_name="one.demo") as kept:
        assert kept.get("/bytes/10").status == 200
        other = certs.self_signed(tmp_path, "second")
        shutil.copy(other[0], cert)
        shutil.copy(other[1], key)
        reload(d)
        wait_until(lambda: shown() != first, "the new certificate")
        assert kept.get("/bytes/1000").sha256 == pattern.sha256(1000)


def test_the_access_log_moves_ends_and_begins(sluice, origin, tmp_path):
    one, two = tmp_path / "one.log", tmp_path / "two.log"
    d = sluice([origin.address], access_log={"path": str(one)})

    def logged(path, mark):
        d.get(f"/bytes/10?{mark}")
        return wait_until(lambda: path.exists() and mark in path.read_text(), f"{mark} in {path}")
    logged(one, "mark1")
    d.top["access_log"] = {"path": str(two), "format": "json"}
    reload(d)
    logged(two, "mark2")
    assert "mark2" not in one.read_text()
    del d.top["access_log"]
    reload(d, 2)
    d.get("/bytes/10?mark3")
    d.top["access_log"] = {"path": str(one)}
    reload(d, 3)
    logged(one, "mark4")
    assert "mark3" not in one.read_text() + two.read_text()


def test_admin_addresses_move(sluice, origin):
    d = sluice([origin.address])
    old_port, old_socket = d.admin_port, d.control
    d.admin_port, d.control = free_port(), d.directory / "moved.sock"
    reload(d)
    assert d.admin("/healthz")[0] == 200 and d.ctl("status")
    wait_until(lambda: not _connects(old_port), "the old admin address to be closed")
    assert not old_socket.exists()


def test_the_error_log_moves(sluice, origin, tmp_path):
    d = sluice([origin.address])
    first = d.log_file
    d.log_file = tmp_path / "second.log"
    reload(d)
    assert first.exists() and "event=reloaded" not in first.read_text()


def test_limits_of_a_listener_change(sluice, origin):
    d = sluice([origin.address])
    with d.client() as c:
        assert c.request("POST", "/sha256", body=b"x" * 2000).status == 200
        d.listener = {"limits": {"body_bytes": 1000}}
        reload(d)
        wait_until(lambda: d.client().request("POST", "/sha256", body=b"x" * 2000).status == 413, "the new limit")


def test_what_a_reload_can_not_change_is_said(sluice, origin, tmp_path):
    d = sluice([origin.address])
    d.top.update(threads=3, pid_file=str(tmp_path / "p"))
    reload(d)
    text = d.log()
    assert "key=pid_file" in text and "threads" in text
