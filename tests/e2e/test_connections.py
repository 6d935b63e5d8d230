# SPDX-License-Identifier: Apache-2.0
"""Connections and messages: keep-alive, pipelining, responses without bodies, interim and early responses, HTTP/1.0."""
import json
import signal
import ssl
import threading

import pytest

from lib import pattern
from lib.backend import response
from lib.client import Client, Ended, request_bytes
from lib.process import stopped
from lib.wait import wait_until


@pytest.fixture(scope="module")
def proxy(module_sluice, origin):
    return module_sluice([origin.address], threads=1)


def test_one_connection_carries_many_requests(proxy):
    with proxy.client() as c:
        for n in range(50):
            assert c.get(f"/bytes/{n}").length == n


def test_the_backend_connection_is_used_again(sluice, own_origin):
    origin = own_origin()
    d = sluice([origin.address], threads=1)
    numbers = [int(d.get("/").get("x-conn-requests")) for _ in range(20)]
    assert numbers == list(range(1, 21)), "each client came with its own connection, the backend saw one"


def test_pipelined_requests_are_answered_in_order(proxy):
    with proxy.client() as c:
        c.send(b"".join(request_bytes(path=f"/bytes/{n}?seed={n}") for n in range(1, 60)))
        for n in range(1, 60):
            r = c.read_response()
            assert r.body == pattern.body(n, n)


def test_a_thousand_pipelined_requests_are_answered_in_order(sluice, backend):
    def script(c):
        while True:
            c.send(response(c.read_head().split(b" ")[1]))
    d = sluice([backend(script).address])
    with d.client() as c:
        writer = threading.Thread(target=c.send, args=(b"".join(request_bytes(path=f"/{i}") for i in range(1000)),), daemon=True)
        writer.start()
        assert [c.read_response().body for _ in range(1000)] == [b"/%d" % i for i in range(1000)]
        writer.join(60)


def test_a_client_that_pipelines_does_not_hold_up_the_others(sluice, backend, tmp_path):
    """Hundreds of requests that need no backend lie there, and then somebody else's one."""
    def asks(path):
        return request_bytes("OPTIONS", path, {"Max-Forwards": "0"})
    log = tmp_path / "access.log"
    d = sluice([backend(response(b"ok")).address], threads=1, access_log={"path": str(log), "format": "json"})
    with d.client() as many, d.client() as one:
        for c in (many, one):
            c.send(asks("/first"))
            assert c.read_response("OPTIONS").status == 200
        d.send_signal(signal.SIGSTOP)
        wait_until(lambda: stopped(d.pid), "the daemon to stand still")
        many.send(asks("/many") * 500)
        one.send(asks("/one"))
        d.send_signal(signal.SIGCONT)
        assert one.read_response("OPTIONS").status == 200
        assert [many.read_response("OPTIONS").status for _ in range(500)] == [200] * 500
    lines = wait_until(lambda: len(text := log.read_text().splitlines()) == 503 and text, "the access log")
    before = [json.loads(line)["path"] for line in lines].index("/one")
    assert before < 100, f"{before} requests went before it"


def test_pipelined_requests_with_bodies(proxy):
    with proxy.client() as c:
        c.send(b"".join(request_bytes("POST", "/echo", body=b"x" * n) for n in (0, 1, 1000, 70000, 3)))
        assert [c.read_response().length for _ in range(5)] == [0, 1, 1000, 70000, 3]


def test_connection_close_is_honoured(proxy):
    with proxy.client() as c:
        c.send(request_bytes(fields={"Connection": "close"}))
        r = c.read_response()
        assert r.status == 200 and r.get("connection").lower() == "close"
        assert c.ended() == "fin"


def test_nothing_behind_a_connection_close_is_answered(proxy):
    with proxy.client() as c:
        c.send(request_bytes(fields={"Connection": "close"}) + request_bytes(path="/bytes/5"))
        assert c.read_response().status == 200
        c.end()
        assert c.read_end()[0] == b""


