# SPDX-License-Identifier: Apache-2.0
"""When one side goes away the other is told, and nothing is left behind."""
import random
import socket
import struct
import threading
import time

import pytest

from conftest import MIN_BYTES, WINDOW
from lib import build, pattern
from lib.client import Client, request_bytes
from lib.process import socket_fds
from lib.wait import wait_until


@pytest.fixture(params=["close", "reset"])
def leave(request):
    return getattr(Client, request.param)


def engine_of(engine):
    return {"engine": engine, "min_bytes": MIN_BYTES, "window": WINDOW}


def waiting(c):
    c.read_head()
    c.read_end()


def test_a_client_that_leaves_before_the_answer_ends_the_backend_request(sluice, backend, leave):
    b = backend(waiting)
    d = sluice([b.address])
    c = d.client()
    c.send(request_bytes())
    wait_until(lambda: b.heads, "the request to arrive")
    leave(c)
    b.wait_ended()
    d.wait_metric("sluice_active_connections", 0)


def test_a_client_that_leaves_within_its_request_ends_the_backend_request(sluice, backend, leave):
    b = backend(waiting)
    d = sluice([b.address])
    c = d.client()
    c.send(request_bytes("POST", "/", {"Content-Length": 1000}) + b"x" * 500)
    wait_until(lambda: b.heads, "the request to arrive")
    leave(c)
    b.wait_ended()
    d.wait_metric("sluice_active_connections", 0)


def test_a_cut_request_never_looks_complete(sluice, backend, engine):
    """A chunked request that its client breaks off: the backend sees no last chunk."""
    b = backend(waiting)
    d = sluice([b.address], splice=engine_of(engine))
    c = d.client()
    c.send(request_bytes("POST", "/", {"Transfer-Encoding": "chunked"}) + b"%x\r\n" % 200000 + b"x" * 100000)
    wait_until(lambda: b.connections and len(b.connections[0].received) > 50000, "half of the body to arrive")
    c.close()
    b.wait_ended()
    assert not b.connections[0].received.endswith(b"0\r\n\r\n")


def test_a_client_that_leaves_within_the_response(sluice, backend, engine, leave):
    def endless(c):
        c.read_head()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n")
        while True:
            c.send(b"x" * 100000)
    b = backend(endless)
    d = sluice([b.address], splice=engine_of(engine))
    c = Client(d.address)
    c.send(request_bytes())
    c.read_exactly(500000)
    leave(c)
    b.wait_ended()
    d.wait_metric("sluice_active_connections", 0)


def test_the_backend_connection_of_an_aborted_response_is_not_used_again(sluice, backend, engine):
    """What was still on its way would be the next request's answer."""
    n = 40_000_000

    def script(c):
        c.read_head()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % n)
        for _ in range(n // 1_000_000):
            c.send(b"x" * 1_000_000)
        while True:
            c.read_head()
            c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext")
    b = backend(script)
    d = sluice([b.address], splice=engine_of(engine), threads=1)
    c = d.client()
    c.send(request_bytes())
    c.read_exactly(100000)
    c.reset()
    b.wait_ended(0)
    with d.client() as c:
        c.send(request_bytes())
        r = c.read_head()
        assert r.get("content-length") == str(n), "the new connection's first answer"
        assert c.read_exactly(1000) == b"x" * 1000


def test_a_storm_of_aborted_flows_leaves_nothing_behind(sluice, origin, engine):
    """500 flows at once, broken off at random on the client's side or cut by the origin."""
    d = sluice([origin.address], splice=engine_of(engine), listener={"timeouts": {"idle": "20s"}})
    for _ in range(4):
        d.get("/bytes/300000")
    base = socket_fds(d.pid)
    rnd = random.Random(7)
    paths = ["/bytes/3000000", "/chunked/2000000?chunk=100000", "/short/2000000?send=1000000", "/short/2000000?send=500000&rst=1",
             "/slow?bytes=1000000&rate=3000000&ms=10", "/delay/50?bytes=500000", "/reset", "/close/1000000", "/drop"]
    errors = []

    def flow(number, path, take, how, upload):
        try:
            with Client(d.address) as c:
                if upload:
                    c.send(request_bytes("POST", "/echo", {"Content-Length": 2_000_000}))
                    c.try_send(b"x" * take)
                else:
                    c.send(request_bytes(path=path))
                c.sock.settimeout(0.7)
                got = 0
                try:
                    while got < take:
                        data = c.sock.recv(65536)
                        if not data:
                            return
                        got += len(data)
                except (ConnectionResetError, TimeoutError):
                    pass
                if how:
                    c.reset()
        except (ConnectionResetError, BrokenPipeError):
            pass
        except Exception as e:
            errors.append(f"flow {number} {path}: {e!r}")

    for _ in range(5):
        threads = [threading.Thread(target=flow, daemon=True, args=(i, rnd.choice(paths), rnd.randrange(0, 1500000),
                                                                   rnd.random() < 0.5, rnd.random() < 0.2)) for i in range(100)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
    assert not errors, errors[:5]
    d.wait_metric("sluice_active_connections", 0)
    assert d.get("/bytes/3000000", keep=False).sha256 == pattern.sha256(3000000)
    d.wait_metric("sluice_active_connections", 0)
    d.wait_metric("sluice_flow_outstanding_bytes", 0)

    def settled():
        # Idle backend connections and spare pipes may stay; both are bounded and no more than a few here.
        return socket_fds(d.pid) <= base + 150
    wait_until(settled, f"descriptors to come back to {base} and a pool (now {socket_fds(d.pid)})")
    assert d.process.alive()


def test_thousands_of_short_connections_do_not_add_up(sluice, origin):
    d = sluice([origin.address])

    def burst(n):
        for _ in range(n):
            s = socket.create_connection(d.address)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()
    burst(200)
    d.wait_metric("sluice_active_connections", 0)
    before = d.rss()
    burst(3000)
    d.wait_metric("sluice_active_connections", 0)
    assert d.rss() < before + 24 * (1 << 20), f"{before} bytes before, {d.rss()} after"


def test_idle_connections_cost_little(sluice, origin):
    """Keep-alive connections that wait own no buffers. (Sanitizers keep freed memory and multiply the cost.)"""
    d = sluice([origin.address])
    d.get("/")
    before = d.rss()
    clients = []
    for _ in range(800):
        c = d.client()
        assert c.get("/").status == 200
        clients.append(c)
    d.wait_metric("sluice_active_connections", 800)
    each = (d.rss() - before) / 800
    assert each < (65536 if build.SANITIZED else 4096), f"{each:.0f} bytes for each idle connection"
    for c in clients:
        c.close()


@pytest.mark.slow
def test_pool_survives_a_backend_that_resets_idle_connections(sluice, backend):
    def script(c):
        c.read_head()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        time.sleep(0.001)
        c.reset()
    b = backend(script)
    d = sluice([b.address])
    for _ in range(100):
        assert d.get("/").body == b"ok"
