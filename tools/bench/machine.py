# SPDX-License-Identifier: Apache-2.0
"""
Who used the processors between two moments.

A proxy that moves bytes in the kernel is not charged for them by the process table: workers, softirqs and BPF programs run
elsewhere. So the proxy's share is what is left of the whole machine: busy time, less the load generator, the origin, this
program, and every other process of the machine ("foreign", which is also the measure of noise).

Busy time is elapsed time less idle, iowait and steal: the kernel keeps idle time exactly on tickless systems, whereas user and
system are samples of the tick, which timer-driven loads fool. Processes are read from schedstat in nanoseconds where they are
ours or the kernel's, from stat in ticks where they are foreign; a process that ends meanwhile is found again in its parent's
children's time. What no task accounts for is interrupts and softirqs in idle time and the way in and out of idle. Much of it
means foreign processes that came and went unseen, so beyond a limit it counts as noise too.

On loopback the receiving side's TCP work runs in the sender's context: the origin pays for the packet that arrives at the
proxy, a sockmap program included, and the proxy for the one that arrives at the client. No accounting by process can undo
that, so the whole machine's cost per byte, origin and load generator included, stands beside the proxy's share.
"""
import os
import time

TICK = os.sysconf("SC_CLK_TCK")
CPUS = os.cpu_count()
PF_KTHREAD = 0x00200000
UNKNOWN_MAX = 0.3  # processors' worth that no task need account for


def _read(path):
    with open(path) as f:
        return f.read()


def process_ns(pid):
    """CPU time of all threads of a process that is alive, in nanoseconds. Threads that ended are not in it."""
    total = 0
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            total += int(_read(f"/proc/{pid}/task/{tid}/schedstat").split()[0])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return total


def children(pid):
    try:
        return [int(p) for p in _read(f"/proc/{pid}/task/{pid}/children").split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


class Snapshot:
    """groups: {name: [pid]} of the processes that are part of the measurement."""

    def __init__(self, groups):
        stat = _read("/proc/stat").splitlines()
        self.at = time.monotonic()
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, stat[0].split()[1:9])
        self.ticked = (user + nice + system + irq + softirq) / TICK
        self.rest = (idle + iowait + steal) / TICK
        self.steal = steal / TICK
        self.softirq = (irq + softirq) / TICK
        self.forks = next(int(line.split()[1]) for line in stat if line.startswith("processes "))
        self.groups = {name: sum(process_ns(p) for p in pids) / 1e9 for name, pids in groups.items()}
        self.own = time.process_time()
        ours = {p for pids in groups.values() for p in pids} | {os.getpid()}
        self.kernel, self.foreign, self.commands = 0.0, 0.0, {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if int(pid) in ours:
                continue
            try:
                text = _read(f"/proc/{pid}/stat")
            except (FileNotFoundError, ProcessLookupError):
                continue
            command = text[text.index("(") + 1:text.rindex(")")]
            field = text[text.rindex(")") + 2:].split()
            with_children = sum(map(int, field[11:15])) / TICK
            if int(field[6]) & PF_KTHREAD:
                self.kernel += process_ns(pid) / 1e9
            else:
                self.foreign += with_children
                self.commands[command] = self.commands.get(command, 0) + with_children


def between(a, b):
    """CPU seconds by who used them, from snapshot a to b."""
    seconds = b.at - a.at
    busy = max(seconds * CPUS - (b.rest - a.rest), 0.0)
    part = {name: b.groups[name] - a.groups[name] for name in b.groups}
    foreign = max(b.foreign - a.foreign, 0.0)
    own = b.own - a.own
    proxy = max(busy - sum(t for name, t in part.items() if name != "proxy") - foreign - own, 0.0)
    kernel, process = b.kernel - a.kernel, part.get("proxy", 0.0)
    unknown = proxy - process - kernel
    worst = max(b.commands, key=lambda c: b.commands[c] - a.commands.get(c, 0), default="")
    return {
        "seconds": seconds, "busy": busy, "ticked": b.ticked - a.ticked, "steal": b.steal - a.steal,
        "softirq": b.softirq - a.softirq, "kernel_threads": kernel, "foreign": foreign, "bench": own, "unknown": unknown,
        "forks": b.forks - a.forks, "proxy": proxy, "proxy_process": process,
        "noise": (foreign + max(unknown - UNKNOWN_MAX * seconds, 0.0)) / seconds,
        "loadgen": part.get("loadgen", 0.0), "origin": part.get("origin", 0.0), "foreign_worst": worst,
    }


def noise(seconds=0.2):
    """Processors' worth of foreign work right now."""
    a = Snapshot({})
    time.sleep(seconds)
    b = Snapshot({})
    return max(b.foreign - a.foreign, 0.0) / (b.at - a.at)


def memory_available():
    """Bytes; the median of a few looks, since others come and go."""
    looks = []
    for _ in range(7):
        line = next(x for x in _read("/proc/meminfo").splitlines() if x.startswith("MemAvailable:"))
        looks.append(int(line.split()[1]) * 1024)
        time.sleep(0.05)
    return sorted(looks)[len(looks) // 2]


def tcp_buffer_limits():
    """(largest receive buffer, largest send buffer) that the kernel grows a TCP socket to."""
    return tuple(int(_read(f"/proc/sys/net/ipv4/{name}").split()[2]) for name in ("tcp_rmem", "tcp_wmem"))


def congestion_control():
    return _read("/proc/sys/net/ipv4/tcp_congestion_control").strip()


def rss(pids):
    """(RSS, PSS) in bytes, summed; PSS counts a shared page once."""
    resident = shared = 0
    for pid in pids:
        for line in _read(f"/proc/{pid}/status").splitlines():
            if line.startswith("VmRSS:"):
                resident += int(line.split()[1]) * 1024
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                shared += int(line.split()[1]) * 1024
    return resident, shared
