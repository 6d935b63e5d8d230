# SPDX-License-Identifier: Apache-2.0
"""HTTPS backends: verified before anything is sent; a refusal is a 502 whose reason is in the log."""
import json

import pytest

from lib import certs as certificates
from lib import pattern
from lib.backend import Backend
from lib.client import Ended, request_bytes


def upstream(address, ca, sni="one.demo", **tls):
    return {"one": {"servers": [{"address": address}], "host": "one.demo", "retries": {"max": 0},
                    "tls": {"verify": True, "ca_file": str(ca), "sni": sni, **tls}}}


@pytest.fixture(scope="module")
def proxy(module_sluice, origin, certs_dir):
    return module_sluice(upstream(origin.tls_address, certs_dir / "ca.pem"), splice={"min_bytes": 4096})


@pytest.mark.parametrize("n", [0, 1, 16383, 16384, 16385, 5_000_000])
@pytest.mark.parametrize("kind", ["bytes", "chunked", "close"])
def test_bodies_from_https(proxy, kind, n):
    assert proxy.get(f"/{kind}/{n}", keep=False).sha256 == pattern.sha256(n)


@pytest.mark.parametrize("n", [0, 1, 16384, 5_000_000])
def test_bodies_to_https(proxy, n):
    with proxy.client() as c:
        r = c.request("POST", "/sha256", body=pattern.body(n))
    assert json.loads(r.body) == {"bytes": n, "sha256": pattern.sha256(n)}


def test_the_backend_sees_tls_and_the_right_host(proxy):
    seen = json.loads(proxy.get("/headers").body)
    assert seen["tls"] is True and dict(seen["fields"])["Host"] == "one.demo"


def test_a_tunnel_over_tls(proxy):
    with proxy.client() as c:
        c.send(request_bytes(path="/upgrade", fields={"Connection": "Upgrade", "Upgrade": "echo"}))
        assert c.read_response().status == 101
        c.send(b"x" * 100000)
        assert c.read_exactly(100000) == b"x" * 100000
        c.end()
        assert c.read_end() == (b"", "fin")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_both_versions_and_reuse(sluice, own_origin, certs_dir, version):
    o = own_origin(certs=certs_dir, tls=True, more=["--tls-max", version])
    d = sluice(upstream(o.tls_address, certs_dir / "ca.pem"), threads=1)
    for n in (10, 100000, 10):
        assert d.get(f"/bytes/{n}").sha256 == pattern.sha256(n)
    assert o.stats()["handshakes"] == 1


