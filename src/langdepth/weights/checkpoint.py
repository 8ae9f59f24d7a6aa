"""Weights files: one self-describing ``.safetensors`` and a model card beside it. No pickles, no code from files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from langdepth._version import __version__
from langdepth.config import to_mapping
from langdepth.errors import (
    CheckpointError,
    LangdepthError,
    MissingCheckpointError,
    UsageError,
    first_line,
    is_memory_error,
    nearest,
)
from langdepth.systems import registry
from langdepth.systems.capabilities import DepthSystem, ReadsWithClip, StandsOnClip, TakesPrompts, Trainable, require
from langdepth.utils.devices import move
from langdepth.utils.files import atomic_path, real_path, second_name, temporary_folder, write_tensors
from langdepth.utils.network import hub_or_cache
from langdepth.utils.reading import file_sha256
from langdepth.utils.tensors import AllocationBudget, read_safetensors, require_finite

if TYPE_CHECKING:
    from langdepth.systems.base import System

__all__ = ["load", "push_to_hub", "save"]

FORMAT = "langdepth/1"
HUB_FILE = "model.safetensors"
PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl"}
HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")
MEMORY_RATIO, SPARE_MEMORY = 16, 1 << 30  # what building a system may take, in bytes of its file and beside them
# Facts about one file; they are found again whenever it is loaded and so are not stored in it.
FILE_FACTS = ("weights", "sha256", "langdepth_version")


def save(
    system: DepthSystem,
    path: str | Path,
    *,
    extra: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    also: Sequence[Path] = (),
) -> Path:
    """Write ``path`` (``.safetensors``) and the model card ``path`` with ``.md``; returns the path of the weights.

    ``system.provenance`` with ``extra`` over it goes into the file and the card and must be plain JSON data. Keys with
    a meaning here: "licence" and "source" (strings), "training" and "numbers" (mappings, tables in the card).
    ``dtype`` (for example ``torch.float16``) converts floating point tensors. ``also``: further names for the same
    weights, each with a card; they take no space of their own where the file system has hard links.

    Raises UsageError for another file ending, LangdepthError for a system without a registry name, CheckpointError when
    a value does not fit ``dtype``.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: weights are written as .safetensors; give a name with this ending")
    facts = _facts_to_store(system, extra)
    _write_tensors(system, path, facts, dtype)
    for name in also:
        second_name(path, name)
    for name in (path, *also):
        with atomic_path(name.with_suffix(".md")) as temporary:
            temporary.write_text(_model_card(system, facts, load_from=name.name), encoding="utf-8")
    return path


def load(
    name: str | Path | Sequence[str | Path],
    *,
    device: str | torch.device | None = None,
    offline: bool | None = None,
    clip_weights: str | Path | None = None,
    prompts: Mapping[str, Any] | None = None,
) -> System:
    """A system with its weights, in eval mode.

    ``name``: a registry name ("tiny"), a ``.safetensors`` file, or a hub id "owner/name" or "owner/name@revision";
    "module:Class" for a class of one's own, with weights "module:Class@FILE.safetensors". A list of them gives the mean
    of all these systems, which may differ in network size but must all give metres.
    ``device``: where to put it (default: CPU). ``offline``: use only what the hub's cache holds; the default follows
    the environment variable HF_HUB_OFFLINE.

    ``clip_weights``: for zero-shot systems by name, the CLIP weights they stand on: a file, None for open_clip's own
    download, or "random" (with a warning). For a file that holds its own, what encodes new words or, for systems with a
    small sentence encoder, what reads sentences in its place. ``prompts``: fields of
    ``langdepth.text.prompts.PromptSet`` that replace the system's own words, templates, bins or scenes.

    ``system.provenance`` tells what the file states (licence, source, training, numbers) and "weights", "sha256" (None
    where nobody states one to check) and "langdepth_version". Raises UsageError for a name that is none of the three,
    CheckpointError for a file that is missing, damaged or does not fit.
    """
    if not isinstance(name, str | Path):
        from langdepth.systems.ensemble import combine

        options: dict[str, Any] = {"offline": offline, "clip_weights": clip_weights, "prompts": prompts}
        return move(combine([load(one, **options) for one in name]).eval(), device)
    own, weights = _own_class(str(name))
    if _needs_no_file(str(name)):
        return move(_load_without_file(str(name), clip_weights, prompts).eval(), device)
    path, label, sha256 = _locate(weights, offline)
    if sha256:
        _check_sha256(path, label, sha256)
    metadata, tensors = _read(path, label)
    system = _build(own or metadata.get("system", ""), metadata, label, tensors)
    _fill(system, tensors, label)
    system.provenance = {
        **_json(metadata, "provenance", label),
        "weights": label,
        "sha256": sha256 or None,
        "langdepth_version": metadata.get("langdepth_version", "unknown"),
    }
    if prompts:
        require(system, TakesPrompts).use_prompts(prompts, clip_weights)
    elif clip_weights is not None:
        if not isinstance(system, ReadsWithClip):
            raise UsageError(f"{label}: holds all weights of '{system.name}'; leave the CLIP weights out")
        system.read_with_clip(clip_weights)
    return move(system.eval(), device)


