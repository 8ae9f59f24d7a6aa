"""CLIP weights from a file or from open_clip's own download, under open_clip's tensor names.

    file (OpenAI archive, open_clip or Hugging Face state dict) -> tensors -> open_clip's names -> checked by name and
    shape against the wanted architecture -> float32

No file runs code here: safetensors and archives of tensors hold none, pickles are read with ``weights_only``, and of a
TorchScript archive only the tensors are taken.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langdepth.backbones.clip import SMALL_ARCHITECTURES, model_config
from langdepth.errors import CheckpointError, UsageError, first_line
from langdepth.utils.files import not_the_file_itself, real_path
from langdepth.utils.network import hub_or_cache, unreachable
from langdepth.utils.reading import file_sha256
from langdepth.utils.tensors import read_pickle, read_safetensors, reading_tensors, require_plain, without_prefixes

ACTIVATIONS = {True: "QuickGELU", False: "GELU"}
# Beside the weights in some files: OpenAI's three scalars, and tables that networks compute themselves.
_NO_WEIGHTS = re.compile(r"input_resolution|context_length|vocab_size|(.*\.)?(attn_mask|position_ids)")


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
    model_config(architecture, quick_gelu)  # an unknown name is told before anything is fetched
    tags = _published(architecture, quick_gelu)
    if source is not None and source not in tags:
        return read_clip_weights(source, architecture, quick_gelu)
    if not tags:
        raise UsageError(
            f"there are no published weights of CLIP {architecture} with {ACTIVATIONS[quick_gelu]}: give a file with "
            "--clip-weights"
        )
    tag = str(source or ("openai" if "openai" in tags else next(iter(tags))))
    path, sha256 = _fetch(architecture, tag, tags[tag])
    return _read(path, architecture, quick_gelu, source=f"open_clip:{tag}", expected_sha256=sha256)


def read_clip_weights(path: str | Path, architecture: str, quick_gelu: bool | None = None) -> ClipWeights:
    """Weights from a file: an OpenAI TorchScript archive, or a state dict of open_clip or of transformers' CLIPModel.

    State dicts may be ``.safetensors`` or written by ``torch.save`` (``.pt``, ``.bin``); the content decides, not the
    name. ``quick_gelu``: the activation that is wanted; None takes what the file says. OpenAI archives say so, and
    state dicts by the config.json or open_clip_config.json beside them.

    Raises UsageError for an unknown architecture or an activation that nothing states, CheckpointError for a file that
    is missing, damaged, of another kind, of another architecture or trained with the other activation.
    """
    return _read(Path(path).expanduser(), architecture, quick_gelu, source=str(path))


def _read(
    path: Path, architecture: str, quick_gelu: bool | None, source: str, expected_sha256: str = ""
) -> ClipWeights:
    wanted = tensor_shapes(architecture, quick_gelu)
    limit = _check_file(path, architecture, 4 * sum(math.prod(shape) for shape in wanted.values()))
    sha256 = file_sha256(path)
    if not sha256.startswith(expected_sha256):
        raise CheckpointError(
            f"{path}: its sha256 is {sha256[:12]}..., the published one is {expected_sha256[:12]}...; "
            "delete the file and fetch it again"
        )
    stored = _read_tensors(path, architecture, limit)
    stated = _stated_activation(path, stored)
    tensors = _in_open_clip_names(path, stored)
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
        f"CLIP {architecture} has RANDOM weights: what comes out means nothing; give --clip-weights a file",
        stacklevel=3,
    )
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return ClipWeights(architecture, quick_gelu, tensors, "random", digest.hexdigest())


# --- files


def _check_file(path: Path, architecture: str, expected_bytes: int) -> int:
    """The most bytes a training checkpoint of this model could have; the file must be readable and within that."""
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "no such file"
        raise CheckpointError(f"{path}: {what}; give a file of CLIP weights")
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    size, limit = path.stat().st_size, 4 * expected_bytes + 2**26
    if size > limit:
        raise CheckpointError(
            f"{path}: has {size / 1e6:.0f} MB, far more than {architecture} needs ({expected_bytes / 1e6:.0f} MB); "
            "give its weights, or state the architecture of this file"
        )
    return limit


def _read_tensors(path: Path, architecture: str, limit: int) -> dict[str, Tensor]:
    """The tensors of a file under its own names; the content says which kind it is."""
    with path.open("rb") as file:
        head = file.read(9)
    with reading_tensors(path, "CLIP weights"):
        if head.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > limit:
                    raise CheckpointError(f"{path}: unpacks to far more than {architecture} needs; refused")
                script = any(name.endswith("/constants.pkl") for name in archive.namelist())
                content = _read_torchscript(archive) if script else read_pickle(path)
        elif head.startswith(b"\x80"):  # torch.save before version 1.6, or another pickle
            content = read_pickle(path)
        elif head.endswith(b"{"):
            content = read_safetensors(path)[1]
        else:
            other = not_the_file_itself(path) or (
                "is no weights file; known are OpenAI's archives, and state dicts as .safetensors, .pt or .bin"
            )
            raise CheckpointError(f"{path}: {other}")
    content = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no state dict (names with tensors)")
    tensors = {str(name): value for name, value in content.items()}
    require_plain(tensors, path)
    return without_prefixes(tensors)


class _Module:
    """What stands for a TorchScript module while its archive is read: attributes, no code."""


class _TensorReader(pickle.Unpickler):
    """Reads the attributes of a TorchScript archive; every class in it becomes ``_Module``."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.jit._pickle":  # typed lists and dictionaries
            return lambda values, *_: values
        if (module, name) == ("torch", "device"):
            return str
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}/data/{key}"))
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self.storages[key]


