# SPDX-License-Identifier: Apache-2.0
"""A line of daemons that take over from one another. Those that went before must have ended cleanly."""
import json
import os
import signal
import subprocess

from . import build, pattern
from .process import Process, kill_pid, pid_alive
from .sluice import environment
from .wait import wait_until


def bpf_id(path):
    """The number of the map behind a pin; None where there is none."""
    done = subprocess.run(["/usr/sbin/bpftool", "-j", "map", "show", "pinned", path], capture_output=True, text=True)
    return json.loads(done.stdout)["id"] if done.returncode == 0 else None


class Line:
    """Around a running Sluice d, whose .process is always the one that serves."""

    def __init__(self, d):
        self.d = d
        self.before = []  # processes that handed over
        self.others = []  # those that never served
        self.n = 0

    def spawn(self, env=None, argv=("-u",), config=None, preexec=None):
        """A new process, not waited for."""
        self.n += 1
        p = Process([build.SLUICE, "-c", config or self.d.config, *argv], self.d.directory / f"next-{self.d.number}-{self.n}.out",
                    env=environment(**(env or {})), cwd=self.d.directory, preexec=preexec)
        self.others.append(p)
        return p

    def ask(self):
        self.d.send_signal(signal.SIGQUIT)

    def wait_serves(self, p, deadline=30):
        """Until p serves; it is the line's from then on."""
        def serves():
            assert p.alive(), f"the new process ended with {p.popen.returncode}\n{p.text()}\n{self.d.log()[-3000:]}"
            return any(e.get("pid") == str(p.pid) for e in self.d.events("ready"))
        wait_until(serves, f"process {p.pid} to serve", deadline)
        self.others.remove(p)
        self.before.append(self.d.process)
        self.d.process = p
        return p

    def upgrade(self, new_first=False, **kw):
        if new_first:
            p = self.spawn(**kw)
            self.d.wait_event("upgrade_waiting", pid=str(p.pid))
            self.ask()
        else:
            self.ask()
            p = self.spawn(**kw)
        return self.wait_serves(p)

    def wait_old_gone(self, deadline=30):
        """All that handed over have ended, cleanly."""
        for p in self.before:
            status = p.wait(deadline)
            assert status == 0, f"the old process {p.pid} ended with {status}\n{p.text()}"
        self.before = []

    def pin_ids(self):
        """Name and map behind each pin; {} where nothing is pinned."""
        names = sorted(os.listdir(self.d.pin_dir)) if os.path.isdir(self.d.pin_dir) else []
        return {n: bpf_id(f"{self.d.pin_dir}/{n}") for n in names}

    def assert_serves(self):
        r = self.d.get("/bytes/1000")
        assert (r.status, r.sha256) == (200, pattern.sha256(1000))

    def pid_in_file(self):
        with open(self.d.top["pid_file"]) as f:
            return int(f.read())

    def end(self):
        for p in self.before + self.others:
            p.kill()
        try:
            pid = self.pid_in_file()
        except (KeyError, FileNotFoundError, ValueError):
            return
        if pid != self.d.pid and pid_alive(pid):  # one that went to the background
            kill_pid(pid)
