"""Which names may mean a system. Imports no torch."""

from __future__ import annotations

import os
import re

from langdepth.errors import MissingCheckpointError, UsageError, nearest
from langdepth.systems import registry
from langdepth.utils.files import expanded

PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl"}
_SUFFIXES = {".safetensors", ".onnx", ".xml", *PICKLES}
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")


def require_meaning(name: str) -> tuple[str, str | None] | None:
    """Repository and revision of a hub id; None for what else ``load`` may open.

    Raises:
        MissingCheckpointError: There is no such file.
        UsageError: It means nothing.
    """
    if not name:
        raise UsageError("the name of the system is empty; give one of 'langdepth systems', a file or a hub id")
    known = name in registry.REGISTRY or name.startswith(registry.TRANSFORMERS)
    path = expanded(name)
    if known or registry.OWN_CLASS.fullmatch(name.partition("@")[0]) or os.path.exists(path):
        return None
    if path.suffix.lower() in _SUFFIXES:
        raise MissingCheckpointError(f"{path}: no such file")
    if hub_id := _HUB_ID.fullmatch(name):
        return hub_id[1], hub_id[2]
    hint = nearest(name, registry.REGISTRY)
    hint = hint if hint.startswith("did you") else "neither a name of 'langdepth systems' nor a file or folder here."
    raise UsageError(
        f"unknown system '{name}': {hint} A .safetensors file or a hub id 'owner/name' may be given as well"
    )
