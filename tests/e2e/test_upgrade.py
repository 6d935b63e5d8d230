# SPDX-License-Identifier: Apache-2.0
"""From one process to the next: nobody outside may notice. What can go wrong: test_upgrade_failures.py."""
import json
import os
import signal
import socket
import ssl
import subprocess

import pytest

from conftest import MIN_BYTES, WINDOW, require_engine
from lib import build, pattern
from lib.client import Client, get, request_bytes
from lib.load import Load
from lib.process import kill_pid, pid_alive
from lib.sluice import environment, free_port, run_sluice
from lib.upgrade import bpf_id
from lib.wait import wait_until

LONG = bool(os.environ.get("SLUICE_LONG"))
MANY = 100 if LONG else 10


def patient(seconds):
    if LONG:
        signal.alarm(seconds)


# ---- nobody notices


@pytest.mark.slow
@pytest.mark.parametrize("moved_by", ["copy", "splice", "sockmap"])
def test_upgrades_under_load(line, moved_by):
    patient(600)
    one = line(splice={"engine": moved_by, "min_bytes": MIN_BYTES, "window": WINDOW})
    require_engine(one.d, moved_by)
    with Load(one.d.address) as load:
        for i in range(MANY):
            load.wait_more(20)
            one.upgrade(new_first=i % 2 == 1)
        load.wait_more(20)
        load.stop()
    load.check()
    one.wait_old_gone()
    assert load.closed_after > 0, "no client was ever told to come again: were the connections kept?"
    assert one.d.metrics().bodies(moved_by, "response") > 0


def test_threads_change_across_upgrades_under_load(line):
    one = line()
    with Load(one.d.address) as load:
        for threads in (4, 1, 3, 2):
            one.d.top["threads"] = threads
            one.d.write_config()
            one.upgrade()
            load.wait_more(60)
            one.d.wait_event("ready", workers=str(threads), pid=str(one.d.pid))
        load.stop()
    load.check()
    one.wait_old_gone()


def test_an_idle_connection_is_answered_and_told_to_go(line):
    one = line()
    with one.d.client() as c:
        assert c.get("/bytes/10").get("Connection") is None
        old = one.d.process
        one.upgrade()
        assert c.quiet(), "the idle connection was closed: a request on its way would have been lost"
        assert old.alive()
        r = c.get("/bytes/1000")
        assert (r.status, r.get("Connection"), r.sha256) == (200, "close", pattern.sha256(1000))
        assert c.ended() == "fin"
    one.wait_old_gone()


def test_a_connection_without_a_request_yet_is_answered(line):
    one = line()
    with one.d.client() as c:
        wait_until(lambda: one.d.metrics().total("sluice_active_connections") >= 1, "the connection to be accepted")
        one.upgrade()
        r = c.get("/bytes/1000")
        assert (r.status, r.sha256) == (200, pattern.sha256(1000))
    one.wait_old_gone()


@pytest.mark.parametrize("moved_by", ["copy", "splice", "sockmap"])
def test_a_running_body_ends_whole_and_the_old_process_with_it(line, moved_by):
    one = line(splice={"engine": moved_by, "min_bytes": MIN_BYTES, "window": WINDOW})
    require_engine(one.d, moved_by)
    n = 24 << 20
    with one.d.client(rcvbuf=65536) as c:
        c.send(request_bytes("GET", f"/bytes/{n}"))
        head = c.read_head()
        old = one.d.process
        one.upgrade()
        assert old.alive()
        one.assert_serves()
        c.read_body(head)
        assert (head.length, head.sha256) == (n, pattern.sha256(n))
    one.wait_old_gone()


def test_the_drain_has_an_end(line):
    one = line(graceful_shutdown_timeout_seconds=1)
    with one.d.client() as c:
        c.get("/bytes/10")
        one.upgrade()
        one.wait_old_gone(10)
        assert c.ended() == "fin"


