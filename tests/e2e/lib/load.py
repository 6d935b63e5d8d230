# SPDX-License-Identifier: Apache-2.0
"""Clients that ask all the time, compare every body, and name each failure: for what must not be noticed from outside."""
import hashlib
import json
import random
import threading
import time

from . import pattern
from .client import Client, Ended

SMALL, LARGE = 700, 1 << 20


class Load:
    """
    with Load(address): ... ; then .failures is a list of texts and .done counts requests by kind.
    A connection that was told to be kept and is closed under a request is a failure: no request may cross a close.
    """

    KINDS = ("kept", "kept", "pausing", "pausing", "short", "short", "large", "large_short", "upload")

    def __init__(self, address, kinds=KINDS, timeout=60, tls=None):
        self.address = address
        self.tls = tls
        self.timeout = timeout
        self.failures = []
        self.done = dict.fromkeys(kinds, 0)
        self.closed_after = 0  # connections ended by an announced close
        self.stopping = False
        self.threads = [threading.Thread(target=self._run, args=(kind, i), daemon=True) for i, kind in enumerate(kinds)]

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *exc):
        self.stop()

    def stop(self):
        self.stopping = True
        for t in self.threads:
            t.join(self.timeout + 10)
            assert not t.is_alive(), f"a client hangs; so far: {self.failures}"

    def total(self):
        return sum(self.done.values())

    def wait_more(self, n, deadline=120):
        """Until n more requests were answered: the time that must pass in a test, measured by what happens in it."""
        until, end = self.total() + n, time.monotonic() + deadline
        while self.total() < until and not self.failures:
            assert time.monotonic() < end, f"only {self.total()} of {until} requests: {self.done}"
            time.sleep(0.005)

    def check(self, at_least=1):
        wrong = sum("wrong body" in f for f in self.failures)
        print(f"{self.total()} requests, {len(self.failures)} failed, {wrong} wrong bodies, "
              f"{self.closed_after} connections announced their end; by kind: {self.done}")
        assert not self.failures, f"{len(self.failures)} failures in {self.total()} requests, first: {self.failures[:5]}"
        for kind, n in self.done.items():
            assert n >= at_least, f"no requests of kind {kind}: {self.done}"

    # -- one client

    def _run(self, kind, number):
        rng = random.Random(number)
        seed = number + 1
        client, used = None, 0
        while not self.stopping:
            if kind == "pausing":
                time.sleep(rng.random() * 0.12)
            try:
                if client is None:
                    client, used = Client(self.address, timeout=self.timeout, tls=self.tls, server_name="one.demo"), 0
                keep = self._ask(client, kind, seed)
                self.done[kind] += 1
                used += 1
            except (Ended, OSError, AssertionError) as e:
                if not self.stopping:
                    self.failures.append(f"{kind} client {number}, request {used} of its connection: {type(e).__name__} {e}")
                keep = False
            if not keep:
                if client is not None:
                    client.close()
                client = None

    def _ask(self, c, kind, seed):
        """True when the connection may be used again."""
        short = kind in ("short", "large_short")
        fields = [("Connection", "close")] if short else []
        if kind == "upload":
            body = pattern.body(LARGE // 2, seed=seed)
            r = c.request("POST", "/sha256", fields, body)
            assert r.status == 200, f"status {r.status} {r.body[:100]!r}"
            got = json.loads(r.body)
            assert got == {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}, got
        else:
            n = LARGE if kind.startswith("large") else SMALL
            r = c.request("GET", f"/bytes/{n}?seed={seed}", fields)
            assert r.status == 200, f"status {r.status} {r.body[:100]!r}"
            assert (r.length, r.sha256) == (n, pattern.sha256(n, seed)), f"wrong body: {r.length} of {n} bytes"
        closes = (r.get("Connection") or "").lower() == "close"
        if closes and not short:
            self.closed_after += 1
        return not closes
