# SPDX-License-Identifier: Apache-2.0
"""splice.engine auto: what comes in bulk goes by splice, what comes bit by bit goes over to sockmap; bytes are right either way."""
import hashlib
import json
import os
import socket
import subprocess
import threading
import time

import pytest

from conftest import MIN_BYTES, WINDOW, require_engine
from lib import pattern
from lib.client import Client, Ended, request_bytes
from lib.sluice import Moved
from lib.wait import wait_until

KiB, MiB = 1 << 10, 1 << 20
BULK = "splice is cheaper for what comes in bulk"


@pytest.fixture
def auto(sluice, tmp_path):
    """auto(addresses): a daemon with one worker that may choose, and a list of its access log's lines."""
    def make(addresses, require=True, **more):
        log = tmp_path / "access.log"
        d = sluice(addresses, splice={"engine": "auto", "min_bytes": MIN_BYTES, "window": WINDOW}, threads=1,
                   access_log={"path": str(log), "format": "json"}, **more)
        if require:
            require_engine(d, "sockmap")

        def lines(n):
            wait_until(lambda: log.exists() and log.read_text().count("\n") >= n, f"{n} lines in the access log")
            return [json.loads(line) for line in log.read_text().splitlines()]
        return d, lines
    return make


def dripping(body, piece, pause):
    """A backend that sends the body piece by piece to whoever asks, and forthwith when asked for /fast."""
    def script(c):
        while True:
            head = c.read_head()
            c.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            if b" /fast " in head:
                c.send(body)
                continue
            for at in range(0, len(body), piece):
                c.send(body[at:at + piece])
                time.sleep(pause)
    return script


def test_a_body_that_comes_bit_by_bit_goes_over_to_sockmap(auto, backend):
    body = pattern.body(MiB, 4)
    d, lines = auto([backend(dripping(body, 4 * KiB, 0.002)).address])
    moved = Moved(d, "response")
    assert d.get("/", keep=False).sha256 == pattern.sha256(MiB, 4)
    by = moved.counted(MiB)
    assert by["sockmap"] > MiB // 2 and by["splice"] > 0, by
    assert lines(1)[0]["engine"] == "sockmap" and "why_not" not in lines(1)[0]
    assert d.metrics().total("sluice_handovers_total") == 1


def test_a_body_that_comes_in_bulk_stays_with_splice(auto, backend):
    """What decides is how much there is each time the source is looked at, not how fast the machine is."""
    big, pieces = 512 * KiB, 24
    body = pattern.body(big, 6)
    seen = threading.Semaphore(0)

    def script(c):
        c.read_head()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (big * pieces))
        for _ in range(pieces):
            c.send(body)
            seen.acquire(timeout=30)

    d, lines = auto([backend(script).address])
    digest = hashlib.sha256()
    with Client(d.address, timeout=40) as c:
        c.send(request_bytes())
        c.read_head()
        for _ in range(pieces):
            digest.update(c.read_exactly(big))
            seen.release()
    want = hashlib.sha256()
    for _ in range(pieces):
        want.update(body)
    assert digest.digest() == want.digest()
    line = lines(1)[0]
    assert (line["engine"], line["why_not"]) == ("splice", BULK), line


def test_an_upload_that_comes_bit_by_bit_goes_over_to_sockmap(auto, origin):
    n = 600 * KiB
    body = pattern.body(n, 9)
    d, lines = auto([origin.address])
    moved = Moved(d, "request")
    with d.client() as c:
        c.send(request_bytes("POST", "/sha256", {"Content-Length": n}))
        for at in range(0, n, 4 * KiB):
            c.send(body[at:at + 4 * KiB])
            time.sleep(0.002)
        assert json.loads(c.read_response().body)["sha256"] == pattern.sha256(n, 9)
    by = moved.counted(n)
    assert by["sockmap"] > n // 2, by


def test_the_log_names_an_engine_and_the_reason_of_the_same_body(sluice, backend, tmp_path):
    """A long upload with a short answer that comes behind its head: the answer's reason is not the upload's."""
    n = 8 * MiB
    answered = threading.Event()

    def answering(c):
        c.read_head()
        c.read_exactly(n)
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        answered.wait(30)
        c.send(b"ok")
    log = tmp_path / "access.log"
    d = sluice([backend(answering).address], splice={"engine": "splice"}, access_log={"path": str(log), "format": "json"})
    with d.client() as c:
        c.send(request_bytes("POST", "/", {"Content-Length": n}) + pattern.body(n))
        c.read_head()
        answered.set()
        assert c.read_exactly(2) == b"ok"
    wait_until(lambda: log.read_text().endswith("\n"), "the line")
    line = json.loads(log.read_text())
    assert (line["engine"], line["why_not"]) == ("splice", "splice.engine is splice"), line


