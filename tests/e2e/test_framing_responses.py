# SPDX-License-Identifier: Apache-2.0
"""
What a backend says is read as strictly. A lie in its head is a 502; a lie behind a head that has passed is a cut that
the client sees. Nothing that is not an HTTP response passes.
"""
import pytest

from lib.backend import response
from lib.client import Client, Ended, request_bytes
from lib.wait import wait_until


def ok(fields, body=b""):
    return b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + body


def chunk(body):
    return ok(b"Transfer-Encoding: chunked\r\n", body)


BAD_HEADS = {
    "te_and_cl": ok(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "cl_twice_differing": ok(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello"),
    "cl_twice_same": ok(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"),
    "cl_list": ok(b"Content-Length: 5, 5\r\n", b"hello"),
    "cl_plus": ok(b"Content-Length: +5\r\n", b"hello"),
    "cl_minus": ok(b"Content-Length: -1\r\n", b"hello"),
    "cl_empty": ok(b"Content-Length: \r\n", b"hello"),
    "cl_2_to_63": ok(b"Content-Length: 9223372036854775808\r\n"),
    "cl_2_to_64_and_5": ok(b"Content-Length: 18446744073709551621\r\n", b"hello"),
    "te_gzip": ok(b"Transfer-Encoding: gzip\r\n", b"hello"),
    "te_not_last": ok(b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"),
    "te_twice": ok(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"),
    "te_on_1_0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare_lf": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare_lf_in_fields": ok(b"X: a\nContent-Length: 5\r\n", b"hello"),
    "bare_cr": ok(b"X: a\rb\r\nContent-Length: 5\r\n", b"hello"),
    "space_before_colon": ok(b"Content-Length : 5\r\n", b"hello"),
    "obs_fold": ok(b"X: a\r\n b\r\nContent-Length: 5\r\n", b"hello"),
    "nul": ok(b"X: a\x00b\r\nContent-Length: 5\r\n", b"hello"),
    "empty_name": ok(b": a\r\nContent-Length: 5\r\n", b"hello"),
    "no_colon": ok(b"abc\r\nContent-Length: 5\r\n", b"hello"),
    "not_http": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "http_0_9": b"<html>hello</html>\r\n\r\n",
    "icy": b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n",
    "tls_alert": bytes.fromhex("15030100020228"),
    "http_2_0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "status_short": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "status_long": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "status_zero": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "status_letters": b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n",
    "leading_crlf": b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "length_in_204": b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
    "chunked_in_204": b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "length_in_1xx": b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nhello" + response(b"x"),
    "switch_nobody_asked_for": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "endless_head": b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 300000 + b"\r\n",
    "endless_fields": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 3000 + b"\r\n",
    "endless_1xx": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10000,
}

# The head is right; the end is not.
BAD_BODIES = {
    "chunk_junk": chunk(b"5\r\nhello\r\nzz\r\n"),
    "chunk_overflow": chunk(b"5\r\nhello\r\n10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "chunk_no_crlf": chunk(b"5\r\nhello0\r\n\r\n"),
    "chunk_bare_lf": chunk(b"5\nhello\n0\n\n"),
    "chunk_negative": chunk(b"-5\r\nhello\r\n0\r\n\r\n"),
    "chunk_ext_nul": chunk(b"5;\x00\r\nhello\r\n0\r\n\r\n"),
    "chunk_ext_endless": chunk(b"5;" + b"a" * 300000),
    "trailer_content_length": chunk(b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n"),
    "trailer_bad": chunk(b"5\r\nhello\r\n0\r\nno colon\r\n\r\n"),
    "trailers_endless": chunk(b"5\r\nhello\r\n0\r\n" + b"X: a\r\n" * 60000),
}


@pytest.fixture(scope="module")
def playing(module_backend, module_sluice):
    """(proxy, play): the backend answers each request with what play holds, and then `then`."""
    play = {"raw": b"", "then": "stay"}

    def script(c):
        while True:
            c.read_head()
            c.send(play["raw"])
            if play["then"] == "fin":
                return
            if play["then"] == "rst":
                c.reset()
                return
    b = module_backend(script)
    return module_sluice([b.address], threads=1), play


def outcome(proxy, path="/", version="1.1"):
    """(status or None without a head, how it ended or None when the response was whole)."""
    with Client(proxy.address) as c:
        c.send(request_bytes(path=path, version=version))
        try:
            r = c.read_head()
            while r.status < 200 and r.status != 101:
                r = c.read_head()
        except Ended as e:
            return None, e.how
        try:
            c.read_body(r)
        except Ended as e:
            return r.status, e.how
        return r.status, None


@pytest.mark.parametrize("name", BAD_HEADS)
def test_a_bad_head_is_a_502(playing, name):
    proxy, play = playing
    play.update(raw=BAD_HEADS[name], then="stay")
    assert outcome(proxy) == (502, None)


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_cut_visibly(playing, name):
    proxy, play = playing
    play.update(raw=BAD_BODIES[name], then="stay")
    status, how = outcome(proxy)
    assert (status, how) == (502, None) or how == "rst"


@pytest.mark.parametrize("then", ["fin", "rst"])
@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 O", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 103 Early Hints\r\n\r\n"],
                         ids=["nothing", "half_a_status_line", "half_a_head", "only_1xx"])
def test_a_backend_that_ends_before_its_head_is_a_502(playing, raw, then):
    proxy, play = playing
    play.update(raw=raw, then=then)
    assert outcome(proxy) == (502, None)


@pytest.mark.parametrize("then", ["fin", "rst"])
@pytest.mark.parametrize("raw", [ok(b"Content-Length: 10\r\n", b"hello"), ok(b"Content-Length: 10\r\n"), chunk(b"5\r\nhello\r\n"),
                                 chunk(b"5\r\nhel"), chunk(b"5\r\nhello\r\n0\r\n"), chunk(b"5\r\nhello\r\n0\r\nX: y\r\n")],
                         ids=["half_a_body", "no_body", "no_last_chunk", "half_a_chunk", "no_last_crlf", "half_a_trailer"])
def test_a_body_that_ends_early_is_cut_visibly(playing, raw, then):
    proxy, play = playing
    play.update(raw=raw, then=then)
    status, how = outcome(proxy)
    assert how == "rst" or (then == "rst" and status == 502)


@pytest.mark.parametrize("raw, status", [
    (ok(b"Content-Length: 5\r\n", b"hello"), 200),
    (ok(b"Content-Length: 0\r\n"), 200),
    (chunk(b"5;ext=1\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"), 200),
    (b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello", 200),
    (b"HTTP/1.1 299 Whatever It Is\r\nContent-Length: 5\r\n\r\nhello", 299),
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\n\r\n", 304),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200),
    (b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" + ok(b"Content-Length: 5\r\n", b"hello"), 200),
], ids=["length", "empty", "chunked_ext_trailer", "no_reason", "unknown_status", "204", "304", "http_1_0", "103_first"])
def test_good_responses_pass(playing, raw, status):
    proxy, play = playing
    play.update(raw=raw, then="stay")
    assert outcome(proxy) == (status, None)


def test_a_close_delimited_response_ends_with_a_fin(playing):
    proxy, play = playing
    play.update(raw=b"HTTP/1.1 200 OK\r\n\r\nhello", then="fin")
    with Client(proxy.address) as c:
        r = c.get()
        assert (r.body, r.framing) == (b"hello", "close")


def test_a_502_is_counted(playing):
    proxy, play = playing
    before = proxy.metrics().total("sluice_requests_total", code="502")
    play.update(raw=b"garbage\r\n\r\n", then="stay")
    assert outcome(proxy) == (502, None)
    wait_until(lambda: proxy.metrics().total("sluice_requests_total", code="502") == before + 1, "the 502 to be counted")
