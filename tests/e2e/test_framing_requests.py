# SPDX-License-Identifier: Apache-2.0
"""
Requests that two parsers could read differently are refused and the connection is closed; nothing of them reaches a
backend. Each row: what is sent, and the status that answers it.
"""
import pytest

from lib.backend import response
from lib.client import Client

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
H = b"Host: a\r\n"


def post(fields, body=b""):
    return b"POST / HTTP/1.1\r\n" + H + fields + b"\r\n" + body


def chunk(body):
    """Here the head is right, and may reach the backend before what follows is refused: it has a path of its own."""
    return b"POST /begun HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n" + body


REFUSED = {
    # RFC 9112 6.1: both framings
    "te_and_cl": (post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "cl_and_te": (post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), 400),
    # RFC 9112 6.3: Content-Length
    "cl_twice_differing": (post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello"), 400),
    "cl_twice_same": (post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"), 400),
    "cl_list": (post(b"Content-Length: 5, 5\r\n", b"hello"), 400),
    "cl_plus": (post(b"Content-Length: +5\r\n", b"hello"), 400),
    "cl_minus": (post(b"Content-Length: -5\r\n", b"hello"), 400),
    "cl_hex": (post(b"Content-Length: 0x5\r\n", b"hello"), 400),
    "cl_space_inside": (post(b"Content-Length: 1 0\r\n", b"hello"), 400),
    "cl_empty": (post(b"Content-Length:\r\n", b"hello"), 400),
    "cl_letters": (post(b"Content-Length: five\r\n", b"hello"), 400),
    "cl_trailing_letter": (post(b"Content-Length: 5x\r\n", b"hello"), 400),
    "cl_2_to_63": (post(b"Content-Length: 9223372036854775808\r\n"), 400),
    "cl_2_to_64": (post(b"Content-Length: 18446744073709551616\r\n"), 400),
    "cl_2_to_64_and_5": (post(b"Content-Length: 18446744073709551621\r\n", b"hello"), 400),
    "cl_quoted": (post(b'Content-Length: "5"\r\n', b"hello"), 400),
    # RFC 9112 6.1, 7: Transfer-Encoding
    "te_chunked_not_last": (post(b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"), {400, 501}),
    "te_twice_chunked": (post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"), {400, 501}),
    "te_two_fields_chunked": (post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), {400, 501}),
    "te_identity": (post(b"Transfer-Encoding: identity\r\n"), {400, 501}),
    "te_gzip_chunked": (post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), 501),
    "te_unknown": (post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"), {400, 501}),
    "te_vertical_tab": (post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"), {400, 501}),
    "te_quoted": (post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"), {400, 501}),
    "te_parameter": (post(b"Transfer-Encoding: chunked;q=1\r\n", b"0\r\n\r\n"), {400, 501}),
    "te_empty": (post(b"Transfer-Encoding:\r\n", b"0\r\n\r\n"), {400, 501}),
    "te_underscore": (post(b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", b"hello"), 400),
    "cl_underscore": (post(b"content_length: 7\r\nContent-Length: 5\r\n", b"hello"), 400),
    "forwarded_underscore": (b"GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded-For: 9.9.9.9\r\n\r\n", 400),
    "te_on_http_1_0": (b"POST / HTTP/1.0\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    # RFC 9112 2.2: line ends
    "bare_lf_after_request_line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "bare_lf_after_field": (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
    "bare_lf_at_the_end": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    "bare_cr_in_value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
    "bare_cr_in_name": (b"GET / HTTP/1.1\r\nHost: a\r\nX\r: b\r\n\r\n", 400),
    "bare_cr_in_request_line": (b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "cr_cr_lf": (b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", 400),
    # RFC 9112 5: field lines
    "space_before_colon": (post(b"Content-Length : 5\r\n", b"hello"), 400),
    "tab_before_colon": (post(b"Transfer-Encoding\t: chunked\r\n", b"0\r\n\r\n"), 400),
    "obs_fold": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
    "obs_fold_tab": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n", 400),
    "fold_in_first_field": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    "no_colon": (b"GET / HTTP/1.1\r\nHost: a\r\nNoColon\r\n\r\n", 400),
    "empty_name": (b"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", 400),
    "bad_name": (b"GET / HTTP/1.1\r\nHost: a\r\nX@Y: x\r\n\r\n", 400),
    "name_with_non_ascii": (b"GET / HTTP/1.1\r\nHost: a\r\nX\xe9: x\r\n\r\n", 400),
    "nul_in_value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400),
    "nul_in_name": (b"GET / HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n", 400),
    "ctl_in_value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n", 400),
    "del_in_value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n", 400),
    # RFC 9112 3: request line
    "nul_in_target": (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "ctl_in_target": (b"GET /\x1f HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "space_in_target": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "two_spaces": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "tab_as_space": (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "space_at_the_end": (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    "space_at_the_start": (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "fragment": (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target_without_slash": (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "asterisk_with_get": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "bad_method": (b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "userinfo": (b"GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "connect": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
    # RFC 9110 7.2: Host
    "no_host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two_hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "two_hosts_same": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "host_list": (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    "host_with_path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "host_with_userinfo": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "host_with_space": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "host_bad_port": (b"GET / HTTP/1.1\r\nHost: a:8x\r\n\r\n", 400),
    "no_host_absolute_form": (b"GET http://a/ HTTP/1.1\r\n\r\n", 400),
    # versions
    "http_0_9": (b"GET /\r\n", 400),
    "http_2_0": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "http_2_preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
    "http_3_1": (b"GET / HTTP/3.1\r\nHost: a\r\n\r\n", 505),
    "version_lower_case": (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    "version_long": (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    "version_junk": (b"GET / HTTP/1.x\r\nHost: a\r\n\r\n", 400),
    "tls_hello": (bytes.fromhex("16030100f1010000ed0303") + b"\0" * 40 + b"\r\n\r\n", 400),
    # RFC 9112 7.1: chunks
    "chunk_junk": (chunk(b"zz\r\n"), 400),
    "chunk_empty_size": (chunk(b"\r\n"), 400),
    "chunk_minus": (chunk(b"-1\r\n"), 400),
    "chunk_plus": (chunk(b"+5\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_0x": (chunk(b"0x5\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_leading_space": (chunk(b" 5\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_trailing_space": (chunk(b"5 \r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_overflow": (chunk(b"10000000000000000\r\n"), 400),
    "chunk_overflow_63": (chunk(b"8000000000000000\r\n"), 400),
    "chunk_overflow_wraps": (chunk(b"10000000000000005\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_bare_lf_after_size": (chunk(b"5\nhello\r\n0\r\n\r\n"), 400),
    "chunk_bare_cr_after_size": (chunk(b"5\rhello\r\n0\r\n\r\n"), 400),
    "chunk_bare_lf_after_data": (chunk(b"5\r\nhello\n0\r\n\r\n"), 400),
    "chunk_data_too_long": (chunk(b"5\r\nhello!\r\n0\r\n\r\n"), 400),
    "chunk_ext_with_bare_lf": (chunk(b"5;a\nb\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_ext_with_nul": (chunk(b"5;a\x00\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_ext_endless": (chunk(b"5;" + b"a" * 20000), 400),
    "chunk_zeros_endless": (chunk(b"0" * 20000), 400),
    "chunk_end_bare_lf": (chunk(b"0\r\n\n"), 400),
    "trailer_content_length": (chunk(b"0\r\nContent-Length: 5\r\n\r\n"), 400),
    "trailer_transfer_encoding": (chunk(b"0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
    "trailer_content_length_underscore": (chunk(b"0\r\nContent_Length: 5\r\n\r\n"), 400),
    "trailer_host": (chunk(b"0\r\nHost: b\r\n\r\n"), 400),
    "trailer_no_colon": (chunk(b"0\r\nNoColon\r\n\r\n"), 400),
    "trailer_obs_fold": (chunk(b"0\r\nX: a\r\n b\r\n\r\n"), 400),
    "trailer_space_before_colon": (chunk(b"0\r\nX : a\r\n\r\n"), 400),
    # RFC 9110 10.1.1
    "unknown_expectation": (post(b"Content-Length: 5\r\nExpect: the-best\r\n", b"hello"), 417),
}

GOOD = {
    "plain": b"GET /ok HTTP/1.1\r\nHost: a\r\n\r\n",
    "leading_crlf": b"\r\nGET /ok HTTP/1.1\r\nHost: a\r\n\r\n",
    "names_in_any_case": b"GET /ok HTTP/1.1\r\nhOsT: a\r\nx-y: z\r\n\r\n",
    "no_space_behind_colon": b"GET /ok HTTP/1.1\r\nHost:a\r\n\r\n",
    "spaces_and_tabs_around_value": b"GET /ok HTTP/1.1\r\nHost: \t a \t\r\n\r\n",
    "underscore_in_name": b"GET /ok HTTP/1.1\r\nHost: a\r\nX_Y: z\r\n_: z\r\nX_Forwarded_Port: 1\r\n\r\n",
    "empty_value": b"GET /ok HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n",
    "bytes_above_127_in_value": b"GET /ok HTTP/1.1\r\nHost: a\r\nX: \xc3\xa9\xff\r\n\r\n",
    "any_method": b"BREW-2 /ok HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute_form": b"GET http://a/ok HTTP/1.1\r\nHost: a\r\n\r\n",
    "host_with_port": b"GET /ok HTTP/1.1\r\nHost: a:8080\r\n\r\n",
    "host_ipv6": b"GET /ok HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
    "options_asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "http_1_0_without_host": b"GET /ok HTTP/1.0\r\n\r\n",
    "higher_minor_version": b"GET /ok HTTP/1.2\r\nHost: a\r\n\r\n",
    "content_length": b"POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "content_length_leading_zeros": b"POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 0005\r\n\r\nhello",
    "chunked_any_case": b"POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ChUnKeD\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunk_extensions": b"POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b;c\r\nhello\r\n0;d\r\n\r\n",
    "chunk_size_with_zeros": b"POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0005\r\nhello\r\n00\r\n\r\n",
    "trailer": b"POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
    "lws_long_query": b"GET /ok?" + b"q" * 3000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
}


def drain_body(c, head):
    """Takes a request's body the simplest way: our rows have 'hello' or end with the last chunk."""
    if b"chunked" in head.lower():
        while not c.buffer.endswith(b"\r\n\r\n"):
            c._more()
        c.buffer = b""
    elif b"content-length" in head.lower():
        c.read_exactly(5)


@pytest.fixture(scope="module")
def ok_backend(module_backend):
    def script(c):
        while True:
            drain_body(c, c.read_head())
            c.send(response(b"ok"))
    return module_backend(script)


@pytest.fixture(scope="module")
def proxy(module_sluice, ok_backend):
    return module_sluice([ok_backend.address], listener={"timeouts": {"head": "30s", "body": "30s"}})


@pytest.mark.parametrize("name, pieces", [(n, p) for n in REFUSED for p in ("whole", "bytewise")
                                          if p == "whole" or len(REFUSED[n][0]) < 2000])
def test_refused(proxy, ok_backend, name, pieces):
    raw, want = REFUSED[name]
    seen = len(ok_backend.heads)
    with Client(proxy.address) as c:
        if pieces == "whole":
            c.try_send(raw + SMUGGLED)
        else:
            for i in range(len(raw)):
                if not c.try_send(raw[i:i + 1]):
                    break
        r = c.read_response()
        assert r.status in (want if isinstance(want, set) else {want}), r
        assert r.get("connection", "").lower() == "close"
        c.end()
        rest, _ = c.read_end()
        assert rest == b"", f"something behind the refusal: {rest!r}"
    reached = [h for h in ok_backend.heads[seen:] if not h.startswith(b"POST /begun ")]
    assert not reached, reached


@pytest.mark.parametrize("pieces", ["whole", "bytewise"])
@pytest.mark.parametrize("name", GOOD)
def test_accepted(proxy, ok_backend, name, pieces):
    with Client(proxy.address) as c:
        if pieces == "whole":
            c.send(GOOD[name])
        else:
            for i in range(len(GOOD[name])):
                c.send(GOOD[name][i:i + 1])
        r = c.read_response()
        assert (r.status, r.body) == (200, b"ok"), r


def test_the_backend_reads_what_the_proxy_read(proxy, ok_backend):
    """Accepted requests go on in one form: no doubled framing, extensions gone, one Host."""
    for name, raw in GOOD.items():
        seen = len(ok_backend.heads)
        with Client(proxy.address) as c:
            c.send(raw)
            assert c.read_response().status == 200, name
        head = ok_backend.heads[seen].lower()
        assert head.count(b"\r\nhost:") == 1 or b"http/1.0" in raw.lower(), (name, head)
        assert head.count(b"\r\ncontent-length:") + head.count(b"\r\ntransfer-encoding:") <= 1, (name, head)
        assert b" http/1.1\r\n" in head, (name, head)
    assert not any(b";a=b" in c.received for c in ok_backend.connections), "a chunk extension passed"
