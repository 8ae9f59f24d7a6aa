"""Predicting needs no torch; .ci/run does the same in an environment that has none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_predicting_needs_no_torch() -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "slim.py"), str(here.parent / "examples"), "--pretend"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