@pytest.mark.parametrize("more", [b"\r\n", request_bytes(path="/again")], ids=["crlf", "request"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_what_lies_behind_a_connection_close_does_not_cost_the_answer(sluice, backend, certs_dir, tls, more):
    """It is not read, and closing with bytes unread would be a reset: the client would lose what it has not read."""
    go = threading.Event()

    def script(c):
        c.read_head()
        assert go.wait(60)
        c.send(response(b"x" * 3_000_000))
    b = backend(script)
    files = {"cert": str(certs_dir / "server.pem"), "key": str(certs_dir / "server.key")}
    d = sluice([b.address], threads=1, listener={"tls": {"certificates": [files]}} if tls else None)
    context = ssl.create_default_context(cafile=certs_dir / "ca.pem") if tls else None
    with d.client(tls=context, server_name="one.demo" if tls else None) as c:
        c.send(request_bytes(fields={"Connection": "close"}))
        wait_until(lambda: b.heads, "the request")
        c.send(more)
        go.set()
        assert c.read_response().length == 3_000_000
        assert c.read_end() == (b"", "fin")


@pytest.mark.parametrize("path, status", [("/bytes/100000", 200), ("/chunked/100000", 200), ("/status/404", 404)])
def test_head_has_the_fields_and_no_body(proxy, path, status):
    with proxy.client() as c:
        for _ in range(3):
            r = c.request("HEAD", path)
            assert r.status == status
        assert c.get("/bytes/3").length == 3, "the connection is where it should be"
    if path == "/bytes/100000":
        assert r.get("content-length") == "100000"


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_body(proxy, status):
    with proxy.client() as c:
        for _ in range(3):
            assert c.get(f"/status/{status}").status == status
        assert c.get("/bytes/3").length == 3


def test_interim_responses_reach_http_1_1_clients(proxy):
    with proxy.client() as c:
        r = c.get("/hints?n=3")
        assert (r.status, [i.status for i in r.interim]) == (200, [103, 103, 103])
        assert r.interim[0].get("link") == "</style.css>; rel=preload"
        assert c.get("/").interim == []


def test_interim_responses_do_not_reach_http_1_0_clients(proxy):
    with proxy.client() as c:
        r = c.request("GET", "/hints", version="1.0")
        assert (r.status, r.interim) == (200, [])
        assert c.ended() == "fin"


def test_an_interim_response_is_not_held_back(sluice, backend):
    def script(c):
        c.read_head()
        c.send(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n")
        c.read_head()  # comes never
    b = backend(script)
    d = sluice([b.address])
    with d.client() as c:
        c.send(request_bytes())
        assert c.read_head().status == 103


def test_expect_100_continue_is_answered_before_the_body_is_sent(proxy):
    body = pattern.body(50000)
    with proxy.client() as c:
        c.send(request_bytes("POST", "/sha256", {"Expect": "100-continue", "Content-Length": len(body)}))
        assert c.read_head().status == 100
        c.send(body)
        r = c.read_response()
        assert (r.status, r.interim) == (200, [])
        assert json.loads(r.body)["sha256"] == pattern.sha256(50000)
        assert c.get("/bytes/3").length == 3


def test_a_refusal_instead_of_100_continue_passes(proxy):
    with proxy.client() as c:
        c.send(request_bytes("POST", "/early/401", {"Expect": "100-continue", "Content-Length": 50000}))
        r = c.read_response()
        assert (r.status, r.interim) == (401, [])


def test_an_expecting_client_that_does_not_wait(proxy):
    body = pattern.body(50000)
    with proxy.client() as c:
        c.send(request_bytes("POST", "/sha256", {"Expect": "100-continue"}, body=body))
        assert json.loads(c.read_response().body)["sha256"] == pattern.sha256(50000)


def test_an_early_response_passes_while_the_body_is_on_its_way(proxy):
    with proxy.client() as c:
        c.send(request_bytes("POST", "/early/413", {"Content-Length": 1 << 30}) + b"x" * 1000)
        assert c.read_response().status == 413


def test_an_early_response_with_the_body_read_to_its_end(proxy):
    with proxy.client() as c:
        c.send(request_bytes("POST", "/early/200?keep=1", {"Content-Length": 100000}))
        c.send(b"x" * 50000)
        r = c.read_response()
        assert r.status == 200
        c.try_send(b"x" * 50000)
        c.try_send(request_bytes(path="/bytes/7"))
        try:
            assert c.read_response().length == 7
        except Ended as e:
            assert e.got == b"", "it may end the connection instead, but not begin something else"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_early_response_says_that_the_connection_ends(sluice, backend, framing):
    """The rest of the request is not waited for, so the client must not ask again on this connection."""
    def script(c):
        c.read_head()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        c.read_end()
    d = sluice([backend(script).address])
    with d.client() as c:
        if framing == "length":
            c.send(request_bytes("POST", "/", {"Content-Length": 1000}) + b"x" * 10)
        else:
            c.send(request_bytes("POST", "/", {"Transfer-Encoding": "chunked"}) + b"a\r\n" + b"x" * 10 + b"\r\n")
        r = c.read_response()
        assert (r.status, r.body, r.get("Connection")) == (200, b"ok", "close")
        c.ended()


def test_http_1_0_gets_no_chunks_and_a_close(proxy):
    with proxy.client() as c:
        c.send(request_bytes(path="/chunked/100000?chunk=999", version="1.0"))
        r = c.read_response(keep=False)
        assert (r.status, r.framing, r.sha256) == (200, "close", pattern.sha256(100000))


def test_http_1_0_keep_alive(proxy):
    with proxy.client() as c:
        for _ in range(3):
            r = c.request("GET", "/bytes/10", {"Connection": "keep-alive"}, version="1.0")
            assert (r.length, r.get("connection", "").lower()) == (10, "keep-alive")


def test_an_http_1_0_backend(sluice, backend):
    def script(c):
        c.read_head()
        c.send(b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nold")
    b = backend(script)
    d = sluice([b.address])
    for _ in range(3):
        r = d.get("/")
        assert (r.status, r.body, r.version) == (200, b"old", "HTTP/1.1")


def test_trailers_pass(proxy):
    with proxy.client() as c:
        r = c.get("/chunked/1000?chunk=100&trailer=1&ext=1")
        assert (r.sha256, r.trailers) == (pattern.sha256(1000), [("X-Trailer", "end")])
        assert c.get("/bytes/3").length == 3


def test_half_closed_after_the_request_with_more_behind_it(proxy):
    """A client that pipelines and then ends its direction is answered in full."""
    with proxy.client() as c:
        c.send(request_bytes(path="/bytes/10") + request_bytes(path="/bytes/20") + request_bytes(path="/bytes/30"))
        c.end()
        lengths = [c.read_response().length for _ in range(2)]
        assert lengths == [10, 20]


def test_bytes_trickle_in(proxy):
    with proxy.client() as c:
        for raw in (request_bytes(path="/bytes/5"), request_bytes("POST", "/echo", body=b"hello")):
            for i in range(len(raw)):
                c.send(raw[i:i + 1])
            assert c.read_response().length == 5


def test_several_listeners_and_unix_sockets(sluice, own_origin, tmp_path):
    o = own_origin(unix=str(tmp_path / "origin.sock"))
    path = str(tmp_path / "front.sock")
    d = sluice({"one": {"servers": [{"address": f"unix:{o.unix}"}]}},
               listeners=[{"address": f"unix:{path}", "routes": [{"upstream": "one"}]}])
    n = 2_000_000
    assert d.get(f"/bytes/{n}").sha256 == pattern.sha256(n)
    with Client(path) as c:
        assert c.get(f"/bytes/{n}").sha256 == pattern.sha256(n)
        assert json.loads(c.request("POST", "/sha256", body=pattern.body(n)).body)["sha256"] == pattern.sha256(n)


def test_ipv6_on_both_sides(sluice, backend):
    import socket
    b = backend(response(b"six"), family=socket.AF_INET6)
    from lib.sluice import free_port
    port = free_port("::1")
    d = sluice([b.address], listeners=[{"address": f"[::1]:{port}", "routes": [{"upstream": "one"}]}])
    with Client(("::1", port)) as c:
        assert c.get("/").body == b"six"
    assert d.get("/").body == b"six"


def test_routes_by_host_and_path(sluice, backend):
    names = ["api", "site", "wild", "rest"]
    ups = {n: {"servers": [{"address": backend(response(n.encode())).address}]} for n in names}
    d = sluice(ups, listener={"routes": [{"host": "example.org", "path_prefix": "/api", "upstream": "api"},
                                         {"host": "example.org", "upstream": "site"},
                                         {"host": "*.example.org", "upstream": "wild"}, {"upstream": "rest"}]})
    table = [("example.org", "/api", "api"), ("example.org", "/api/x?y", "api"), ("EXAMPLE.org:80", "/api/", "api"),
             ("example.org", "/apix", "site"), ("example.org", "/", "site"), ("a.example.org", "/api", "wild"),
             ("example.com", "/api", "rest")]
    with d.client() as c:
        for host, path, want in table:
            assert c.get(path, host=host).body.decode() == want, (host, path)


def test_connections_are_counted_and_gone_again(sluice, origin):
    d = sluice([origin.address])
    clients = [d.client() for _ in range(30)]
    for c in clients:
        c.get("/")
    d.wait_metric("sluice_active_connections", 30)
    for c in clients:
        c.close()
    d.wait_metric("sluice_active_connections", 0)


def test_the_idle_pool_is_bounded_and_unasked_bytes_end_its_connections(sluice, backend):
    """A backend that says something on an idle connection loses it; the next request does not get to read that."""
    speak = threading.Event()

    def script(c):
        c.read_head()
        c.send(response(b"first"))
        speak.wait(60)
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        c.read_end()

    b = backend(script)
    d = sluice([b.address], threads=1)
    assert d.get("/").body == b"first"
    speak.set()
    b.wait_ended(0)
    assert d.get("/").body == b"first"
    assert len(b.connections) == 2


def test_unasked_bytes_that_come_in_the_same_moment_as_the_next_request(sluice, backend):
    """The request is told first, the unasked bytes right behind it: still nobody gets to read them."""
    speak, spoken = threading.Event(), threading.Event()

    def script(c):
        c.read_head()
        c.send(response(b"good"))
        if c.number == 0:
            speak.wait(60)
            c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
            spoken.set()
        c.read_end()

    b = backend(script)
    d = sluice([b.address], threads=1)
    with d.client() as c:
        assert c.get("/").body == b"good"
        d.send_signal(signal.SIGSTOP)
        wait_until(lambda: stopped(d.pid), "all threads to stand still")
        c.send(request_bytes())
        speak.set()
        assert spoken.wait(60)
        d.send_signal(signal.SIGCONT)
        assert c.read_response().body == b"good"
    assert len(b.connections) == 2


def test_a_pool_connection_that_the_backend_ended_is_not_used(sluice, backend):
    def script(c):
        c.read_head()
        c.send(response(b"once"))
    b = backend(script)
    d = sluice([b.address], threads=1)
    for _ in range(20):
        assert d.get("/").body == b"once"
        # The backend ends each connection without saying so first: whatever the pool thinks, nobody may notice.
    wait_until(lambda: len(b.heads) == 20, "twenty requests")
