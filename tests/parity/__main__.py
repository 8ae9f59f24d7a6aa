"""``python -m tests.parity CASE ARRAYS.npz [--keys KEYS.json]``; exit code 0: all good, 1: a miss, 2: wrong use."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from langdepth.errors import LangdepthError
from tests.parity.runner import cases, print_report, run_case


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one case; returns the exit code."""
    known = ", ".join(case.pattern for case in cases())
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity",
        description="Compare our code with a golden case, array by array.",
        epilog=f"Cases: {known}. For example: losses_depthclip tests/parity/data/losses_depthclip.npz",
    )
    parser.add_argument("case", help="which function computes the arrays; * stands for any ending")
    parser.add_argument("arrays", type=Path, help="the .npz file with inputs and expected arrays")
    parser.add_argument("--keys", type=Path, help="the case's keys file; by default beside the arrays, then committed")
    options = parser.parse_args(arguments)
    try:
        report = run_case(options.case, options.arrays, options.keys)
    except LangdepthError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print_report(report)
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
