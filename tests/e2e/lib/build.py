# SPDX-License-Identifier: Apache-2.0
"""Where the programs under test are. SLUICE_BUILD chooses; otherwise the sanitizer build where there is one."""
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def _choose():
    chosen = os.environ.get("SLUICE_BUILD")
    if chosen:
        return (Path.cwd() / chosen).resolve()
    asan = ROOT / "build" / "asan"
    return asan if (asan / "sluice").exists() else ROOT / "build"


BUILD = _choose()
SLUICE = BUILD / "sluice"
SLUICECTL = BUILD / "sluicectl"
ORIGIN = ROOT / "build" / "origin"  # the origin is not under test: the fast one
if not ORIGIN.exists():
    ORIGIN = BUILD / "origin"
SANITIZED = "asan" in str(BUILD)  # what costs may be multiplied by it
IN_CI = os.environ.get("CI") == "true"
