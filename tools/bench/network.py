# SPDX-License-Identifier: Apache-2.0
"""
What lies between load generator, proxy and origin: loopback, or a network namespace each and veth pairs between them, where packets
have the size they have between hosts (MSS 1448, still joined to 64 KiB by GSO). Addresses are those of RFC 2544, for benchmarks.
"""
import os
import subprocess


class Loopback:
    label = "over loopback"
    origin = origin_listen = proxy = proxy_seen_by_client = origin_seen_by_client = "127.0.0.1"
    as_origin, as_client = [], []

    def open(self):
        pass

    def close(self):
        pass


class Namespaces:
    label = "between network namespaces, over veth"
    origin, origin_listen, proxy = "198.18.1.2", "0.0.0.0", "0.0.0.0"
    proxy_seen_by_client, origin_seen_by_client = "198.18.2.1", "198.18.3.2"

    def __init__(self):
        self.o, self.c = f"sluice-bench-{os.getpid()}-o", f"sluice-bench-{os.getpid()}-c"
        self.as_origin = ["ip", "netns", "exec", self.o]
        self.as_client = ["ip", "netns", "exec", self.c]

    @staticmethod
    def ip(line):
        subprocess.run(["ip", *line.split()], check=True)

    def open(self):
        self.close()
        for line in (f"netns add {self.o}", f"netns add {self.c}",
                     f"link add slbo type veth peer name eth0 netns {self.o}", f"link add slbc type veth peer name eth0 netns {self.c}",
                     f"-n {self.o} link add eth1 type veth peer name eth1 netns {self.c}",  # without a proxy
                     "addr add 198.18.1.1/24 dev slbo", "addr add 198.18.2.1/24 dev slbc", "link set slbo up", "link set slbc up",
                     f"-n {self.o} addr add 198.18.1.2/24 dev eth0", f"-n {self.o} addr add 198.18.3.2/24 dev eth1",
                     f"-n {self.c} addr add 198.18.2.2/24 dev eth0", f"-n {self.c} addr add 198.18.3.1/24 dev eth1"):
            self.ip(line)
        for name in (self.o, self.c):
            for device in ("lo", "eth0", "eth1"):
                self.ip(f"-n {name} link set {device} up")

    def close(self):
        for line in (f"netns del {self.o}", f"netns del {self.c}", "link del slbo", "link del slbc"):
            subprocess.run(["ip", *line.split()], check=False, stderr=subprocess.DEVNULL)
