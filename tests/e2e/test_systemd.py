# SPDX-License-Identifier: Apache-2.0
"""The unit as it is installed, under a real systemd: start, reload, upgrade, watchdog, socket activation, stop."""
import os
import shutil
import signal
import socket
import threading

import pytest

from lib import build, pattern, yamltext
from lib.client import Client, get
from lib.load import Load
from lib.process import pid_alive
from lib.sluice import free_port
from lib.systemd import Manager, NotHere, version
from lib.wait import wait_until

PLAIN = build.ROOT / "build"  # sanitizers do not live with the unit's filters
UNIT = "sluice.service"


class Service:
    """The installed unit with a configuration of its own, seen from outside."""

    def __init__(self, directory, origin, units=None, **top):
        self.shared = directory / "shared"
        for d in ("sbin", "etc/sluice"):
            (self.shared / d).mkdir(parents=True)
        for name in ("sluice", "sluicectl"):
            shutil.copy(PLAIN / name, self.shared / "sbin" / name)
        self.port = free_port()
        self.address = ("127.0.0.1", self.port)
        self.top = top
        self.origin = origin
        self.pin_dir = f"/sys/fs/bpf/sluice-test-{os.getpid()}-{directory.name}"
        self.listeners = [f"127.0.0.1:{self.port}"]
        self.write()
        unit = (build.ROOT / "conf" / UNIT).read_text().replace("@SBIN@", "/run/t/sbin").replace("@SYSCONFDIR@", "/run/t/etc")
        reload_unit = (build.ROOT / "conf" / "notify-reload.conf").read_text()
        units = {UNIT: unit, **(units(self) if units else {})}
        if version() >= 253:
            units[f"{UNIT}.d/notify-reload.conf"] = reload_unit
        self.manager = Manager(directory, self.shared, units)

    def write(self, extra=""):
        doc = {"version": 1, "threads": 2, "error_log": "/var/log/sluice/error.log", "admin": {"socket": "/run/sluice/admin.sock"},
               "bpf": {"pin_dir": self.pin_dir}, **self.top,
               "listeners": [{"address": a, "routes": [{"upstream": "one"}]} for a in self.listeners],
               "upstreams": {"one": {"servers": [{"address": self.origin.address}]}}}
        (self.shared / "etc/sluice/sluice.yaml").write_text(yamltext.dump(doc) + extra)

    def systemctl(self, verb, *more, **kw):
        return self.manager.run("systemctl", verb, UNIT, *more, **kw)

    def ctl(self, *argv, **kw):
        return self.manager.run("/run/t/sbin/sluicectl", "-s", "/run/sluice/admin.sock", *argv, **kw)

    def show(self, name):
        return self.manager.show(UNIT, name)

    def main_pid(self):
        return self.manager.main_pid(UNIT)

    def wait_active(self):
        wait_until(lambda: self.show("ActiveState") == "active" and self.show("SubState") == "running", "the service to be active")

    def get(self, n=1000):
        r = get(self.address, f"/bytes/{n}")
        assert (r.status, r.sha256) == (200, pattern.sha256(n))

    def log(self):
        return self.manager.run("cat", "/var/log/sluice/error.log", check=False).stdout

    def stop(self):
        self.manager.stop()
        shutil.rmtree(self.pin_dir, ignore_errors=True)


@pytest.fixture
def service(tmp_path, origin):
    made = []

    def make(**kw):
        if not (PLAIN / "sluice").exists():
            pytest.skip("systemd: the plain build is not there")
        try:
            made.append(Service(tmp_path, origin, **kw))
        except NotHere as why:
            pytest.skip(f"systemd: {why}")
        return made[-1]
    yield make
    for s in made:
        s.stop()


def test_start_reload_and_stop(service):
    s = service()
    s.systemctl("start")
    s.wait_active()
    assert s.show("Type") == ("notify-reload" if version() >= 253 else "notify")
    pid = s.main_pid()
    s.get()
    more = free_port()
    s.listeners.append(f"127.0.0.1:{more}")
    s.write()
    s.systemctl("reload")
    # From version 253 on the manager waits for the end of a reload.
    if version() < 253:
        wait_until(lambda: "event=reloaded" in s.log(), "the reload")
    assert get(("127.0.0.1", more), "/bytes/10").status == 200
    s.write(extra="nonsense: 1\n")
    s.systemctl("reload")
    wait_until(lambda: "event=reload_failed" in s.log(), "the reload to fail")
    s.wait_active()
    assert "nonsense" in s.show("StatusText")
    s.get()
    assert s.main_pid() == pid
    s.write()
    s.systemctl("reload")
    s.wait_active()
    wait_until(lambda: s.show("StatusText") == "", "the status to be in order again")
    s.systemctl("stop")
    assert s.show("Result") == "success" and s.show("ExecMainStatus") == "0"
    assert not os.path.exists(s.pin_dir)


