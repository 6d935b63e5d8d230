# SPDX-License-Identifier: Apache-2.0
"""The demonstration origin as a process."""
import json

from . import build
from .client import Client
from .process import Process
from .wait import wait_until


class Origin:
    def __init__(self, directory, name, certs=None, tls=False, cert=None, key=None, unix=None, http="127.0.0.1:0", more=()):
        self.name = name
        ready = directory / f"origin-{name}.json"
        ready.unlink(missing_ok=True)
        argv = [build.ORIGIN, "--name", name, "--port-file", ready, "--die-with-parent", "--http", http, *more]
        if tls:
            argv += ["--https", "127.0.0.1:0", "--cert", cert or certs / "server.pem", "--key", key or certs / "server.key"]
        if unix:
            argv += ["--unix", unix]
        self.process = Process(argv, directory / f"origin-{name}.log")
        self.unix = unix
        ports = wait_until(lambda: self._ports(ready), f"origin {name} to listen")
        self.port = ports["http"]
        self.address = f"127.0.0.1:{self.port}"
        self.tls_port = ports.get("https")
        self.tls_address = f"127.0.0.1:{self.tls_port}"

    def _ports(self, ready):
        assert self.process.alive(), self.process.text()
        try:
            return json.loads(ready.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def stats(self):
        """Counters of the origin; the connection that asks is counted too."""
        with Client(("127.0.0.1", self.port)) as c:
            return json.loads(c.get("/stats").body)

    def stop(self):
        self.process.stop()
