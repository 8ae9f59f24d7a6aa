"""CLIP weights from a file or from open_clip's own download, under open_clip's tensor names.

    file (OpenAI archive, open_clip or Hugging Face state dict) -> tensors -> open_clip's names -> checked by name and
    shape against the wanted architecture -> float32

Files are data here, see clip_files.py.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from langdepth.backbones.clip import model_config
from langdepth.backbones.clip_download import fetch, published_records
from langdepth.backbones.clip_files import check_file, in_open_clip_names, read_tensors, stated_activation
from langdepth.errors import CheckpointError, UsageError
from langdepth.utils.files import expanded
from langdepth.utils.reading import file_sha256

ACTIVATIONS = {True: "QuickGELU", False: "GELU"}


@dataclass(frozen=True)
class ClipWeights:
    """Weights of a whole CLIP model, float32, on the CPU.

    ``tensors``: open_clip's names ("visual.conv1.weight", "transformer.resblocks.0...", "token_embedding.weight").
    ``source``: a file, "open_clip:TAG" or "random". ``sha256``: of the content, "" where it is not known.
    """

    architecture: str
    quick_gelu: bool
    tensors: dict[str, Tensor] = field(repr=False)
    source: str
    sha256: str

    def visual(self) -> dict[str, Tensor]:
        """The image tower's tensors, named as in ``ClipImageTower``."""
        return {name.removeprefix("visual."): t for name, t in self.tensors.items() if name.startswith("visual.")}

    def text(self) -> dict[str, Tensor]:
        """The text tower's tensors, named as in open_clip's text transformer."""
        return {name: t for name, t in self.tensors.items() if not name.startswith(("visual.", "logit_scale"))}


def find_clip_weights(source: str | Path | None, architecture: str, quick_gelu: bool) -> ClipWeights:
    """Weights of ``architecture``: from a file, from open_clip's download, or random.

    ``source``: a path; None for the published weights of this activation (OpenAI's where they exist), an open_clip tag
    ("laion2b_s34b_b88k") for others, downloaded once and checked; "random" for tests, with a warning.
    Raises UsageError for an unknown architecture, CheckpointError for weights that are not there or do not fit.
    """
    if source == "random":
        return _random_weights(architecture, quick_gelu)
    model_config(architecture, quick_gelu)  # refuses an unknown name before anything is fetched
    tags = published_records(architecture, quick_gelu)
    if source is not None and source not in tags:
        return read_clip_weights(source, architecture, quick_gelu)
    if not tags:
        raise UsageError(
            f"there are no published weights of CLIP {architecture} with {ACTIVATIONS[quick_gelu]}: give a file with "
            "--clip-weights"
        )
    tag = str(source or ("openai" if "openai" in tags else next(iter(tags))))
    path, sha256 = fetch(architecture, tag, tags[tag])
    return _read(path, architecture, quick_gelu, source=f"open_clip:{tag}", expected_sha256=sha256)


def read_clip_weights(path: str | Path, architecture: str, quick_gelu: bool | None = None) -> ClipWeights:
    """Weights from a file: an OpenAI TorchScript archive, or a state dict of open_clip or of transformers' CLIPModel.

    State dicts may be ``.safetensors`` or written by ``torch.save`` (``.pt``, ``.bin``); the content decides, not the
    name. ``quick_gelu``: the activation that is wanted; None takes what the file says. OpenAI archives say so, and
    state dicts by the config.json or open_clip_config.json beside them.

    Raises UsageError for an unknown architecture or an activation that nothing states, CheckpointError for a file that
    is missing, damaged, of another kind, of another architecture or trained with the other activation.
    """
    return _read(expanded(path), architecture, quick_gelu, source=str(path))


def _read(
    path: Path, architecture: str, quick_gelu: bool | None, source: str, expected_sha256: str = ""
) -> ClipWeights:
    wanted = tensor_shapes(architecture, quick_gelu)
    limit = check_file(path, architecture, 4 * sum(math.prod(shape) for shape in wanted.values()))
    sha256 = file_sha256(path)
    if not sha256.startswith(expected_sha256):
        raise CheckpointError(
            f"{path}: its sha256 is {sha256[:12]}..., the published one is {expected_sha256[:12]}...; "
            "delete the file and fetch it again"
        )
    stored = read_tensors(path, architecture, limit)
    stated = stated_activation(path, stored)
    tensors = in_open_clip_names(path, stored)
    _check_shapes(path, architecture, tensors, wanted)
    quick_gelu = stated if quick_gelu is None else quick_gelu
    if quick_gelu is None:
        raise UsageError(
            f"{path}: does not say whether it was trained with QuickGELU (OpenAI's weights were) or GELU; "
            "state quick_gelu"
        )
    if stated is not None and stated != quick_gelu:
        raise CheckpointError(
            f"{path}: was trained with {ACTIVATIONS[stated]}, but {ACTIVATIONS[quick_gelu]} is wanted; "
            f"set quick_gelu to {str(stated).lower()} or give other weights"
        )
    return ClipWeights(architecture, quick_gelu, _as_float32(path, tensors, wanted), source, sha256)