def test_sigterm_ends_a_drain_without_waiting_for_idle_connections(line):
    one = line()
    with one.d.client() as c:
        c.get("/bytes/10")
        old = one.d.process
        one.upgrade()
        old.send_signal(signal.SIGTERM)
        one.wait_old_gone(10)
        assert c.ended() == "fin"
    one.assert_serves()


# ---- how it is asked for


@pytest.mark.parametrize("new_first", [False, True], ids=["quit_then_new", "new_then_quit"])
def test_either_order(line, new_first):
    one = line()
    first = one.d.pid
    second = one.upgrade(new_first).pid
    one.assert_serves()
    one.wait_old_gone()
    assert not pid_alive(first)
    assert one.pid_in_file() == second
    assert one.d.status()
    one.d.ctl("status")
    assert one.d.metrics().total("sluice_upgrades_total") == 1


def test_from_a_script_in_the_background(line):
    one = line()
    one.ask()
    done = run_sluice("-c", one.d.config, "-d", "-u")
    assert done.returncode == 0, done.stderr
    pid = one.pid_in_file()
    try:
        assert pid != one.d.pid and pid_alive(pid)
        one.assert_serves()
        assert one.d.process.wait() == 0
    finally:
        kill_pid(pid, signal.SIGTERM)


def test_the_operator_upgrades_with_one_command(line):
    one = line()
    done = one.d.ctl("upgrade")
    assert "this process" in done.stdout
    assert one.d.process.wait() == 0
    pid = one.pid_in_file()
    try:
        assert pid_alive(pid)
        one.assert_serves()
    finally:
        kill_pid(pid, signal.SIGTERM)


def test_the_operator_needs_no_upgrade_sock(sluice, origin, tmp_path):
    d = sluice([origin.address], pid_file=str(tmp_path / "p"))
    d.ctl("upgrade")
    assert d.process.wait() == 0
    pid = int((tmp_path / "p").read_text())
    try:
        assert d.get("/bytes/10").status == 200
    finally:
        kill_pid(pid, signal.SIGTERM)


def test_without_anybody_to_take_over_from(line):
    one = line()
    one.d.stop()
    p = one.spawn()
    assert p.wait() == 1
    assert "nothing to take over" in p.text() + one.d.log() and "without -u" in p.text() + one.d.log()


def test_without_upgrade_sock(sluice, origin):
    d = sluice([origin.address])
    d.send_signal(signal.SIGQUIT)
    d.wait_event("upgrade_refused")
    done = run_sluice("-c", d.config, "-u")
    assert done.returncode == 1 and "upgrade_sock" in done.stderr
    assert d.get("/bytes/10").status == 200


@pytest.mark.slow
def test_a_new_process_alone_says_what_to_do_and_gives_up(line):
    one = line()
    p = one.spawn()
    one.d.wait_event("upgrade_waiting", pid=str(p.pid))
    one.d.wait_log(f"kill -QUIT {one.d.pid}")
    assert p.wait() == 1
    assert f"kill -QUIT {one.d.pid}" in p.text()
    one.assert_serves()
    one.upgrade()
    one.assert_serves()


def test_of_two_new_processes_one_wins_and_the_other_is_told(line):
    one = line()
    a = one.spawn()
    one.d.wait_event("upgrade_waiting", pid=str(a.pid))
    b = one.spawn()
    assert b.wait() == 1
    assert "another upgrade is under way" in b.text() + one.d.log()
    one.ask()
    one.wait_serves(a)
    one.assert_serves()
    one.wait_old_gone()


def test_a_reload_within_an_upgrade_is_refused(line):
    one = line()
    p = one.spawn(env={"SLUICE_FAULT": "exit_ready:1"})
    one.d.wait_event("upgrade_waiting", pid=str(p.pid))
    os.kill(p.pid, signal.SIGSTOP)
    one.ask()
    one.d.wait_event("upgrade_begun")
    one.d.send_signal(signal.SIGHUP)
    one.d.wait_event("reload_failed")
    os.kill(p.pid, signal.SIGCONT)
    one.d.wait_event("upgrade_failed")
    one.d.send_signal(signal.SIGHUP)
    one.d.wait_event("reloaded")
    one.assert_serves()


