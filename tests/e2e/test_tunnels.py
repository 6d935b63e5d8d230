# SPDX-License-Identifier: Apache-2.0
"""Upgrade: a tunnel opens after a 101 that was asked for, and ends one direction at a time."""
import pytest

from lib.backend import response
from lib.client import request_bytes

UPGRADE = {"Connection": "Upgrade", "Upgrade": "echo"}
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


@pytest.fixture(scope="module")
def proxy(module_sluice, origin):
    return module_sluice([origin.address], threads=1)


def test_the_answer_to_an_upgrade_is_a_101_with_its_token(proxy):
    with proxy.client() as c:
        c.send(request_bytes(path="/upgrade", fields=UPGRADE))
        r = c.read_response()
        assert r.status == 101 and r.get("upgrade") == "echo" and r.get("connection").lower() == "upgrade"
        for n in (1, 10, 100000):
            c.send(b"x" * n)
            assert c.read_exactly(n) == b"x" * n


def test_bytes_sent_along_with_the_request_are_in_the_tunnel(proxy):
    with proxy.client() as c:
        c.send(request_bytes(path="/upgrade", fields=UPGRADE) + b"early bird")
        assert c.read_response().status == 101
        assert c.read_exactly(10) == b"early bird"


def test_an_upgrade_that_the_backend_ignores_is_a_plain_exchange(proxy):
    with proxy.client() as c:
        assert c.request("GET", "/bytes/9", UPGRADE).length == 9
        assert c.get("/bytes/8").length == 8


@pytest.mark.parametrize("offered, taken, status", [("echo", "Echo", 101), ("one, echo/2", "echo/2", 101), ("one, two", "two, one", 101),
                                                    ("echo", "other", 502), ("echo", "echo/2", 502), ("echo", "echo, other", 502),
                                                    ("echo", "h2c", 502), ("echo", "", 502)])
def test_a_101_may_switch_to_what_was_offered_only(sluice, backend, offered, taken, status):
    b = backend(SWITCH.replace(b"Upgrade: echo", b"Upgrade: " + taken.encode()))
    d = sluice([b.address])
    with d.client() as c:
        c.send(request_bytes(fields={"Connection": "Upgrade", "Upgrade": offered}))
        assert c.read_response().status == status


def test_the_client_ends_its_direction_first(sluice, backend):
    got = []

    def script(c):
        c.read_head()
        c.send(SWITCH)
        assert c.read_end() == "fin"
        got.append(c.received)
        c.send(b"still talking")
    b = backend(script)
    d = sluice([b.address])
    with d.client() as c:
        c.send(request_bytes(path="/", fields=UPGRADE))
        assert c.read_response().status == 101
        c.send(b"over and out")
        c.end()
        assert c.read_end() == (b"still talking", "fin")
    assert got[0].endswith(b"over and out")


def test_the_backend_ends_its_direction_first(sluice, backend):
    got = []

    def script(c):
        c.read_head()
        c.send(SWITCH + b"that was all")
        c.end()
        c.read_end()
        got.append(c.received)
    b = backend(script)
    d = sluice([b.address])
    with d.client() as c:
        c.send(request_bytes(path="/", fields=UPGRADE))
        assert c.read_response().status == 101
        assert c.read_end() == (b"that was all", "fin")
        c.send(b"not yet for me")
        c.end()
        b.wait_ended()
    assert got[0].endswith(b"not yet for me")


@pytest.mark.parametrize("who", ["client", "backend"])
def test_a_reset_of_one_side_ends_the_other(sluice, backend, who):
    def script(c):
        c.read_head()
        c.send(SWITCH)
        c.read_exactly(3)
        if who == "backend":
            c.reset()
            return
        c.read_end()
    b = backend(script)
    d = sluice([b.address])
    with d.client() as c:
        c.send(request_bytes(path="/", fields=UPGRADE))
        assert c.read_response().status == 101
        c.send(b"abc")
        if who == "client":
            c.reset()
            assert b.wait_ended() in ("fin", "rst")
        else:
            assert c.read_end()[1] in ("rst", "fin")


def test_a_101_that_nobody_asked_for_is_a_502(sluice, backend):
    d = sluice([backend(SWITCH).address])
    assert d.get("/").status == 502


@pytest.mark.parametrize("fields", [
    [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQAAP__")],
    [("Connection", "upgrade, http2-settings"), ("Upgrade", "H2C"), ("HTTP2-Settings", "AAMAAABkAAQAAP__")],
    [("Connection", "Upgrade"), ("Upgrade", "h2c")],
    [("Connection", "Upgrade"), ("Upgrade", "h2c, websocket")],
    [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Upgrade", "h2c")],
    [("Upgrade", "h2c")],
], ids=["settings", "upper_case", "alone", "in_a_list", "second_field", "not_in_connection"])
def test_h2c_never_passes(sluice, backend, fields):
    b = backend(response(b"plain"))
    d = sluice([b.address])
    with d.client() as c:
        r = c.request("GET", "/", fields)
        assert (r.status, r.body) == (200, b"plain")
    assert b"h2c" not in b.heads[0].lower() and b"http2-settings" not in b.heads[0].lower()


def test_an_upgrade_without_connection_upgrade_does_not_pass(sluice, backend):
    b = backend(SWITCH)
    d = sluice([b.address])
    with d.client() as c:
        assert c.request("GET", "/", {"Upgrade": "echo"}).status == 502
    assert b"\r\nupgrade:" not in b.heads[0].lower()
