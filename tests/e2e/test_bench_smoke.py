# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' program runs and tells what it measured. The figures themselves are nobody's business here."""
import json
import subprocess

from lib import build


def bench(tmp_path, *args):
    done = subprocess.run(["/usr/bin/python3", build.ROOT / "tools/bench.py", "--build", build.BUILD, "--out", tmp_path,
                           "--quick", "--no-wait", "--seconds", "0.3", "--peers", "", *args], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((tmp_path / "results.json").read_text())


def test_bench_measures_small_responses_and_writes_table_and_page(tmp_path):
    out, results = bench(tmp_path, "--only", "d", "--engines", "copy")
    row = results["summary"]["d"]["table"]["sluice-copy"]
    assert row["failed"] == 0, out
    assert row["requests_per_s"]["median"] > 0 and row["us_per_request"]["median"] > 0
    assert set(e for e, n in row["moved"].items() if n) == {"copy"}
    assert "sluice (copy)" in (tmp_path / "table.md").read_text()
    assert "<svg" in (tmp_path / "index.html").read_text()


def test_bench_tells_a_slow_reader_from_a_fast_one(tmp_path):
    """Paced clients get their rate and no more, over the engine that was asked for."""
    out, results = bench(tmp_path, "--only", "b", "--engines", "splice")
    row = results["summary"]["b"]["table"]["sluice-splice"]
    assert row["failed"] == 0, out
    assert 0 < row["gbit"]["median"] < 32 * 20e6 * 8 / 1e9 * 1.5
    assert row["moved"]["splice"] > row["moved"]["copy"]