# ---- what goes along


def test_listeners_come_and_go_with_an_upgrade(line):
    one = line()
    path, other = str(one.d.directory / "l.sock"), free_port()
    route = [{"upstream": next(iter(one.d.upstreams))}]
    one.d.more_listeners = [{"address": f"unix:{path}", "routes": route}, {"address": f"127.0.0.1:{other}", "routes": route}]
    one.d.write_config()
    one.upgrade()
    assert get(path, "/bytes/10").status == get(("127.0.0.1", other), "/bytes/10").status == 200
    one.d.more_listeners = one.d.more_listeners[:1]
    one.d.write_config()
    with Client(("127.0.0.1", other)) as kept:
        assert kept.get("/bytes/10").status == 200
        one.upgrade()
        r = kept.get("/bytes/10")
        assert (r.status, r.get("Connection")) == (200, "close")
    one.wait_old_gone()
    assert get(path, "/bytes/10").status == 200, "the unix socket must outlive the process that made it"
    with pytest.raises(ConnectionRefusedError):
        Client(("127.0.0.1", other))
    one.d.stop()
    assert not os.path.exists(path) and not os.path.exists(one.d.top["upgrade_sock"])


def test_health_and_what_the_operator_decided_go_along(line, own_origin):
    one = line({"one": {"servers": [{"address": own_origin("a").address}, {"address": own_origin("b").address}]}})
    a, b = (s["address"] for s in one.d.upstreams["one"]["servers"])
    one.d.ctl("drain", f"one/{a}")
    pin = f"{one.d.pin_dir}/health"
    before = bpf_id(pin) if os.path.exists(pin) else None
    for _ in range(2):
        one.upgrade()
        one.wait_old_gone()
        if before is not None:
            assert bpf_id(pin) == before, "the health table was replaced"
            text = one.d.ctl("backends").stdout
            drained = [ln for ln in text.splitlines() if "drain" in ln]
            assert len(drained) == 1 and a in drained[0] and b in text, text
    if before is None:
        pytest.skip("no pinned maps here")
    one.d.stop()
    assert not os.path.exists(pin), "pins must go with the last process"


def test_what_is_known_of_a_dead_backend_goes_along(line, own_origin):
    """No requests are tried on it by the new process, whose first own checks are long due."""
    alive, dead = own_origin("alive"), own_origin("dead")
    check = {"type": "tcp", "interval": "60s", "timeout": "5s", "fall": 3}
    one = line({"one": {"servers": [{"address": alive.address}, {"address": dead.address}], "health_check": check}})
    pinned = os.path.exists(f"{one.d.pin_dir}/health")
    dead.stop()
    wait_until(lambda: one.d.get("/bytes/10").status == 200 and not one.d.backend_up("one", dead.address), "the backend to be down")

    def entries():
        return [{k: e["formatted"]["value"][k] for k in ("upstream", "backend", "state", "admin", "weight")} for e in dump(one, "health")]

    before = wait_until(lambda: [e for e in entries() if e["state"] == "SLUICE_HEALTH_DOWN"] and entries(), "the table to say so") if pinned else None
    one.upgrade()
    assert not one.d.backend_up("one", dead.address)
    failures = one.d.metrics().total("sluice_connect_failures_total")
    for _ in range(10):
        one.assert_serves()
    assert one.d.metrics().total("sluice_connect_failures_total") == failures
    if not pinned:
        pytest.skip("no pinned maps here")
    assert entries() == before


@pytest.mark.may_kill
def test_after_a_sudden_end_the_next_start_goes_on(line, origin):
    """Pins and socket files that a killed process left are adopted or replaced."""
    one = line()
    one.assert_serves()
    one.d.ctl("drain", origin.address)
    wait_until(lambda: one.d.metrics().total("sluice_requests_total") == 1, "the request to be counted")
    pinned = os.path.exists(f"{one.d.pin_dir}/health")
    one.d.process.kill()
    p = one.spawn(argv=())
    one.wait_serves(p)
    one.before = []
    assert one.pid_in_file() == p.pid
    if pinned:
        assert one.d.metrics().total("sluice_backend_admin") == 1
        assert one.d.metrics().total("sluice_connections_total") == 1
    one.d.ctl("enable", origin.address)
    one.assert_serves()
    one.upgrade()
    one.assert_serves()
    one.d.stop()
    assert not os.path.exists(one.d.pin_dir) and not os.path.exists(one.d.top["upgrade_sock"])