@pytest.mark.parametrize("cipher", ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"])
def test_ciphers_of_tls_1_2(sluice, own_origin, certs_dir, cipher):
    o = own_origin(certs=certs_dir, tls=True, more=["--tls-max", "1.2", "--ciphers", cipher])
    d = sluice(upstream(o.tls_address, certs_dir / "ca.pem"))
    assert d.get("/bytes/1000000").sha256 == pattern.sha256(1000000)


@pytest.mark.parametrize("query", ["notify=0", "rst=1"])
def test_a_close_delimited_body_without_close_notify_is_truncated(proxy, query):
    with proxy.client() as c, pytest.raises(Ended) as e:
        c.get(f"/close/300000?{query}", keep=False)
    assert e.value.how == "rst"


@pytest.mark.parametrize("query", ["", "&rst=1"])
def test_a_body_cut_short_over_tls_looks_cut_short(proxy, query):
    with proxy.client() as c, pytest.raises(Ended) as e:
        r = c.get(f"/short/1000000?send=400000{query}", keep=False)
        assert r.status == 502, "the reset may overtake the head"
        raise Ended("rst")
    assert e.value.how == "rst"


# ---- who is refused

@pytest.fixture(scope="module")
def bad_certs(tmp_path_factory, certs_dir):
    d = tmp_path_factory.mktemp("bad")
    other = certificates.demo(tmp_path_factory.mktemp("other-ca"))
    return {
        "expired": certificates.leaf(d, "expired", certs_dir, start="20200101000000Z", end="20200102000000Z"),
        "not_yet": certificates.leaf(d, "notyet", certs_dir, start="20400101000000Z", end="20410101000000Z"),
        "wrong_name": certificates.leaf(d, "wrongname", certs_dir, san="DNS:two.demo"),
        "untrusted": (other / "server.pem", other / "server.key"),
        "self_signed": certificates.self_signed(d, "selfsigned"),
        "name_only_in_cn": certificates.leaf(d, "one.demo", certs_dir, san="DNS:other.demo"),
        "revoked": certificates.leaf(d, "revoked", certs_dir),
    }


@pytest.mark.parametrize("kind, says", [
    ("expired", "expired"), ("not_yet", "not yet valid"), ("wrong_name", "name"), ("untrusted", "issuer is not trusted"),
    ("self_signed", "self"), ("name_only_in_cn", "name"),
])
def test_a_bad_certificate_is_a_502_with_its_reason_in_the_log(sluice, own_origin, certs_dir, bad_certs, kind, says):
    cert, key = bad_certs[kind]
    o = own_origin(certs=certs_dir, tls=True, cert=cert, key=key)
    d = sluice(upstream(o.tls_address, certs_dir / "ca.pem"))
    r = d.get("/")
    assert r.status == 502 and b"certificate" not in r.body
    lines = [e["line"] for e in d.events() if o.tls_address in e["line"] and e.get("event") != "peer_chosen"]
    assert any(says in line.lower() for line in lines), lines
    assert o.stats()["requests"] == 1, "nothing but our own question for its counters reached it"


@pytest.mark.parametrize("which", ["revoked", "another"])
def test_a_revoked_certificate_is_refused(sluice, own_origin, certs_dir, bad_certs, tmp_path, which):
    """And one that the list does not name is not."""
    crl = certificates.revoke(tmp_path, bad_certs["revoked"][0], certs_dir)
    cert, key = bad_certs["revoked"] if which == "revoked" else certificates.leaf(tmp_path, "another", certs_dir)
    o = own_origin(certs=certs_dir, tls=True, cert=cert, key=key)
    d = sluice(upstream(o.tls_address, certs_dir / "ca.pem", crl_file=str(crl)))
    assert d.get("/").status == (502 if which == "revoked" else 200)
    assert any("revoked" in e.get("reason", "") for e in d.events()) == (which == "revoked")


@pytest.mark.parametrize("san, status", [("IP:127.0.0.1", 200), ("IP:127.0.0.2", 502), ("DNS:127.0.0.1", 502)])
def test_an_address_is_verified_as_an_address(sluice, own_origin, certs_dir, tmp_path, san, status):
    cert, key = certificates.leaf(tmp_path, "address", certs_dir, san=san)
    o = own_origin(certs=certs_dir, tls=True, cert=cert, key=key)
    d = sluice(upstream(o.tls_address, certs_dir / "ca.pem", sni="127.0.0.1"))
    assert d.get("/").status == status


def test_a_bad_certificate_passes_when_verification_is_off(sluice, own_origin, certs_dir, bad_certs):
    cert, key = bad_certs["expired"]
    o = own_origin(certs=certs_dir, tls=True, cert=cert, key=key)
    d = sluice(upstream(o.tls_address, certs_dir / "ca.pem", verify=False))
    assert d.get("/").status == 200


def test_a_backend_that_speaks_no_tls_is_a_502(sluice, origin, certs_dir):
    d = sluice(upstream(origin.address, certs_dir / "ca.pem"))
    assert d.get("/").status == 502


def test_a_backend_that_hangs_in_the_handshake(sluice, certs_dir):
    b = Backend(lambda c: c.read_end())
    up = upstream(b.address, certs_dir / "ca.pem")
    up["one"]["timeouts"] = {"connect": "500ms", "tls": "500ms"}
    assert sluice(up).get("/").status == 504
    b.stop()


@pytest.mark.parametrize("good", [True, False], ids=["with", "without"])
def test_client_certificates(sluice, own_origin, certs_dir, good):
    o = own_origin(certs=certs_dir, tls=True, more=["--client-ca", str(certs_dir / "ca.pem")])
    more = {"cert": str(certs_dir / "client.pem"), "key": str(certs_dir / "client.key")} if good else {}
    d = sluice(upstream(o.tls_address, certs_dir / "ca.pem", **more))
    assert d.get("/").status == (200 if good else 502)


def test_kernel_tls_is_counted_either_way(proxy):
    proxy.get("/bytes/100000")
    assert proxy.metrics().total("sluice_ktls_connections_total") >= 1


def test_kernel_tls_that_is_off_is_counted_and_not_logged(sluice, origin, certs_dir):
    d = sluice(upstream(origin.tls_address, certs_dir / "ca.pem", ktls="off"))
    assert d.get("/bytes/100000").sha256 == pattern.sha256(100000)
    m = d.metrics()
    assert m.total("sluice_ktls_connections_total", direction="none") == m.total("sluice_ktls_connections_total") == 1
    assert m.total("sluice_ktls_fallbacks_total", reason="off") == m.total("sluice_ktls_fallbacks_total") == 1
    assert not d.events("ktls_fallback")


def test_a_kernel_without_tls_is_told_of_once_or_refused_where_it_is_required(sluice, origin, certs_dir):
    d = sluice(upstream(origin.tls_address, certs_dir / "ca.pem"), threads=2)
    for _ in range(5):
        assert d.get("/").status == 200
    said = d.events("ktls_fallback")
    required = sluice(upstream(origin.tls_address, certs_dir / "ca.pem", ktls="require"))
    if not said:  # it has TLS
        assert d.metrics().total("sluice_ktls_connections_total", direction="none") == 0
        assert required.get("/").status == 200
        return
    assert len(said) == 1 and said[0]["upstream"] == "one" and said[0]["in_kernel"] == "none", said
    assert required.get("/").status == 502
    required.wait_log("kTLS is required: kernel has no TLS")


def test_health_checks_speak_tls(sluice, own_origin, certs_dir, bad_certs):
    good = own_origin("good", certs=certs_dir, tls=True)
    cert, key = bad_certs["expired"]
    bad = own_origin("bad", certs=certs_dir, tls=True, cert=cert, key=key)
    up = {"one": {"servers": [{"address": good.tls_address}, {"address": bad.tls_address}],
                  "tls": {"sni": "one.demo", "ca_file": str(certs_dir / "ca.pem")},
                  "health_check": {"type": "http", "path": "/", "host": "one.demo", "interval": "200ms", "timeout": "5s"}}}
    d = sluice(up)
    d.wait_event("backend_down", backend=bad.tls_address)
    assert d.backend_up("one", good.tls_address)
    assert {d.get("/").body for _ in range(10)} == {b"Hello from good\n"}


def test_a_connection_reset_in_the_handshake_is_retried_elsewhere(sluice, origin, certs_dir):
    b = Backend(lambda c: c.reset())
    up = upstream(b.address, certs_dir / "ca.pem")
    up["one"]["servers"].append({"address": origin.tls_address})
    up["one"]["retries"] = {"max": 2}
    d = sluice(up)
    assert [d.get("/").status for _ in range(10)] == [200] * 10
    b.stop()
