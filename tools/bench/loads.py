# SPDX-License-Identifier: Apache-2.0
"""
What is measured: the loads, what each must reach, and how one round of each kind runs.

A round gives a dictionary of figures, or raises RoundFailed. Figures that a load is judged by are named in its metrics.
"""
import json
import select
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field

from . import machine, proxies

MB, MIB, GB = 1e6, 1 << 20, 1e9
STALL_RCVBUF = 256 * 1024
STALL_READ = 1 << 20
STALL_CLIENTS = 8
STALL_SEND_MAX = 512 << 20  # of each body: enough to tell bounded from unbounded, and no danger to the host


class RoundFailed(Exception):
    pass


@dataclass
class Metric:
    key: str
    title: str
    digits: int
    higher_is_better: bool = False


CPU = Metric("cpu_per_gb", "CPU s/GB", 3)
PROCESS = Metric("process_per_gb", "its process s/GB", 3)
GBIT = Metric("gbit", "Gbit/s", 2, True)
TOTAL = Metric("total_per_gb", "whole machine s/GB", 3)
ADDED = Metric("added_per_gb", "added to no proxy s/GB", 3)


@dataclass
class Goal:
    """The metric's median is at most (higher is better: at least) factor times the best of `versus`, or `limit`."""
    metric: Metric
    factor: float = 0
    versus: tuple = ("haproxy",)
    limit: float = 0

    def text(self):
        sign = ">=" if self.metric.higher_is_better else "<="
        if self.metric in (HELD, MEMORY):
            return "<= window + socket buffers"
        if self.limit:
            return f"{sign} {self.limit:g} {self.metric.title}"
        names = {"haproxy": "HAProxy + splice", "nginx": "nginx"}
        who = names[self.versus[0]] if len(self.versus) == 1 else "the better of " + " and ".join(names[v] for v in self.versus)
        return f"{sign} {self.factor:g}x {who} ({self.metric.title})"


@dataclass
class Load:
    key: str
    title: str
    path: str
    connections: int
    goals: list = field(default_factory=list)
    metrics: list = field(default_factory=lambda: [CPU, PROCESS, GBIT, TOTAL, ADDED])
    kind: str = "timed"
    args: list = field(default_factory=list)
    threads: int = 2
    tls: bool = False
    warmup: float = 1.0
    every_engine: bool = True


US = Metric("us_per_request", "proxy CPU us/request", 2)
US_MACHINE = Metric("us_per_request_machine", "the same, by machine", 2)
RPS = Metric("requests_per_s", "requests/s", 0, True)
P99 = Metric("p99_ms", "p99 ms", 2)
RSS = Metric("rss_mb", "RSS MB", 1)
PSS = Metric("pss_mb", "PSS MB", 1)
HELD = Metric("held_mb", "bytes held per client, MB", 2)
MEMORY = Metric("memory_mb", "host memory per client, MB", 2)
GROWTH = Metric("growth_mb", "still growing, MB/s per client", 2)

LOADS = [
    Load("a", "1 MiB bodies, 32 connections flat out", "/bytes/1048576", 32, [Goal(CPU, 0.5), Goal(GBIT, 1.2)]),
    Load("b", "32 clients at 20 MB/s, 256 MiB bodies", "/bytes/268435456", 32, [Goal(CPU, 0.35)],
         args=["--rate", "20000000", "--rcvbuf", "262144"], warmup=1.5),
    Load("c", "256 clients at 2 MB/s, 64 MiB bodies", "/bytes/67108864", 256, [Goal(CPU, 0.4)],
         args=["--rate", "2000000", "--rcvbuf", "131072", "--period", "20"], warmup=2),
    Load("d", "1 KiB responses, 32 keep-alive connections, one thread", "/bytes/1024", 32,
         [Goal(US, 0.7, ("haproxy", "nginx"))], [US, US_MACHINE, RPS, P99], threads=1, every_engine=False),
    Load("e", "10,000 idle keep-alive connections", "/bytes/1024", 10000, [Goal(RSS, limit=20)], [RSS, PSS], kind="idle",
         every_engine=False),
    Load("f", "stalled clients on bodies of 4 GB", "/", STALL_CLIENTS, [Goal(HELD), Goal(MEMORY)], [HELD, MEMORY, GROWTH],
         kind="stalled"),
    Load("g", "one client flat out on 4 GB bodies", "/bytes/4294967296", 1, [Goal(CPU, 0.8), Goal(GBIT, 1.0)]),
    Load("h", "chunked 1 MiB bodies in 16 KiB chunks, 32 connections", "/chunked/1048576?chunk=16384", 32),
    Load("i", "1 MiB bodies from an HTTPS origin, 32 connections", "/bytes/1048576", 32, tls=True, every_engine=False),
    Load("j", "256 backends at 2 MB/s, 64 MiB bodies", "/slow?bytes=67108864&rate=2000000&ms=2", 256, [Goal(CPU, 0.7)], warmup=2),
    Load("k", "1,000 backends at 200 kB/s, 16 MiB bodies", "/slow?bytes=16777216&rate=200000&ms=10", 1000, [Goal(CPU, 0.7)], warmup=2.5),
]


def stall_bound_mb(window, metric):
    """Window and socket buffers: what may be held for one client that does not read."""
    rmem, wmem = machine.tcp_buffer_limits()
    held = window + rmem + wmem + 2 * STALL_RCVBUF  # proxy's receive and send buffer, the client's receive buffer
    return (held if metric is HELD else held + wmem + MIB) / MB  # and the origin's send buffer


