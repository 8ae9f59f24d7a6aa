"""Tensors from files that somebody else wrote: no code is run, no small file fills the memory, all numbers are finite.

Errors are one line that names the file; only a file that is damaged is called so.
"""

from __future__ import annotations

import argparse
import math
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from langdepth.errors import CheckpointError, LangdepthError, MissingCheckpointError, is_disk_error, is_memory_error
from langdepth.utils.arrays import ArrayError
from langdepth.utils.files import not_the_file_itself
from langdepth.utils.reading import open_regular, require_regular

MAX_RATIO = 8  # how much larger than its file the content of an archive of tensors may be
SPARE_BYTES = 64_000_000  # that it may be larger in any case
_PICKLES = (b"PK\3\4", b"\x80", *(bytes([byte]) for byte in b"(]}cild"))  # what torch.save and pickles begin with
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_NESTS = ("state_dict", "model_state_dict", "model")  # where training scripts put the tensors
_NUMPY_CORES = ("numpy.core", "numpy._core")


@contextmanager
def reading_tensors(path: Path, what: str, label: str | None = None) -> Iterator[None]:
    """Whatever a reader raises for the file inside, as one CheckpointError.

    Args:
        path: The file.
        what: What it should be, for example "a .safetensors file".
        label: The file's name in messages.
    """
    label = str(path) if label is None else label
    try:
        require_regular(path)
        yield
    except LangdepthError:
        raise
    except FileNotFoundError:
        raise MissingCheckpointError(f"{label}: no such file") from None
    except Exception as error:  # readers raise almost anything for a damaged file
        if is_memory_error(error):
            raise CheckpointError(f"{label}: not enough memory to read it") from None
        if isinstance(error, OSError) and is_disk_error(error):
            raise CheckpointError(f"{label}: cannot be read ({error.strerror})") from None
        other = not_the_file_itself(path)
        if other is not None:
            raise CheckpointError(f"{label}: {other}") from None
        if isinstance(error, ArrayError):
            raise CheckpointError(f"{label}: is not {what}: {error}") from None
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is not None or "call reduce for unrecognized" in str(error):
            kind = "functions" if named is None else named[1]
            raise CheckpointError(
                f"{label}: holds Python objects other than tensors ({kind}), which could run code and are not "
                "opened; save its tensors alone, as a state_dict"
            ) from None
        if "Unsupported operand" in str(error) and _head(path).startswith(_PICKLES):
            raise CheckpointError(
                f"{label}: is a pickle of a kind that torch.save does not write, which could run code; save its "
                "tensors alone, as a state_dict"
            ) from None
        raise CheckpointError(
            f"{label}: is damaged, truncated or not {what} ({type(error).__name__}); fetch or save it again"
        ) from None


