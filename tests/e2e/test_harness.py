# SPDX-License-Identifier: Apache-2.0
"""The tools the other tests stand on: what they say must be true without a proxy in between."""
import hashlib
import json

import pytest

from lib import pattern
from lib.backend import response
from lib.client import Client, Ended, chunked


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("path, framing", [
    ("/bytes/0", "length"), ("/bytes/1", "length"), ("/bytes/16384", "length"), ("/bytes/20000000", "length"),
    ("/chunked/100000?chunk=777&ext=0", "chunked"), ("/close/300000", "close"), ("/slow?bytes=3000&rate=100000&ms=10", "length"),
])
def test_the_origin_serves_the_pattern(origin, certs_dir, tls, path, framing):
    import ssl
    n = int("".join(filter(str.isdigit, path.split("?")[0] + path.partition("bytes=")[2].partition("&")[0])))
    context = ssl.create_default_context(cafile=certs_dir / "ca.pem") if tls else None
    port = origin.tls_port if tls else origin.port
    with Client(("127.0.0.1", port), tls=context, server_name="one.demo") as c:
        r = c.get(path)
    assert (r.status, r.framing, r.length, r.sha256) == (200, framing, n, pattern.sha256(n))


def test_the_origin_hashes_and_echoes_what_it_gets(origin):
    body = pattern.body(200000, seed=3)
    want = hashlib.sha256(body).hexdigest()
    with Client(("127.0.0.1", origin.port)) as c:
        assert json.loads(c.request("POST", "/sha256", body=body).body) == {"bytes": len(body), "sha256": want}
        c.send(b"POST /sha256 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body))
        assert json.loads(c.read_response().body)["sha256"] == want
        assert c.request("POST", "/echo", body=body).sha256 == want


@pytest.mark.parametrize("path, how", [("/short/1000?send=10", "fin"), ("/short/1000?send=10&rst=1", "rst"),
                                       ("/drop", "fin"), ("/reset", "rst")])
def test_the_client_tells_a_fin_from_a_reset(origin, path, how):
    with Client(("127.0.0.1", origin.port)) as c, pytest.raises(Ended) as e:
        c.get(path)
    assert e.value.how == how


def test_the_backend_tells_a_fin_from_a_reset(backend):
    b = backend(response(b"hello"))
    for number, leave in enumerate((Client.close, Client.reset)):
        c = Client(("127.0.0.1", b.port))
        assert c.get().body == b"hello"
        leave(c)
        assert b.wait_ended(number) == ("fin", "rst")[number]
