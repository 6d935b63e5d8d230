# SPDX-License-Identifier: Apache-2.0
"""HTTPS to clients."""
import json
import os
import signal
import socket
import ssl

import pytest

from lib import certs as certificates
from lib import pattern
from lib.client import Client, Ended, request_bytes
from lib.sluice import free_port
from lib.upgrade import Line


def context(certs_dir, **kw):
    c = ssl.create_default_context(cafile=certs_dir / "ca.pem")
    for k, v in kw.items():
        setattr(c, k, v)
    return c


@pytest.fixture(scope="module")
def proxy(module_sluice, origin, certs_dir, tmp_path_factory):
    d = tmp_path_factory.mktemp("sni")
    other = certificates.leaf(d, "other", certs_dir, san="DNS:other.demo,DNS:*.wild.demo")
    return module_sluice([origin.address], listener={"timeouts": {"head": "5s"}, "tls": {"certificates": [
        {"cert": str(certs_dir / "server.pem"), "key": str(certs_dir / "server.key")},
        {"cert": str(other[0]), "key": str(other[1])}]}})


def tls_listener(certs_dir):
    return {"tls": {"certificates": [{"cert": str(certs_dir / "server.pem"), "key": str(certs_dir / "server.key")}]}}


def connect(proxy, certs_dir, name="one.demo", **kw):
    return Client(proxy.address, tls=context(certs_dir, **kw), server_name=name)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("n", [0, 1, 16384, 5_000_000])
def test_bodies_both_ways(proxy, certs_dir, version, n):
    with connect(proxy, certs_dir, maximum_version=version) as c:
        assert c.get(f"/bytes/{n}", keep=False).sha256 == pattern.sha256(n)
        r = c.request("POST", "/sha256", body=pattern.body(n))
        assert json.loads(r.body)["sha256"] == pattern.sha256(n)
        assert c.get(f"/chunked/{n}", keep=False).sha256 == pattern.sha256(n)


@pytest.mark.parametrize("name, want", [("one.demo", "one.demo"), ("other.demo", "other.demo"), ("a.wild.demo", "other.demo")])
def test_the_certificate_is_chosen_by_name(proxy, certs_dir, name, want):
    with connect(proxy, certs_dir, name) as c:
        assert want in [v for _, v in c.sock.getpeercert()["subjectAltName"]]
        assert c.get("/").status == 200


def test_half_closed_after_the_request_with_more_behind_it(proxy, certs_dir):
    """As without TLS, also where what lies behind the request is in records of its own."""
    with connect(proxy, certs_dir) as c:
        c.send(request_bytes(path="/delay/300"))
        c.send(request_bytes(path="/bytes/20"))
        c.send(request_bytes(path="/bytes/30"))
        with socket.socket(fileno=os.dup(c.sock.fileno())) as s:
            s.shutdown(socket.SHUT_WR)
        assert [c.read_response().status for _ in range(2)] == [200, 200]


def test_the_backend_is_told_of_https(proxy, certs_dir):
    with connect(proxy, certs_dir) as c:
        fields = dict(json.loads(c.get("/headers").body)["fields"])
    assert {k.lower(): v for k, v in fields.items()}["x-forwarded-proto"] == "https"


def test_plain_http_is_refused(proxy):
    with Client(proxy.address) as c:
        c.send(request_bytes())
        out, _ = c.read_end()
        assert b"200" not in out and b"Hello" not in out


def test_garbage_and_silence_do_not_harm(proxy, certs_dir):
    for junk in (b"", b"\x16\x03\x01", b"\0" * 100, b"\x80" * 5000):
        with Client(proxy.address) as c:
            c.try_send(junk)
            c.reset()
    with connect(proxy, certs_dir) as c:
        assert c.get("/").status == 200


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_versions_are_refused(proxy, certs_dir):
    c = ssl.create_default_context(cafile=certs_dir / "ca.pem")
    c.set_ciphers("ALL:@SECLEVEL=0")
    c.minimum_version = ssl.TLSVersion.TLSv1
    c.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionResetError, OSError)):
        Client(proxy.address, tls=c, server_name="one.demo")