def test_hundreds_of_sockets_pass_over(line):
    one = line(threads=3)
    ports = sorted({free_port() for _ in range(60)})
    route = [{"upstream": next(iter(one.d.upstreams))}]
    one.d.more_listeners = [{"address": f"127.0.0.1:{p}", "routes": route} for p in ports]
    one.d.write_config()
    one.upgrade()
    one.wait_old_gone()
    one.upgrade()
    assert int(one.d.wait_event("upgrade_adopting", n=2)["sockets"]) > 3 * len(ports)
    one.wait_old_gone()
    for p in ports:
        assert get(("127.0.0.1", p), "/bytes/10").status == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_process_that_gave_up_root_is_followed_by_one_started_by_root(line):
    one = line(user="nobody")
    one.upgrade()
    one.assert_serves()
    one.wait_old_gone()
    one.assert_serves()


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(p) for p in f.read().split()]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_the_operator_upgrades_a_process_that_gave_up_root(line):
    """A small process keeps root for that; it can do nothing else, and ends with the one it serves."""
    one = line(user="nobody")
    old = one.d.pid
    with Load(one.d.address, kinds=("kept", "short", "large")) as load:
        for _ in range(3):
            starter, = children(old)
            assert os.stat(f"/proc/{starter}").st_uid == 0 and os.stat(f"/proc/{old}").st_uid != 0
            assert set(os.listdir(f"/proc/{starter}/fd")) == {"0", "1", "2", "3"}, "it holds what is not its business"
            os.kill(starter, signal.SIGTERM)  # as killall does; it is not its to obey
            load.wait_more(10)
            one.d.ctl("upgrade")
            wait_until(lambda: one.pid_in_file() != old, "the new process to serve")
            new = one.pid_in_file()
            assert os.stat(f"/proc/{new}").st_uid != 0
            load.wait_more(20)
            wait_until(lambda: not pid_alive(old) and not pid_alive(starter), "the old process and its starter to end")
            old = new
        load.stop()
    load.check()
    # What a failed upgrade replaced is put back, and the pins are removed at the end, without root.
    pins = one.pin_ids()
    p = one.spawn(env={"SLUICE_FAULT": "exit_ready:1"})
    one.d.wait_event("upgrade_waiting", pid=str(p.pid))
    os.kill(old, signal.SIGQUIT)
    assert p.wait() == -signal.SIGKILL
    one.d.wait_event("upgrade_failed")
    assert one.pin_ids() == pins
    starter, = children(old)
    kill_pid(starter)
    done = one.d.ctl("upgrade", check=False)
    assert done.returncode != 0 and f"kill -QUIT {old}" in done.stdout + done.stderr
    one.assert_serves()
    kill_pid(old, signal.SIGTERM)
    assert one.pin_ids() == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_the_operator_is_told_of_a_bad_configuration_by_the_starter_too(line):
    one = line(user="nobody")
    good = one.d.config.read_text()
    one.d.config.write_text(good.replace("upstreams:", "upstraems:"))
    for n in (1, 2):
        one.d.ctl("upgrade", check=False)
        e = one.d.wait_event("upgrade_process_ended", n=n)
        assert "upstraems" in e["line"]
    one.assert_serves()
    one.d.config.write_text(good)
    one.d.ctl("upgrade")
    assert one.d.process.wait() == 0
    one.assert_serves()
    kill_pid(one.pid_in_file(), signal.SIGTERM)