def _own_class(name: str) -> tuple[str | None, str]:
    """The class and the weights of "module:Class@weights" or "module:Class", whose module is imported; (None, name)."""
    cls, _, weights = name.partition("@")
    if name in registry.REGISTRY or Path(name).exists() or not registry.OWN_CLASS.fullmatch(cls):
        return None, name
    registry.entry(cls)
    return cls, weights or name


def _needs_no_file(name: str) -> bool:
    """Whether a system is complete without trained weights: from CLIP's alone, or because nothing in it is trained."""
    if name not in registry.REGISTRY:
        return False
    found = registry.entry(name)
    cls = found.system_class()
    return (issubclass(cls, StandsOnClip) and cls.zero_shot) or (
        found.weights is None and not issubclass(cls, Trainable | StandsOnClip)
    )


def _load_without_file(name: str, clip_weights: str | Path | None, prompts: Mapping[str, Any] | None) -> System:
    system = registry.build(name)
    if isinstance(system, StandsOnClip) or clip_weights is not None or prompts:
        require(system, StandsOnClip).load_foundation(clip_weights, prompts)
    system.provenance |= {"weights": name, "sha256": None, "langdepth_version": __version__}
    return system


def push_to_hub(
    system: DepthSystem,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    message: str = "Upload weights",
) -> str:
    """Upload weights and model card to the hub repository ``repo_id``, made if missing; returns its address.

    Raises LangdepthError with the hub's answer when it refuses.
    """
    from huggingface_hub import HfApi

    facts = _facts_to_store(system, None)
    with temporary_folder() as folder:
        _write_tensors(system, Path(folder, HUB_FILE), facts, None)
        Path(folder, "README.md").write_text(_model_card(system, facts, load_from=repo_id), encoding="utf-8")
        api = HfApi(token=token)
        try:
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        except Exception as error:  # the hub client raises its own, its transport's and plain value errors
            raise LangdepthError(f"{repo_id}: upload to the hub failed: {first_line(error)}") from error
    return str(address)


# Writing


def _facts_to_store(system: DepthSystem, extra: dict[str, Any] | None) -> dict[str, Any]:
    if system.name not in registry.REGISTRY:
        raise LangdepthError(
            f"this {type(system).__name__} has no registry name and could not be loaded again; "
            "make it with langdepth.systems.registry.build(name)"
        )
    facts = {"licence": "not stated", "source": "not stated", **system.provenance, **(extra or {})}
    facts = {key: value for key, value in facts.items() if key not in FILE_FACTS}
    try:
        json.dumps(facts)
    except (TypeError, ValueError) as error:
        raise LangdepthError(f"the provenance of '{system.name}' must be plain JSON data: {error}") from None
    return facts