_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if math.prod(size) > storage.numel():
        raise ValueError(f"a tensor of shape {size} does not fit its {storage.numel()} stored values")
    return storage.as_strided(size, stride, offset)


def _read_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    (data,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    tensors: dict[str, Tensor] = {}

    def collect(module: _Module, prefix: str) -> None:
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                tensors[prefix + name] = value
            elif isinstance(value, _Module):
                collect(value, f"{prefix}{name}.")

    collect(_TensorReader(archive, data.rpartition("/")[0]).load(), "")
    return tensors


# --- names


def _is_hugging_face(names: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(("vision_model.", "text_model.")) for name in names)


def _stated_activation(path: Path, stored: Mapping[str, Tensor]) -> bool | None:
    """Whether the file, or the configuration beside it, says QuickGELU (True) or GELU (False)."""
    if "input_resolution" in stored:  # OpenAI's archives, all of them trained with QuickGELU
        return True
    hugging_face = _is_hugging_face(stored)
    beside = path.with_name("config.json" if hugging_face else "open_clip_config.json")
    try:
        config = json.loads(beside.read_text(encoding="utf-8"))
        if hugging_face:
            activation = config["vision_config"].get("hidden_act", "quick_gelu")
            return {"quick_gelu": True, "gelu": False}.get(activation)
        return bool(config["model_cfg"].get("quick_gelu", False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # not there, or of another kind
        return None


def _in_open_clip_names(path: Path, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {name: tensor for name, tensor in stored.items() if not _NO_WEIGHTS.fullmatch(name)}
    if _is_hugging_face(names):
        return _from_hugging_face(path, names)
    if not any(name.startswith("visual.") for name in names):
        raise CheckpointError(f"{path}: holds no CLIP model (its tensors are called {', '.join(list(names)[:3])} ...)")
    return {name.removeprefix("text."): tensor for name, tensor in names.items()}


_HUGGING_FACE_NAMES = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_projection.weight", "text_projection"),
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
_QUERY = re.compile(r"(.*)\.self_attn\.q_proj\.(weight|bias)")


def _from_hugging_face(path: Path, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' CLIPModel: projections are linear layers (transposed), query, key and value stand apart."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        query = _QUERY.fullmatch(name)
        if query:
            parts = [stored.get(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
            if any(part is None or part.shape != tensor.shape for part in parts):
                raise CheckpointError(f"{path}: query, key and value of '{query[1]}' do not belong together")
            tensor = torch.cat([part for part in parts if part is not None])
            name = f"{query[1]}.attn.in_proj_{query[2]}"
        elif ".self_attn.k_proj." in name or ".self_attn.v_proj." in name:
            continue
        elif name in ("visual_projection.weight", "text_projection.weight"):
            tensor = tensor.T
        for theirs, ours in _HUGGING_FACE_NAMES:
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    return tensors


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
    """What model the shapes belong to, in words."""

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


# --- download


def _published(architecture: str, quick_gelu: bool) -> dict[str, dict[str, Any]]:
    """open_clip's records of this architecture and activation, by tag."""
    from open_clip import pretrained

    if architecture in SMALL_ARCHITECTURES:
        return {}
    tags = pretrained.list_pretrained_tags_by_model(architecture)
    records = {tag: pretrained.get_pretrained_cfg(architecture, tag) for tag in tags}
    return {tag: record for tag, record in records.items() if bool(record.get("quick_gelu")) == quick_gelu}


def _fetch(architecture: str, tag: str, record: Mapping[str, Any]) -> tuple[Path, str]:
    """The file of a published record, from the caches or by open_clip's download; its published sha256 or ""."""
    from huggingface_hub import constants
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME
    from open_clip.pretrained import download_pretrained

    path = _cached(record)
    if path is None:
        url_file = _url_cache(record)
        repository, _, name = str(record.get("hf_hub", "")).rpartition("/")
        places = [
            f"{name or HF_SAFE_WEIGHTS_NAME} of {repository} in {constants.HF_HUB_CACHE}" if repository else "",
            str(url_file or ""),
        ]
        wanted = (
            f"wanted is {' or '.join(filter(None, places))}; fetch it on a machine with network, or give any file of "
            "these weights with --clip-weights"
        )
        what = f"the weights of CLIP {architecture} ('{tag}') are not on this machine"
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
            raise CheckpointError(f"{what} and HF_HUB_OFFLINE is set: {wanted}")
        for prefer_hub in (True, False):
            address = None if prefer_hub else record.get("url")
            problem = unreachable(str(address)) if address else None
            if problem is not None:
                break
            try:
                with hub_or_cache():
                    path = Path(download_pretrained(dict(record), prefer_hf_hub=prefer_hub))
                break
            except Exception as error:  # the hub's, urllib's and open_clip's own
                problem = first_line(error)[:200]
            finally:
                if path is None and url_file is not None:
                    url_file.unlink(missing_ok=True)  # open_clip leaves half a file behind
        if path is None:
            raise CheckpointError(f"{what} and cannot be downloaded ({problem}): {wanted}")
    return path, _published_sha256(path, record)


def _url_cache(record: Mapping[str, Any]) -> Path | None:
    """Where open_clip keeps what it downloads from an address."""
    name = str(record.get("url", "")).rpartition("/")[2]
    return Path("~/.cache/clip").expanduser() / name if name else None


def _cached(record: Mapping[str, Any]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, name = str(record.get("hf_hub", "")).rpartition("/")
    for file_name in (name,) if name else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME):
        found = try_to_load_from_cache(repository, file_name) if repository else None
        if isinstance(found, str):
            return Path(found)
    path = _url_cache(record)
    return path if path is not None and path.is_file() else None


def _published_sha256(path: Path, record: Mapping[str, Any]) -> str:
    """The hub's cache names files by their sha256; addresses carry it whole (OpenAI) or its start (open_clip)."""
    stored = real_path(path).name
    if re.fullmatch(r"[0-9a-f]{64}", stored):
        return stored
    url = str(record.get("url", ""))
    if path == _url_cache(record):
        found = re.search(r"/([0-9a-f]{64})/[^/]*$|-([0-9a-f]{8})\.pth?$", url)
        return found[1] or found[2] if found else ""
    return ""
