# SPDX-License-Identifier: Apache-2.0
"""Bodies come out as they went in, in every engine, framing, direction, size and rhythm; the counters say who moved them."""
import hashlib
import json
import os
import random
import socket
import threading
import time

import pytest

from conftest import MIN_BYTES, WINDOW, require_engine
from lib import pattern
from lib.backend import response
from lib.client import Client, Ended, chunked, request_bytes
from lib.lockstep import Lockstep
from lib.sluice import Moved
from lib.wait import wait_until

MiB = 1 << 20
SIZES = [0, 1, 2, MIN_BYTES - 1, MIN_BYTES, MIN_BYTES + 1, 65536, WINDOW - 1, WINDOW, WINDOW + 1, 3 * MiB + 17]
RESPONSES = {"length": "/bytes/{n}?seed={seed}", "chunked": "/chunked/{n}?chunk=50000&seed={seed}",
             "small_chunks": "/chunked/{n}?chunk=611&seed={seed}", "close": "/close/{n}?seed={seed}"}


@pytest.mark.parametrize("framing", RESPONSES)
def test_response_bodies_of_all_sizes(engine, engine_sluice, framing):
    moved = Moved(engine_sluice, "response")
    client = engine_sluice.client()
    for seed, n in enumerate(SIZES, 1):
        r = client.get(RESPONSES[framing].format(n=n, seed=seed), keep=False)
        assert (r.status, r.length, r.sha256) == (200, n, pattern.sha256(n, seed)), f"size {n}"
        if framing == "close" or r.framing == "close":
            client.close()
            client = engine_sluice.client()
    client.close()
    moved.counted(sum(SIZES))


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_request_bodies_of_all_sizes(engine, engine_sluice, coding):
    moved = Moved(engine_sluice, "request")
    with engine_sluice.client() as client:
        for seed, n in enumerate(SIZES, 1):
            body = pattern.body(n, seed)
            if coding == "length":
                client.send(request_bytes("POST", "/sha256", body=body))
            else:
                client.send(request_bytes("POST", "/sha256", {"Transfer-Encoding": "chunked"}, body=chunked(body, 50000)))
            r = client.read_response()
            assert r.status == 200
            assert json.loads(r.body) == {"bytes": n, "sha256": pattern.sha256(n, seed)}, f"size {n}"
    moved.counted(sum(SIZES))


@pytest.mark.parametrize("path", ["/bytes/{n}", "/close/{n}", "/chunked/{n}?chunk=1048576"], ids=["length", "close", "chunked"])
def test_a_long_response_flat_out(engine, engine_sluice, path):
    n = 16 * MiB
    moved = Moved(engine_sluice, "response")
    r = engine_sluice.get(path.format(n=n), keep=False)
    assert (r.length, r.sha256) == (n, pattern.sha256(n))
    moved.check(engine, n)


def test_a_long_request_flat_out(engine, engine_sluice):
    n = 16 * MiB
    moved = Moved(engine_sluice, "request")
    with engine_sluice.client() as c:
        r = c.request("POST", "/sha256", body=pattern.body(n))
    assert json.loads(r.body)["sha256"] == pattern.sha256(n)
    moved.check(engine, n)


@pytest.fixture
def in_lockstep(engine, sluice, backend):
    """(daemon, body): the engine under test in front of a backend whose bodies come piece by piece."""
    body = Lockstep(65536, 32)
    d = sluice([backend(body.script).address], splice={"engine": engine, "min_bytes": MIN_BYTES, "window": WINDOW})
    require_engine(d, engine)
    return d, body


@pytest.mark.parametrize("framing", ["length", "close", "chunked"])
def test_a_response_is_moved_by_the_engine_under_test(engine, in_lockstep, framing):
    d, body = in_lockstep
    moved = Moved(d, "response")
    r = body.download(d.address, f"/{framing}")
    assert (r.length, r.sha256, r.framing) == (body.n, body.sha256, framing)
    moved.check(engine, body.n, share=0.5)


def test_a_request_is_moved_by_the_engine_under_test(engine, in_lockstep):
    d, body = in_lockstep
    moved = Moved(d, "request")
    assert body.upload(d.address) == body.sha256
    moved.check(engine, body.n, share=0.5)


def test_short_bodies_are_copied(engine, engine_sluice):
    moved = Moved(engine_sluice, "response")
    n = MIN_BYTES - 1
    with engine_sluice.client() as c:
        for _ in range(20):
            assert c.get(f"/bytes/{n}").sha256 == pattern.sha256(n)
    assert moved.counted(20 * n)["copy"] == 20 * n


