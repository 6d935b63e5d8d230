# SPDX-License-Identifier: Apache-2.0
"""
The proxies that are compared, each started fresh for a round with the smallest configuration that does the same work: no logs,
keep-alive to the origin, the same number of threads. Everything listens on loopback, on ports the kernel chose.
"""
import ctypes
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

from . import machine
from .network import Loopback

FILES = 20000
_libc = ctypes.CDLL(None, use_errno=True)
ENGINES = ("sockmap", "splice", "copy")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _in_child():
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def spawn(argv, log, **more):
    with open(log, "ab") as f:
        return subprocess.Popen([str(a) for a in argv], stderr=f, preexec_fn=_in_child,
                                **{"stdin": subprocess.DEVNULL, "stdout": f, **more})


def end(process):
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def find(name):
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Origin:
    def __init__(self, build, directory, threads, certs, network):
        ready = directory / "origin.json"
        ready.unlink(missing_ok=True)
        self.certs = certs
        at = f"{network.origin_listen}:0"
        self.process = spawn([*network.as_origin, build / "origin", "--threads", threads, "--http", at, "--https", at, "--cert",
                              certs / "server.pem", "--key", certs / "server.key", "--ktls", "--port-file", ready],
                             directory / "origin.log")
        deadline = time.monotonic() + 10
        while True:
            try:
                ports = json.loads(ready.read_text())
                break
            except (FileNotFoundError, ValueError):
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError(f"the origin did not start; see {directory / 'origin.log'}") from None
                time.sleep(0.01)
        self.http, self.https = ports["http"], ports["https"]

    def pids(self):
        return [self.process.pid]

    def stop(self):
        end(self.process)


class Proxy:
    """One round's process. key: in results; label: for people."""
    key = label = program = ""
    max_connections = 10000

    def __init__(self, build, directory, network):
        self.build, self.directory = build, directory
        self.usual_network = network
        self.process = None
        self.port = 0

    def missing(self):
        """Why it can not take part, or None."""
        return None if find(self.program) else f"{self.program} is not installed"

    def url_host(self):
        """host:port for the load generator."""
        return f"{self.network.proxy_seen_by_client}:{self.port}"

    def start(self, origin, threads, tls=False, port=None):
        """port: of another origin than the one given, on this host."""
        self.network = Loopback() if port else self.usual_network
        self.listen, self.origin_host = self.network.proxy, self.network.origin
        for attempt in range(3):
            self.port = free_port()
            argv = self.prepare(port or (origin.https if tls else origin.http), threads, origin.certs if tls else None)
            self.process = spawn(argv, self.directory / f"{self.key}.log", cwd=self.directory)
            if self._answers("/stats" if port is None else None):
                return
            self.stop()
        raise RuntimeError(f"{self.label} did not start; see {self.directory / (self.key + '.log')}")

    def _answers(self, path):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if path is None:
                    socket.create_connection(("127.0.0.1", self.port), 2).close()
                    return True
                c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
                c.request("GET", path)
                status = c.getresponse().status
                c.close()
                if status == 200:
                    return True
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.02)
        return False

    def prepare(self, origin_port, threads, certs):
        raise NotImplementedError

    def pids(self):
        return [self.process.pid] + machine.children(self.process.pid)

    def body_bytes(self):
        """{engine: response bytes moved} as the proxy tells it, or None."""
        return None

    def settle(self):
        """Waits, shortly, for what the last connections leave in the counters."""

    def stop(self):
        if self.process:
            end(self.process)


class Direct(Proxy):
    """No proxy: what the load generator and the origin cost by themselves."""
    key, label = "direct", "no proxy"

    def missing(self):
        return None

    def start(self, origin, threads, tls=False, port=None):
        self.port = port or origin.http
        self.network = Loopback() if port else self.usual_network

    def url_host(self):
        return f"{self.network.origin_seen_by_client}:{self.port}"

    def pids(self):
        return []


class HAProxy(Proxy):
    key, label, program = "haproxy", "HAProxy + splice", "haproxy"
    max_connections = 8900  # the most with both sides' descriptors and pipes under the usual limit of 20,000

    def prepare(self, origin_port, threads, certs):
        tls = f" ssl verify required ca-file {certs / 'ca.pem'} verifyhost localhost sni str(localhost)" if certs else ""
        path = self.directory / "haproxy.cfg"
        path.write_text(f"""global
    maxconn 9000
    maxpipes 900
    nbthread {threads}
defaults
    mode http
    option splice-response
    option splice-request
    timeout connect 5s
    timeout client 300s
    timeout server 300s
    timeout http-keep-alive 300s
frontend bench
    bind {self.listen}:{self.port}
    default_backend origin
backend origin
    server one {self.origin_host}:{origin_port}{tls}
""")
        return [find("haproxy"), "-db", "-f", path]


