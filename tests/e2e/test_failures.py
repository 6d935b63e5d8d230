# SPDX-License-Identifier: Apache-2.0
"""Failure is local: no descriptors, a full disk, no privileges, no kernel support. The service goes on."""
import os
import re
import resource
import shutil
import subprocess
import threading

import pytest

from lib import build, pattern
from lib.client import Client, Ended, request_bytes
from lib.process import Process
from lib.sluice import environment, free_port
from lib.wait import wait_until


def low_limit():
    resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))


def test_with_few_descriptors_requests_wait_and_none_fails(sluice, origin):
    """Who is accepted has descriptors for both sides; the others wait in the queue."""
    d = sluice([origin.address], preexec=low_limit, splice={"min_bytes": 4096})
    assert int(d.wait_event("descriptors")["clients_at_once"]) < 40
    crowd = []
    for i in range(150):
        c = Client(d.address)
        c.send(request_bytes(path=f"/delay/50?bytes={3 + i % 3 * 50000}", fields={"Connection": "close"}))
        crowd.append(c)
    for i, c in enumerate(crowd):
        r = c.read_response()
        assert (r.status, r.length) == (200, 3 + i % 3 * 50000), f"client {i}: {r}"
        c.close()
    assert d.admin("/healthz")[0] == 200
    assert d.metrics().total("sluice_accept_failures_total") == 0


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_with_few_descriptors_idle_clients_make_room(sluice, origin, used):
    """More idle clients than descriptors: the longest idle are ended, so that whoever asks is served."""
    d = sluice([origin.address], preexec=low_limit)
    idle = [d.client() for _ in range(150)]
    if used:
        for c in idle:
            c.try_send(request_bytes())
    try:
        for _ in range(20):  # at either worker, whichever has the idle ones
            assert d.get("/").status == 200
        assert d.metrics().total("sluice_idle_closed_total") > 0
        if used:
            assert [c.read_response().status for c in idle] == [200] * 150, "nobody who has asked is turned away"
    finally:
        for c in idle:
            c.close()


@pytest.mark.parametrize("which", ["error_log", "access_log"])
def test_a_full_disk_does_not_stop_the_service(sluice, origin, which, tmp_path):
    full = {"error_log": {"error_log": "/dev/full"}, "access_log": {"access_log": {"path": "/dev/full", "format": "text"}}}[which]
    if which == "error_log":
        from lib.sluice import Sluice
        d = Sluice(tmp_path, {"one": {"servers": [{"address": origin.address}]}}, start=False, **full)
        d.ready = lambda: d.process.alive() and can_connect(d)
        try:
            d.start()
            exercise(d)
            d.stop()
        finally:
            d.kill()
    else:
        d = sluice([origin.address], **full)
        exercise(d)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of ten pages."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount one")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("which", ["error_log", "access_log"])
def test_a_line_that_a_full_disk_cut_is_ended_before_the_next(sluice, origin, which, small_disk):
    log = small_disk / "log"
    d = sluice([origin.address], threads=1, start=False, **({} if which == "error_log" else {"access_log": {"path": str(log), "format": "text"}}))
    if which == "error_log":
        d.log_file = log
    d.start()
    first, last = (b"level=", b"why_not=") if which == "error_log" else (b"time=", b" end=")

    def say(n):
        for _ in range(n):
            with d.client() as c:
                c.send(b"GARBAGE\r\n\r\n")
                assert c.read_response().status == 400

    def lines():
        return log.read_bytes().split(b"\n")
    say(1)
    (small_disk / "filler").write_bytes(b"x" * 4096 * 7)
    wait_until(lambda: say(20) or log.stat().st_size == 3 * 4096, "the log to fill the disk")
    cut = lines()[-1]
    assert cut, "the disk was full at the end of a line, of all places"
    (small_disk / "filler").unlink()
    n = len(lines())
    wait_until(lambda: say(5) or len(lines()) > n + 3, "lines behind the cut one")
    at = lines().index(cut)
    whole = lines()[:at] + lines()[at + 1:-1]
    assert cut.count(first) <= 1 and all(line.count(first) == 1 for line in whole), lines()[at:at + 2]
    assert len(whole) > 10 and all(last in line for line in whole if b"status=400" in line)
    if which == "error_log":
        d.wait_event("log_lines_lost")


def can_connect(d):
    try:
        Client(d.address).close()
        return True
    except ConnectionRefusedError:
        return False


def exercise(d):
    for _ in range(50):
        assert d.get("/").status == 200
    with d.client() as c:
        c.send(b"GARBAGE\r\n\r\n")
        assert c.read_response().status == 400
    assert d.get("/bytes/1000000", keep=False).sha256 == pattern.sha256(1000000)


