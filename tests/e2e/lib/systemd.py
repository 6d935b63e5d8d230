# SPDX-License-Identifier: Apache-2.0
"""
A service manager of our own: the installed systemd as PID 1 of new namespaces, with no units but those given. It shares
the network and /tmp's files with the test, and has its own /run. $SLUICE_SYSTEMD_ROOT names a directory with another
version's files.
"""
import os
import re
import shutil
import subprocess
from pathlib import Path

from .wait import wait_until

OTHER = os.environ.get("SLUICE_SYSTEMD_ROOT", "")

BOOT = """#!/bin/sh
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/t
mount --bind {shared} /run/t
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec env -i container=test PATH="$PATH" SYSTEMD_UNIT_PATH={units} SYSTEMD_GENERATOR_PATH=/nowhere \\
	SYSTEMD_LOG_TARGET=console {env} {binary} --unit=default.target
"""


def _libraries():
    found = [str(p) for p in Path(OTHER).glob("**/x86_64-linux-gnu*") if p.is_dir()] if OTHER else []
    found += [f"{p}/systemd" for p in found]
    return {"LD_LIBRARY_PATH": ":".join(found)} if found else {}


def _binary():
    for p in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd"):
        if os.access(OTHER + p, os.X_OK):
            return OTHER + p
    return None


def _systemctl():
    return next((OTHER + p for p in ("/bin/systemctl", "/usr/bin/systemctl") if os.access(OTHER + p, os.X_OK)), None)


def version():
    """0: there is none."""
    if not _binary() or not _systemctl():
        return 0
    said = subprocess.run([_systemctl(), "--version"], capture_output=True, text=True, env={**os.environ, **_libraries()})
    found = re.match(r"systemd (\d+)", said.stdout)
    return int(found[1]) if found else 0


def _cgroup2():
    with open("/proc/self/mountinfo") as f:
        return next((Path(line.split()[4]) for line in f if " - cgroup2 " in line), None)


class NotHere(Exception):
    """Why no manager can be run."""


class Manager:
    """units: {file name: text}. shared: a directory that units know as /run/t."""

    def __init__(self, directory, shared, units):
        self.process = self.cgroup = None
        self.log = directory / "systemd.log"
        if os.geteuid() != 0:
            raise NotHere("needs root")
        if not version() or not shutil.which("unshare") or not shutil.which("nsenter"):
            raise NotHere("systemd is not installed")
        if not _cgroup2():
            raise NotHere("no cgroup2 is mounted")
        self.units = directory / "units"
        self.units.mkdir()
        targets = ("default", "sysinit", "basic", "shutdown", "sockets", "network-online")
        for name, text in {**{f"{t}.target": "[Unit]\n" for t in targets}, **units}.items():
            (self.units / name).parent.mkdir(exist_ok=True)
            (self.units / name).write_text(text)
        boot = directory / "boot.sh"
        boot.write_text(BOOT.format(shared=shared, units=self.units, binary=_binary(),
                                    env=" ".join(f"{k}={v}" for k, v in _libraries().items())))
        boot.chmod(0o755)
        try:
            self.cgroup = _cgroup2() / f"sluice-test-{os.getpid()}-{directory.name}"
            self.cgroup.mkdir()
            procs = os.open(self.cgroup / "cgroup.procs", os.O_WRONLY)
        except OSError as e:
            raise NotHere(f"no cgroup can be made: {e}") from None
        with open(self.log, "ab") as f:
            self.process = subprocess.Popen(["unshare", "-fpmCui", "--kill-child", str(boot)], stdin=subprocess.DEVNULL, stdout=f,
                                            stderr=f, preexec_fn=lambda: os.write(procs, b"0"))
        os.close(procs)
        try:
            wait_until(self._up, "the service manager to come up")
        except (AssertionError, OSError) as e:
            text = self.log.read_text(errors="replace")[-2000:]
            self.stop()
            raise NotHere(f"it does not come up in namespaces here: {e} {text}") from None

    def _up(self):
        assert self.process.poll() is None, "unshare ended"
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as f:
            inner = f.read().split()
        if not inner:
            return False
        self.pid = int(inner[0])
        done = self.run("systemctl", "is-system-running", check=False)
        return done.stdout.strip() in ("running", "degraded")

    def run(self, *argv, check=True):
        """A command as root of that system."""
        argv = [str(a) for a in argv]
        if argv[0] == "systemctl":
            argv[0] = _systemctl()
        done = subprocess.run(["nsenter", "-t", str(self.pid), "-a", *argv], capture_output=True, text=True, timeout=60,
                              env={**os.environ, **_libraries()})
        if check:
            assert done.returncode == 0, (argv, done.returncode, done.stdout, done.stderr, self.log.read_text(errors="replace")[-2000:])
        return done

    def show(self, unit, name):
        return self.run("systemctl", "show", "-P", name, unit).stdout.strip()

    def main_pid(self, unit):
        """As this side of the namespaces numbers it. 0: there is none."""
        inner = self.show(unit, "MainPID")
        if inner == "0":
            return 0
        try:
            for pid in (self.cgroup / "system.slice" / unit / "cgroup.procs").read_text().split():
                if re.search(rf"^NSpid:.*\t{inner}$", Path(f"/proc/{pid}/status").read_text(), re.M):
                    return int(pid)
        except (FileNotFoundError, ProcessLookupError):
            pass  # it just ended
        return 0

    def stop(self):
        if self.process:
            self.process.kill()  # and the manager with it: --kill-child
            self.process.wait()
        if self.cgroup and self.cgroup.exists():
            (self.cgroup / "cgroup.kill").write_text("1")

            def gone():
                try:
                    for d in sorted((p for p in self.cgroup.glob("**/") if p != self.cgroup), reverse=True):
                        d.rmdir()
                    self.cgroup.rmdir()
                    return True
                except OSError:
                    return False
            wait_until(gone, "the manager's processes to end")