class Loadgen:
    def __init__(self, build, directory, load, proxy, duration, more=()):
        argv = [*proxy.network.as_client, build / "loadgen", "--path", load.path, "--linger", "--connections", load.connections, "--duration", duration, *load.args,
                *more, proxy.url_host()]
        self.log = directory / "loadgen.log"
        self.log.unlink(missing_ok=True)
        self.process = proxies.spawn(argv, self.log, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def wait(self, event, seconds):
        """The line that announces the event, as a dictionary."""
        deadline = time.monotonic() + seconds
        while True:
            ready, _, _ = select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))
            line = self.process.stdout.readline() if ready else b""
            if not line:
                said = self.log.read_text().strip().splitlines()
                raise RoundFailed(f"the load generator {'ended' if ready else 'did not reach ' + event}: {' / '.join(said[-3:])}")
            told = json.loads(line)
            if told["event"] == event:
                return told

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def timed_round(bench, load, proxy, origin, seconds):
    proxy.start(origin, load.threads, load.tls)
    moved = proxy.body_bytes()
    warmup = min(load.warmup, seconds)
    g = Loadgen(bench.build, bench.directory, load, proxy, seconds, ["--warmup", warmup])
    try:
        groups = {"proxy": proxy.pids(), "loadgen": [g.process.pid], "origin": origin.pids()}
        g.wait("begin", warmup + 10)
        before = machine.Snapshot(groups)
        told = g.wait("end", seconds + 10)
        after = machine.Snapshot(groups)
    finally:
        g.stop()
    if told["errors"] or told["corrupt"]:
        raise RoundFailed(f"{told['errors']} errors, {told['corrupt']} corrupt bodies: {g.log.read_text().strip()[:300]}")
    if not told["bytes"]:
        raise RoundFailed("no bytes came")
    cpu = machine.between(before, after)
    gb = told["bytes"] / GB
    scale = told["seconds"] / cpu["seconds"]  # the snapshots lie a few milliseconds outside the load generator's window
    out = {
        "cpu": cpu, "loadgen": told, "gbit": gb * 8 / told["seconds"], "cpu_per_gb": cpu["proxy"] * scale / gb,
        "process_per_gb": cpu["proxy_process"] * scale / gb,
        "total_per_gb": (cpu["busy"] - cpu["foreign"] - cpu["bench"]) * scale / gb,
        "p99_ms": told["latency"]["p99"] * 1e3, "noise": cpu["noise"],
    }
    if told["requests"]:
        out["requests_per_s"] = told["requests"] / told["seconds"]
        out["us_per_request"] = cpu["proxy_process"] * scale * 1e6 / told["requests"]
        out["us_per_request_machine"] = cpu["proxy"] * scale * 1e6 / told["requests"]
    if moved is not None:
        proxy.settle()
        then = proxy.body_bytes() or moved
        out["moved"] = {e: then[e] - moved[e] for e in then}
        out["counters"] = proxy.counters()
    return out


def idle_round(bench, load, proxy, origin, seconds):
    """One answered request on each connection, then nothing: what the process holds."""
    proxy.start(origin, load.threads)
    n = min(load.connections, proxy.max_connections)
    g = Loadgen(bench.build, bench.directory, load, proxy, 1, ["--hold", "--sample", "0", "--connections", n])
    try:
        g.wait("held", 40)
        time.sleep(min(seconds, 1))
        resident, shared = machine.rss(proxy.pids()) if proxy.pids() else (0, 0)
    finally:
        g.stop()
    return {"rss_mb": resident / MB, "pss_mb": shared / MB, "connections": n, "noise": 0.0,
            "bytes_per_connection": resident / n}


class Filler:
    """
    An origin whose bytes cost memory: it sends by copying, where the usual one sends pages of one file again and again. Counts
    what was acknowledged, which is what left it for the kernel behind the proxy.
    """

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.connections = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                c, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(c)
            threading.Thread(target=self._serve, args=(c,), daemon=True).start()

    @staticmethod
    def _serve(c):
        block, head = memoryview(bytes(256 * 1024)), b""
        try:
            while b"\r\n\r\n" not in head:
                more = c.recv(4096)
                if not more:
                    return
                head += more
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4294967296\r\n\r\n")
            sent = 0
            while sent < STALL_SEND_MAX:
                sent += c.send(block)
            c.recv(1)
        except OSError:
            pass

    def acknowledged(self):
        total = 0
        for c in list(self.connections):
            try:
                info = c.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                total += int.from_bytes(info[120:128], "little")  # tcpi_bytes_acked
            except OSError:
                pass
        return total

    def stop(self):
        self.listener.close()
        for c in self.connections:
            try:
                c.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            c.close()


def stalled_round(bench, load, proxy, origin, seconds):
    """Clients read 1 MiB and then nothing: how much of the body is taken from the origin, and from the host's memory."""
    filler = Filler()
    g = None
    try:
        proxy.start(origin, load.threads, port=filler.port)  # always over loopback: the origin is this program
        time.sleep(0.2)
        free = machine.memory_available()
        g = Loadgen(bench.build, bench.directory, load, proxy, 1,
                    ["--stall-after", STALL_READ, "--sample", "0", "--rcvbuf", STALL_RCVBUF])
        read = g.wait("held", 20)["bytes"]
        time.sleep(1.5)
        early = filler.acknowledged()
        start = time.monotonic()
        time.sleep(max(seconds / 2, 1))
        late = filler.acknowledged()
        used = free - machine.memory_available()
        gap = time.monotonic() - start
        n = load.connections
        moved = proxy.body_bytes()
        out = {"held_mb": (late - read) / n / MB, "memory_mb": used / n / MB, "growth_mb": (late - early) / gap / n / MB,
               "noise": 0.0}
        if moved is not None:
            out["moved"] = moved
        return out
    finally:
        if g:
            g.stop()
        filler.stop()


ROUNDS = {"timed": timed_round, "idle": idle_round, "stalled": stalled_round}
