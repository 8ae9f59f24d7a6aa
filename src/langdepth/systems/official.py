"""What systems share to follow their authors' programs: tensors under our names, and ``reference_exact``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from langdepth.backbones.clip_weights import ClipWeights, tensor_shapes
from langdepth.errors import CheckpointError


def rename(
    state_dict: Mapping[str, Tensor], names: Mapping[str, str] | Callable[[str], str], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Tensors under our names, by prefix (the first that fits) or by a function, and the report.

    Its lists: "used" and "ignored", their names; "missing", ours.
    """
    tensors: dict[str, Tensor] = {}
    report: dict[str, list[str]] = {"used": [], "ignored": []}
    for key, value in state_dict.items():
        if callable(names):
            ours: str | None = names(key)
        else:
            ours = next((new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)), None)
        if ours is None or ours not in own:
            report["ignored"].append(key)
        else:
            report["used"].append(key)
            tensors[ours] = value
    return tensors, {**report, "missing": [key for key in own if key not in tensors]}


def clip_in_checkpoint(state_dict: dict[str, Tensor], architecture: str, quick_gelu: bool) -> ClipWeights:
    """The whole CLIP model under ``clip.``. Raises CheckpointError where there is none, or one of another kind."""
    clip = {key.removeprefix("clip."): value for key, value in state_dict.items() if key.startswith("clip.")}
    if "token_embedding.weight" not in clip:
        raise CheckpointError("the checkpoint has no CLIP model in it (no tensor 'clip.token_embedding.weight')")
    shapes = {f"clip.{key}": shape for key, shape in tensor_shapes(architecture, quick_gelu).items()}
    require_clip(state_dict, shapes, architecture)
    # Checkpoints of training on GPUs are in half precision
    clip = {key: value.float() for key, value in clip.items()}
    return ClipWeights(architecture, quick_gelu, clip, "the checkpoint", "")


def require_clip(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], architecture: str) -> None:
    """Raise CheckpointError unless ``tensors`` have all of the ``shapes`` of a CLIP model."""
    for key, shape in shapes.items():
        found = tuple(tensors[key].shape) if key in tensors else "missing"
        if found != shape:
            raise CheckpointError(
                f"the CLIP model in the checkpoint is not {architecture} ('{key}' is {found}, expected {shape}); "
                "choose another architecture"
            )


def set_quirks(config: Any) -> None:
    """With ``reference_exact``, every option that the class lists in QUIRKS gets the value it has there."""
    if config.reference_exact:
        for name, value in config.QUIRKS.items():
            object.__setattr__(config, name, value)
