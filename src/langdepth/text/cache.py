"""Features computed before, by a key of their inputs: those of texts in memory, then on disk.

Files lie in the folder of ``utils.cache``; any of them may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langdepth.errors import LangdepthError
from langdepth.utils.cache import cache_folder
from langdepth.utils.files import write_tensors
from langdepth.utils.tensors import read_safetensors

_IN_MEMORY = 64  # prompt sets; a published one has 7 rows
_memory: OrderedDict[str, Tensor] = OrderedDict()


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
    features = _memory.pop(key, None)
    if features is None:
        path = cache_folder() / "text" / f"{key}.safetensors"
        kept = read_kept(path)
        if kept is None:
            kept = {"features": compute().contiguous()}
            with suppress(LangdepthError):
                keep(path, kept)
        features = kept["features"]
    _memory[key] = features  # at the end; other threads may do the same now
    while len(_memory) > _IN_MEMORY:
        _memory.popitem(last=False)
    return features.clone()  # so that changes stay with the caller


def keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors for ``read_kept``. Raises LangdepthError where the place cannot be written."""
    write_tensors(dict(tensors), path, {"checksum": _checksum(tensors)}, durable=False)


def read_kept(path: Path) -> dict[str, Tensor] | None:
    """What ``keep`` has written, or None where it is not there or damaged."""
    with suppress(LangdepthError):
        metadata, tensors = read_safetensors(path)
        if metadata.get("checksum") == _checksum(tensors):
            return tensors
    return None


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    checksum = 0
    for name, value in sorted(tensors.items()):
        content = value.flatten().view(torch.uint8).numpy().data  # flat, as one channel has a stride of its own
        checksum = zlib.crc32(content, zlib.crc32(name.encode(), checksum))
    return f"{checksum:08x}"