class Nginx(Proxy):
    key, label, program = "nginx", "nginx", "nginx"

    def prepare(self, origin_port, threads, certs):
        scheme = "https" if certs else "http"
        tls = (f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {certs / 'ca.pem'}; proxy_ssl_name localhost; "
               "proxy_ssl_server_name on;" if certs else "")
        path = self.directory / "nginx.conf"
        temp = self.directory / "nginx-temp"
        temp.mkdir(exist_ok=True)
        path.write_text(f"""daemon off;
worker_processes {threads};
worker_rlimit_nofile {FILES};
pid {temp}/nginx.pid;
error_log stderr warn;
{'user root;' if os.geteuid() == 0 else ''}
events {{ worker_connections 16000; }}
http {{
    access_log off;
    client_body_temp_path {temp}/client;
    proxy_temp_path {temp}/proxy;
    fastcgi_temp_path {temp}/fastcgi;
    uwsgi_temp_path {temp}/uwsgi;
    scgi_temp_path {temp}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 300s;
    send_timeout 300s;
    upstream origin {{
        server {self.origin_host}:{origin_port};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {self.listen}:{self.port} backlog=4096;
        location / {{
            proxy_pass {scheme}://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_max_temp_file_size 0;
            {tls}
        }}
    }}
}}
""")
        return [find("nginx"), "-c", path, "-p", self.directory]


class Sluice(Proxy):
    program = "sluice"

    def __init__(self, build, directory, network, engine, splice=None):
        super().__init__(build, directory, network)
        self.engine = engine
        self.key, self.label = f"sluice-{engine}", f"sluice ({engine})"
        self.splice = splice or {}
        self.pin_dir = f"/sys/fs/bpf/sluice-bench-{os.getpid()}"
        self.admin = 0

    def missing(self):
        return None if (self.build / "sluice").exists() else f"{self.build / 'sluice'} is not built"

    def prepare(self, origin_port, threads, certs):
        self.admin = free_port()
        path = self.directory / f"{self.key}.yaml"
        more = "".join(f", {k}: {v}" for k, v in self.splice.items())
        tls = f"\n    tls: {{sni: localhost, ca_file: {certs / 'ca.pem'}}}" if certs else ""
        path.write_text(f"""version: 1
threads: {threads}
log_level: warn
admin: {{http: "127.0.0.1:{self.admin}"}}
bpf: {{pin_dir: {self.pin_dir}}}
splice: {{engine: {self.engine}{more}}}
listeners:
  - address: {self.listen}:{self.port}
    timeouts: {{idle: 300s, write: 300s}}
upstreams:
  origin:{tls}
    servers: [{{address: "{self.origin_host}:{origin_port}"}}]
    keepalive: {{max_idle: 256}}
""")
        return [self.build / "sluice", "-c", path]

    def metrics(self):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as r:
            return r.read().decode()

    def _series(self, name):
        return [(labels or "", float(v)) for labels, v in
                re.findall(rf"^{name}(?:{{([^}}]*)}})? ([0-9.e+]+)$", self.metrics(), re.M)]

    def body_bytes(self):
        out = dict.fromkeys(ENGINES, 0)
        try:
            for labels, value in self._series("sluice_body_bytes_total"):
                for e in ENGINES:
                    if f'engine="{e}"' in labels and 'direction="response"' in labels:
                        out[e] += int(value)
        except OSError:
            return None
        return out

    def counters(self):
        try:
            return {name: sum(v for _, v in self._series(name))
                    for name in ("sluice_flow_spills_total", "sluice_flow_trims_total")}
        except OSError:
            return {}

    def settle(self):
        deadline = time.monotonic() + 1
        try:
            while time.monotonic() < deadline and sum(v for _, v in self._series("sluice_active_connections")):
                time.sleep(0.02)
        except OSError:
            pass

    def stop(self):
        super().stop()
        shutil.rmtree(self.pin_dir, ignore_errors=True)