def _head(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(4)


def read_safetensors(path: Path, label: str | None = None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a ``.safetensors`` file. Raises CheckpointError."""
    from safetensors import safe_open

    with reading_tensors(path, "a .safetensors file", label), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def read_pickle(path: Path) -> Any:
    """What ``torch.save`` wrote, of tensors, NumPy arrays, plain data, ``argparse.Namespace``, paths, mmengine's log.

    Raises CheckpointError, naming the class where the file holds others.
    """
    with reading_tensors(path, "a checkpoint of torch.save"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hints about pickle protocols; what matters is raised
        if zipfile.is_zipfile(path):
            require_ratio(path)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of somebody's checkpoint, without the prefixes of DataParallel and torch.compile.

    Raises CheckpointError.
    """
    return tensors_of(read_safetensors(path)[1] if path.suffix == ".safetensors" else read_pickle(path), path)


def tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name in what a file holds, see ``read_checkpoint``."""
    for nest in _NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    tensors = content if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items()):
        raise CheckpointError(f"{path}: unknown layout; expected tensors by name, or these under {', '.join(_NESTS)}")
    require_plain(tensors, path)
    return without_prefixes(tensors)


def require_ratio(path: Path) -> None:
    """Raise CheckpointError where an archive of tensors unpacks to far more than it is; known before it is unpacked."""
    with zipfile.ZipFile(path) as archive:
        unpacked, size = sum(member.file_size for member in archive.infolist()), path.stat().st_size
    if unpacked > MAX_RATIO * size + SPARE_BYTES:
        raise CheckpointError(
            f"{path}: unpacks to {unpacked / 1e6:,.0f} MB from {size / 1e6:,.1f}, more than weights do; refused"
        )


@lru_cache(maxsize=1)
def _harmless() -> list[Any]:
    """Classes that checkpoints hold beside tensors and that run no code; NumPy's under the names of NumPy 1 and 2."""
    parts: list[Any] = [np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    named = [(part, f"{package}.multiarray.{part.__name__}") for part in parts for package in _NUMPY_CORES]
    paths = [
        (pure, f"{module}.{kind}{name}")
        for pure, name in ((PurePosixPath, "PosixPath"), (PureWindowsPath, "WindowsPath"))
        for module in ("pathlib", "pathlib._local")
        for kind in ("", "Pure")
    ]
    log: list[Any] = [(_Logged, "mmengine.logging.history_buffer.HistoryBuffer")]
    log += [(_function_of, f"{module}.getattr") for module in ("__builtin__", "builtins")]
    plain = [argparse.Namespace, (_dictionary, "collections.defaultdict"), *log, list, dict, set, int, float, str]
    return [*named, *paths, *plain, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd")]


class _Logged:
    """Replaces the history of a logged number that mmengine keeps in its checkpoints."""


def _function_of(*_: Any) -> None:
    """Replaces a function of such a history, which mmengine names since 0.7.3; nothing is looked up."""


def _dictionary(*_: Any) -> dict[Any, Any]:
    """Replaces an empty defaultdict, which torch's reader does not fill."""
    return {}


def without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes that DataParallel and torch.compile put before every name, in any order."""
    plain = dict(tensors)
    while prefix := next((p for p in _PREFIXES if plain and all(key.startswith(p) for key in plain)), None):
        plain = {key.removeprefix(prefix): value for key, value in plain.items()}
    return {key.removeprefix("module."): value for key, value in plain.items()}


def require_plain(tensors: Mapping[str, Tensor], where: object) -> None:
    """Raise CheckpointError naming a tensor that is sparse, without content, or larger than what is stored of it."""
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise CheckpointError(f"{where}: tensor '{name}' has no content (it was saved on the device 'meta')")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            kind = "quantized" if tensor.is_quantized else "complex" if tensor.is_complex() else "sparse"
            raise CheckpointError(f"{where}: tensor '{name}' is {kind}; save it as a dense tensor of real numbers")
        stored = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.element_size() > max(MAX_RATIO * stored, SPARE_BYTES):
            raise CheckpointError(
                f"{where}: tensor '{name}' of shape {tuple(tensor.shape)} needs more than the {stored} bytes stored; "
                "damaged?"
            )


def require_finite(tensors: Mapping[str, Tensor], where: object, advice: str = "fetch or save it again") -> None:
    """Raise CheckpointError naming the first tensor with a value that is NaN or infinite.

    Args:
        tensors: By name.
        where: The file, for the message.
        advice: What to do about it.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _is_finite(tensor.detach()):
            raise CheckpointError(f"{where}: tensor '{name}' holds values that are not finite; {advice}")


def _is_finite(tensor: Tensor) -> bool:
    if tensor.element_size() == 1:  # formats of eight bits, which know no sums
        tensor = tensor.float()
    # A sum needs no memory; one that overflows may still come of finite numbers.
    return math.isfinite(tensor.sum(dtype=torch.float32)) or bool(tensor.isfinite().all())


def nested_tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors inside dictionaries, lists and tuples, by their dotted places."""
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping | list | tuple):
        pairs = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in pairs:
            yield from nested_tensors(value, f"{prefix}.{key}" if prefix else str(key))
