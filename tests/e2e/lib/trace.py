# SPDX-License-Identifier: Apache-2.0
"""Which system calls move a daemon's bytes, by strace."""
import re
import signal
from pathlib import Path

from .process import Process
from .wait import wait_until

TAKES = {"read", "readv", "recvfrom", "recvmsg", "pread64", "preadv"}
GIVES = {"write", "writev", "sendto", "sendmsg", "pwrite64", "pwritev"}
CALL = re.compile(r"(\w+)(?:\(| resumed).* = (\d+)$")


class Traced:
    """What the daemon's calls moved while it was under strace, by name (`moved`), and how many there were (`calls`)."""

    def __init__(self, d, tmp_path):
        self.d, self.out = d, tmp_path / "strace"
        calls = ",".join(sorted(TAKES | GIVES | {"splice"}))
        self.process = Process(["strace", "-f", "-qq", "-p", d.pid, "-o", self.out, "-e", f"trace={calls}"], tmp_path / "strace.err")

    def __enter__(self):
        def attached():
            assert self.process.alive(), self.process.text()
            tasks = list(Path(f"/proc/{self.d.pid}/task").iterdir())
            return all("TracerPid:\t0" not in (t / "status").read_text() for t in tasks)
        wait_until(attached, "strace to attach")
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.popen.wait(20)
        self.moved, self.calls = {}, {}
        for line in self.out.read_text().splitlines():
            m = CALL.search(line)
            if m:
                self.moved[m[1]] = self.moved.get(m[1], 0) + int(m[2])
                self.calls[m[1]] = self.calls.get(m[1], 0) + 1

    def sum(self, names):
        return sum(n for name, n in self.moved.items() if name in names)
