# SPDX-License-Identifier: Apache-2.0
"""The process: arguments, -t, the background, signals, reloading, ends."""
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from lib import build, pattern
from lib.client import Client, Ended, get, request_bytes
from lib.load import Load
from lib.process import kill_pid, pid_alive
from lib.sluice import Sluice, environment, free_port, run_sluice
from lib.wait import DEADLINE, wait_until

# ---- arguments


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag):
    done = run_sluice(flag)
    assert done.returncode == 0
    for word in ("-c", "-d", "-u", "-t", "-V", "--conf", "--daemon", "--upgrade", "--test", "--version", "--help"):
        assert word in done.stdout


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag):
    done = run_sluice(flag)
    assert done.returncode == 0 and re.search(r"sluice \d+\.\d+\.\d+", done.stdout)


@pytest.mark.parametrize("args", [[], ["-x"], ["file.yaml"], ["-c"]])
def test_wrong_arguments_say_what_to_do(args):
    done = run_sluice(*args)
    assert done.returncode != 0
    assert "-h" in done.stdout + done.stderr or "-c" in done.stdout + done.stderr


def write(tmp_path, text):
    path = tmp_path / "t.yaml"
    path.write_text(text)
    return path


GOOD = """version: 1
listeners:
  - address: 127.0.0.1:0
    routes:
      - {upstream: one}
upstreams:
  one:
    servers:
      - {address: "127.0.0.1:1"}
"""


def test_dash_t_accepts_a_good_file(tmp_path):
    done = run_sluice("-t", "-c", write(tmp_path, GOOD))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("change, line, says", [
    (("version: 1", "version: 2"), 1, "version"),
    (("listeners:", "listenerz:"), 2, "listeners"),
    (("{upstream: one}", "{upstream: onee}"), 5, "one"),
    (("127.0.0.1:0", "127.0.0.1:99999"), 3, "99999"),
    (("127.0.0.1:0", "nonsense"), 3, "nonsense"),
    (("    servers:", "    balance: fastest\n    servers:"), 8, "round_robin"),
    (("version: 1", "version: 1\nthreads: lots"), 2, "lots"),
    (("version: 1", "version: 1\nversion: 1"), 2, "version"),
    (("    servers:", "    timeouts: {read: 5 parsecs}\n    servers:"), 8, "parsecs"),
    (("  one:\n", "  one:\n\tx: y\n"), 8, ""),
], ids=["version", "unknown_key", "unknown_upstream", "port", "address", "enum", "number", "twice", "unit", "tab"])
def test_dash_t_points_at_what_is_wrong(tmp_path, change, line, says):
    path = write(tmp_path, GOOD.replace(*change))
    done = run_sluice("-t", "-c", path)
    assert done.returncode == 1
    first = (done.stderr + done.stdout).splitlines()[0]
    assert re.match(rf"{re.escape(str(path))}:{line}:\d+: ", first), done.stderr
    assert says in done.stderr + done.stdout


def test_dash_t_takes_nothing_over(tmp_path, sluice, origin):
    d = sluice([origin.address], pid_file=str(tmp_path / "pid"))
    before = d.config.read_text()
    done = run_sluice("-t", "-c", d.config)
    assert done.returncode == 0, done.stderr
    assert d.get("/").status == 200 and d.config.read_text() == before and Path(tmp_path / "pid").read_text().strip() == str(d.pid)


def test_dash_t_looks_at_files(tmp_path):
    text = GOOD.replace("    servers:", "    tls: {ca_file: /nowhere/ca.pem, sni: one.demo}\n    servers:")
    done = run_sluice("-t", "-c", write(tmp_path, text))
    assert done.returncode == 1 and "/nowhere/ca.pem" in done.stderr + done.stdout


def test_a_file_of_server_settings_alone_loads_and_says_what_is_missing(tmp_path):
    text = ("---\nversion: 1\nthreads: 2\npid_file: /tmp/load_balancer.pid\nerror_log: /tmp/load_balancer_err.log\n"
            "upgrade_sock: /tmp/load_balancer.sock\n")
    done = run_sluice("-t", "-c", write(tmp_path, text))
    out = done.stdout + done.stderr
    assert "listeners" in out and "upstreams" in out
    assert "error" not in out.lower().replace("load_balancer_err", "")


def test_a_missing_file(tmp_path):
    done = run_sluice("-c", tmp_path / "none.yaml")
    assert done.returncode == 1 and "none.yaml" in done.stderr


