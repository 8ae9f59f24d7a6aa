"""Text features computed before, by a key of their inputs: in memory, then on disk.

Files lie in ``$LANGDEPTH_CACHE``, else ``$XDG_CACHE_HOME/langdepth``, else ``~/.cache/langdepth``; any of them may be
deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langdepth.errors import LangdepthError
from langdepth.utils.files import write_tensors
from langdepth.utils.tensors import read_safetensors

_IN_MEMORY = 64  # prompt sets; a published one has 7 rows
_memory: OrderedDict[str, Tensor] = OrderedDict()


def cache_folder() -> Path:
    """Where text features are kept."""
    own = os.environ.get("LANGDEPTH_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "langdepth"


def content_key(*content: Any) -> str:
    """The sha256 of plain data, as a name for results computed from it."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def add_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Add names, kinds, shapes and numbers of tensors to ``digest``."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def remembered(key: str, compute: Callable[[], Tensor]) -> Tensor:
    """The matrix that belongs to ``key``: from memory or disk, else computed and kept.

    A damaged file is computed again and replaced; a folder that cannot be written costs only the time.
    """
    if key not in _memory:
        path = cache_folder() / "text" / f"{key}.safetensors"
        features = _read(path)
        if features is None:
            features = compute()
            _write(path, features)
        _memory[key] = features
    _memory.move_to_end(key)
    while len(_memory) > _IN_MEMORY:
        _memory.popitem(last=False)
    return _memory[key].clone()  # so that changes stay with the caller


def _read(path: Path) -> Tensor | None:
    with suppress(LangdepthError, KeyError, TypeError):
        metadata, tensors = read_safetensors(path)
        if metadata["sha256"] == _sha256(tensors["features"]):
            return tensors["features"]
    return None


def _write(path: Path, features: Tensor) -> None:
    with suppress(LangdepthError):
        write_tensors({"features": features.contiguous()}, path, {"sha256": _sha256(features)}, durable=False)


def _sha256(features: Tensor) -> str:
    return hashlib.sha256(features.contiguous().numpy().data).hexdigest()