def test_the_service_manager_follows_the_main_process(line, tmp_path):
    path = str(tmp_path / "notify")
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(path)
    manager.settimeout(10)
    one = line(env={"NOTIFY_SOCKET": path})
    first = one.d.pid
    assert b"READY=1" in manager.recv(1000)
    p = one.spawn(env={"NOTIFY_SOCKET": path, "SLUICE_FAULT": "exit_serving:1"})
    one.d.wait_event("upgrade_waiting", pid=str(p.pid))
    one.ask()
    # One that served for a moment and died is followed by the one that goes on.
    assert manager.recv(1000) == f"MAINPID={p.pid}".encode()
    assert manager.recv(1000) == f"MAINPID={first}".encode()
    one.upgrade(env={"NOTIFY_SOCKET": path})
    one.wait_old_gone()
    assert manager.recv(1000) == f"MAINPID={one.d.pid}".encode()
    assert b"READY=1" in manager.recv(1000)
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        raise AssertionError(manager.recv(1000))  # above all no STOPPING=1 of the old process


@pytest.mark.parametrize("env", [{}, {"SLUICE_FAULT": "map_update:1"}], ids=["pinned", "without_bpf"])
def test_counts_go_on_and_include_what_draining_processes_answer(line, env):
    """Through two upgrades with other numbers of threads and one that fails: nothing is lost, nothing counted twice."""
    one = line(env=env, listener={"timeouts": {"head": "300s", "idle": "300s"}})  # the clients wait between the steps
    counted = {"sluice_requests_total": 0, "sluice_backend_requests_total": 0, "sluice_connections_total": 0,
               "sluice_listener_accepted_total": 0, "sluice_body_bytes_total": 0}

    def connect():
        for name in ("sluice_connections_total", "sluice_listener_accepted_total"):
            counted[name] += 1
        return one.d.client()

    def ask(client):
        assert client.get("/bytes/1000").status == 200
        counted["sluice_requests_total"] += 1
        counted["sluice_backend_requests_total"] += 1
        counted["sluice_body_bytes_total"] += 1000

    def told():
        m = one.d.metrics()
        return {name: int(m.total(name)) for name in counted}

    def upgrade(threads):
        one.d.top["threads"] = threads
        one.d.write_config()
        one.upgrade(env=env)
        assert told() == counted

    with connect() as a, connect() as b, connect() as c:
        ask(a)
        wait_until(lambda: told() == counted, f"the metrics to be {counted}")
        p = one.spawn(env={"SLUICE_FAULT": ",".join([*env.values(), "exit_go:1"])})
        one.d.wait_event("upgrade_waiting", pid=str(p.pid))
        one.ask()
        assert p.wait() == -signal.SIGKILL
        one.d.wait_event("upgrade_failed")
        assert told() == counted
        upgrade(4)
        with connect() as d:
            ask(d)
            ask(b)  # by the first process, while the second serves
            wait_until(lambda: told() == counted, f"the metrics to be {counted}")
            upgrade(1)
            for client in (a, c, d):  # by the first and the second, while the third serves
                ask(client)
            one.wait_old_gone()
    wait_until(lambda: told() == counted, f"the metrics to be {counted}")
    with connect() as last:
        ask(last)
    wait_until(lambda: told() == counted, f"the metrics to be {counted}")
    assert one.d.metrics().total("sluice_upgrades_total") == 2


def test_what_the_operator_decided_goes_along_without_bpf(line, own_origin):
    env = {"SLUICE_FAULT": "map_update:1"}
    one = line({"one": {"servers": [{"address": own_origin("a").address}, {"address": own_origin("b").address}]}}, env=env)
    a, b = (s["address"] for s in one.d.upstreams["one"]["servers"])
    one.d.ctl("drain", f"one/{a}")
    one.d.ctl("weight", f"one/{b}", 7)
    one.upgrade(env=env)
    m = one.d.metrics()
    assert m.total("sluice_backend_admin", backend=a) == 1 and m.total("sluice_backend_weight", backend=b) == 7
    assert m.total("sluice_backend_admin", backend=b) == 0 and m.total("sluice_backend_weight", backend=a) == 1


