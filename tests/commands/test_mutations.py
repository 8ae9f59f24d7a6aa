"""A few dozen cases of the campaign of damaged and hostile inputs, ``benchmarks/mutations.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks/mutations.py"
CASES = 40


def test_some_mutated_inputs(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, SCRIPT, "--cases", str(CASES), "--seed", "11", "--out", tmp_path / "found.json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    numbers = json.loads((tmp_path / "found.json").read_text())
    assert numbers["faults"] == []
    assert numbers["cases"] >= CASES - 5
    assert sum(kind["accepted"] for kind in numbers["counts"].values()) > 3  # not all are refused
    assert sum(kind["refused"] for kind in numbers["counts"].values()) > 10