def test_keep_alive_carries_many_long_bodies_on_one_connection(engine, engine_sluice):
    moved = Moved(engine_sluice, "response")
    n = 300000
    with engine_sluice.client() as c:
        for seed in range(1, 41):
            r = c.get(f"/bytes/{n}?seed={seed}", keep=False)
            assert r.sha256 == pattern.sha256(n, seed), f"response {seed}"
    moved.check(engine, 40 * n)


def test_pipelined_long_bodies_come_in_order(engine, engine_sluice):
    sizes = [400000, 0, 5, MIN_BYTES, 700001, 1, 300000]
    with engine_sluice.client() as c:
        c.send(b"".join(request_bytes(path=f"/bytes/{n}?seed={i}") for i, n in enumerate(sizes, 1)))
        for i, n in enumerate(sizes, 1):
            r = c.read_response(keep=False)
            assert (r.length, r.sha256) == (n, pattern.sha256(n, i)), f"response {i}"


def test_both_directions_at_once(engine, engine_sluice):
    """/echo: the response begins while the request is on its way."""
    n = 6 * MiB
    body = pattern.body(n, 5)
    with engine_sluice.client() as c:
        c.send(request_bytes("POST", "/echo", {"Content-Length": n}))
        writer = threading.Thread(target=c.send, args=(body,), daemon=True)
        writer.start()
        r = c.read_response(keep=False)
        writer.join(60)
    assert (r.length, r.sha256) == (n, pattern.sha256(n, 5))


