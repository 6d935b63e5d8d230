# SPDX-License-Identifier: Apache-2.0
"""Waiting for something observable; never for time alone."""
import time

DEADLINE = 60.0  # generous: it is only waited for in full when something is wrong


def wait_until(predicate, what="the condition", deadline=DEADLINE):
    """Polls every 10 ms; returns the first true value of predicate()."""
    end = time.monotonic() + deadline
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true within {deadline:g} s (last: {value!r})")
        time.sleep(0.01)
