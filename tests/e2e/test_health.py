# SPDX-License-Identifier: Apache-2.0
"""Health: a dead backend is out after `fall` checks and back after `rise`; operators take backends out by hand."""
import json
import subprocess
import threading

import pytest

from lib import build
from lib.backend import Backend, response
from lib.wait import wait_until

CHECK = {"type": "tcp", "interval": "200ms", "timeout": "10s"}


def two(a, b, check=None, **more):
    return {"one": {"servers": [{"address": a}, {"address": b}], "health_check": check or CHECK, **more}}


def test_a_dead_backend_goes_out_and_comes_back(sluice, own_origin, origin):
    o = own_origin("flaky")
    d = sluice(two(origin.address, o.address))
    wait_until(lambda: d.backend_up("one", o.address), "both to be up")
    o.stop()
    d.wait_event("backend_down", backend=o.address, upstream="one")
    assert not d.backend_up("one", o.address)
    assert {d.get("/").body for _ in range(20)} == {b"Hello from one\n"}
    again = own_origin("again", http=o.address)
    failed = d.metrics().total("sluice_backend_checks_failed_total", backend=o.address)
    d.wait_event("backend_up", backend=o.address, upstream="one")
    # It listened before the first look at the counter: at most a check that was under way can have failed since.
    assert d.metrics().total("sluice_backend_checks_failed_total", backend=o.address) <= failed + 1
    wait_until(lambda: b"Hello from again\n" in {d.get("/").body for _ in range(4)}, "requests to reach it again")
    assert again.process.alive()


