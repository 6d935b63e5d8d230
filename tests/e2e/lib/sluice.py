# SPDX-License-Identifier: Apache-2.0
"""The daemon under test: a configuration, a process, and what it tells about itself."""
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.request

from . import build, yamltext
from .client import Client
from .metrics import Metrics
from .process import SANITIZER_MARKS, Process, open_fds, rss_bytes
from .wait import DEADLINE, wait_until

_numbers = itertools.count()
_LOG_PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')


def free_port(host="127.0.0.1"):
    """A port the kernel chose, free a moment ago; the caller must expect that somebody else was faster."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.bind((host, 0))
        return s.getsockname()[1]


def environment(**more):
    env = dict(os.environ, **more)
    env.setdefault("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0:halt_on_error=1")
    env.setdefault("UBSAN_OPTIONS", "print_stacktrace=1:halt_on_error=1")
    return env


def held_port(host="127.0.0.1"):
    """
    A port and the socket that keeps it. Nobody listens on it, so that connections are refused, until a daemon does:
    its listeners are bound with SO_REUSEPORT too, and SO_REUSEADDR tells it that nobody does. Nobody else is given the port meanwhile, not even by chance.
    """
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind((host, 0))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not before: the port might be another's then
    return s.getsockname()[1], s


class Sluice:
    """
    upstreams: {name: {...}} as in the file; the first is where everything goes unless routes say otherwise.
    listener, splice: what to add to those sections. Everything else goes to the top level.
    """

    def __init__(self, directory, upstreams, listener=None, listeners=None, splice=None, start=True, env=None, argv=(),
                 preexec=None, tls_certs=None, **top):
        self.directory = directory
        self.number = next(_numbers)
        self.upstreams = upstreams
        self.listener = listener or {}
        self.more_listeners = listeners or []
        self.splice = splice or {}
        self.top = top
        self.env = env or {}
        self.argv = list(argv)
        self.preexec = preexec
        self.pin_dir = f"/sys/fs/bpf/sluice-test-{os.getpid()}-{self.number}"
        self.config = directory / f"sluice-{self.number}.yaml"
        self.log_file = directory / f"sluice-{self.number}.log"
        self.output = directory / f"sluice-{self.number}.out"
        self.control = directory / f"sluice-{self.number}.sock"
        self.binary = build.SLUICE
        self.process = None
        self.holder = None  # keeps the port ours
        self.expect_status = 0  # of a stop with SIGTERM
        if start:
            self.start()

    # -- starting and stopping

    def document(self):
        listener = {"address": f"127.0.0.1:{self.port}", **self.listener}
        listener.setdefault("routes", [{"upstream": next(iter(self.upstreams))}])
        doc = {"version": 1, "threads": 2, "error_log": str(self.log_file), "log_level": "info",
               "admin": {"http": f"127.0.0.1:{self.admin_port}", "socket": str(self.control)},
               "bpf": {"pin_dir": self.pin_dir}}
        doc.update(self.top)
        if self.splice:
            doc["splice"] = self.splice
        doc["listeners"] = [listener] + self.more_listeners
        doc["upstreams"] = self.upstreams
        return doc

    def write_config(self, document=None):
        self.config.write_text(yamltext.dump(document or self.document()))

    def choose_ports(self):
        self.release_port()
        if self.preexec:  # it may become another user, and only one user's sockets share a port
            self.port = free_port()
        else:
            self.port, self.holder = held_port()
        self.admin_port = free_port()
        self.address = ("127.0.0.1", self.port)

    def release_port(self):
        if self.holder:
            self.holder.close()
        self.holder = None

    def start(self, attempts=5):
        for _ in range(attempts):
            self.choose_ports()
            self.write_config()
            self.process = Process([self.binary, "-c", self.config, *self.argv], self.output, env=environment(**self.env),
                                   cwd=self.directory, preexec=self.preexec)
            try:
                wait_until(self.ready, "event=ready in the log")
                return self
            except AssertionError as e:
                text = self.log()[-8000:] + self.process.text()[-8000:]
                self.process.kill()
                self.process = None
                if "in use" not in text and "EADDRINUSE" not in text:
                    raise AssertionError(f"{e}\n{text}\n{self.config.read_text()}") from None
                self.log_file.unlink(missing_ok=True)
        raise AssertionError("no free port in several attempts")

    def ready(self):
        if "event=ready" in self.log() + self.process.text():
            return True
        assert self.process.alive(), f"it ended with {self.process.popen.returncode}"
        return False

    def stop(self):
        """A graceful stop; what a sanitizer found, or another exit status, is a failure."""
        if self.process is None:
            return
        if self.process.popen.poll() is None:
            self.process.stop(signal.SIGTERM)
        self.check()

    def kill(self):
        if self.process:
            self.process.kill()
        shutil.rmtree(self.pin_dir, ignore_errors=True)
        self.release_port()

    def check(self):
        text = self.process.text() + self.log()
        for mark in SANITIZER_MARKS:
            at = text.find(mark)
            assert at < 0, text[max(at - 200, 0):at + 6000]
        status = self.process.popen.returncode
        assert status is None or status == self.expect_status, f"exit status {status}\n{text[-3000:]}"

    @property
    def pid(self):
        return self.process.pid

    def send_signal(self, number):
        self.process.send_signal(number)

    # -- talking to it

    def client(self, **kw):
        return Client(self.address, **kw)

    def get(self, path="/", **kw):
        with self.client() as c:
            return c.get(path, **kw)

    # -- what it tells

    def admin(self, path, timeout=DEADLINE):
        """(status, body as bytes, content type) of the admin listener."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin_port}{path}")
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout) as r:
                return r.status, r.read(), r.headers.get("Content-Type", "")
        except urllib.error.HTTPError as e:
            return e.code, e.read(), e.headers.get("Content-Type", "")

    def metrics(self):
        status, body, _ = self.admin("/metrics")
        assert status == 200, body
        return Metrics(body.decode())

    def status(self):
        status, body, _ = self.admin("/status")
        assert status == 200, body
        return json.loads(body)

    def log(self):
        try:
            return self.log_file.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def events(self, name=None):
        """Log lines as dictionaries, those with event=name."""
        out = []
        for line in self.log().splitlines():
            event = {k: v[1:-1] if v.startswith('"') else v for k, v in _LOG_PAIR.findall(line)}
            if name is None or event.get("event") == name:
                event["line"] = line
                out.append(event)
        return out

    def wait_event(self, name, n=1, **fields):
        def found():
            hits = [e for e in self.events(name) if all(e.get(k) == v for k, v in fields.items())]
            return hits if len(hits) >= n else None
        return wait_until(found, f"event={name} {fields} in the log")[n - 1]

    def wait_log(self, text):
        return wait_until(lambda: text in self.log(), f"{text!r} in the log")

    def wait_metric(self, name, value, **labels):
        return wait_until(lambda: self.metrics().total(name, **labels) == value, f"{name}{labels} to be {value}")

    def backend_up(self, upstream, address):
        return self.metrics().total("sluice_backend_up", upstream=upstream, backend=address) == 1

    def rss(self):
        return rss_bytes(self.pid)

    def fds(self):
        return open_fds(self.pid)

    def ctl(self, *args, check=True):
        """sluicectl on its control socket."""
        done = subprocess.run([build.SLUICECTL, "-s", self.control, *map(str, args)], capture_output=True, text=True,
                              env=environment(), timeout=DEADLINE)
        if check:
            assert done.returncode == 0, (args, done.returncode, done.stdout, done.stderr)
        return done