def test_many_at_once_with_clients_of_all_speeds(engine, engine_sluice):
    """Random sizes and rhythms on both sides. SLUICE_SEED repeats a run."""
    seed = int(os.environ.get("SLUICE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
    failures = []

    def flow(number):
        rnd = random.Random(f"{seed}/{number}")
        try:
            with Client(engine_sluice.address, rcvbuf=rnd.choice([None, None, 4096, 65536]), timeout=120) as c:
                for _ in range(rnd.randrange(1, 5)):
                    n = int(2 ** rnd.uniform(0, 21))
                    s = rnd.randrange(1, 9)
                    kind = rnd.choice(["length", "chunked", "small", "upload", "upload_chunked"])
                    pieces = iter(lambda: rnd.choice([1, 17, 1448, 4096, 20000, 65536, 300000]), None)
                    if kind.startswith("upload"):
                        body = pattern.body(n, s)
                        if kind == "upload":
                            raw = request_bytes("POST", "/sha256", body=body)
                        else:
                            raw = request_bytes("POST", "/sha256", {"Transfer-Encoding": "chunked"},
                                                body=chunked(body, rnd.choice([100, 5000, 70000]) if n < 200000 else 70000))
                        at = 0
                        while at < len(raw):
                            k = next(pieces) if len(raw) < 100000 else max(next(pieces), 4096)
                            c.send(raw[at:at + k])
                            at += k
                            if rnd.random() < 0.05:
                                time.sleep(rnd.random() * 0.004)
                        got = json.loads(c.read_response().body)["sha256"]
                    else:
                        path = {"length": f"/bytes/{n}?seed={s}", "chunked": f"/chunked/{n}?seed={s}&chunk={rnd.choice([5000, 100000])}",
                                "small": f"/bytes/{n % 5000}?seed={s}"}[kind]
                        n = n % 5000 if kind == "small" else n
                        c.send(request_bytes(path=path))
                        for _ in range(rnd.randrange(4)):
                            time.sleep(rnd.random() * 0.01)
                        got = c.read_response(keep=False).sha256
                    if got != pattern.sha256(n, s):
                        failures.append(f"flow {number}: {kind} of {n} bytes differs")
        except Exception as e:
            failures.append(f"flow {number}: {e!r}")

    threads = [threading.Thread(target=flow, args=(i,), daemon=True) for i in range(40)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(150)
    assert not failures and not any(t.is_alive() for t in threads), f"seed {seed}: {failures[:5]}"


def endless(total, sent):
    """A backend whose response never ends before the test does; sent[0]: what it got rid of."""
    block = pattern.body(MiB)

    def script(c):
        c.read_head()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 262144)
        while sent[0] < total:
            c.send(block)
            sent[0] += len(block)
    return script


def wait_held_up(sent):
    last, since = -1, time.monotonic()

    def stands_still():
        nonlocal last, since
        if sent[0] != last:
            last, since = sent[0], time.monotonic()
        return time.monotonic() - since > 1.5
    wait_until(stands_still, "the backend to be held up", 40)


def test_a_client_that_stalls_holds_a_bounded_amount(engine, engine_sluice, backend, sluice):
    """What a backend can get rid of while nobody reads is the window and socket buffers, not the body."""
    total = 512 * MiB
    sent = [0]
    block = pattern.body(MiB)
    b = backend(endless(total, sent))
    d = sluice([b.address], splice={"engine": engine, "min_bytes": MIN_BYTES, "window": WINDOW})
    with Client(d.address, rcvbuf=65536) as c:
        c.send(request_bytes())
        c.read_head()
        wait_held_up(sent)
        assert sent[0] < 48 * MiB, f"{sent[0]} bytes were taken from the backend, and nobody read them"
        held = sent[0]
        digest = hashlib.sha256()
        got = 0
        want = held + 32 * MiB
        while got < want:
            if not c.buffer:
                c._more()
            digest.update(c.buffer[:want - got])
            got += len(c.buffer[:want - got])
            c.buffer = b""
        reference = hashlib.sha256()
        for at in range(0, want, MiB):
            reference.update(block[:want - at])
        assert digest.digest() == reference.digest(), "bytes changed while the client was away"
        c.reset()


def test_a_slow_client_holds_what_it_takes_in_half_a_second(sluice, backend):
    """splice.window is the bound; what a flow may hold of it follows the rate at which its client takes bytes."""
    window, body = 32 * MiB, 256 * MiB
    sent = [0]
    d = sluice([backend(endless(body, sent)).address], splice={"engine": "sockmap", "window": window})
    require_engine(d, "sockmap")
    with Client(d.address, rcvbuf=65536) as c:
        c.send(request_bytes())
        c.read_head()
        got = 0
        while got < 4 * MiB:  # at less than 4 MiB/s, so that half a second's worth is less than 2 MiB
            c.read_exactly(65536)
            got += 65536
            time.sleep(0.016)
        wait_held_up(sent)
        held = sent[0] - got
        assert held < 12 * MiB, f"{held} bytes are held for a client that takes less than 4 MiB in a second"
        c.reset()


@pytest.mark.parametrize("sent", [0, 1, MIN_BYTES, 200000, 3 * MiB])
@pytest.mark.parametrize("rst", [0, 1], ids=["fin", "rst"])
def test_a_body_that_the_backend_cuts_short_looks_cut_short(engine, engine_sluice, sent, rst):
    n = 5 * MiB
    with engine_sluice.client() as c, pytest.raises(Ended) as e:
        c.send(request_bytes(path=f"/short/{n}?send={sent}&rst={rst}"))
        r = c.read_head()
        if r.status == 502:
            pytest.skip("the reset overtook the head, and the client got a 502")
        assert r.get("content-length") == str(n)
        c.read_body(r, keep=False)
    assert e.value.how == "rst"


def test_a_close_delimited_body_that_ends_in_a_reset_looks_cut_short(engine, engine_sluice):
    with engine_sluice.client() as c, pytest.raises(Ended) as e:
        c.get(f"/close/{3 * MiB}?rst=1", keep=False)
    assert e.value.how == "rst"


def test_bytes_behind_a_body_go_to_nobody(engine, sluice, backend):
    """The backend sends more than it said; the next request gets its own answer on another connection."""
    n = 400000
    body = pattern.body(n, 2)
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"

    def script(c):
        while True:
            head = c.read_head()
            if b"GET /long " in head:
                c.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % n + body + evil)
            else:
                c.send(response(b"good"))

    b = backend(script)
    d = sluice([b.address], splice={"engine": engine, "min_bytes": MIN_BYTES, "window": WINDOW}, threads=1)
    with d.client() as c:
        for _ in range(5):
            r = c.get("/long", keep=False)
            assert (r.length, r.sha256) == (n, pattern.sha256(n, 2))
            assert c.get("/next").body == b"good"


def test_a_tunnel_carries_both_directions(engine, engine_sluice):
    n = 4 * MiB
    data = pattern.body(n, 3)
    with engine_sluice.client() as c:
        c.send(request_bytes(path="/upgrade", fields={"Connection": "Upgrade", "Upgrade": "echo"}))
        assert c.read_response().status == 101

        def write():
            c.send(data)
            c.end()
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        got, how = c.read_end()
        writer.join(60)
    assert how == "fin" and len(got) == n and hashlib.sha256(got).hexdigest() == pattern.sha256(n, 3)
