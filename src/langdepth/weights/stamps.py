"""What a name that ``load`` takes stands for, as a key for caches and records. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from langdepth.systems import registry
from langdepth.utils.files import expanded, file_stamp
from langdepth.utils.onnx_files import files_of
from langdepth.utils.reading import file_sha256
from langdepth.weights import published


def system_stamp(name: str | Path, of_file: Callable[[Path], Any] = file_stamp) -> tuple[Any, ...]:
    """Changes when the name stands for other files or one of them is written again; a hub id is its own stamp.

    Args:
        name: As ``load`` takes it.
        of_file: What stands for a file.
    """
    foreign = str(name).removeprefix(registry.TRANSFORMERS)
    if foreign != str(name):
        folder = expanded(foreign)
        kept = [*folder.glob("*.safetensors"), *folder.glob("*.json")] if os.path.isdir(folder) else []
        return (str(name), *map(of_file, sorted(kept)))
    cls, _, weights = str(name).partition("@")
    own = registry.OWN_CLASS.fullmatch(cls) is not None and not os.path.exists(name)
    if str(name) in registry.REGISTRY and not own:
        known: Any = published.fetched(str(name)) if str(name) in registry.PUBLISHED else None
        known = known or registry.REGISTRY[str(name)].weights
        return (str(name),) if known is None else (str(name), known.sha256)
    path = expanded(weights if own else name)
    files = sorted(path.glob("*.safetensors")) if os.path.isdir(path) else files_of(path)
    found: list[Any] = [of_file(file) for file in files if os.path.isfile(file)] or [str(name)]
    return (cls, module_stamp(cls, of_file), *found) if own else tuple(found)


def weights_stamp(name: str) -> tuple[Any, ...]:
    """The same by the content of the files, and of a hub id the commit that it stands for now, whose file is fetched.

    Weights that are copied or moved have the stamp that they had. Raises LangdepthError as ``load`` does.
    """
    found = system_stamp(name, content_stamp)
    if found[-1] != name or "/" not in name:
        return found
    from langdepth.weights import checkpoint, hub

    foreign = name.removeprefix(registry.TRANSFORMERS)
    path = checkpoint.located(name) if foreign == name else hub.download(foreign, None, None, "config.json")
    return (*found, path.parent.name)  # in the hub's cache, the folder of the commit


def content_stamp(name: str | Path) -> str:
    """The sha256 of a file; what is no file, and one that cannot be read, is its own stamp."""
    with suppress(OSError):  # loading it says what is wrong
        return file_sha256(name)
    return str(name)


def module_stamp(name: str, of_file: Callable[[Path], Any] = file_stamp) -> Any:
    """The stamp of the module's file of "module:Class"; None where there is none, and for other names."""
    if not registry.OWN_CLASS.fullmatch(name):
        return None
    registry.search_current_folder()
    with suppress(Exception):  # of a parent package, which is imported; loading the class says what is wrong
        spec = find_spec(name.partition(":")[0])
        return of_file(Path(spec.origin)) if spec is not None and spec.origin else None
    return None
