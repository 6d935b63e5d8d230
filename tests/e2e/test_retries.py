# SPDX-License-Identifier: Apache-2.0
"""A request that failed without having been heard is sent again, elsewhere or anew; one that may have been heard is not."""
import signal
import socket
import threading

import pytest

from lib.backend import response
from lib.client import request_bytes
from lib.process import stopped
from lib.sluice import ENGINES
from lib.wait import wait_until


def test_a_backend_that_refuses_connections_costs_nobody_a_request(sluice, origin, dead):
    d = sluice({"one": {"servers": [{"address": dead()}, {"address": origin.address}]}})
    assert [d.get("/").status for _ in range(50)] == [200] * 50


def test_with_all_backends_dead_the_answer_is_an_error_soon(sluice, dead):
    d = sluice({"one": {"servers": [{"address": dead()} for _ in range(3)]}})
    assert [d.get("/").status in (502, 503) for _ in range(5)] == [True] * 5


def test_a_client_is_not_told_where_backends_are(sluice, dead):
    address = dead()
    d = sluice({"one": {"servers": [{"address": address}]}})
    r = d.get("/")
    assert r.status == 502 and address.encode() not in r.body
    assert address in d.wait_event("request", end="connect_failed")["reason"]


def test_retries_can_be_switched_off(sluice, origin, dead):
    d = sluice({"one": {"servers": [{"address": dead()}, {"address": origin.address}],
                        "retries": {"max": 0}}}, threads=1)
    assert 502 in {d.get("/").status for _ in range(4)}


def answer_once(c):
    """Answers the first request; takes the second, if one comes, and hangs up without a word."""
    c.read_head()
    c.send(response(b"ok"))
    c.read_head()


def test_a_get_on_a_reused_connection_that_died_is_sent_again(sluice, backend):
    b = backend(answer_once)
    d = sluice([b.address], threads=1)
    with d.client() as c:
        for _ in range(10):
            r = c.get("/")
            assert (r.status, r.body) == (200, b"ok")


def test_a_post_on_a_reused_connection_that_died_is_not_sent_twice(sluice, backend):
    b = backend(answer_once)
    d = sluice([b.address], threads=1)
    with d.client() as c:
        assert c.get("/").status == 200
        assert c.request("POST", "/pay", body=b"1").status == 502
    assert sum(b"POST /pay" in h for h in b.heads) == 1


def test_a_request_that_a_dying_backend_dropped_goes_elsewhere(sluice, backend):
    """A process that is killed may accept for a moment what it will never answer."""
    def dying(c):
        c.read_head()
        if c.number == 0:
            c.send(response(b"last words"))
            c.read_head()
        c.reset()
    a, b = backend(dying), backend(response(b"ok"))
    d = sluice({"one": {"servers": [{"address": a.address, "weight": 200}, {"address": b.address}]}}, threads=1)
    with d.client() as c:
        assert c.get("/").body == b"last words"
        r = c.get("/")
        assert (r.status, r.body) == (200, b"ok")


def test_a_get_that_dies_on_a_fresh_connection_is_not_sent_for_ever(sluice, backend):
    b = backend(lambda c: c.read_head())
    d = sluice([b.address])
    assert d.get("/").status == 502
    assert len(b.heads) <= 3


def test_a_request_with_a_body_goes_elsewhere_when_the_connect_fails(sluice, origin, dead):
    d = sluice({"one": {"servers": [{"address": dead()}, {"address": origin.address}]}})
    body = b"x" * 500000
    for _ in range(10):
        with d.client() as c:
            r = c.request("POST", "/echo", body=body)
            assert (r.status, r.body) == (200, body)


def test_a_body_that_has_begun_is_not_replayed(sluice, backend):
    """The backend takes part of the body and dies: nobody else may get the rest as if it were all."""
    def script(c):
        c.read_head()
        c.read_exactly(1000)
        c.reset()
    b = backend(script)
    d = sluice([b.address])
    with d.client() as c:
        c.send(request_bytes("PUT", "/", {"Content-Length": 5000}) + b"x" * 1000)
        assert c.read_response().status == 502
    assert len(b.heads) == 1


