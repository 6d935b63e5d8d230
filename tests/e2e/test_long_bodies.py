# SPDX-License-Identifier: Apache-2.0
"""Bodies beyond 4 GiB, where 32-bit counts and sequence numbers have wrapped round, byte for byte, in every engine."""
import functools
import hashlib
import json

from lib import pattern
from lib.client import request_bytes
from lib.sluice import Moved

N = (1 << 32) + 5
PIECE = 1 << 20


def pieces():
    """The pattern's first N bytes as views of one table."""
    table = pattern.body(pattern.PERIOD) + pattern.body(PIECE)
    view, at = memoryview(table), 0
    while at < N:
        n = min(PIECE, N - at)
        yield view[at % pattern.PERIOD:at % pattern.PERIOD + n]
        at += n


@functools.lru_cache(maxsize=1)
def digest():
    whole = hashlib.sha256()
    for piece in pieces():
        whole.update(piece)
    return whole.hexdigest()


def test_a_response_of_more_than_four_gigabytes(engine, engine_sluice):
    moved = Moved(engine_sluice, "response")
    buffer = bytearray(PIECE)
    with engine_sluice.client(timeout=60) as c:
        c.send(request_bytes(path=f"/bytes/{N}"))
        assert c.read_head().get("content-length") == str(N)
        have = memoryview(c.buffer)
        got = 0
        for want in pieces():
            n = min(len(have), len(want))
            buffer[:n] = have[:n]
            have = have[n:]
            while n < len(want):
                k = c.sock.recv_into(memoryview(buffer)[n:len(want)])
                assert k, f"it ended after {got + n} bytes"
                n += k
            assert (buffer if n == PIECE else buffer[:n]) == want, f"within the megabyte from {got} on"
            got += n
        c.buffer = b""
        assert c.get("/bytes/77").sha256 == pattern.sha256(77), "the same connection serves the next request"
    by = moved.counted(N + 77)
    assert by[engine] > N // 2 if engine in ("copy", "splice") else by["copy"] < N, by


def test_a_request_of_more_than_four_gigabytes(engine, engine_sluice):
    moved = Moved(engine_sluice, "request")
    with engine_sluice.client(timeout=60) as c:
        c.send(request_bytes("POST", "/sha256", {"Content-Length": N}))
        for piece in pieces():
            c.send(piece)
        assert json.loads(c.read_response().body) == {"bytes": N, "sha256": digest()}
    by = moved.counted(N)
    assert by[engine] > N // 2 if engine in ("copy", "splice") else by["copy"] < N, by
