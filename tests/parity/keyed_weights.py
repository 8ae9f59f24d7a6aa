"""Weights that follow from tensor names alone, so that a golden case needs no checkpoint.

A case lists the tensors of an official checkpoint in ``<case>.keys.json``: name, shape and dtype; "value" holds the
content of tensors that are not drawn (counters), "factor" a number that the drawn content is multiplied by, "buffer":
true marks tables that a network computes itself.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from langdepth.errors import UsageError


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array that belongs to the tensor called ``name``.

    Normal noise of the generator seeded with the CRC-32 of the name. Running variances are 1 + 0.1 |noise|; matrices
    and filters have deviation 1 / sqrt(fan in); other weights and scalars lie around 1, the rest (biases) around 0.
    """
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    if name.endswith("running_var"):
        values = 1.0 + 0.1 * np.abs(noise)
    elif len(shape) > 1:
        values = noise / math.sqrt(math.prod(shape[1:]))
    elif not shape or name.endswith("weight"):
        values = 1.0 + 0.1 * noise
    else:
        values = 0.02 * noise
    return np.asarray(values, dtype=np.float32)


def state_dict(path: Path) -> dict[str, Tensor]:
    """The whole checkpoint that a keys file describes, in its order. Raises UsageError when it is none."""
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
        return {key["name"]: torch.from_numpy(_content(key)) for key in keys if not key.get("buffer")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: is no list of tensor names, shapes and dtypes ({error!r})") from None


def _content(key: dict[str, Any]) -> np.ndarray:
    shape = tuple(key["shape"])
    if "value" in key:
        return np.asarray(key["value"], dtype=key["dtype"]).reshape(shape)
    return np.asarray(draw(key["name"], shape) * np.float32(key.get("factor", 1)))