def test_the_next_bodies_on_that_connection_are_right_too(auto, backend):
    """Its source is in the kernel's table for good; what follows goes by sockmap from its first byte."""
    body = pattern.body(MiB, 5)
    b = backend(dripping(body, 8 * KiB, 0.001))
    d, lines = auto([b.address])
    with d.client() as c:
        for path in ("/", "/fast", "/", "/fast", "/fast"):
            assert c.get(path, keep=False).sha256 == pattern.sha256(MiB, 5), path
    engines = [x["engine"] for x in lines(5)]
    assert engines[0] == "sockmap" and set(engines) <= {"sockmap", "splice"}, engines


def test_a_connection_that_only_brakes_is_not_used_again(auto, backend):
    """A mapped source can not be spliced: one that outran its client in the last body is replaced."""
    drip, bulk = pattern.body(512 * KiB, 2), 48 * MiB
    block = pattern.body(MiB, 3)

    def script(c):
        while True:
            head = c.read_head()
            if b" /bulk " in head:
                c.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % bulk)
                for _ in range(bulk // MiB):
                    c.send(block)
            else:
                c.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(drip))
                for at in range(0, len(drip), 4 * KiB):
                    c.send(drip[at:at + 4 * KiB])
                    time.sleep(0.002)

    b = backend(script)
    d, lines = auto([b.address])
    with Client(d.address, rcvbuf=65536, timeout=40) as c:
        assert c.get("/", keep=False).sha256 == pattern.sha256(len(drip), 2)
        assert lines(1)[0]["engine"] == "sockmap"
        c.send(request_bytes(path="/bulk"))
        c.read_head()
        got = 0
        while got < bulk:
            take = min(256 * KiB, bulk - got)
            assert c.read_exactly(take) == block[got % MiB:got % MiB + take]
            got += take
            time.sleep(0.002)  # slower than the backend: the window fills again and again
        lines(2)
        spills = d.metrics().total("sluice_flow_spills_total")
        before = d.metrics().total("sluice_upstream_connections_total")
        c.get("/", keep=False)
        new = d.metrics().total("sluice_upstream_connections_total") - before
    assert new == (1 if spills >= 4 else 0), f"{spills} spills, {new} new connections"
    assert spills >= 4, "the client was to be slower than the backend"


@pytest.mark.parametrize("fault", ["map_update:1+", "map_update:2+", "pipe:1+", "pipe:2+"])
def test_a_hand_over_that_fails_costs_nothing(auto, backend, fault):
    body = pattern.body(MiB, 8)
    d, lines = auto([backend(dripping(body, 4 * KiB, 0.001)).address], require=False, env={"SLUICE_FAULT": fault})
    with d.client() as c:
        for _ in range(2):
            assert c.get("/", keep=False).sha256 == pattern.sha256(MiB, 8)
    assert d.process.alive()


def test_where_sockmap_is_no_choice_it_is_not_asked_again(auto, tmp_path):
    """A unix socket that drips: refused when the body begins, and that once."""
    body = pattern.body(MiB, 3)
    path = tmp_path / "backend.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve():
        c, _ = listener.accept()
        with c:
            while b"\r\n\r\n" not in c.recv(65536):
                pass
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body))
            for at in range(0, len(body), 4 * KiB):
                c.sendall(body[at:at + 4 * KiB])
                time.sleep(0.001)

    threading.Thread(target=serve, daemon=True).start()
    with listener:
        d, lines = auto({"one": {"servers": [{"address": f"unix:{path}"}]}})
        assert d.get("/", keep=False).sha256 == pattern.sha256(MiB, 3)
    assert lines(1)[0]["engine"] == "splice"
    assert d.metrics().total("sluice_fallbacks_total", reason="unix") == 1


def test_of_two_directions_at_once_one_goes_another_way(sluice, origin):
    """What is passed on a socket that has redirected bytes to send is charged to it without its lock (see body_sockmap.c)."""
    n = 4 * MiB
    data = pattern.body(n, 3)
    d = sluice([origin.address], splice={"engine": "sockmap", "min_bytes": MIN_BYTES, "window": WINDOW})
    require_engine(d, "sockmap")
    with d.client() as c:
        c.send(request_bytes(path="/upgrade", fields={"Connection": "Upgrade", "Upgrade": "echo"}))
        assert c.read_response().status == 101
        writer = threading.Thread(target=lambda: (c.send(data), c.end()), daemon=True)
        writer.start()
        got, how = c.read_end()
        writer.join(20)
    assert how == "fin" and hashlib.sha256(got).hexdigest() == pattern.sha256(n, 3)
    assert d.metrics().total("sluice_fallbacks_total", reason="both_ways") == 1


