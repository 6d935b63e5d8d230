# SPDX-License-Identifier: Apache-2.0
"""Every wait has an end, and slow is not the same as alive: timeouts, and the least progress a peer must make."""
import socket
import time

import pytest

from lib.backend import response
from lib.client import TIMEOUT, Client, Ended, request_bytes
from lib.wait import DEADLINE

SHORT = {"head": "500ms", "body": "500ms", "idle": "500ms", "write": "1s"}
UP = {"connect": "500ms", "read": "700ms", "write": "700ms", "idle": "60s"}
# For peers that must not be given up: a busy machine may hold them up for longer than SHORT allows.
PATIENT = {"head": "10s", "body": "2s", "idle": "10s", "write": "2s"}
UP_PATIENT = {"connect": "10s", "read": "2s", "write": "2s", "idle": "60s"}


@pytest.fixture(scope="module")
def proxy(module_sluice, origin):
    return module_sluice({"one": {"servers": [{"address": origin.address}], "timeouts": UP}}, listener={"timeouts": SHORT})


@pytest.fixture(scope="module")
def patient(module_sluice, origin):
    return module_sluice({"one": {"servers": [{"address": origin.address}], "timeouts": UP_PATIENT}}, listener={"timeouts": PATIENT})


class Clock:
    """Started before what starts the proxy's clock, so that what is measured is never less than what it measures."""

    def __init__(self):
        self.start = time.monotonic()

    def at_least(self, seconds):
        return time.monotonic() - self.start >= seconds


def test_a_head_that_does_not_end_is_a_408(proxy):
    clock = Clock()
    with proxy.client() as c:
        c.send(b"GET / HTTP/1.1\r\nHo")
        assert c.read_response().status == 408 and clock.at_least(0.5)
        assert c.ended() == "fin"


def test_a_head_that_trickles_is_a_408(proxy):
    """One byte now and then does not start the clock anew."""
    with proxy.client() as c:
        for byte in b"GET / HTTP/1.1\r\nX: " + b"a" * 60:
            if not c.try_send(bytes([byte])):
                break
            time.sleep(0.02)
        assert c.read_response().status == 408


@pytest.mark.parametrize("first", [False, True], ids=["new", "used"])
def test_a_connection_without_a_request_is_closed_silently(proxy, first):
    clock = Clock()
    with proxy.client() as c:
        if first:
            c.get("/")
        assert c.ended() == "fin" and clock.at_least(0.5)


def test_a_body_that_stops_is_a_408(proxy):
    clock = Clock()
    with proxy.client() as c:
        c.send(request_bytes("POST", "/sha256", {"Content-Length": 1000}) + b"x" * 10)
        assert c.read_response().status == 408 and clock.at_least(0.5)


def test_a_chunked_body_that_stops_is_a_408(proxy):
    with proxy.client() as c:
        c.send(request_bytes("POST", "/sha256", {"Transfer-Encoding": "chunked"}) + b"5\r\nhello\r\n")
        assert c.read_response().status == 408


def test_a_body_below_the_least_rate_is_a_408(proxy):
    """A byte now and then is progress, and still too slow (240 bytes a second unless configured)."""
    with proxy.client() as c:
        c.send(request_bytes("POST", "/sha256", {"Content-Length": 100000}))
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end and c.try_send(b"x"):
            time.sleep(0.1)
            c.sock.setblocking(False)
            try:
                if c.sock.recv(1, socket.MSG_PEEK):
                    break
            except BlockingIOError:
                pass
            finally:
                c.sock.settimeout(TIMEOUT)
        assert time.monotonic() < end, "it went on for ever"
        assert c.read_response().status == 408


def test_a_steady_body_may_take_longer_than_the_timeout(patient):
    clock = Clock()
    with patient.client() as c:
        c.send(request_bytes("POST", "/sha256", {"Content-Length": 25000}))
        for _ in range(25):
            c.send(b"x" * 1000)
            time.sleep(0.1)
        assert c.read_response().status == 200 and clock.at_least(2)


def test_a_backend_that_does_not_answer_is_a_504(proxy):
    clock = Clock()
    with proxy.client() as c:
        assert c.get("/delay/600000").status == 504 and clock.at_least(0.7)


