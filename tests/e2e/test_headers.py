# SPDX-License-Identifier: Apache-2.0
"""What passes of a head, and what the proxy adds. The origin's /headers tells what it was sent."""
import json

import pytest

from lib.backend import response
from lib.client import request_bytes


@pytest.fixture(scope="module")
def proxy(module_sluice, origin):
    return module_sluice([origin.address], threads=1)


def sent(proxy, fields=(), path="/headers", raw=None, **kw):
    """(request line, {lower-case name: [values]}) as the origin saw them."""
    with proxy.client() as c:
        if raw:
            c.send(raw)
            r = c.read_response()
        else:
            r = c.request("GET", path, fields, **kw)
        assert r.status == 200, r
    seen = json.loads(r.body)
    out = {}
    for name, value in seen["fields"]:
        out.setdefault(name.lower(), []).append(value)
    return seen["line"], out


def test_end_to_end_fields_pass_unchanged(proxy):
    fields = [("Accept", "*/*"), ("X-One", "1"), ("Cookie", "a=b; c=d"), ("X-Two", "a,  b"), ("X-One", "2"),
              ("Authorization", "Basic eDp5"), ("Accept-Encoding", "gzip")]
    line, got = sent(proxy, fields)
    assert line == "GET /headers HTTP/1.1"
    assert got["x-one"] == ["1", "2"]
    for name, value in fields:
        assert value in got[name.lower()]


HOP = [("Keep-Alive", "timeout=5"), ("Proxy-Connection", "keep-alive"), ("TE", "gzip"), ("Upgrade", "foo")]


def test_hop_by_hop_fields_do_not_reach_the_backend(proxy):
    _, got = sent(proxy, HOP + [("Connection", "keep-alive, X-Mine"), ("X-Mine", "secret"), ("X-Other", "kept")])
    for name, _ in HOP + [("X-Mine", "")]:
        assert name.lower() not in got, got
    assert got["x-other"] == ["kept"]
    assert "x-mine" not in ",".join(got.get("connection", [])).lower()


def test_connection_can_not_name_away_what_the_proxy_needs(proxy):
    _, got = sent(proxy, [("Connection", "Host, Content-Length, X-Forwarded-For, X-Forwarded-Proto"), ("Content-Length", "0")])
    assert got["host"] == ["test.example"]
    assert got["x-forwarded-for"] == ["127.0.0.1"] and got["x-forwarded-proto"] == ["http"]


def test_a_body_keeps_its_length_when_connection_names_it(proxy):
    with proxy.client() as c:
        r = c.request("POST", "/sha256", {"Connection": "Content-Length"}, body=b"hello")
        assert json.loads(r.body)["bytes"] == 5
        c.send(request_bytes("POST", "/sha256", {"Connection": "transfer-encoding", "Transfer-Encoding": "chunked"},
                             body=b"5\r\nhello\r\n0\r\n\r\n"))
        assert json.loads(c.read_response().body)["bytes"] == 5


def test_hop_by_hop_fields_do_not_reach_the_client(sluice, backend):
    b = backend(response(b"x", fields=HOP + [("Connection", "keep-alive, X-Mine"), ("X-Mine", "secret"), ("X-Other", "kept"),
                                             ("Proxy-Authenticate", "Basic")]))
    r = sluice([b.address]).get("/")
    assert r.get("x-other") == "kept"
    for name in ("keep-alive", "proxy-connection", "upgrade", "x-mine", "te"):
        assert name not in r.names(), r.fields
    assert "x-mine" not in r.get("connection", "").lower()


def test_forwarded_fields_are_added_and_appended(proxy):
    _, got = sent(proxy)
    assert (got["x-forwarded-for"], got["x-forwarded-proto"], got["x-forwarded-host"]) == (["127.0.0.1"], ["http"], ["test.example"])
    _, got = sent(proxy, {"X-Forwarded-For": "10.0.0.1, 10.0.0.2", "X-Forwarded-Proto": "https"})
    assert ", ".join(got["x-forwarded-for"]) == "10.0.0.1, 10.0.0.2, 127.0.0.1"
    assert got["x-forwarded-proto"] == ["http"], "what the client claims about its own connection is not believed"


def test_forwarded_fields_can_be_switched_off(sluice, origin):
    d = sluice([origin.address], listener={"forwarded": {"for": False, "proto": False, "host": False}, "via": ""})
    _, got = sent(d)
    assert not [n for n in got if n.startswith("x-forwarded") or n == "via"], got


def test_via_says_who_was_between(proxy):
    _, got = sent(proxy, {"Via": "1.0 fred"})
    assert ", ".join(got["via"]).startswith("1.0 fred, 1.1 ")
    with proxy.client() as c:
        assert "via" in c.get("/").names()


def test_host_is_the_clients_unless_the_upstream_sets_it(sluice, proxy, origin):
    _, got = sent(proxy, host="a.example:81")
    assert got["host"] == ["a.example:81"]
    d = sluice({"one": {"host": "inner.example", "servers": [{"address": origin.address}]}})
    _, got = sent(d, host="a.example:81")
    assert (got["host"], got["x-forwarded-host"]) == (["inner.example"], ["a.example:81"])


@pytest.mark.parametrize("target, line, host", [
    ("http://b.example/headers", "GET /headers HTTP/1.1", "b.example"),
    ("http://b.example:81/headers?x=y", "GET /headers?x=y HTTP/1.1", "b.example:81"),
    ("HTTP://B.example/headers", "GET /headers HTTP/1.1", "B.example"),
])
def test_absolute_form_wins_over_host(proxy, target, line, host):
    raw = f"GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n".encode()
    got_line, got = sent(proxy, raw=raw)
    assert (got_line, got["host"]) == (line, [host])


def test_http_1_0_goes_on_as_1_1(proxy):
    line, _ = sent(proxy, version="1.0")
    assert line == "GET /headers HTTP/1.1"


def test_the_target_is_not_normalised(proxy, backend, sluice):
    b = backend(response(b"x"))
    d = sluice([b.address])
    for target in ("/a/../b", "/a//b", "/%2e%2e/%00", "/a;b=c?d=%20&e=/", "/%zz"):
        d.get(target)
        assert b.heads[-1].startswith(b"GET " + target.encode() + b" HTTP/1.1\r\n"), target


def test_response_fields_pass_in_order_and_number(sluice, backend):
    fields = [("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2"), ("X-Y", "z"), ("Server", "Fancy/1.0"), ("Date", "Thu, 01 Jan 1970 00:00:00 GMT")]
    r = sluice([backend(response(b"x", fields=fields)).address]).get("/")
    assert r.all("set-cookie") == ["a=1; Path=/", "b=2"]
    assert (r.get("x-y"), r.get("server"), r.get("date")) == ("z", "Fancy/1.0", "Thu, 01 Jan 1970 00:00:00 GMT")


def test_max_forwards_counts_down_and_stops(proxy):
    with proxy.client() as c:
        r = c.request("OPTIONS", "/headers", {"Max-Forwards": "5"})
        got = {n.lower(): v for n, v in json.loads(r.body)["fields"]}
        assert got["max-forwards"] == "4"
        r = c.request("OPTIONS", "/headers", {"Max-Forwards": "0"})
        assert "x-origin" not in r.names(), "the proxy answers itself"


def test_te_trailers_may_pass_and_nothing_else_of_te(proxy):
    _, got = sent(proxy, {"TE": "trailers, gzip;q=0.5", "Connection": "TE"})
    assert got.get("te", ["trailers"]) == ["trailers"]
