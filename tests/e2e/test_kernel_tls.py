# SPDX-License-Identifier: Apache-2.0
"""
HTTPS backends with the record layer in the kernel: bodies go by splice, and no other way. Peers are our own origin, the
openssl command and nginx. Without kTLS in the kernel these are skipped; SLUICE_KTLS=require makes that a failure.
"""
import json
import os
import platform
import re
import shutil
import socket
import ssl
import subprocess

import pytest

from lib import pattern
from lib.client import Client, Ended
from lib.process import Process
from lib.sluice import free_port
from lib.trace import GIVES, TAKES, Traced
from lib.wait import wait_until

SUITES = {
    "1.2": ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"],
    "1.3": ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"],
}
EACH = [(v, c) for v, ciphers in SUITES.items() for c in ciphers]
SIZE = 3_000_000
START = 70_000  # of a body may be copied: what came together with the head


def why_no_ktls():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as s:
        try:
            s.setsockopt(socket.IPPROTO_TCP, 31, b"tls")  # TCP_ULP
        except OSError as e:
            return f"no kTLS in this kernel: {e.strerror}"
    return None


@pytest.fixture(autouse=True, scope="module")
def kernel_has_tls():
    why = why_no_ktls()
    if why and os.environ.get("SLUICE_KTLS") == "require":
        pytest.fail(why)
    if why:
        pytest.skip(why)


def upstream(address, ca, **tls):
    return {"one": {"servers": [{"address": address}], "host": "one.demo", "retries": {"max": 0},
                    "tls": {"verify": True, "ca_file": str(ca), "sni": "one.demo", "ktls": "require", **tls}}}


def s_server(tmp_path, certs_dir, version, cipher, *more, stdin=subprocess.DEVNULL):
    """openssl s_server on a port the kernel chose: (process, address)."""
    out = tmp_path / "s_server.out"
    which = ["-tls1_3", "-ciphersuites", cipher] if version == "1.3" else ["-tls1_2", "-cipher", cipher]
    with open(out, "wb") as f:
        p = subprocess.Popen(["openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", certs_dir / "server.pem", "-key",
                              certs_dir / "server.key", *which, *more], stdin=stdin, stdout=f, stderr=f, cwd=tmp_path)
    found = wait_until(lambda: re.search(r"ACCEPT 127\.0\.0\.1:(\d+)", out.read_text(errors="replace")), "s_server")
    return p, f"127.0.0.1:{found[1]}"


def moved(d, direction):
    m = d.metrics()
    return {e: m.bodies(e, direction) for e in ("copy", "splice", "sockmap")}


def all_but_the_start_spliced(d, direction, n):
    """What came together with the head is copied; the rest must have been spliced."""
    m = wait_until(lambda: (m := moved(d, direction)) and sum(m.values()) == n and m, f"{n} bytes to be counted")
    assert m["splice"] >= n - START and m["sockmap"] == 0, m


@pytest.mark.parametrize("version, cipher", EACH)
def test_a_body_from_openssl_is_spliced(sluice, tmp_path, certs_dir, version, cipher):
    peer, address = s_server(tmp_path, certs_dir, version, cipher, "-HTTP")
    (tmp_path / "answer").write_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + pattern.body(SIZE))
    try:
        d = sluice(upstream(address, certs_dir / "ca.pem"), splice={"min_bytes": 4096})
        assert d.get("/answer", keep=False).sha256 == pattern.sha256(SIZE)
        all_but_the_start_spliced(d, "response", SIZE)
        assert d.metrics().total("sluice_ktls_connections_total", direction="both") == 1
    finally:
        peer.kill()
        peer.wait()


