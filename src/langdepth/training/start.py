"""What a run starts from: its folder, and the system with the weights, files and captions that the recipe names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from langdepth.config import dump_yaml, from_mapping, load_yaml, to_mapping
from langdepth.errors import CheckpointError, UsageError, is_memory_error
from langdepth.systems import registry
from langdepth.systems.capabilities import Trainable
from langdepth.text.caption_features import Captions
from langdepth.training.recipe import Recipe, read_recipe
from langdepth.utils.files import atomic_path, expanded, require_marked
from langdepth.utils.reading import file_sha256
from langdepth.utils.tensors import nested_tensors, require_finite
from langdepth.weights.checkpoint import load
from langdepth.weights.files import OWN_CARD, require_own

_RECIPE = "# langdepth train: what this run was resolved to"


def claim_folder(recipe: Recipe, resume: bool) -> None:
    """Write the recipe into the run folder. Raises UsageError where two runs would mix.

    A run that ended before its first checkpoint leaves nothing that could be lost.
    """
    out = recipe.train.out
    start = out / "start.safetensors"
    if resume:
        _require_same(recipe, start)
    elif any((out / name).exists() for name in ("resume.ckpt", "last.safetensors")):
        raise UsageError(f"{out}: holds a run already; continue it with --resume or choose another --train.out")
    else:
        require_own(start, out / "last.safetensors", *out.glob("best*.safetensors"))
        for path in out.glob("best*.md"):
            require_marked(path, OWN_CARD)
        require_marked(out / "metrics.csv", b"step")
        require_marked(out / "recipe.yaml", _RECIPE.encode())
        start.unlink(missing_ok=True)
    with atomic_path(out / "recipe.yaml") as path:
        path.write_text(f"{_RECIPE}\n{dump_yaml(recipe)}", encoding="utf-8")


def _require_same(recipe: Recipe, start: Path) -> None:
    out = recipe.train.out
    if not start.exists():
        raise UsageError(f"{out}: holds no run to continue; start one without --resume")
    stored, wanted = read_recipe(load_yaml(out / "recipe.yaml")).identity(), recipe.identity()
    for key in {**wanted, **stored}:
        if wanted.get(key) != stored.get(key):
            raise UsageError(
                f"{out}: this run has {key} = {stored.get(key)}, not {wanted.get(key)}; a run continues with its own "
                f"recipe, --config {out / 'recipe.yaml'}"
            )


def require_readable(checkpoint: Path) -> None:
    """Raise CheckpointError where a run cannot continue from the file."""
    advice = "without it --resume starts from the beginning"
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)  # mapped, sizes would not be compared
    except Exception as error:  # unpicklers raise almost anything for a damaged file
        if is_memory_error(error):
            raise CheckpointError(f"{checkpoint}: not enough memory to read it") from error
        raise CheckpointError(f"{checkpoint}: is damaged; {advice}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{checkpoint}: holds no training run; {advice}")
    learned = {key: content.get(key) for key in ("state_dict", "optimizer_states")}
    require_finite(dict(nested_tensors(learned)), checkpoint, advice)


def start_system(recipe: Recipe, start: Path | None, captions: Captions | None = None) -> Trainable:
    """The system in training mode.

    Args:
        recipe: Names the system, its options, weights and files.
        start: The file that a run to be continued started from; None prepares the system as the recipe says.
        captions: Those of the data, which also prepare a system whose recipe names no others.
    """
    section = recipe.system
    weights = section.weights if start is None else str(start)
    torch.manual_seed(recipe.train.seed)
    system = load(weights) if weights else registry.build(section.name, section.options)
    if system.name != section.name:
        raise UsageError(f"system.weights: {weights} holds '{system.name}', the recipe says '{section.name}'")
    made_with = to_mapping(system.config)
    wanted = to_mapping(from_mapping(type(system.config), made_with | section.options, "system.options."))
    for key, value in wanted.items():
        if value != made_with[key]:
            raise UsageError(f"system.options.{key}: {weights} was made with {made_with[key]}, the recipe says {value}")
    if not isinstance(system, Trainable) or not any(p.requires_grad for p in system.parameters()):
        raise UsageError(f"system.name: '{system.name}' has nothing to train")
    if start is None and section.weights is not None:
        system.provenance["continued_from"] = _origin(section.weights, system.provenance)
    prepare_system(system, recipe, captions)
    return system.train()


def _origin(weights: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of trained weights says about those that training continued from: no path of this machine."""
    path = expanded(weights)
    is_file = path.suffix == ".safetensors" and path.is_file()
    origin = {
        "weights": path.name if is_file else weights,
        "sha256": file_sha256(path) if is_file else provenance.get("sha256"),
    }
    return origin | {key: provenance[key] for key in ("licence", "source", "continued_from") if key in provenance}


def prepare_system(system: Trainable, recipe: Recipe, captions: Captions | None) -> None:
    """Have the system load what it starts from; ``captions`` are those of the data."""
    if captions is not None and not system.text_per_image:
        raise UsageError(f"data.captions: '{system.name}' takes no captions of images; leave them out")
    takes, files = inspect.signature(system.prepare_training), dict(recipe.system.prepare)
    named = files.get("text_features") not in (None, str(recipe.data.captions))
    if captions is not None and "text_features" in takes.parameters and not named:
        files["text_features"] = captions
    try:
        takes.bind(**files)
    except TypeError as error:
        raise UsageError(f"system.prepare: {error}") from None
    system.prepare_training(**files)
    require_finite(system.state_dict(), "system.prepare", "give other files to start from")