def test_a_cut_body_has_no_clean_end(proxy, certs_dir):
    """No close_notify, whatever the transport does: a client must not take it for an end."""
    with connect(proxy, certs_dir) as c:
        c.sock.suppress_ragged_eofs = False
        c.send(request_bytes(path="/close/300000?rst=1"))
        r = c.read_head()
        assert r.status == 200
        with pytest.raises(Ended) as e:
            c.read_body(r, keep=False)
        assert e.value.how in ("rst", "tls")


def test_a_close_delimited_body_ends_with_close_notify(proxy, certs_dir):
    with connect(proxy, certs_dir) as c:
        c.sock.suppress_ragged_eofs = False
        r = c.get("/close/300000", keep=False)
        assert r.sha256 == pattern.sha256(300000)


def test_sessions_are_resumed(proxy, certs_dir):
    ctx = context(certs_dir, maximum_version=ssl.TLSVersion.TLSv1_2)
    with Client(proxy.address, tls=ctx, server_name="one.demo") as c:
        assert c.get("/").status == 200
        session = c.sock.session
    raw = socket.create_connection(proxy.address)
    with ctx.wrap_socket(raw, server_hostname="one.demo", session=session) as s:
        assert s.session_reused


def session_of(d, ctx):
    """(session the daemon gave, whether a new connection resumes it). In TLS 1.3 the ticket comes with the answer."""
    with Client(d.address, tls=ctx, server_name="one.demo") as c:
        assert c.get("/").status == 200
        return c.sock.session


def resumes(d, ctx, session, address=None):
    with socket.create_connection(address or d.address) as raw, \
            ctx.wrap_socket(raw, server_hostname="one.demo", session=session) as s:
        return s.session_reused


VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@VERSIONS
def test_sessions_outlive_a_reload_and_an_upgrade(sluice, origin, certs_dir, tmp_path, version):
    """Each worker may get the connection that resumes: tries are many."""
    d = sluice([origin.address], listener=tls_listener(certs_dir), upgrade_sock=str(tmp_path / "up.sock"))
    line = Line(d)
    ctx = context(certs_dir, maximum_version=version)
    try:
        for change in ("reload", "upgrade"):
            sessions = [session_of(d, ctx) for _ in range(8)]
            if change == "reload":
                d.send_signal(signal.SIGHUP)
                d.wait_event("reloaded")
            else:
                line.upgrade()
            assert [resumes(d, ctx, s) for s in sessions] == [True] * 8, f"after {change}"
    finally:
        line.end()


def test_a_session_is_of_one_listener(sluice, origin, certs_dir):
    port = free_port()
    d = sluice([origin.address], listener=tls_listener(certs_dir),
               listeners=[{"address": f"127.0.0.1:{port}", **tls_listener(certs_dir)}])
    ctx = context(certs_dir)
    assert resumes(d, ctx, session_of(d, ctx))
    assert not resumes(d, ctx, session_of(d, ctx), ("127.0.0.1", port))


def test_http_1_1_is_what_alpn_gives(proxy, certs_dir):
    ctx = context(certs_dir)
    ctx.set_alpn_protocols(["h2", "http/1.1"])
    with Client(proxy.address, tls=ctx, server_name="one.demo") as c:
        assert c.sock.selected_alpn_protocol() in ("http/1.1", None)
        assert c.get("/").status == 200


def test_tls_1_3_only(sluice, origin, certs_dir):
    d = sluice([origin.address], listener={"tls": {"min_version": "1.3", "certificates": [
        {"cert": str(certs_dir / "server.pem"), "key": str(certs_dir / "server.key")}]}})
    with connect(d, certs_dir) as c:
        assert c.sock.version() == "TLSv1.3" and c.get("/").status == 200
    with pytest.raises((ssl.SSLError, OSError)):
        connect(d, certs_dir, maximum_version=ssl.TLSVersion.TLSv1_2)
