# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong between one process and the next, one goes on serving, and says why."""
import os
import shutil
import signal
import socket
import stat

import pytest

from lib import build
from lib.load import Load
from lib.upgrade import Line
from lib.wait import wait_until


NEW_STEPS = ["exit_hello", "exit_adopt", "exit_opened", "exit_ready", "exit_go", "exit_serving"]
OLD_STEPS = ["exit_offer", "exit_offered", "exit_commit", "exit_committed"]


@pytest.mark.parametrize("step", NEW_STEPS)
def test_a_new_process_that_dies_is_not_noticed(line, step):
    one = line()
    pins = one.pin_ids()
    with Load(one.d.address, kinds=("kept", "pausing", "short", "large")) as load:
        load.wait_more(10)
        p = one.spawn(env={"SLUICE_FAULT": f"{step}:1"})
        if step != "exit_hello":
            one.d.wait_event("upgrade_waiting", pid=str(p.pid))
            one.ask()
        assert p.wait() == -signal.SIGKILL
        one.d.wait_event("upgrade_failed")
        load.wait_more(20)
        assert one.pid_in_file() == one.d.pid
        assert one.d.status() and one.d.ctl("status")
        assert one.pin_ids() == pins, "the pins are not those of the process that serves"
        one.upgrade()  # it can be asked again
        load.wait_more(20)
        load.stop()
    # Only once the new process accepts (exit_serving) can connections be lost with it.
    if step != "exit_serving":
        load.check()
    one.assert_serves()
    one.wait_old_gone()
    assert one.pid_in_file() == one.d.pid


@pytest.mark.parametrize("step", ["exit_opened", "exit_ready", "exit_go"])
def test_more_threads_that_never_come_are_not_noticed(line, step):
    """Sockets that the new process adds must not get connections before it accepts."""
    one = line()
    with Load(one.d.address, kinds=("short",) * 6) as load:
        load.wait_more(10)
        one.d.top["threads"] = 6
        one.d.write_config()
        p = one.spawn(env={"SLUICE_FAULT": f"{step}:1"})
        one.d.wait_event("upgrade_waiting", pid=str(p.pid))
        one.ask()
        assert p.wait() == -signal.SIGKILL
        load.wait_more(60)
        load.stop()
    load.check()


@pytest.mark.may_kill
@pytest.mark.parametrize("step", OLD_STEPS)
def test_an_old_process_that_dies_leaves_the_new_one_serving(line, step):
    one = line(env={"SLUICE_FAULT": f"{step}:1"})
    old = one.d.process
    one.ask()
    p = one.spawn()
    assert old.wait() == -signal.SIGKILL
    one.wait_serves(p)
    one.before = []
    one.assert_serves()
    assert one.pid_in_file() == p.pid
    assert one.d.status() and one.d.ctl("status")
    one.upgrade()
    one.assert_serves()


def test_an_old_process_killed_while_a_new_one_waits(line):
    one = line()
    old = one.d.process
    p = one.spawn()
    one.d.wait_event("upgrade_waiting", pid=str(p.pid))
    old.send_signal(signal.SIGKILL)
    assert old.wait() == -signal.SIGKILL
    one.wait_serves(p)
    one.before = []
    one.assert_serves()


def test_a_bad_configuration_leaves_the_old_process_serving(line):
    one = line()
    bad = one.d.directory / "bad.yaml"
    bad.write_text(one.d.config.read_text().replace("upstreams:", "upstraems:"))
    p = one.spawn(config=bad)
    assert p.wait() == 1 and "upstraems" in p.text()
    taken = socket.create_server(("127.0.0.1", 0))
    one.d.more_listeners = [{"address": f"127.0.0.1:{taken.getsockname()[1]}",
                             "routes": [{"upstream": next(iter(one.d.upstreams))}]}]
    one.d.write_config()
    one.ask()
    p = one.spawn()
    assert p.wait() == 1
    e = one.d.wait_event("upgrade_failed")
    assert "cannot listen" in e["line"]
    one.assert_serves()
    assert one.d.status() and one.d.ctl("status")
    taken.close()
    one.upgrade()
    one.assert_serves()
    one.wait_old_gone()


def test_the_operator_is_told_of_a_bad_configuration(line):
    one = line()
    good = one.d.config.read_text()
    one.d.config.write_text(good.replace("upstreams:", "upstraems:"))
    one.d.ctl("upgrade", check=False)
    e = one.d.wait_event("upgrade_process_ended")
    assert "upstraems" in e["line"]
    one.assert_serves()
    one.d.config.write_text(good)
    one.upgrade()
    one.assert_serves()


WRONG = {"fails": "#!/bin/sh\necho not this one >&2; exit 3\n", "says_nothing": "#!/bin/sh\nexit 0\n",
         "hangs": "#!/bin/sh\nexec sleep 1000\n", "no_program": "just text\n", "not_executable": "#!/bin/sh\n"}


@pytest.mark.slow
@pytest.mark.parametrize("user", [None, "nobody"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_binary_leaves_the_old_process_serving(sluice, origin, tmp_path, wrong, user):
    if user and os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    d = sluice([origin.address], start=False, pid_file=str(tmp_path / "sluice.pid"), **({"user": user} if user else {}))
    d.binary = tmp_path / "sluice-here"
    shutil.copy(build.SLUICE, d.binary)
    d.start()
    one = Line(d)
    try:
        good = d.binary.with_suffix(".good")
        d.binary.rename(good)
        d.binary.write_text(WRONG[wrong])
        d.binary.chmod(0o644 if wrong == "not_executable" else 0o755)
        done = d.ctl("upgrade", check=False)
        if done.returncode == 0:
            d.wait_event("upgrade_failed")
        else:
            assert "can not be started" in done.stdout + done.stderr
        one.assert_serves()
        d.binary.unlink()
        good.rename(d.binary)
        wait_until(lambda: d.ctl("upgrade", check=False).returncode == 0, "another upgrade to be possible")
        assert d.process.wait() == 0
        one.assert_serves()
    finally:
        one.end()


def connect_as_stranger(path, uid):
    """What a process of another user gets: in a child, which can change its user."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setuid(uid)
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            s.settimeout(5)
            s.connect(path)
            os.write(w, s.recv(1000))
        except OSError as e:
            os.write(w, f"error {e.errno}".encode())
        os._exit(0)
    os.close(w)
    os.waitpid(pid, 0)
    with os.fdopen(r, "rb") as f:
        return f.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_stranger_gets_nothing(line, tmp_path):
    one = line()
    path = one.d.top["upgrade_sock"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    for p in (tmp_path, *tmp_path.parents):
        if str(p).startswith("/tmp/"):
            os.chmod(p, 0o755)
    assert connect_as_stranger(path, 65534) == b"error 13"
    os.chmod(path, 0o666)
    assert b"only root" in connect_as_stranger(path, 65534)
    one.d.wait_event("upgrade_refused", uid="65534")
    one.assert_serves()


@pytest.mark.parametrize("junk", [b"", b"x", b"GET / HTTP/1.1\r\n\r\n", b"slucXXXXYYYYZZZZ" * 100,
                                  b"slua\1\0\1\0\5\0\377\377"], ids=["empty", "byte", "http", "long", "cut"])
def test_junk_on_the_upgrade_socket_changes_nothing(line, junk):
    one = line()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.connect(one.d.top["upgrade_sock"])
        s.send(junk) if junk else None
        s.settimeout(5)
        if junk:
            s.recv(1000)
    one.d.wait_event("upgrade_failed")
    one.assert_serves()
    one.upgrade()
    one.assert_serves()
