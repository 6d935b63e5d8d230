#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
The benchmarks: sluice beside the distribution's HAProxy and nginx, on this machine, over loopback or (--netns) between network namespaces.

Rounds are interleaved: each round runs every proxy once, in turn, and the next begins with another one, so that a machine that
becomes slower is slower for all. What counts is the median. A round during which other processes used the machine is
repeated. What the figures mean and whom they charge: tools/bench/machine.py. Results: build/bench.
"""
import argparse
import json
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
from bench import loads, machine, network, proxies, report  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOREIGN_MAX = 0.10  # processors' worth of other work that a round may see
SIZES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "": 1}


def arguments():
    p = argparse.ArgumentParser(description="sluice beside HAProxy and nginx; make bench BENCH=\"--quick\"")
    p.add_argument("--quick", action="store_true", help="one short round of each: an impression in under 4 minutes")
    p.add_argument("--only", default="", metavar="a,b", help="these loads: " + ", ".join(f"{x.key} {x.title}" for x in loads.LOADS))
    p.add_argument("--rounds", type=int, help="rounds of each (default 3; quick 1)")
    p.add_argument("--seconds", type=float, help="measured in each round (default 4; quick 2)")
    p.add_argument("--engines", default="auto,sockmap,splice,copy", help="of sluice; the first is held against the goals (default %(default)s; quick: auto)")
    p.add_argument("--peers", default="haproxy,nginx", help="the others (default %(default)s)")
    p.add_argument("--netns", action="store_true", help="origin, proxy and load generator in a network namespace each instead of loopback; needs root")
    p.add_argument("--no-wait", action="store_true", help="do not wait for other processes to leave the machine alone")
    p.add_argument("--splice", action="append", default=[], metavar="KEY=VALUE", help="add to sluice's splice section, e.g. window=4MiB")
    p.add_argument("--build", default=str(ROOT / "build"), help="where the programs are (default %(default)s)")
    p.add_argument("--out", help="where results go (default BUILD/bench)")
    a = p.parse_args()
    a.rounds = a.rounds or (1 if a.quick else 3)
    a.seconds = a.seconds or (2.0 if a.quick else 4.0)
    a.engines = [e for e in a.engines.split(",") if e]
    for e in a.engines:
        if e not in proxies.ENGINES + ("auto",):
            p.error(f"no such engine: {e}")
    if a.quick and not any(x.startswith("--engines") for x in sys.argv):
        a.engines = a.engines[:1]
    known = {x.key for x in loads.LOADS}
    a.only = [k for k in a.only.split(",") if k] or sorted(known)
    if set(a.only) - known:
        p.error(f"no such load: {', '.join(sorted(set(a.only) - known))}")
    a.splice = dict(s.split("=", 1) for s in a.splice)
    return a


class Bench:
    def __init__(self, args):
        self.args = args
        self.build = pathlib.Path(args.build).resolve()
        self.directory = pathlib.Path(args.out or self.build / "bench").resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.certs = self.directory / "certs"
        self.done = 0
        self.total = 0
        self.waits = 0 if args.no_wait else 15 if args.quick else 120  # seconds that may go into waiting for a quiet machine
        self.network = network.Namespaces() if args.netns else network.Loopback()
        self.repeats = 0.0  # and into repeating rounds that were not quiet

    def make(self, cls, *more):
        return cls(self.build, self.directory, self.network, *more)

    def contestants(self):
        every = [self.make(proxies.Direct), self.make(proxies.HAProxy), self.make(proxies.Nginx)]
        every = [p for p in every if p.key == "direct" or p.key in self.args.peers.split(",")]
        every += [self.make(proxies.Sluice, e, self.args.splice) for e in self.args.engines]
        able = []
        for p in every:
            why = p.missing()
            if why:
                print(f"bench: going on without {p.label}: {why}", flush=True)
            else:
                able.append(p)
        return able

    @staticmethod
    def takes_part(load, proxy, first_engine):
        if proxy.key == "direct":
            return load.kind != "idle" and not load.tls
        return load.every_engine or not isinstance(proxy, proxies.Sluice) or proxy.engine == first_engine

    def quiet(self):
        """Waits, within limits, until other processes leave the machine alone."""
        while self.waits > 0:
            start = time.monotonic()
            if machine.noise() <= FOREIGN_MAX:
                return
            time.sleep(0.5)
            self.waits -= time.monotonic() - start

    def once(self, load, proxy, origin):
        try:
            return loads.ROUNDS[load.kind](self, load, proxy, origin, self.args.seconds)
        finally:
            proxy.stop()

    def round(self, load, proxy, origin, number):
        self.done += 1
        best, failure = None, None
        for attempt in range(3):
            start = time.monotonic()
            self.quiet()
            try:
                r = self.once(load, proxy, origin)
            except (loads.RoundFailed, RuntimeError, OSError) as e:
                failure = str(e)
                r = None
            if attempt:
                self.repeats -= time.monotonic() - start
            if r and (best is None or r["noise"] < best["noise"]):
                best = r
            if self.repeats <= 0 or (best and best["noise"] <= FOREIGN_MAX):
                break
        head = f"[{self.done:3}/{self.total}] {load.key} round {number + 1} {proxy.label:17}"
        if best is None:
            print(f"{head} FAILED: {failure}", flush=True)
            return {"failed": failure}
        best["round"] = number
        figures = "  ".join(f"{best[m.key]:.{m.digits}f} {m.title}" for m in load.metrics if m.key in best)
        noise = f"  [noise: {best['noise']:.2f} CPU, {best['cpu']['foreign_worst']}]" if best["noise"] > FOREIGN_MAX else ""
        print(f"{head} {figures}{report.moved_text(best.get('moved'), '  by ')}{noise}", flush=True)
        return best

    def run(self):
        a = self.args
        chosen = [x for x in loads.LOADS if x.key in a.only]
        able = self.contestants()
        subprocess.run([self.build / "origin", "--make-certs", self.certs], check=True, stdout=subprocess.DEVNULL)
        # What uses no processor is not repeated: idle and stalled clients.
        plan = [(x, 1 if x.kind != "timed" else a.rounds, [p for p in able if self.takes_part(x, p, a.engines[0])]) for x in chosen]
        self.total = sum(n * len(who) for _, n, who in plan)
        guess = sum(n * len(who) * (a.seconds + min(x.warmup, a.seconds) + 1) for x, n, who in plan)
        self.repeats = 0 if a.quick or a.no_wait else 0.3 * guess
        print(f"bench: {self.total} rounds, about {guess / 60:.0f} minutes; {machine.CPUS} processors", flush=True)
        started = time.time()
        results = {}
        for load, rounds, who in plan:
            print(f"-- {load.key}: {load.title}", flush=True)
            origin = proxies.Origin(self.build, self.directory, load.threads, self.certs, self.network)
            try:
                got = {p.key: [] for p in who}
                for n in range(rounds):
                    turn = n % len(who)
                    for p in who[turn:] + who[:turn]:
                        got[p.key].append(self.round(load, p, origin, n))
            finally:
                origin.stop()
            results[load.key] = got
        return {"started": started, "seconds": time.time() - started, "about": self.about(), "loads": results,
                "labels": {p.key: p.label for p in able}, "judged": f"sluice-{a.engines[0]}"}

    def about(self):
        def first_line(*argv):
            try:
                done = subprocess.run(argv, capture_output=True, text=True, check=False)
                return (done.stdout + done.stderr).strip().splitlines()[0]
            except (OSError, IndexError, TypeError):
                return ""
        cpu = re.search(r"^model name\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
        return {
            "kernel": platform.release(), "processors": machine.CPUS, "cpu": cpu[1] if cpu else platform.machine(),
            "haproxy": first_line(proxies.find("haproxy"), "-v"), "nginx": first_line(proxies.find("nginx"), "-v"),
            "sluice": first_line(str(self.build / "sluice"), "-V"), "splice": self.args.splice, "rounds": self.args.rounds,
            "window_seconds": self.args.seconds, "load_average": os.getloadavg()[0],
            "network": self.network.label, "congestion_control": machine.congestion_control(),
            "tcp_buffers": machine.tcp_buffer_limits(), "window_bytes": self.window(),
        }

    def window(self):
        number, unit = re.fullmatch(r"(\d+)(KiB|MiB|GiB|)", self.args.splice.get("window", "1MiB")).groups()
        return int(number) * SIZES[unit]


def main():
    args = arguments()
    bench = Bench(args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is stopped
    try:
        bench.network.open()
        results = bench.run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        bench.network.close()
    report.summarise(results)
    (bench.directory / "results.json").write_text(json.dumps(results, indent=1))
    (bench.directory / "table.md").write_text(report.markdown(results))
    (bench.directory / "index.html").write_text(report.page(results))
    print(report.plain(results))
    print(f"bench: {results['seconds'] / 60:.1f} minutes; results.json, table.md, index.html in {bench.directory}")


if __name__ == "__main__":
    main()