def tensor_shapes(architecture: str, quick_gelu: bool | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the whole model's tensors, without building it. Raises UsageError for unknown names."""
    return {name: tuple(tensor.shape) for name, tensor in _build(architecture, quick_gelu, "meta").items()}


def _build(architecture: str, quick_gelu: bool | None, device: str) -> dict[str, Tensor]:
    from open_clip.model import _build_text_tower, _build_vision_tower

    config = model_config(architecture, quick_gelu)
    with torch.device(device):
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"], bool(quick_gelu))
        text = _build_text_tower(config["embed_dim"], config["text_cfg"], bool(quick_gelu))
        logit_scale = torch.tensor(math.log(1 / 0.07))  # CLIP's start value
    return {
        **{f"visual.{name}": tensor for name, tensor in visual.state_dict().items()},
        **text.state_dict(),
        "logit_scale": logit_scale,
    }


def _random_weights(architecture: str, quick_gelu: bool) -> ClipWeights:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors = _build(architecture, quick_gelu, "cpu")
    warnings.warn(
        f"CLIP {architecture} has RANDOM weights: its predictions mean nothing; give --clip-weights a file",
        stacklevel=3,
    )
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return ClipWeights(architecture, quick_gelu, tensors, "random", digest.hexdigest())


# --- shapes


def _check_shapes(
    path: Path, architecture: str, tensors: dict[str, Tensor], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Names and shapes must be the architecture's. Counters of BatchNorm may be missing."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = {name: wanted[name] if _same_scalar(shape, wanted.get(name)) else shape for name, shape in found.items()}
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    unknown = [name for name in found if name not in wanted]
    other = [name for name in found if name in wanted and found[name] != wanted[name]]
    if not (missing or unknown or other):
        return
    holds, needs = _describe(found), _describe(wanted)
    if holds != needs:
        raise CheckpointError(f"{path}: holds {holds}; wanted is {architecture}: {needs}")
    if other:
        problem = f"'{other[0]}' has shape {found[other[0]]}, not {wanted[other[0]]}"
    else:
        problem = f"lacks '{missing[0]}'" if missing else f"has an unknown tensor '{unknown[0]}'"
    count = len(missing) + len(unknown) + len(other)
    raise CheckpointError(f"{path}: does not fit {architecture}: {problem} ({count} tensors differ)")


def _same_scalar(shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> bool:
    return wanted == () and math.prod(shape) == 1


def _describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A sentence about the model that the shapes belong to."""

    def count(pattern: str) -> int:
        return len({found[1] for name in shapes if (found := re.match(pattern, name))})

    def size(name: str, axis: int = 0) -> int | str:
        shape = shapes.get(name)
        return shape[axis] if shape else "?"

    text = f"text width {size('ln_final.weight')}"
    if "visual.layer1.0.conv1.weight" in shapes:
        layers = "-".join(str(count(rf"visual\.layer{stage}\.(\d+)\.")) for stage in (1, 2, 3, 4))
        width, features = size("visual.layer1.0.conv1.weight"), size("visual.attnpool.c_proj.weight")
        positions = size("visual.attnpool.positional_embedding")
        return f"a ResNet (layers {layers}, width {width}, {positions} positions, {features} features, {text})"
    if "visual.class_embedding" in shapes:
        width, patch = size("visual.conv1.weight"), size("visual.conv1.weight", -1)
        layers = str(count(r"visual\.transformer\.resblocks\.(\d+)\."))
        positions, features = size("visual.positional_embedding"), size("visual.proj", -1)
        return (
            f"a ViT (patch {patch}, width {width}, {layers} layers, {positions} positions, {features} features, {text})"
        )
    if "visual.trunk.stem.0.weight" in shapes:
        blocks = "-".join(str(count(rf"visual\.trunk\.stages\.{stage}\.blocks\.(\d+)\.")) for stage in range(4))
        return f"a ConvNeXt (blocks {blocks}, width {size('visual.trunk.stem.0.weight')}, {text})"
    return f"another kind of CLIP model ({len(shapes)} tensors)"


def _as_float32(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """In the architecture's order, contiguous and with memory of their own."""
    result = {}
    for name, shape in wanted.items():
        tensor = tensors.get(name, torch.tensor(0)).reshape(shape)  # absent: a counter of BatchNorm
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path}: tensor '{name}' holds values that are not finite; fetch the file again")
        result[name] = tensor.contiguous()
    return result