def run_sluice(*args, cwd=None, env=None):
    """The program to its end, for -t, -V, -h."""
    return subprocess.run([build.SLUICE, *map(str, args)], capture_output=True, text=True, cwd=cwd,
                          env=environment(**(env or {})), timeout=DEADLINE, stdin=subprocess.DEVNULL)


ENGINES = ("copy", "splice", "sockmap")


def engine_refusal(sluice, engine):
    """Why the engine is not there on this kernel or with these privileges; None when it is."""
    said = sluice.wait_event("engine")
    return None if engine not in ("sockmap", "auto") or said["engine"] == "sockmap" else said.get("reason", "no reason was given")


class Moved:
    """What body bytes were counted by which engine since it was made."""

    def __init__(self, sluice, direction):
        self.sluice = sluice
        self.direction = direction
        self.before = self._now()

    def _now(self):
        m = self.sluice.metrics()
        return {e: m.bodies(e, self.direction) for e in ENGINES}

    def counted(self, nbytes):
        """{engine: bytes}, when they add up to nbytes: a client has a body before its bytes are accounted."""
        def delta():
            now = self._now()
            moved = {e: int(now[e] - self.before[e]) for e in ENGINES}
            assert sum(moved.values()) <= nbytes, f"counted {moved} where {nbytes} bytes passed"
            return moved if sum(moved.values()) == nbytes else None
        return wait_until(delta, f"the counters to tell of {nbytes} bytes")

    @staticmethod
    def by(engine, moved):
        return moved["splice"] + moved["sockmap"] if engine == "auto" else moved[engine]

    def check(self, engine, nbytes, share=0.0):
        """
        The engine under test moved more than `share` of those bytes, copy all of them. What came together with the head
        is copied, and a sender that is ahead from the first byte on makes sockmap brake, so that it may move nothing:
        flat out there is no share to ask of it.
        """
        moved = self.counted(nbytes)
        said = {n: int(v) for n, _, v in self.sluice.metrics().samples
                if v and n.startswith(("sluice_fallback", "sluice_verdict_pass", "sluice_flow"))}
        if engine == "copy":
            assert moved["copy"] == nbytes, moved
        elif share or engine != "sockmap":
            assert self.by(engine, moved) > share * nbytes, f"{engine} was to move {nbytes} bytes: {moved}; since the start: {said}"
        if engine == "splice":
            assert moved["sockmap"] == 0, moved
        return moved
