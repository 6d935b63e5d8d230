# SPDX-License-Identifier: Apache-2.0
"""Clients that people use, through the proxy: curl, wrk, h11, a browser. On every engine where the body is long enough to matter."""
import hashlib
import json
import re
import shutil
import socket
import subprocess

import h11
import pytest

from lib import pattern
from lib.sluice import Moved

MiB = 1 << 20


def program(name):
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def test_curl_downloads_and_uploads(engine, engine_sluice, tmp_path):
    curl = program("curl")
    base = f"http://127.0.0.1:{engine_sluice.port}"
    moved = Moved(engine_sluice, "response")
    out = tmp_path / "body"
    subprocess.run([curl, "-sSf", "-m", "60", "-o", out, f"{base}/bytes/{8 * MiB}?seed=3"], check=True)
    assert hashlib.sha256(out.read_bytes()).hexdigest() == pattern.sha256(8 * MiB, 3)
    moved.check(engine, 8 * MiB)
    for how in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"], ["-0"]):
        r = subprocess.run([curl, "-sSf", "-m", "60", *how, "--data-binary", f"@{out}", f"{base}/sha256"], check=True,
                           capture_output=True)
        assert json.loads(r.stdout) == {"bytes": 8 * MiB, "sha256": pattern.sha256(8 * MiB, 3)}, how


def test_curl_many_at_once_over_few_connections(engine_sluice, tmp_path):
    curl = program("curl")
    sizes = [1, 1000, 70000, 300000, 2 * MiB] * 8
    args = []
    for i, n in enumerate(sizes):
        args += ["-o", tmp_path / str(i), f"http://127.0.0.1:{engine_sluice.port}/bytes/{n}?seed={i + 1}"]
    subprocess.run([curl, "-sSf", "-m", "80", "--parallel", "--parallel-max", "8", *args], check=True)
    for i, n in enumerate(sizes):
        assert hashlib.sha256((tmp_path / str(i)).read_bytes()).hexdigest() == pattern.sha256(n, i + 1)


@pytest.mark.parametrize("path", ["/", "/bytes/200000", "/chunked/200000?chunk=70000"])
def test_wrk_sees_no_error(engine_sluice, path):
    wrk = program("wrk")
    r = subprocess.run([wrk, "-t1", "-c16", "-d2", f"http://127.0.0.1:{engine_sluice.port}{path}"], check=True,
                       capture_output=True, text=True)
    assert "Socket errors" not in r.stdout and "Non-2xx" not in r.stdout, r.stdout
    assert int(re.search(r"(\d+) requests in", r.stdout).group(1)) > 0


def test_h11_agrees_with_every_message(engine_sluice):
    """A second, strict parser reads what the proxy writes: ten exchanges on one connection, several framings."""
    with socket.create_connection(("127.0.0.1", engine_sluice.port)) as s:
        s.settimeout(60)
        conn = h11.Connection(our_role=h11.CLIENT)
        for i, path in enumerate(["/", "/bytes/100000", "/chunked/100000?chunk=999&trailer=1", "/status/204", "/bytes/0",
                                  "/hints", "/status/304", "/chunked/3?ext=1", "/bytes/70000", "/headers"]):
            s.sendall(conn.send(h11.Request(method="GET", target=path, headers=[("Host", "h11.test"), ("X-N", str(i))])))
            s.sendall(conn.send(h11.EndOfMessage()))
            body, status = b"", None
            while True:
                event = conn.next_event()
                if event is h11.NEED_DATA:
                    conn.receive_data(s.recv(65536))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
            assert status in (200, 204, 304)
            m = re.match(r"/(?:bytes|chunked)/(\d+)", path)
            if m:
                assert body == pattern.body(int(m.group(1)))
            conn.start_next_cycle()


def test_a_browser_shows_the_page(engine_sluice, tmp_path):
    chromium = program("chromium")
    r = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                        "--disable-background-networking", "--disable-component-update", "--disable-sync",
                        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
                        f"http://127.0.0.1:{engine_sluice.port}/"], capture_output=True, text=True, timeout=200)
    assert "Hello from" in r.stdout, r.stderr[-2000:]