@pytest.mark.slow
def test_upgrades_under_load_over_tls(line, certs_dir):
    one = line(listener={"tls": {"certificates": [{"cert": str(certs_dir / "server.pem"), "key": str(certs_dir / "server.key")}]}})
    context = ssl.create_default_context(cafile=certs_dir / "ca.pem")
    with Load(one.d.address, tls=context, kinds=("kept", "pausing", "short", "large", "upload")) as load:
        for i in range(4):
            load.wait_more(20)
            one.upgrade(new_first=i % 2 == 1)
        load.wait_more(20)
        load.stop()
    load.check()
    one.wait_old_gone()


def test_a_tunnel_goes_on_in_the_old_process(line, backend):
    def script(c):
        c.read_head()
        c.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        while True:
            c.send(c.read_exactly(4))
    one = line([backend(script).address])
    with one.d.client() as c:
        c.send(request_bytes("GET", "/", [("Connection", "Upgrade"), ("Upgrade", "echo")]))
        assert c.read_head().status == 101
        one.upgrade()
        for word in (b"ping", b"pong"):
            c.send(word)
            assert c.read_exactly(4) == word
    one.wait_old_gone()


def dump(one, name):
    done = subprocess.run(["/usr/sbin/bpftool", "-j", "map", "dump", "pinned", f"{one.d.pin_dir}/{name}"],
                          capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def test_connections_are_dealt_out_evenly_and_the_map_of_listeners_stays(line):
    """
    By load, not by hash: long connections are shared equally among workers, also after an upgrade, and however far
    a worker is behind with accepting. They come one by one, so each choice knows of all before it.
    """
    one = line(threads=4)
    if not os.path.exists(f"{one.d.pin_dir}/listeners"):
        pytest.skip("no pinned maps here")

    def accepted():
        return [e["formatted"]["value"]["connections"] for e in dump(one, "counters")][:4]

    def sockets():
        return [e["value"] for e in dump(one, "listeners") if "error" not in e["value"]]

    listeners = sockets()
    assert len(listeners) == 4
    for _ in range(2):
        before = accepted()
        clients = [one.d.client() for _ in range(256)]
        wait_until(lambda: sum(accepted()) - sum(before) == 256, "the connections to be accepted")
        each = [b - a for a, b in zip(before, accepted())]
        assert max(each) - min(each) <= 2, f"{each}: by hash it is 15 or so"
        for c in clients:
            c.close()
        wait_until(lambda: one.d.metrics().total("sluice_active_connections") == 0, "the connections to end")
        old = one.d.pid
        one.upgrade()
        one.d.wait_event("draining", pid=str(old))  # until then it accepts too
        assert sockets() == listeners
    one.d.stop()
    assert not os.path.exists(f"{one.d.pin_dir}/listeners")


def test_sockets_of_the_service_manager(line, tmp_path, origin):
    """LISTEN_FDS: the daemon serves on what it is given, and hands it on."""
    given = socket.socket()
    given.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    given.bind(("127.0.0.1", 0))
    given.listen(64)
    port = given.getsockname()[1]

    def preexec():
        os.dup2(given.fileno(), 3)
        os.set_inheritable(3, True)

    config = tmp_path / "activated.yaml"
    log = tmp_path / "activated.log"
    config.write_text(f"""version: 1
threads: 2
error_log: {log}
bpf: {{pin_dir: /sys/fs/bpf/sluice-test-{os.getpid()}-activated}}
listeners:
  - address: 127.0.0.1:{port}
    routes: [{{upstream: one}}]
upstreams:
  one:
    servers: [{{address: "{origin.address}"}}]
""")
    p = subprocess.Popen(["/bin/sh", "-c", f"LISTEN_PID=$$ LISTEN_FDS=1 exec {build.SLUICE} -c {config}"],
                         preexec_fn=preexec, close_fds=False, env=environment())
    try:
        wait_until(lambda: log.exists() and "event=ready" in log.read_text(), "ready")
        given.close()
        for _ in range(8):
            assert get(("127.0.0.1", port), "/bytes/10").status == 200
    finally:
        p.send_signal(signal.SIGTERM)
        assert p.wait(20) == 0