def test_a_bad_configuration_does_not_start(service):
    s = service()
    s.write(extra="nonsense: 1\n")
    assert s.systemctl("start", check=False).returncode != 0
    assert s.show("Result") != "success"


def test_stop_waits_for_a_running_response(service):
    s = service()
    s.systemctl("start")
    n = 8 << 20
    with Client(s.address, rcvbuf=65536) as c:
        c.send(f"GET /bytes/{n} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = c.read_head()
        done = []
        stopping = threading.Thread(target=lambda: done.append(s.systemctl("stop")))
        stopping.start()
        wait_until(lambda: "event=draining" in s.log(), "the drain")
        assert not done
        c.read_body(head)
        assert (head.length, head.sha256) == (n, pattern.sha256(n))
    stopping.join()
    assert s.show("Result") == "success"


@pytest.mark.parametrize("user", [None, "nobody"])
def test_the_main_process_moves_with_an_upgrade(service, user):
    s = service(**({"user": user} if user else {}))
    s.systemctl("start")
    s.wait_active()
    with Load(s.address, kinds=("kept", "short", "large", "pausing")) as load:
        for _ in range(3):
            old = s.main_pid()
            s.ctl("upgrade")
            wait_until(lambda: s.main_pid() not in (0, old), "another process to be the main one")
            load.wait_more(20)
            wait_until(lambda: not pid_alive(old), "the old process to end")
            s.wait_active()
        s.systemctl("reload")
        wait_until(lambda: "event=reloaded" in s.log(), "the reload of the new process")
        load.stop()
    load.check()
    assert s.show("NRestarts") == "0"
    s.systemctl("stop")
    assert s.show("Result") == "success"
    # The directory itself is only its to remove where /sys/fs/bpf lets everybody make some.
    assert not os.path.exists(s.pin_dir) or not os.listdir(s.pin_dir)


def test_a_failed_upgrade_leaves_the_main_process(service):
    s = service()
    s.systemctl("start")
    s.wait_active()
    pid = s.main_pid()
    s.write(extra="nonsense: 1\n")
    s.ctl("upgrade")
    wait_until(lambda: "event=upgrade_process_ended" in s.log(), "the new process to end")
    s.get()
    assert s.main_pid() == pid and s.show("NRestarts") == "0"
    s.wait_active()


@pytest.mark.slow
def test_the_watchdog_is_fed_and_bites(service):
    s = service(units=lambda _: {f"{UNIT}.d/watchdog.conf": "[Service]\nWatchdogSec=2\n"})
    s.systemctl("start")
    for _ in range(2):  # of the first process, and of the next
        for _ in range(2):
            fed = s.show("WatchdogTimestampMonotonic")
            wait_until(lambda: s.show("WatchdogTimestampMonotonic") != fed, "the watchdog to be fed")
        pid = s.main_pid()
        s.ctl("upgrade")
        wait_until(lambda: s.main_pid() not in (0, pid), "another process to be the main one")
    pid = s.main_pid()
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: s.main_pid() not in (0, pid), "the manager to start another one")
    s.wait_active()
    s.get()


@pytest.mark.parametrize("user", [None, "nobody"])
def test_socket_activation(service, user):
    """The manager's sockets are there before the service, and stay when it goes."""
    s = service(units=lambda s: {"sluice.socket": f"[Socket]\nListenStream=127.0.0.1:{s.port}\n"}, **({"user": user} if user else {}))
    s.manager.run("systemctl", "start", "sluice.socket")
    assert s.show("ActiveState") == "inactive"
    with Client(s.address) as early:
        assert early.get("/bytes/1000").status == 200
        s.wait_active()
        old = s.main_pid()
        s.ctl("upgrade")
        wait_until(lambda: s.main_pid() not in (0, old), "another process to be the main one")
        s.get()
        assert early.get("/bytes/10").get("Connection") == "close"
    wait_until(lambda: not pid_alive(old), "the old process to end")
    s.systemctl("stop")
    assert s.show("Result") == "success"
    with socket.create_connection(s.address) as waiting:
        waiting.sendall(b"GET /bytes/10 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        s.wait_active()
        waiting.settimeout(20)
        assert waiting.recv(100).startswith(b"HTTP/1.1 200 ")
