"""`example-csv`: a line of depths for each row of pixels."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from langdepth.prediction.results import DepthResult, Writer


def write_csv(result: DepthResult, file: BinaryIO) -> None:
    """Depth with three decimals, in the result's unit."""
    np.savetxt(file, result.depth, fmt="%.3f", delimiter=",")


CSV = Writer("_depth.csv", write_csv)
