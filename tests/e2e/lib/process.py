# SPDX-License-Identifier: Apache-2.0
"""A child process with its output in a file, and what /proc says about it."""
import ctypes
import os
import signal
import subprocess
from pathlib import Path

from .wait import DEADLINE, wait_until

_libc = ctypes.CDLL(None, use_errno=True)
SANITIZER_MARKS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "runtime error:", "WARNING: ThreadSanitizer")


def _die_with_parent():
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Process:
    def __init__(self, argv, output, env=None, cwd=None, preexec=None):
        self.argv = [str(a) for a in argv]
        self.output = output

        def before_exec():
            _die_with_parent()
            if preexec:
                preexec()

        with open(output, "ab") as f:
            self.popen = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=f, stderr=f, env=env, cwd=cwd,
                                          preexec_fn=before_exec)

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def text(self):
        try:
            with open(self.output, errors="replace") as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def send_signal(self, number):
        self.popen.send_signal(number)

    def wait(self, deadline=DEADLINE):
        """The exit status; negative: the signal that ended it."""
        return self.popen.wait(deadline)

    def stop(self, number=signal.SIGTERM, deadline=DEADLINE):
        if self.alive():
            self.send_signal(number)
        try:
            return self.wait(deadline)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)
            self.wait()
            raise AssertionError(f"{self.argv[0]} did not end within {deadline} s of signal {number}\n{self.text()}")

    def kill(self):
        if self.alive():
            self.send_signal(signal.SIGKILL)
            self.wait()


def pid_alive(pid):
    """Whether it runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def stopped(pid):
    """Whether SIGSTOP has reached all of its threads."""
    return all("State:\tT" in (t / "status").read_text() for t in Path(f"/proc/{pid}/task").iterdir())


def kill_pid(pid, number=signal.SIGKILL):
    """Ends a process that has detached itself; it was started by a test, which knows it by its pid file."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    wait_until(lambda: not pid_alive(pid), f"the end of process {pid}")


def rss_bytes(pid):
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def open_fds(pid):
    """What each descriptor points to."""
    out = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            out[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            pass
    return out


def socket_fds(pid):
    return sum(1 for target in open_fds(pid).values() if target.startswith(("socket:", "pipe:")))