def test_bpftool_shows_who_moves_what(sluice, backend):
    """The pinned map of flows, read as an operator does: peers, what went by the kernel, what it holds."""
    block = pattern.body(MiB)

    def script(c):
        c.read_head()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MiB))
        for _ in range(64):
            c.send(block)

    b = backend(script)
    d = sluice([b.address], splice={"engine": "sockmap", "min_bytes": MIN_BYTES, "window": WINDOW})
    require_engine(d, "sockmap")

    def flows():
        done = subprocess.run(["/usr/sbin/bpftool", "-j", "map", "dump", "pinned", f"{d.pin_dir}/flows"], capture_output=True, text=True)
        return [e["formatted"]["value"] for e in json.loads(done.stdout) if e["formatted"]["value"]["cookie"]]

    with Client(d.address, rcvbuf=65536) as c:
        c.send(request_bytes())
        c.read_head()
        here = "%s:%d" % c.sock.getsockname()[:2]

        def moving():
            c.read_exactly(64 * KiB)
            return [f for f in flows() if f["epoch"] and f["spills"] and f["redirected"]]
        live = wait_until(moving, "a flow that is moved and braked")
        assert len(live) == 1
        f = live[0]
        assert (f["source_peer"], f["target_peer"]) == (b.address, here), f
        assert f["passed"] > 0 and 0 < f["limit"] <= 64 * MiB and "trims" in f, f
        c.reset()
    wait_until(lambda: not flows(), "the slot to be given back")


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_body_cut_short_behind_the_hand_over_looks_cut_short(auto, backend, how):
    body = pattern.body(MiB, 7)
    cut = 700 * KiB

    def script(c):
        c.read_head()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, cut, 4 * KiB):
            c.send(body[at:at + 4 * KiB])
            time.sleep(0.001)
        if how == "rst":
            c.reset()

    d, lines = auto([backend(script).address])
    with d.client() as c, pytest.raises(Ended) as e:
        c.send(request_bytes())
        r = c.read_head()
        got = c.read_exactly(cut // 2)
        assert got == body[:cut // 2]
        c.read_body(r, keep=False)
    assert e.value.how == "rst"
    assert (lines(1)[0]["engine"], lines(1)[0]["end"]) == ("sockmap", "upstream_cut_short"), lines(1)


def test_a_client_that_goes_behind_the_hand_over_stops_the_backend(auto, backend):
    body = pattern.body(MiB)
    b = backend(dripping(body * 64, 4 * KiB, 0.001))
    d, lines = auto([b.address])
    with d.client() as c:
        c.send(request_bytes())
        c.read_head()
        c.read_exactly(512 * KiB)
        c.reset()
    assert b.wait_ended() == "rst"
    assert lines(1)[0]["engine"] == "sockmap"
    d.wait_metric("sluice_active_connections", 0)
    d.wait_metric("sluice_flow_outstanding_bytes", 0)


def test_the_table_of_flows_is_as_large_as_the_limit_of_connections(sluice, origin):
    d = sluice([origin.address], listener={"limits": {"connections": 77}})
    require_engine(d, "sockmap")
    done = subprocess.run(["/usr/sbin/bpftool", "-j", "map", "show", "pinned", f"{d.pin_dir}/flows"], capture_output=True, text=True)
    assert json.loads(done.stdout)["max_entries"] == 77


def test_a_dump_of_the_flows_shows_nothing_of_those_that_ended(sluice, origin):
    d = sluice([origin.address], splice={"engine": "sockmap", "min_bytes": 4096})
    require_engine(d, "sockmap")
    if not os.path.exists(f"{d.pin_dir}/flows"):
        pytest.skip("no pinned maps here")
    assert d.get("/bytes/3000000", keep=False).sha256 == pattern.sha256(3000000)

    def left(v):
        return any(map(left, v.values() if isinstance(v, dict) else v)) if isinstance(v, (dict, list)) else bool(v)

    def entries():
        done = subprocess.run(["/usr/sbin/bpftool", "-j", "map", "dump", "pinned", f"{d.pin_dir}/flows"], capture_output=True, text=True)
        return [e["formatted"]["value"] for e in json.loads(done.stdout)]
    ended = [e for e in entries() if e["generation"] and not e["cookie"]]
    assert ended, "not even the self-test's is over"
    assert not [e for e in ended if left({k: v for k, v in e.items() if k != "generation"})], ended
