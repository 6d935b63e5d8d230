# SPDX-License-Identifier: Apache-2.0
"""The bytes the origin serves: SHAKE128("sluice") with a period of a prime number of bytes (tools/origin/origin.h)."""
import functools
import hashlib

PERIOD = 16777213


@functools.lru_cache(maxsize=1)
def _table():
    return hashlib.shake_128(b"sluice").digest(PERIOD)


def body(n, seed=1, offset=0):
    table = _table()
    at = ((seed - 1) * 1000003 + offset) % PERIOD
    if at + n <= PERIOD:
        return table[at:at + n]
    out = bytearray(table[at:])
    while len(out) < n:
        out += table[:n - len(out)]
    return bytes(out)


@functools.lru_cache(maxsize=256)
def sha256(n, seed=1):
    return hashlib.sha256(body(n, seed)).hexdigest()
