"""Weights files: one ``.safetensors`` whose metadata describes it, and a model card beside it. No pickles, no code.

This module does not know which systems exist; ``weights.checkpoint`` opens files, names and hub ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langdepth._version import __version__
from langdepth.config import to_mapping
from langdepth.errors import CheckpointError, LangdepthError, UsageError
from langdepth.utils.arguments import checked
from langdepth.utils.files import atomic_path, atomic_paths, require_marked, second_name, write_tensors
from langdepth.utils.tensors import read_safetensors, require_finite
from langdepth.weights.card import Storable, model_card

FORMAT = "langdepth/1"
GRAPHS = {".onnx": "ONNX", ".xml": "OpenVINO"}  # what `langdepth export` writes
OWN_WEIGHTS, OWN_CARD = b'"langdepth_version":', b"| written by | langdepth "
"""What the two files of ``save`` hold and those of others do not."""
# Facts about one file; they are found again whenever it is loaded and so are not stored in it.
_FILE_FACTS = ("weights", "sha256", "langdepth_version")


@checked
def save(
    system: Storable,
    path: str | Path,
    *,
    extra: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    also: Sequence[Path] = (),
) -> Path:
    """Write ``path`` (``.safetensors``) and the model card ``path`` with ``.md``; returns the path of the weights.

    Args:
        system: Its ``provenance`` goes into the file and the card and must be plain JSON data. Keys with a meaning:
            "licence" and "source" (strings), "training" and "numbers" (mappings, tables in the card).
        path: Ends in ``.safetensors``.
        extra: Replaces entries of the provenance.
        dtype: Converts floating point tensors, for example to ``torch.float16``.
        also: Further names for the same weights, each with a card; hard links where the file system has them.

    Raises:
        UsageError: For another file ending.
        LangdepthError: For a system without a registry name, where the files cannot be written, and where one of them
            would replace a file of somebody else.
        CheckpointError: A value is not finite or does not fit ``dtype``; nothing is written.
    """
    path = require_suffix(path)
    require_own(path, *also)
    facts = facts_to_store(system, extra)
    names = (path, *also)
    with atomic_paths(*(name.with_suffix(".md") for name in names)) as cards:
        for name, card in zip(names, cards, strict=True):
            card.write_text(model_card(system, facts, load_from=name.name), encoding="utf-8")
        write(system, path, facts, dtype)
        for name in also:
            second_name(path, name)
    return path


def require_suffix(path: str | Path) -> Path:
    """The path of a file to write. Raises UsageError where it does not end in ``.safetensors``."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: weights are written as .safetensors; give a name with this ending")
    return path


def require_own(*weights: Path) -> None:
    """Raise LangdepthError where weights or the model card beside them would replace a file of somebody else."""
    for path in weights:
        require_marked(path, OWN_WEIGHTS)
        require_marked(path.with_suffix(".md"), OWN_CARD)


def require_no_graph(path: Path) -> None:
    """Raise CheckpointError for a file that holds a graph instead of weights; whether it is there was asked before."""
    if kind := GRAPHS.get(path.suffix.lower()):
        raise CheckpointError(
            f"{path}: is a graph for {kind}, not weights; 'langdepth predict' takes one ONNX file, and "
            "all else needs the .safetensors file or the name that was exported"
        )


def facts_to_store(system: Storable, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The provenance without what is true of one file only. Raises LangdepthError where it cannot be stored."""
    if not system.about:  # which the registry sets
        raise LangdepthError(
            f"this {type(system).__name__} has no registry name and could not be loaded again; "
            "make it with langdepth.systems.registry.build(name)"
        )
    facts = {"licence": "not stated", "source": "not stated", **system.provenance, **(extra or {})}
    facts = {key: value for key, value in facts.items() if key not in _FILE_FACTS}
    try:
        json.dumps(facts)
    except (TypeError, ValueError) as error:
        raise LangdepthError(f"the provenance of '{system.name}' must be plain JSON data: {error}") from None
    return facts


def write(system: Storable, path: Path, facts: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
    """Write the weights file alone."""
    metadata = {
        "format": FORMAT,
        "system": system.name,
        **({"package": system.package} if system.package else {}),
        "config": json.dumps(to_mapping(system.config)),
        "langdepth_version": __version__,
        "licence": str(facts["licence"]),
        "source": str(facts["source"]),
        "provenance": json.dumps(facts),
    }
    # Clones: the format wants contiguous tensors that share no memory.
    tensors = {
        key: _as_dtype(key, value.detach(), dtype).to("cpu").clone(memory_format=torch.contiguous_format)
        for key, value in system.state_dict().items()
    }
    require_finite(tensors, path, "nothing is written")
    write_tensors(tensors, path, metadata)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _as_dtype(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    converted = tensor.to(dtype)
    if not torch.equal(converted.isfinite(), tensor.isfinite()):
        raise CheckpointError(f"tensor '{key}' has values too large for {dtype}; save with another dtype")
    return converted


def read(path: Path, label: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file that ``save`` wrote. Raises CheckpointError naming it ``label``."""
    metadata, tensors = read_safetensors(path, label)
    found = metadata.get("format", "")
    if not found.startswith("langdepth/"):
        raise CheckpointError(
            f"{label}: not written by langdepth (it does not state which system it holds); use `langdepth convert`"
        )
    if found != FORMAT:
        raise CheckpointError(f"{label}: its format {found} is not known to langdepth {__version__}; update langdepth")
    return metadata, tensors


def stated(metadata: Mapping[str, str], key: str, label: str) -> dict[str, Any]:
    """A mapping that the metadata hold as JSON. Raises CheckpointError."""
    try:
        value = json.loads(metadata.get(key, ""))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{label}: its metadata '{key}' is missing or damaged; save it again")
    return value


def fill(module: nn.Module, tensors: Mapping[str, Tensor], label: object, name: str) -> None:
    """Copy all tensors into the module, converted to its dtypes, or none.

    Raises CheckpointError naming up to three tensors whose name, shape or kind is not that of the module.
    """
    own: dict[str, Tensor] = module.state_dict()
    problems = [f"'{key}' is missing (expected {_kind(own[key])})" for key in own if key not in tensors]
    problems += [f"'{key}' is not part of it (found {_kind(tensors[key])})" for key in tensors if key not in own]
    for key in own:
        if key in tensors and _comparable(own[key]) != _comparable(tensors[key]):
            problems.append(f"'{key}' is {_kind(tensors[key])}, expected {_kind(own[key])}")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{label}: does not fit the system '{name}': {'; '.join(problems[:3])}{more}")

    require_finite(tensors, label)
    module.load_state_dict(tensors)


def _comparable(tensor: Tensor) -> tuple[torch.Size, bool]:
    return tensor.shape, tensor.is_floating_point()


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