@pytest.fixture(params=EACH, ids=["-".join(e) for e in EACH], scope="module")
def nginx(request, tmp_path_factory, certs_dir):
    if not shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin"):
        pytest.skip("nginx is not installed")
    d = tmp_path_factory.mktemp("nginx")
    port = free_port()
    version, cipher = request.param
    ciphers = f"ssl_ciphers {cipher};" if version == "1.2" else f"ssl_conf_command Ciphersuites {cipher};"
    (d / "big").write_bytes(pattern.body(SIZE))
    (d / "small").write_bytes(pattern.body(100))
    (d / "nginx.conf").write_text(f"""
daemon off; pid {d}/pid; error_log {d}/error.log; worker_processes 1; user root;
events {{}}
http {{
  access_log off; root {d}; client_max_body_size 100m;
  client_body_temp_path {d}/body; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;
  server {{
    listen 127.0.0.1:{port} ssl; ssl_certificate {certs_dir}/server.pem; ssl_certificate_key {certs_dir}/server.key;
    ssl_protocols TLSv{version}; {ciphers} ssl_client_certificate {certs_dir}/ca.pem; ssl_verify_client on;
    location /sink {{ dav_methods PUT; root {d}/up; }}
  }}
}}
""")
    (d / "up").mkdir()
    (d / "up" / "sink").mkdir()
    os.chmod(d, 0o755)
    p = Process(["/usr/sbin/nginx", "-p", d, "-c", d / "nginx.conf"], d / "out")

    def listens():
        assert p.alive(), p.text()
        try:
            return socket.create_connection(("127.0.0.1", port)).close() is None
        except ConnectionRefusedError:
            return False
    wait_until(listens, "nginx to listen")
    yield f"127.0.0.1:{port}", d
    p.stop()


def with_client_cert(address, certs_dir):
    return upstream(address, certs_dir / "ca.pem", cert=str(certs_dir / "client.pem"), key=str(certs_dir / "client.key"))


def test_nginx_with_keep_alive_and_a_client_certificate(sluice, nginx, certs_dir):
    address, _ = nginx
    d = sluice(with_client_cert(address, certs_dir), splice={"min_bytes": 4096}, threads=1)
    for path, n in (("/small", 100), ("/big", SIZE), ("/small", 100), ("/big", SIZE)):
        assert d.get(path).sha256 == pattern.sha256(n)
    assert d.metrics().total("sluice_ktls_connections_total") == 1
    assert d.metrics().total("sluice_ktls_connections_total", direction="both") == 1
    assert moved(d, "response")["splice"] >= 2 * (SIZE - START)


def test_an_upload_to_nginx_is_spliced(sluice, nginx, certs_dir):
    address, directory = nginx
    d = sluice(with_client_cert(address, certs_dir), splice={"engine": "splice", "min_bytes": 4096})
    with d.client() as c:
        assert c.request("PUT", "/sink/file", body=pattern.body(SIZE)).status in (201, 204)
    assert (directory / "up" / "sink" / "file").read_bytes() == pattern.body(SIZE)
    (directory / "up" / "sink" / "file").unlink()
    all_but_the_start_spliced(d, "request", SIZE)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_both_ways_with_our_own_origin(sluice, own_origin, certs_dir, version):
    o = own_origin(certs=certs_dir, tls=True, more=["--tls-max", version])
    d = sluice(upstream(o.tls_address, certs_dir / "ca.pem"), splice={"engine": "splice", "min_bytes": 4096}, threads=1)
    for kind in ("bytes", "chunked", "close"):
        assert d.get(f"/{kind}/{SIZE}", keep=False).sha256 == pattern.sha256(SIZE)
    with d.client() as c:
        r = c.request("POST", "/sha256", body=pattern.body(SIZE))
    assert json.loads(r.body) == {"bytes": SIZE, "sha256": pattern.sha256(SIZE)}
    assert moved(d, "request")["splice"] >= SIZE - START
    assert moved(d, "response")["splice"] >= 2 * (SIZE - START)  # of the chunked one, what came together is copied


@pytest.mark.parametrize("query", ["notify=0", "rst=1"])
def test_a_spliced_body_cut_without_close_notify_is_truncated(sluice, own_origin, certs_dir, query):
    o = own_origin(certs=certs_dir, tls=True)
    d = sluice(upstream(o.tls_address, certs_dir / "ca.pem"), splice={"min_bytes": 4096})
    with d.client() as c, pytest.raises(Ended) as e:
        c.get(f"/close/{SIZE}?{query}", keep=False)
    assert e.value.how == "rst"