def test_a_chunked_body_of_which_framing_was_taken_is_not_begun_again(sluice, backend):
    """The backend hangs up behind a chunk's size: parsed from its start, the chunk's data would be framing, and a request behind it."""
    def script(c):
        c.read_head()
        c.send(response(b"first"))
        c.read_head()
        c.read_exactly(4)
    b = backend(script)
    d = sluice([b.address], threads=1)
    with d.client() as c:
        assert c.get("/").status == 200
        c.send(request_bytes("PUT", "/", {"Transfer-Encoding": "chunked"}) + b"40\r\n")
        assert c.read_response().status == 502
        c.try_send(b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: test.example\r\n\r\n")
        assert c.read_end()[0] == b""
    assert len(b.heads) == 2


@pytest.mark.parametrize("engine", ENGINES + ("auto",))
def test_a_body_that_is_lost_on_its_way_to_a_dead_backend_is_not_begun_again(sluice, backend, engine):
    """Its first bytes and the backend's reset are there at the same time: what has left the client's socket is gone."""
    reset, gone = threading.Event(), threading.Event()

    def script(c):
        c.read_head()
        c.send(response(b"first"))
        c.read_head()
        reset.wait(60)
        c.reset()
        gone.set()
    b = backend(script)
    d = sluice([b.address], threads=1, splice={"engine": engine, "min_bytes": 4096})
    with d.client() as c:
        assert c.get("/").status == 200
        c.send(request_bytes("PUT", "/", {"Content-Length": 20000}))
        wait_until(lambda: len(b.heads) == 2, "the second request")
        d.send_signal(signal.SIGSTOP)
        wait_until(lambda: stopped(d.pid), "the daemon to stand still")
        c.send(b"x" * 2000)
        reset.set()
        assert gone.wait(60)
        d.send_signal(signal.SIGCONT)
        assert c.read_response().status == 502
    assert len(b.heads) == 2


def test_retries_are_counted(sluice, origin, dead):
    d = sluice({"one": {"servers": [{"address": dead()}, {"address": origin.address}],
                        "health_check": {"type": "tcp", "interval": "60s", "fall": 100}}}, threads=1)
    for _ in range(6):
        assert d.get("/").status == 200
    assert [n for n, _, v in d.metrics().samples if "retr" in n and v > 0], "no series tells of the retries"


@pytest.mark.parametrize("policy", ["round_robin", "random", "least_conn", "p2c"])
def test_load_is_spread(sluice, backend, policy):
    bs = [backend(response(str(i).encode())) for i in range(3)]
    d = sluice({"one": {"balance": policy, "servers": [{"address": b.address} for b in bs]}}, threads=1)
    seen = [d.get("/").body for _ in range(90)]
    counts = [seen.count(str(i).encode()) for i in range(3)]
    assert min(counts) >= 10, counts
    if policy == "round_robin":
        assert counts == [30, 30, 30]


def test_weights(sluice, backend):
    a, b = backend(response(b"a")), backend(response(b"b"))
    d = sluice({"one": {"servers": [{"address": a.address, "weight": 3}, {"address": b.address, "weight": 1}]}}, threads=1)
    seen = [d.get("/").body for _ in range(40)]
    assert (seen.count(b"a"), seen.count(b"b")) == (30, 10)


@pytest.mark.parametrize("policy", ["fnv", "ketama", "maglev"])
def test_a_key_stays_with_its_backend(sluice, backend, policy):
    bs = [backend(response(str(i).encode())) for i in range(4)]
    d = sluice({"one": {"balance": policy, "hash": {"key": "header:X-User"}, "servers": [{"address": b.address} for b in bs]}})
    homes = {}
    for _ in range(3):
        for user in range(40):
            body = d.get("/", fields={"X-User": f"user{user}"}).body
            assert homes.setdefault(user, body) == body
    assert len(set(homes.values())) >= 3, "hardly spread"


def test_a_burst_is_served_by_connections_of_its_own_number(sluice, backend):
    """Forty requests at once on one slow backend: none waits for another's connection."""
    gate = threading.Barrier(40, timeout=60)

    def script(c):
        while True:
            c.read_head()
            gate.wait()
            c.send(response(b"x"))
    b = backend(script)
    d = sluice([b.address])
    results = []
    threads = [threading.Thread(target=lambda: results.append(d.get("/").status), daemon=True) for _ in range(40)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert results == [200] * 40
    wait_until(lambda: d.metrics().total("sluice_backend_requests_total", upstream="one", backend=b.address) == 40, "40 to be counted")


def test_a_closed_port_is_not_tried_for_each_request(sluice, origin):
    """After `fall` failures in a row a backend is out without any health check configured, and comes back by itself."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        d = sluice({"one": {"servers": [{"address": f"127.0.0.1:{port}"}, {"address": origin.address}]}})
        for _ in range(20):
            assert d.get("/").status == 200
        wait_until(lambda: not d.backend_up("one", f"127.0.0.1:{port}"), "the closed port to be out")
        s.listen(64)
        wait_until(lambda: d.backend_up("one", f"127.0.0.1:{port}"), "it to be back")