def test_an_error_log_that_can_not_be_opened_is_said(tmp_path):
    from lib.sluice import run_sluice
    from test_daemon import GOOD
    (tmp_path / "t.yaml").write_text(GOOD + f"error_log: {tmp_path}/no/such/dir/log\n")
    done = run_sluice("-c", tmp_path / "t.yaml")
    assert done.returncode == 1 and "no/such/dir" in done.stderr


def become_nobody():
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def test_without_privileges_it_serves_with_the_next_engine_and_says_why(sluice, origin, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("already without privileges")
    open_up = tmp_path
    while open_up != open_up.parent and str(open_up).startswith("/tmp/"):
        open_up.chmod(0o777 if open_up == tmp_path else open_up.stat().st_mode | 0o055)
        open_up = open_up.parent
    d = sluice([origin.address], preexec=become_nobody, splice={"min_bytes": 4096})
    said = d.wait_event("engine")
    assert said["engine"] in ("splice", "copy") and said["reason"], said
    assert not d.events("libbpf") and len(d.events("health_table")) == 1, "each thing that is missing is one line"
    n = 8_000_000
    assert d.get(f"/bytes/{n}", keep=False).sha256 == pattern.sha256(n)
    assert d.metrics().bodies("sockmap") == 0


def test_in_a_bare_chroot_it_serves(origin, tmp_path):
    """No /proc, no /dev, no /sys: with the next engine down, and a line that says why."""
    program = build.ROOT / "build" / "sluice"  # sanitizers need /proc
    if os.geteuid() != 0 or not program.exists():
        pytest.skip("needs root, and a build without sanitizers")
    jail = tmp_path / "jail"
    libraries = re.findall(r"(/\S+) \(", subprocess.run(["ldd", program], capture_output=True, text=True).stdout)
    for path in [str(program), *libraries]:
        to = jail / path.lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    port = free_port()
    (jail / "s.yaml").write_text(f"version: 1\nlisteners: [{{address: \"127.0.0.1:{port}\"}}]\n"
                                 f"upstreams: {{one: {{servers: [{{address: \"{origin.address}\"}}]}}}}\n")

    def enter():
        os.chroot(jail)
        os.chdir("/")
    p = Process([program, "-c", "/s.yaml"], tmp_path / "out", env=environment(), preexec=enter)
    try:
        wait_until(lambda: "event=ready" in p.text() or not p.alive(), "the start")
        assert p.alive(), p.text()
        with Client(("127.0.0.1", port)) as c:
            assert c.get("/bytes/200000", keep=False).sha256 == pattern.sha256(200000)
        assert "event=engine" in p.text()
    finally:
        assert p.stop() == 0


def test_the_smallest_configuration_serves(tmp_path, origin):
    port = free_port()
    (tmp_path / "t.yaml").write_text(f"version: 1\nlisteners: [{{address: \"127.0.0.1:{port}\"}}]\n"
                                     f"bpf: {{pin_dir: /sys/fs/bpf/sluice-test-small-{port}}}\n"
                                     f"upstreams: {{one: {{servers: [{{address: \"{origin.address}\"}}]}}}}\n")
    p = Process([build.SLUICE, "-c", tmp_path / "t.yaml"], tmp_path / "out", env=environment())
    try:
        wait_until(lambda: "event=ready" in p.text() or not p.alive(), "the start")
        with Client(("127.0.0.1", port)) as c:
            assert c.get("/").body == b"Hello from one\n"
    finally:
        assert p.stop() == 0


@pytest.mark.parametrize("fault", ["alloc:150+3", "accept:1+3", "socket:6+4", "connect:1+2", "read:10+2", "write:10+2", "pipe:1+",
                                   "map_update:8+"])
def test_an_injected_failure_stays_where_it_is(sluice, origin, fault):
    """Some request may be lost; the process may not, and what is delivered is right."""
    d = sluice({"one": {"servers": [{"address": origin.address}], "timeouts": {"read": "1s"}}}, env={"SLUICE_FAULT": fault},
               splice={"min_bytes": 4096})
    good = 0
    for _ in range(40):
        try:
            with Client(d.address, timeout=5) as c:
                r = c.get("/bytes/200000", keep=False)
                if r.status == 200:
                    assert r.sha256 == pattern.sha256(200000)
                    good += 1
        except (Ended, OSError):
            pass
    assert good >= 20, f"{good} of 40"
    assert d.process.alive()


def test_hundreds_at_once_over_few_workers(sluice, origin):
    d = sluice([origin.address])
    bad = []

    def one(i):
        try:
            with Client(d.address, timeout=120) as c:
                for n in (i, 50000 + i):
                    if c.get(f"/bytes/{n}", keep=False).sha256 != pattern.sha256(n):
                        bad.append(n)
        except Exception as e:
            bad.append(repr(e))
    threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(300)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(150)
    assert not bad, bad[:5]