def _write_tensors(system: DepthSystem, path: Path, facts: Mapping[str, Any], dtype: torch.dtype | None) -> None:
    package = registry.entry(system.name).package
    metadata = {
        "format": FORMAT,
        "system": system.name,
        **({"package": package} if package else {}),
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


def _as_dtype(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    converted = tensor.to(dtype)
    if not torch.equal(converted.isfinite(), tensor.isfinite()):
        raise CheckpointError(f"tensor '{key}' has values too large for {dtype}; save with another dtype")
    return converted


def _model_card(system: DepthSystem, facts: Mapping[str, Any], load_from: str) -> str:
    import yaml

    entry = registry.REGISTRY.get(system.name)
    head = {
        "library_name": "langdepth",
        "pipeline_tag": "depth-estimation",
        "license": "other",
        "license_name": str(facts["licence"]),
    }
    count = sum(parameter.numel() for parameter in system.parameters())
    lines = ["---", yaml.safe_dump(head, sort_keys=False, width=1000).rstrip(), "---", "", f"# {system.name}", ""]
    if entry is not None:
        lines += [f"{entry.summary[:1].upper()}{entry.summary[1:]}.", "", f"Paper: {entry.paper}.", ""]
    lines += [
        "| | |",
        "|---|---|",
        f"| system | `{system.name}` ({count / 1e6:.2f} M parameters) |",
        f"| depth | {system.scale_kind} |",
        f"| licence of the weights | {facts['licence']} |",
        f"| source | {facts['source']} |",
        f"| written by | langdepth {__version__} |",
        "",
    ]
    for title, key in (("Training", "training"), ("Numbers", "numbers")):
        lines += [f"## {title}", "", *(_table(facts.get(key)) or ["Not stated."]), ""]
    others = {k: v for k, v in facts.items() if k not in ("licence", "source", "training", "numbers")}
    if others:
        lines += ["## Further facts", "", *_table(others), ""]
    lines += [
        "## How to load",
        "",
        "```python",
        "import langdepth",
        "",
        f'result = langdepth.load("{load_from}").predict("photo.jpg")',
        "result.depth  # (H, W) float32, in result.unit",
        "```",
        "",
        "## Configuration",
        "",
        "```yaml",
        yaml.safe_dump(to_mapping(system.config), sort_keys=False, default_flow_style=None, width=120).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _table(facts: Any) -> list[str]:
    """Markdown rows of a mapping; a mapping inside becomes a dotted name."""

    def rows(mapping: Mapping[str, Any], prefix: str) -> list[str]:
        lines = []
        for key, value in mapping.items():
            if isinstance(value, Mapping):
                lines += rows(value, f"{prefix}{key}.")
            else:
                text = f"{value:.4g}" if isinstance(value, float) else str(value)
                lines.append(f"| {prefix}{key} | {' '.join(text.split())} |")
        return lines

    if not facts:
        return []
    return ["| | |", "|---|---|", *rows(facts, "")] if isinstance(facts, Mapping) else [str(facts)]


# Finding the file


def _locate(name: str, offline: bool | None) -> tuple[Path, str, str]:
    """(path, label for messages and provenance, expected sha256 or "")."""
    if name in registry.REGISTRY:
        record = registry.entry(name).weights
        if record is None:
            raise CheckpointError(
                f"the system '{name}' has no trained weights in the package: give a .safetensors file (from "
                "`langdepth train`, or made of the authors' checkpoint by `langdepth convert`) or a hub id"
            )
        if not record.path.is_file():
            raise CheckpointError(f"{record.path}: the weights of '{name}' are missing; reinstall langdepth")
        return record.path, name, record.sha256
    path = Path(name).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; give the .safetensors file inside it")
    if path.exists() or path.suffix == ".safetensors" or path.suffix in PICKLES:
        if not path.exists():
            raise MissingCheckpointError(f"{path}: no such file")
        if path.suffix in PICKLES:
            raise CheckpointError(
                f"{path}: pickled checkpoints are only read by `langdepth convert`, which writes a .safetensors to load"
            )
        return path, str(path), ""
    hub_id = HUB_ID.fullmatch(name)
    if hub_id is None:
        raise UsageError(
            f"unknown system '{name}': {nearest(name, registry.REGISTRY)} "
            "A .safetensors file or a hub id 'owner/name' may be given as well"
        )
    path = _from_hub(hub_id["repo"], hub_id["revision"], offline)
    # The hub's cache names each large file by the sha256 the hub states for it.
    stored = real_path(path).name
    return path, name, stored if re.fullmatch(r"[0-9a-f]{64}", stored) else ""


def _from_hub(repo: str, revision: str | None, offline: bool | None) -> Path:
    import huggingface_hub
    from huggingface_hub import constants, errors

    if offline is None:
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}
    at = f"{repo}@{revision}" if revision else repo
    try:
        with hub_or_cache():
            return Path(
                huggingface_hub.hf_hub_download(
                    repo, HUB_FILE, revision=revision, local_files_only=offline, library_name="langdepth"
                )
            )
    except errors.LocalEntryNotFoundError:
        why = "offline" if offline else "the hub cannot be reached"
        raise CheckpointError(
            f"{at}: '{HUB_FILE}' is not in the cache {constants.HF_HUB_CACHE} and {why}; load it once with network, "
            "or fetch that file on another machine and give its path instead"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{at}: the hub has no such revision of '{repo}'") from None
    except errors.EntryNotFoundError:
        raise CheckpointError(f"{at}: the hub repository has no '{HUB_FILE}'") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{at}: neither a file here nor a repository on the hub that you may read; check the name, "
            "or log in with `hf auth login` if it is private"
        ) from None
    except Exception as error:  # the client's transport has exceptions of its own
        raise CheckpointError(f"{at}: download from the hub failed: {first_line(error)}") from error


def _check_sha256(path: Path, label: str, expected: str) -> None:
    found = file_sha256(path)
    if found != expected:
        raise CheckpointError(
            f"{label}: {path} is damaged: its sha256 is {found[:12]}..., expected {expected[:12]}...; "
            "delete it and fetch it again"
        )


# Reading


def _read(path: Path, label: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    metadata, tensors = read_safetensors(path, label)
    found = metadata.get("format", "")
    if not found.startswith("langdepth/"):
        raise CheckpointError(
            f"{label}: not written by langdepth (it does not say which system it holds); use `langdepth convert`"
        )
    if found != FORMAT:
        raise CheckpointError(f"{label}: its format {found} is not known to langdepth {__version__}; update langdepth")
    return metadata, tensors


def _json(metadata: dict[str, str], key: str, label: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(key, ""))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{label}: its metadata '{key}' is missing or damaged; save it again")
    return value


def _build(name: str, metadata: dict[str, str], label: str, tensors: Mapping[str, Tensor]) -> System:
    """The system called ``name`` with the configuration of a file, of the size of its ``tensors``."""
    if name not in registry.REGISTRY:
        package = metadata.get("package", "")
        if re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", package):
            raise CheckpointError(
                f"{label}: holds the system '{name}' of the package '{package}', which is not installed; install it "
                f"with pip install {package}, if you trust it"
            )
        if registry.OWN_CLASS.fullmatch(name):
            raise CheckpointError(f"{label}: holds a system of the class {name}; name it too: {name}@{label}")
        raise CheckpointError(
            f"{label}: holds the system '{name}', which langdepth {__version__} does not know: "
            f"{nearest(name, registry.REGISTRY)}"
        )
    config = _json(metadata, "config", label)
    stored = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
    try:
        with AllocationBudget(SPARE_MEMORY + MEMORY_RATIO * stored, label):
            return registry.build(name, config)
    except CheckpointError:
        raise
    except (UsageError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        if is_memory_error(error):
            raise CheckpointError(f"{label}: not enough memory for its network") from None
        raise CheckpointError(f"{label}: its configuration does not fit '{name}': {first_line(error)}") from error


def _fill(system: DepthSystem, tensors: dict[str, Tensor], label: str) -> None:
    """Copy ``tensors`` into the system's own (converting float16 files to the module's dtype) if all of them fit."""
    own = system.state_dict()
    problems = [f"'{key}' is missing (expected {_kind(own[key])})" for key in own if key not in tensors]
    problems += [f"'{key}' is not part of it (found {_kind(tensors[key])})" for key in tensors if key not in own]
    problems += [
        f"'{key}' is {_kind(tensors[key])}, expected {_kind(own[key])}"
        for key in own
        if key in tensors
        and (own[key].shape != tensors[key].shape or own[key].is_floating_point() != tensors[key].is_floating_point())
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{label}: does not fit the system '{system.name}': {'; '.join(problems[:3])}{more}")
    require_finite(tensors, label)
    system.load_state_dict(tensors)


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