def test_no_request_of_a_thousand_fails_while_a_third_backend_is_dead(sluice, origin, origin_two, dead):
    d = sluice({"one": {"servers": [{"address": origin.address}, {"address": origin_two.address},
                                    {"address": dead()}], "health_check": CHECK}})
    failed = []

    def many():
        with d.client() as c:
            for _ in range(250):
                r = c.get("/")
                if r.status != 200:
                    failed.append(r.status)
    threads = [threading.Thread(target=many, daemon=True) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not failed and not any(t.is_alive() for t in threads)
    wait_until(lambda: d.metrics().total("sluice_requests_total", upstream="one", code="200") >= 1000, "a thousand to be counted")


def test_no_request_fails_when_a_backend_dies_under_load(sluice, own_origin, origin):
    o = own_origin("victim")
    d = sluice(two(origin.address, o.address))
    statuses, stop = [], threading.Event()

    def many():
        while not stop.is_set():
            statuses.append(d.get("/").status)
    threads = [threading.Thread(target=many, daemon=True) for _ in range(4)]
    for t in threads:
        t.start()
    wait_until(lambda: len(statuses) > 200, "some load")
    o.stop()
    d.wait_event("backend_down", backend=o.address)
    seen = len(statuses)
    wait_until(lambda: len(statuses) > seen + 200, "some more load")
    stop.set()
    for t in threads:
        t.join(60)
    # A request that the victim had taken when it was killed may be lost; connects that fail may not.
    assert sum(s != 200 for s in statuses) <= 4, statuses


@pytest.mark.parametrize("expect, status, up", [("200", 200, True), ("200", 500, False), ("200-399", 302, True), ("200-399", 404, False)])
def test_http_checks_look_at_the_status(sluice, backend, origin, expect, status, up):
    b = backend(response(b"", status=f"{status} X"))
    d = sluice(two(origin.address, b.address, {"type": "http", "path": "/health", "host": "check.example", "interval": "200ms",
                                               "timeout": "5s", "expect_status": expect if "-" in expect else int(expect)}))
    wait_until(lambda: b.heads, "a check")
    assert b.heads[0].startswith(b"GET /health HTTP/1.1\r\n") and b"\r\nHost: check.example\r\n" in b.heads[0], b.heads[0]
    if up:
        n = len(b.heads)
        wait_until(lambda: len(b.heads) > n + 2, "more checks")
        assert d.backend_up("one", b.address)
    else:
        d.wait_event("backend_down", backend=b.address)


def test_rise_and_fall_are_counted(sluice, backend, origin):
    answers = {"status": "500 X", "n": 0}

    def script(c):
        while True:
            c.read_head()
            answers["n"] += 1
            c.send(response(b"", status=answers["status"]))
    b = backend(script)
    d = sluice(two(origin.address, b.address, {"type": "http", "path": "/", "interval": "100ms", "timeout": "5s", "rise": 3, "fall": 4}))
    wait_until(lambda: answers["n"] >= 2, "two checks")
    early = d.events("backend_down")
    assert not early or answers["n"] >= 4, "out before `fall` checks had failed"
    d.wait_event("backend_down", backend=b.address)
    answers["status"] = "200 OK"
    n = answers["n"]
    d.wait_event("backend_up", backend=b.address)
    assert answers["n"] - n >= 3, "back before `rise` checks had passed"


def test_a_check_that_hangs_fails_by_its_timeout(sluice, backend, origin):
    b = backend(lambda c: c.read_end())
    d = sluice(two(origin.address, b.address, {"type": "http", "path": "/", "interval": "200ms", "timeout": "300ms"}))
    d.wait_event("backend_down", backend=b.address)


def test_with_nobody_up_the_answer_is_503(sluice, dead):
    address = dead()
    d = sluice({"one": {"servers": [{"address": address}], "health_check": CHECK}})
    d.wait_event("backend_down", backend=address)
    assert d.get("/").status == 503


def test_a_server_named_by_dns(sluice):
    """localhost may be ::1 as well, where nobody listens: that must not cost a request."""
    b = Backend(response(b"by name"))
    d = sluice([f"localhost:{b.port}"])
    assert [d.get("/").body for _ in range(20)] == [b"by name"] * 20
    b.stop()


def test_a_name_that_does_not_resolve_is_a_503_and_said_once(sluice):
    d = sluice(["no-such-name.invalid:80"])
    assert d.get("/").status in (502, 503)
    wait_until(lambda: "no-such-name.invalid" in d.log(), "the name in the log")


# ---- by hand

def pinned(d, name):
    path = f"{d.pin_dir}/{name}"
    done = subprocess.run(["bpftool", "map", "show", "pinned", path], capture_output=True, text=True)
    if done.returncode:
        why = f"no pinned map {name}: {done.stderr.strip()}"
        if build.IN_CI:
            pytest.fail(why)
        pytest.skip(why)
    return path


def bpftool(*args):
    done = subprocess.run(["bpftool", "-j", *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout.strip() else None


def health_entries(path):
    """{backend: (key bytes, value bytes, formatted)} of the used slots."""
    out = {}
    for e in bpftool("map", "dump", "pinned", path):
        value = e["formatted"]["value"]
        name = value["backend"]
        name = name if isinstance(name, str) else "".join(chr(c) if isinstance(c, int) else c for c in name).split("\0")[0]
        if name:
            out[name] = (e["key"], e["value"], value)
    return out


@pytest.fixture(scope="module")
def admin_offset(tmp_path_factory):
    """Where `admin` is in a health entry, and the numbers of its values."""
    d = tmp_path_factory.mktemp("abi")
    (d / "abi.c").write_text('#include <stddef.h>\n#include <stdio.h>\n#include "sluice_abi.h"\nint main(void){printf("%zu %d %d",'
                             "offsetof(struct sluice_health, admin), SLUICE_ADMIN_ENABLED, SLUICE_ADMIN_DRAIN);}\n")
    subprocess.run(["gcc", f"-I{build.ROOT}/include", "-o", d / "abi", d / "abi.c"], check=True)
    return [int(x) for x in subprocess.run([d / "abi"], capture_output=True, text=True, check=True).stdout.split()]


def test_bpftool_reads_the_health_table_and_drains_a_backend(sluice, origin, origin_two, admin_offset):
    offset, enabled, drain = admin_offset
    d = sluice(two(origin.address, origin_two.address))
    path = pinned(d, "health")
    entries = wait_until(lambda: len(health_entries(path)) == 2 and health_entries(path), "two entries")
    assert set(entries) == {origin.address, origin_two.address}

    def set_admin(number):
        key, value, _ = health_entries(path)[origin.address]
        value = value[:offset] + [f"0x{b:02x}" for b in number.to_bytes(4, "little")] + value[offset + 4:]
        bpftool("map", "update", "pinned", path, "key", *key, "value", *value)

    assert {d.get("/").body for _ in range(10)} == {b"Hello from one\n", b"Hello from two\n"}
    set_admin(drain)
    assert {d.get("/").body for _ in range(10)} == {b"Hello from two\n"}, "at once"
    set_admin(enabled)
    assert {d.get("/").body for _ in range(10)} == {b"Hello from one\n", b"Hello from two\n"}


def test_the_counters_are_pinned_and_move(sluice, origin):
    d = sluice([origin.address])
    path = pinned(d, "counters")

    def requests():
        total = 0
        for e in bpftool("map", "dump", "pinned", path):
            value = e["formatted"]["value"]
            total += sum(int(v) for k, v in value.items() if k == "requests")
        return total
    before = requests()
    for _ in range(7):
        d.get("/")
    wait_until(lambda: requests() == before + 7, "seven more requests in the pinned counters")


def test_pins_go_with_a_clean_stop(sluice, origin):
    import os
    d = sluice([origin.address])
    path = pinned(d, "health")
    d.stop()
    assert not os.path.exists(path)


def test_two_instances_with_two_pin_dirs(sluice, origin, origin_two):
    a, b = sluice([origin.address]), sluice([origin_two.address])
    assert (a.get("/").body, b.get("/").body) == (b"Hello from one\n", b"Hello from two\n")


def test_two_instances_with_one_pin_dir_both_serve(sluice, origin):
    a = sluice([origin.address])
    b = sluice([origin.address], bpf={"pin_dir": a.pin_dir})
    for _ in range(5):
        assert a.get("/bytes/100000").length == b.get("/bytes/100000").length == 100000
    b.stop()
    assert a.get("/bytes/100000").length == 100000
