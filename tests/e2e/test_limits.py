# SPDX-License-Identifier: Apache-2.0
"""Limits: what is too big is refused with the status that says so, at the limit and not before."""
import pytest

from lib.client import Client, Ended, chunked, request_bytes
from lib.wait import wait_until


@pytest.fixture(scope="module")
def proxy(module_sluice, origin):
    return module_sluice([origin.address], listener={"limits": {"head_bytes": 8192, "fields": 20, "body_bytes": 100000}})


def head_of(n):
    base = request_bytes(path="/bytes/1", fields={"X-Fill": ""})
    return request_bytes(path="/bytes/1", fields={"X-Fill": "a" * (n - len(base))})


@pytest.mark.parametrize("n, status", [(8192, 200), (8193, 431), (20000, 431), (1000000, 431)])
def test_head_size(proxy, n, status):
    raw = head_of(n)
    assert len(raw) == n
    with proxy.client() as c:
        c.try_send(raw)
        assert c.read_response().status == status


def test_a_head_without_end_is_refused_as_soon_as_it_is_too_long(proxy):
    with proxy.client() as c:
        c.try_send(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9000)
        assert c.read_response().status == 431
        c.end()
        assert c.read_end()[0] == b""


def test_a_request_line_that_is_too_long(proxy):
    with proxy.client() as c:
        c.try_send(b"GET /" + b"a" * 9000)
        assert c.read_response().status == 414


@pytest.mark.parametrize("n, status", [(19, 200), (20, 431), (200, 431)])
def test_number_of_fields(proxy, n, status):
    with proxy.client() as c:  # Host is one more
        c.send(request_bytes(path="/bytes/1", fields=[(f"X-{i}", "y") for i in range(n)]))
        assert c.read_response().status == status


@pytest.mark.parametrize("n, status", [(100000, 200), (100001, 413), (10**15, 413)])
def test_declared_body_size(proxy, n, status):
    with proxy.client() as c:
        c.send(request_bytes("POST", "/sha256", {"Content-Length": n}))
        if status == 200:
            c.send(b"x" * n)
        r = c.read_response()
        assert r.status == status
        if status == 413:
            assert r.get("connection").lower() == "close"


@pytest.mark.parametrize("n, status", [(100000, 200), (100001, 413), (300000, 413)])
def test_chunked_body_size(proxy, n, status):
    with proxy.client() as c:
        c.try_send(request_bytes("POST", "/sha256", {"Transfer-Encoding": "chunked"}, body=chunked(b"x" * n, 7777)))
        assert c.read_response().status == status


def test_the_number_of_connections(sluice, origin):
    d = sluice([origin.address], listener={"limits": {"connections": 10}}, threads=1)
    first = [d.client() for _ in range(10)]
    for c in first:
        assert c.get("/").status == 200
    late = Client(d.address)
    late.try_send(request_bytes())
    refused = None
    if not late.quiet(0.5):  # it may be refused, or wait in the backlog; it may not be served
        try:
            refused = late.read_response().status
            assert refused == 503
        except Ended as e:
            refused = e.how
    for c in first:
        assert c.get("/").status == 200, "those who were there are not disturbed"
    for c in first:
        c.close()
    if refused is None:
        assert late.read_response().status == 200, "its turn has come"
    late.close()

    def served():
        with d.client() as c:
            try:
                c.send(request_bytes())
                return c.read_response().status == 200
            except (Ended, OSError):
                return False
    wait_until(served, "a place to be free again")