def test_a_port_that_is_taken_is_said_by_its_address(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        address = f"127.0.0.1:{s.getsockname()[1]}"
        done = run_sluice("-c", write(tmp_path, GOOD.replace("127.0.0.1:0", address)))
    assert done.returncode == 1 and address in done.stderr + done.stdout


def test_a_port_where_another_sluice_listens_is_taken(sluice, origin, tmp_path):
    """The kernel would let both listen, and give the second one all connections."""
    d = sluice([origin.address])
    text = GOOD.replace("127.0.0.1:0", f"127.0.0.1:{d.port}")
    done = run_sluice("-c", write(tmp_path, text))
    assert done.returncode == 1 and f"127.0.0.1:{d.port}" in done.stderr and "another process listens there" in done.stderr
    other = sluice([origin.address])
    other.more_listeners = [{"address": f"127.0.0.1:{d.port}", "routes": [{"upstream": "one"}]}]
    other.write_config()
    other.send_signal(signal.SIGHUP)
    assert "another process listens there" in other.wait_event("reload_failed")["reason"]
    for one in (d, other):
        assert one.get("/").status == 200
    assert d.metrics().total("sluice_listener_accepted_total") == 1


def test_an_address_and_all_addresses_share_a_port(sluice, origin):
    d = sluice([origin.address], start=False)
    port = free_port()
    d.more_listeners = [{"address": f"{host}:{port}", "routes": [{"upstream": "one"}]} for host in ("0.0.0.0", "127.0.0.1")]
    d.start()
    for host in ("127.0.0.2", "127.0.0.1"):
        assert get((host, port), "/").status == 200, host
    d.more_listeners.pop(0)
    d.write_config()
    d.send_signal(signal.SIGHUP)
    d.wait_event("reloaded")
    assert get(("127.0.0.1", port), "/").status == 200


# ---- the background

@pytest.fixture
def background(tmp_path, origin):
    """Starts with -d; gives the daemon's description and a function that starts (another) one."""
    d = Sluice(tmp_path, {"one": {"servers": [{"address": origin.address}]}}, start=False, pid_file=str(tmp_path / "pid"))
    d.choose_ports()
    d.write_config()
    started = []

    def start(*more):
        done = subprocess.run([build.SLUICE, "-d", "-c", d.config, *more], capture_output=True, text=True, env=environment(),
                              timeout=DEADLINE, stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            started.append(int((tmp_path / "pid").read_text()))
        return done
    yield d, start
    for pid in started:
        kill_pid(pid)
    d.kill()


def test_dash_d_returns_when_it_serves(background, tmp_path):
    d, start = background
    done = start()
    assert done.returncode == 0, done.stderr + d.log()
    assert d.get("/").status == 200, "at once, without waiting"
    pid = int((tmp_path / "pid").read_text())
    assert pid_alive(pid) and os.getsid(pid) != os.getsid(0), "it has a session of its own"
    assert not os.path.exists(f"/proc/{pid}/fd/0") or "null" in os.readlink(f"/proc/{pid}/fd/0")
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pid_alive(pid), "its end")
    assert not (tmp_path / "pid").exists(), "the pid file goes with it"


def test_dash_d_fails_loudly(background):
    d, start = background
    d.release_port()
    with socket.socket() as s:
        s.bind(d.address)
        s.listen()
        done = start()
    assert done.returncode != 0 and str(d.port) in done.stderr


def test_a_stale_pid_file_is_replaced(background, tmp_path):
    _, start = background
    (tmp_path / "pid").write_text("999999999\n")
    assert start().returncode == 0
    assert int((tmp_path / "pid").read_text()) != 999999999


def test_a_second_instance_with_the_same_pid_file_is_refused(background, tmp_path):
    d, start = background
    assert start().returncode == 0
    first = (tmp_path / "pid").read_text()
    d.config.write_text(d.config.read_text().replace(f":{d.port}", f":{free_port()}").replace(f":{d.admin_port}", f":{free_port()}"))
    done = start()
    assert done.returncode != 0 and "pid" in done.stderr
    assert (tmp_path / "pid").read_text() == first and d.get("/").status == 200


# ---- ends

def test_sigterm_lets_running_requests_end(sluice, origin):
    d = sluice([origin.address], graceful_shutdown_timeout_seconds=100000)
    with d.client() as running, d.client() as idle:
        assert idle.get("/").status == 200
        running.send(request_bytes(path="/slow?bytes=40000&rate=40000&ms=50"))
        r = running.read_head()
        d.send_signal(signal.SIGTERM)
        d.wait_event("draining")
        assert idle.ended() == "fin", "an idle connection ends at once"
        with pytest.raises((ConnectionRefusedError, ConnectionResetError, Ended)):
            Client(d.address).get("/")
        assert running.read_body(r).length == 40000
        assert running.ended() == "fin"
    assert d.process.wait() == 0, "it ends with the last request, not with the timeout"


def test_sigterm_with_nothing_running_ends_at_once(sluice, origin):
    d = sluice([origin.address], graceful_shutdown_timeout_seconds=100000)
    d.get("/")
    d.stop()


def test_sigterm_ends_by_its_timeout_at_the_latest(sluice, origin):
    d = sluice([origin.address], graceful_shutdown_timeout_seconds=1)
    with d.client() as c:
        c.send(request_bytes(path="/slow?bytes=10000000&rate=1000&ms=50"))
        r = c.read_head()
        d.send_signal(signal.SIGTERM)
        assert d.process.wait() == 0
        with pytest.raises(Ended) as e:
            c.read_body(r)
        assert e.value.how == "rst", "what was cut looks cut"


def test_a_connection_between_requests_is_told_to_close_in_a_drain(sluice, origin):
    """A response that is sent while draining says Connection: close."""
    d = sluice([origin.address], graceful_shutdown_timeout_seconds=100000)
    with d.client() as c:
        c.send(request_bytes(path="/delay/700?bytes=5"))
        d.wait_metric("sluice_active_connections", 1)
        wait_until(lambda: d.metrics().total("sluice_backend_requests_total") == 1, "the request to be with its backend")
        d.send_signal(signal.SIGTERM)
        r = c.read_response()
        assert (r.length, r.get("connection", "").lower()) == (5, "close")
        assert c.ended() == "fin"
    assert d.process.wait() == 0


def test_sigint_ends_now(sluice, origin):
    d = sluice([origin.address], graceful_shutdown_timeout_seconds=100000)
    with d.client() as c:
        c.send(request_bytes(path="/slow?bytes=10000000&rate=1000&ms=50"))
        c.read_head()
        d.send_signal(signal.SIGINT)
        assert d.process.wait() == 0


def test_sigint_ends_a_drain(sluice, origin):
    d = sluice([origin.address], graceful_shutdown_timeout_seconds=100000)
    with d.client() as c:
        c.send(request_bytes(path="/slow?bytes=10000000&rate=1000&ms=50"))
        c.read_head()
        d.send_signal(signal.SIGTERM)
        d.wait_event("draining")
        d.send_signal(signal.SIGINT)
        assert d.process.wait() == 0


# ---- logs

def test_sigusr1_reopens_the_error_log(sluice, origin):
    d = sluice([origin.address])
    old = d.log_file.with_suffix(".old")
    d.log_file.rename(old)
    d.send_signal(signal.SIGUSR1)
    d.wait_event("logs_reopened")
    assert "event=ready" in old.read_text()


def test_log_lines_are_lines_of_pairs(sluice, origin):
    d = sluice([origin.address])
    with d.client() as c:
        c.send(b'GET /"x\x1b[31m\xff HTTP/1.1\r\n\r\n')
        c.read_end()
    with d.client() as c:
        c.send(b'\x1b[31m"=x / HTTP/1.1\r\n\r\n')
        c.read_end()
    d.stop()
    for line in d.log().splitlines():
        assert re.match(r'^\S+ level=\w+ event=\w+( \w+=("([^"\\]|\\.)*"|[^\s"]*))*$', line), line
        assert "\x1b" not in line
    assert len(d.events("request")) == 2


# ---- reload

def test_sighup_reads_the_file_again(sluice, origin, origin_two):
    d = sluice([origin.address])
    with d.client() as c:
        assert c.get("/").body == b"Hello from one\n"
        d.upstreams = {"one": {"servers": [{"address": origin_two.address}]}}
        d.write_config()
        d.send_signal(signal.SIGHUP)
        d.wait_event("reloaded")
        wait_until(lambda: c.get("/").body == b"Hello from two\n", "the same connection to see the new upstream")


def test_a_bad_file_at_sighup_leaves_everything_as_it_was(sluice, origin):
    d = sluice([origin.address])
    d.config.write_text(d.config.read_text() + "nonsense: 1\n")
    with d.client() as c:
        d.send_signal(signal.SIGHUP)
        e = d.wait_event("reload_failed")
        assert "nonsense" in e["reason"] and e["line"].count('"') % 2 == 0 and "\\x22nonsense\\x22" in e["reason"]
        assert c.get("/").status == 200
    assert d.get("/").status == 200


def test_listeners_come_and_go_with_a_reload(sluice, origin):
    d = sluice([origin.address])
    port = free_port()
    d.more_listeners = [{"address": f"127.0.0.1:{port}", "routes": [{"upstream": "one"}]}]
    d.write_config()
    d.send_signal(signal.SIGHUP)
    d.wait_event("reloaded")
    with Client(("127.0.0.1", port)) as c:
        assert c.get("/").status == 200
    d.more_listeners = []
    d.write_config()
    d.send_signal(signal.SIGHUP)
    d.wait_event("reloaded", n=2)

    def gone():
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return True
    wait_until(gone, "the second port to be closed")
    assert d.get("/").status == 200


def test_a_reload_onto_a_taken_port_changes_nothing(sluice, origin, origin_two):
    d = sluice([origin.address])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        d.more_listeners = [{"address": f"127.0.0.1:{s.getsockname()[1]}", "routes": [{"upstream": "one"}]}]
        d.upstreams = {"one": {"servers": [{"address": origin_two.address}]}}
        d.write_config()
        d.send_signal(signal.SIGHUP)
        d.wait_event("reload_failed")
    assert {d.get("/").body for _ in range(4)} == {b"Hello from one\n"}


def test_reloads_under_load_lose_nothing(sluice, origin, origin_two):
    d = sluice([origin.address])
    stop, bad, good = threading.Event(), [], [0]

    def load():
        while not stop.is_set():
            try:
                with d.client() as c:
                    for n in (10, 300000):
                        r = c.get(f"/bytes/{n}", keep=False)
                        if (r.status, r.sha256) != (200, pattern.sha256(n)):
                            bad.append((r.status, r.length))
                        good[0] += 1
            except (Ended, OSError) as e:
                bad.append(repr(e))
    threads = [threading.Thread(target=load, daemon=True) for _ in range(4)]
    for t in threads:
        t.start()
    for i in range(10):
        d.upstreams = {"one": {"servers": [{"address": (origin, origin_two)[i % 2].address}]}}
        d.write_config()
        d.send_signal(signal.SIGHUP)
        d.wait_event("reloaded", n=i + 1)
        seen = good[0]
        wait_until(lambda: good[0] > seen + 5 or bad, "requests between reloads")
    stop.set()
    for t in threads:
        t.join(60)
    assert not bad, bad[:5]


def test_a_storm_of_signals_loses_nothing(sluice, origin, tmp_path):
    d = sluice([origin.address], access_log={"path": str(tmp_path / "access.log"), "format": "text"})
    with Load(d.address, kinds=("kept", "short", "large")) as load:
        for i in range(60):
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE, signal.SIGWINCH)[i % 3:i % 3 + 4]:
                d.send_signal(number)
            load.wait_more(2)
    load.check()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT, signal.SIGTERM):
        d.send_signal(number)
    assert d.process.wait() == 0


