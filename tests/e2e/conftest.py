# SPDX-License-Identifier: Apache-2.0
"""Fixtures: origins, scripted backends and daemons that end with the test (or the module) that wanted them."""
import json
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lib import build, certs  # noqa: E402
from lib.backend import Backend  # noqa: E402
from lib.origin import Origin  # noqa: E402
from lib.sluice import ENGINES, Sluice, engine_refusal, held_port  # noqa: E402
from lib.upgrade import Line  # noqa: E402

TEST_SECONDS = 300


# ---- running, counting ----

def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes several seconds")
    config.addinivalue_line("markers", "may_kill: the test ends the daemon in a way that is not a clean stop")


class Summary:
    """What the combined summary of `make check` needs, in $SLUICE_SUMMARY."""

    def __init__(self, path):
        self.path = path
        self.counts = {"suite": "e2e", "passed": 0, "failed": 0, "skipped": 0, "skips": {}}
        self.failed = set()

    def pytest_runtest_logreport(self, report):
        if report.failed and report.nodeid not in self.failed:
            self.failed.add(report.nodeid)
            self.counts["failed"] += 1
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = reason.removeprefix("Skipped: ")
            self.counts["skipped"] += 1
            self.counts["skips"][reason] = self.counts["skips"].get(reason, 0) + 1
        elif report.when == "call" and report.passed:
            self.counts["passed"] += 1

    def pytest_terminal_summary(self, terminalreporter):
        for reason, n in sorted(self.counts["skips"].items()):
            terminalreporter.write_line(f"skipped {n}: {reason}")

    def pytest_sessionfinish(self):
        if self.path:
            Path(self.path).write_text(json.dumps(self.counts) + "\n")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    session.config.pluginmanager.register(Summary(os.environ.get("SLUICE_SUMMARY")), "sluice-summary")
    for program in (build.SLUICE, build.ORIGIN):
        if not program.exists():
            pytest.exit(f"{program} is not there: build it first", 2)


@pytest.fixture(autouse=True)
def _bounded(request):
    """No test hangs for ever, whatever it waits for."""
    def late(*_):
        raise TimeoutError(f"the test took longer than {TEST_SECONDS} s")
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(TEST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


# ---- origins and backends ----

@pytest.fixture(scope="session")
def certs_dir(tmp_path_factory):
    return certs.demo(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="session")
def origin(tmp_path_factory, certs_dir):
    """An origin named one, plain and TLS, for all tests that only need a good one."""
    o = Origin(tmp_path_factory.mktemp("one"), "one", certs_dir, tls=True)
    yield o
    o.stop()


@pytest.fixture(scope="session")
def origin_two(tmp_path_factory, certs_dir):
    o = Origin(tmp_path_factory.mktemp("two"), "two", certs_dir, tls=True)
    yield o
    o.stop()


@pytest.fixture
def own_origin(tmp_path):
    """own_origin(name, **kw): origins of this test's own."""
    made = []

    def make(name="own", **kw):
        made.append(Origin(tmp_path, name, **kw))
        return made[-1]
    yield make
    for o in made:
        o.stop()


def _backends():
    made = []

    def make(script, **kw):
        made.append(Backend(script, **kw))
        return made[-1]
    yield make
    for b in made:
        b.stop()
    for b in made:
        b.check()


@pytest.fixture
def backend():
    """backend(script): a backend that plays it."""
    yield from _backends()


@pytest.fixture(scope="module")
def module_backend():
    yield from _backends()


@pytest.fixture
def dead():
    """dead(): an address where connections are refused for as long as the test runs."""
    held = []

    def make():
        port, s = held_port()
        held.append(s)
        return f"127.0.0.1:{port}"
    yield make
    for s in held:
        s.close()


# ---- daemons ----

def _daemons(request, directory):
    made = []

    def make(upstreams, *args, **kw):
        if isinstance(upstreams, str):
            upstreams = [upstreams]
        if isinstance(upstreams, (list, tuple)):
            upstreams = {"one": {"servers": [{"address": a} for a in upstreams]}}
        start = kw.pop("start", True)
        d = Sluice(directory, upstreams, *args, start=False, **kw)
        made.append(d)
        return d.start() if start else d
    make.made = made
    yield make
    problems = []
    for d in made:
        try:
            d.stop()
        except AssertionError as e:
            problems.append(e)
        finally:
            d.kill()
    if problems:
        raise problems[0]


@pytest.fixture
def sluice(request, tmp_path):
    """sluice(upstreams, listener=..., splice=..., **top): a running daemon. upstreams: addresses, or the section."""
    yield from _daemons(request, tmp_path)


@pytest.fixture
def line(sluice, origin, tmp_path):
    """line(**settings): a daemon that can be upgraded, as a Line."""
    made = []

    def make(upstreams=None, **kw):
        kw.setdefault("upgrade_sock", str(tmp_path / "up.sock"))
        kw.setdefault("pid_file", str(tmp_path / "sluice.pid"))
        d = sluice(upstreams or [origin.address], **kw)
        made.append(Line(d))
        return made[-1]
    yield make
    for one in made:
        one.end()


@pytest.fixture(scope="module")
def module_sluice(request, tmp_path_factory):
    yield from _daemons(request, tmp_path_factory.mktemp("module"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if not report.failed:
        return
    daemons = {}
    for value in getattr(item, "funcargs", {}).values():
        for d in [value] if isinstance(value, Sluice) else getattr(value, "made", []):
            daemons[d.number] = d
    for number, d in sorted(daemons.items()):
        if d.process and d.process.popen.returncode == 0:
            continue  # of an earlier parameter
        output = d.process.text()[-4000:] if d.process else ""
        report.sections.append((f"log of sluice {number}", d.log()[-4000:] + output))


# ---- engines ----

MIN_BYTES = 4096
# Where everything is emulated the client is slow against the proxy, and a small window would always be full.
WINDOW = 1 << 20 if os.environ.get("SLUICE_TEST_SLOW") else 262144


@pytest.fixture(params=ENGINES + ("auto",), scope="module")
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def engine_sluice(engine, module_sluice, origin):
    """A daemon that may use the engine under test at the most, in front of origin one."""
    d = module_sluice([origin.address], splice={"engine": engine, "min_bytes": MIN_BYTES, "window": WINDOW})
    require_engine(d, engine)
    return d


def require_engine(d, engine):
    why = engine_refusal(d, engine)
    if why is None:
        return
    if build.IN_CI:
        pytest.fail(f"engine {engine} must be there in CI: {why}")
    pytest.skip(f"engine {engine}: {why}")