def test_a_backend_that_is_slow_within_its_time_is_fine(patient):
    assert patient.get("/delay/700?bytes=7").length == 7


def test_a_backend_that_stops_within_the_body_is_cut(sluice, backend):
    def script(c):
        c.read_head()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
        c.read_end()
    b = backend(script)
    d = sluice({"one": {"servers": [{"address": b.address}], "timeouts": UP}})
    with d.client() as c:
        c.send(request_bytes())
        r = c.read_head()
        with pytest.raises(Ended) as e:
            c.read_body(r)
        assert e.value.how == "rst"
    b.wait_ended()


def test_a_steady_response_may_take_longer_than_the_timeout(patient):
    clock = Clock()
    assert patient.get("/slow?bytes=25000&rate=10000&ms=100").length == 25000 and clock.at_least(2)


def test_a_backend_that_does_not_read_the_request_is_a_504(proxy):
    with proxy.client() as c:
        c.send(request_bytes("POST", "/stall", {"Content-Length": 1 << 30}))
        c.sock.settimeout(0.2)
        try:
            while True:
                c.send(b"x" * 262144)
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass
        c.sock.settimeout(TIMEOUT)
        try:
            assert c.read_response().status == 504
        except Ended as e:
            assert e.how == "rst"  # our unsent bytes may turn its answer into a reset


def test_a_backend_that_can_not_be_reached_in_time_is_a_504(sluice):
    """A full backlog: the kernel drops the SYN, nobody answers."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(0)
        fill = []
        for _ in range(4):
            f = socket.socket()
            f.setblocking(False)
            f.connect_ex(s.getsockname())
            fill.append(f)
        d = sluice({"one": {"servers": [{"address": f"127.0.0.1:{s.getsockname()[1]}"}], "timeouts": UP, "retries": {"max": 0}}})
        assert d.get("/").status == 504
        for f in fill:
            f.close()


def test_a_client_that_stops_reading_is_given_up(sluice, backend, engine):
    def script(c):
        c.read_head()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            c.send(b"x" * 1000000)
    b = backend(script)
    d = sluice([b.address], listener={"timeouts": SHORT}, splice={"engine": engine, "min_bytes": 4096, "window": 262144})
    with Client(d.address, rcvbuf=16384) as c:
        c.send(request_bytes())
        c.read_head()
        assert b.wait_ended() == "rst"
        with pytest.raises(Ended) as e:
            while True:
                c._more()
                c.buffer = b""
        assert e.value.how == "rst"


def test_a_client_that_reads_below_the_least_rate_is_given_up(sluice, backend, engine):
    def script(c):
        c.read_head()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            c.send(b"x" * 1000000)
    b = backend(script)
    d = sluice([b.address], listener={"timeouts": SHORT, "min_rate": {"body": 240, "write": 200000}},
               splice={"engine": engine, "min_bytes": 4096, "window": 262144})
    with Client(d.address, rcvbuf=4096) as c:
        c.send(request_bytes())
        c.read_head()
        end = time.monotonic() + DEADLINE
        while not b.connections[0].ended:
            assert time.monotonic() < end, "it was served at its own pace for ever"
            try:
                c.sock.recv(200)
            except ConnectionResetError:
                break
            time.sleep(0.02)
        b.wait_ended()


def test_slow_but_steady_readers_are_served(sluice, origin, engine):
    d = sluice([origin.address], listener={"timeouts": PATIENT}, splice={"engine": engine, "min_bytes": 4096, "window": 262144})
    n = 4_000_000
    clock = Clock()
    with Client(d.address, rcvbuf=65536) as c:
        c.send(request_bytes(path=f"/bytes/{n}"))
        r = c.read_head()
        import hashlib
        from lib import pattern
        digest, got = hashlib.sha256(), 0
        while got < n:
            if not c.buffer:
                c._more(30000)
                time.sleep(0.02)
            digest.update(c.buffer)
            got += len(c.buffer)
            c.buffer = b""
        assert r.status == 200 and digest.hexdigest() == pattern.sha256(n) and clock.at_least(2)


def test_idle_backend_connections_are_let_go(sluice, backend):
    b = backend(response(b"x"))
    d = sluice({"one": {"servers": [{"address": b.address}], "timeouts": {"idle": "500ms"}}})
    d.get("/")
    assert b.wait_ended() == "fin"