@pytest.mark.parametrize("by", ["name", "number"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_privileges_are_dropped(sluice, origin, by):
    nobody = pwd.getpwnam("nobody")
    names = {"user": "nobody", "group": "nogroup"} if by == "name" else {"user": nobody.pw_uid, "group": nobody.pw_gid}
    d = sluice([origin.address], **names)
    uids = re.search(r"^Uid:\s+(.*)$", Path(f"/proc/{d.pid}/status").read_text(), re.M).group(1).split()
    assert set(uids) == {str(nobody.pw_uid)}
    for n in (10, 1_000_000):
        assert d.get(f"/bytes/{n}", keep=False).sha256 == pattern.sha256(n)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_who_gave_up_root_still_reloads_and_opens_its_logs_again(sluice, origin):
    """The logs lie where only root makes files, as below /var/log; a rotation makes the next one for the user, or does not."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        access, error = Path(place, "access.log"), Path(place, "error.log")
        d = sluice([origin.address], start=False, user="nobody", access_log={"path": str(access)})
        d.directory, d.log_file = Path(place), error
        d.config, d.control = Path(place, "sluice.yaml"), Path(place, "admin.sock")
        d.start()

        def rotate(path, made):
            path.rename(f"{path}.1")
            if made:
                path.touch(mode=0o640)
                shutil.chown(path, "nobody")

        def logged(mark, path):
            d.get(f"/bytes/10?{mark}")
            wait_until(lambda: mark in path.read_text(), f"{mark} in {path}")
        d.ctl("reload")
        logged("first", access)
        for path in (access, error):
            rotate(path, made=True)
        d.send_signal(signal.SIGUSR1)
        d.wait_event("logs_reopened")
        logged("second", access)
        rotate(access, made=False)
        d.send_signal(signal.SIGUSR1)
        d.wait_event("reopen_failed")
        d.ctl("reload")
        d.wait_event("reloaded")
        logged("third", Path(f"{access}.1"))
        assert len(d.events("logs_reopened")) == 1
        d.stop()