@pytest.mark.parametrize("direction", ["download", "upload"])
@pytest.mark.parametrize("ends", ["upstream", "listener", "both"])
def test_no_call_carries_the_body_through_user_space(sluice, origin, certs_dir, tmp_path, ends, direction):
    """Counted by strace: only splice moves more than heads and what came together with them."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    up = upstream(origin.tls_address, certs_dir / "ca.pem") if ends != "listener" else {"one": {"servers": [{"address": origin.address}]}}
    own = {"tls": {"certificates": [{"cert": str(certs_dir / "server.pem"), "key": str(certs_dir / "server.key")}]}}
    d = sluice(up, listener=own if ends != "upstream" else {}, splice={"engine": "splice", "min_bytes": 4096}, threads=1)
    ctx = ssl.create_default_context(cafile=certs_dir / "ca.pem") if ends != "upstream" else None
    with Client(d.address, tls=ctx, server_name="one.demo" if ctx else None) as c, Traced(d, tmp_path) as traced:
        if direction == "download":
            assert c.get(f"/bytes/{SIZE}", keep=False).sha256 == pattern.sha256(SIZE)
        else:
            r = c.request("POST", "/sha256", body=pattern.body(SIZE))
            assert json.loads(r.body) == {"bytes": SIZE, "sha256": pattern.sha256(SIZE)}
    assert traced.sum(TAKES) < START and traced.sum(GIVES) < START, traced.moved
    assert traced.moved["splice"] >= 2 * (SIZE - START), traced.moved


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_where_the_kernel_takes_one_direction_only_that_one_is_spliced(sluice, own_origin, certs_dir, version):
    o = own_origin(certs=certs_dir, tls=True, more=["--tls-max", version])
    d = sluice(upstream(o.tls_address, certs_dir / "ca.pem", ktls="auto"), splice={"engine": "splice", "min_bytes": 4096},
               threads=1, env={"SLUICE_FAULT": "ktls_rx:1+"})
    with d.client() as c:
        r = c.request("POST", "/sha256", body=pattern.body(SIZE))
        assert json.loads(r.body) == {"bytes": SIZE, "sha256": pattern.sha256(SIZE)}
        assert c.get(f"/bytes/{SIZE}", keep=False).sha256 == pattern.sha256(SIZE)
    all_but_the_start_spliced(d, "request", SIZE)
    assert moved(d, "response")["splice"] == 0
    m = d.metrics()
    assert m.total("sluice_ktls_connections_total", direction="tx") == m.total("sluice_ktls_connections_total") == 1
    assert m.total("sluice_ktls_fallbacks_total", reason="refused") == 1
    assert d.wait_event("ktls_fallback", upstream="one", in_kernel="tx")["reason"].startswith("kernel refuses to receive")


def said(peer, line):
    peer.stdin.write(line)
    peer.stdin.flush()


@pytest.mark.parametrize("command", ["k", "K"], ids=["update", "update_and_answer"])
def test_new_keys_midway_are_followed_or_break_the_connection_with_a_reason(sluice, tmp_path, certs_dir, command):
    """s_server takes the answer from its standard input; a line with k changes keys, K asks for ours too."""
    peer, address = s_server(tmp_path, certs_dir, "1.3", "TLS_AES_128_GCM_SHA256", "-crlf", stdin=subprocess.PIPE)
    follows = tuple(map(int, platform.release().split(".")[:2])) >= (6, 14)
    try:
        d = sluice(upstream(address, certs_dir / "ca.pem"), splice={"min_bytes": 4096})
        out = tmp_path / "s_server.out"
        with d.client() as c:
            c.send(b"GET / HTTP/1.1\r\nHost: one.demo\r\n\r\n")
            wait_until(lambda: b"GET / " in out.read_bytes(), "the request to arrive")
            said(peer, b"HTTP/1.1 200 OK\nContent-Length: 100002\n\nfirst\n")
            assert c.read_head().status == 200
            c.read_exactly(len("first\r\n"))
            said(peer, command.encode() + b"\n")
            wait_until(lambda: b"SSL_do_handshake -> 1" in out.read_bytes(), "new keys")
            rest, how = b"", None
            if follows:
                said(peer, b"x" * 99993 + b"\n")
                rest = c.read_exactly(99995)
            else:
                rest, how = c.read_end()
                d.wait_log("the peer changed its keys")
            assert (len(rest), how) == ((99995, None) if follows else (0, "rst"))
    finally:
        peer.kill()
        peer.wait()


def test_auto_goes_on_in_user_space_with_a_cipher_the_kernel_does_not_take(sluice, tmp_path, certs_dir):
    """It says so once, however many connections there are."""
    peer, address = s_server(tmp_path, certs_dir, "1.2", "ECDHE-ECDSA-AES128-SHA256", "-HTTP")
    (tmp_path / "answer").write_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + pattern.body(SIZE))
    try:
        d = sluice(upstream(address, certs_dir / "ca.pem", ktls="auto"))
        for _ in range(3):
            assert d.get("/answer", keep=False).sha256 == pattern.sha256(SIZE)
        assert d.metrics().total("sluice_ktls_fallbacks_total", reason="cipher") == 3
        assert [e["reason"] for e in d.events("ktls_fallback")] == ["kernel does not take cipher: ECDHE-ECDSA-AES128-SHA256"]
    finally:
        peer.kill()
        peer.wait()


CHECKED = {"type": "http", "path": "/bytes/1", "interval": "50ms", "timeout": "20s"}


def handed_to_the_kernel():
    """How many sockets of this network namespace ever had TLS in the kernel for sending and for receiving."""
    with open("/proc/net/tls_stat") as f:
        counts = dict(line.split() for line in f)
    return int(counts["TlsTxSw"]), int(counts["TlsRxSw"])


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("ktls", ["require", "off"])
def test_health_checks_go_through_the_kernels_tls_like_requests(sluice, own_origin, certs_dir, version, ktls):
    o = own_origin(certs=certs_dir, tls=True, more=["--tls-max", version])
    u = upstream(o.tls_address, certs_dir / "ca.pem", ktls=ktls)
    u["one"]["health_check"] = CHECKED
    before = handed_to_the_kernel()
    d = sluice(u)
    wait_until(lambda: d.metrics().total("sluice_backend_checks_passed_total", backend=o.tls_address) >= 5, "five checks")
    assert d.backend_up("one", o.tls_address) and not d.events("backend_down")
    done = [n - b for n, b in zip(handed_to_the_kernel(), before)]
    assert min(done) >= 5 if ktls == "require" else done == [0, 0], done


def test_a_check_says_why_a_backend_is_down_where_the_kernel_is_required(sluice, tmp_path, certs_dir):
    peer, address = s_server(tmp_path, certs_dir, "1.2", "ECDHE-ECDSA-AES128-SHA256", "-HTTP")
    try:
        u = upstream(address, certs_dir / "ca.pem")
        u["one"]["health_check"] = CHECKED
        d = sluice(u)
        reason = d.wait_event("backend_down", backend=address)["reason"]
        assert "kTLS is required: kernel does not take cipher" in reason, reason
        assert d.get("/").status == 503
    finally:
        peer.kill()
        peer.wait()


def test_require_refuses_a_cipher_the_kernel_does_not_take(sluice, tmp_path, certs_dir):
    peer, address = s_server(tmp_path, certs_dir, "1.2", "ECDHE-ECDSA-AES128-SHA256", "-HTTP")
    try:
        d = sluice(upstream(address, certs_dir / "ca.pem"))
        assert d.get("/").status == 502
        d.wait_log("kTLS is required: kernel does not take cipher")
    finally:
        peer.kill()
        peer.wait()
