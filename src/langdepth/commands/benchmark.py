"""``langdepth benchmark``: several systems on several data sets, one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from langdepth.commands._parse import run
from langdepth.errors import say
from langdepth.prediction.options import Precision

EXAMPLE = "langdepth benchmark matrix.yaml --out matrix"


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(benchmark, arguments, "langdepth benchmark", EXAMPLE)


def benchmark(
    matrix: Path,
    *,
    out: Path,
    device: str = "auto",
    dtype: Precision = "float32",
    batch_size: int = 1,
) -> int:
    """Score several systems on several data sets; tables as Markdown, LaTeX, CSV and JSON, with the
    papers' numbers where they compare.

    Cells that are finished are not run again. A cell that fails, for example for want of weights, says why, and the
    command ends with exit code 1 when the others are done.

    Args:
        matrix: A YAML file with the keys data (a list of root, data, split, source, limit, captions, without_caption,
            trust_unit, protocols, alignment, name) and systems (names, or records of system, clip_weights, prompts,
            base, depth_kind, predictions, prediction_scale, name; all systems without it). docs/evaluate.md has an
            example.
        out: Folder of the tables and of the cells' reports.
    """
    from langdepth.evaluation.matrix import run_matrix
    from langdepth.evaluation.matrix_file import read_matrix
    from langdepth.evaluation.tables import markdown

    content = read_matrix(matrix)
    cells = run_matrix(content, out, device=device, dtype=dtype, batch_size=batch_size)
    say("", *markdown(cells).split("\n"), f"written: {out / 'matrix.md'}, matrix.tex, matrix.csv, matrix.json")
    failed = sum(cell["ours"] is None for cell in cells)
    if failed:
        say(f"langdepth benchmark: {failed} of {len(cells)} cells have no report, see the notes", file=sys.stderr)
    return 1 if failed else 0
