"""Files of CLIP weights: OpenAI's TorchScript archives, state dicts of open_clip and of transformers' CLIPModel.

No file runs code here: safetensors and archives of tensors hold none, pickles are read with ``weights_only``, and of a
TorchScript archive only the tensors are taken.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langdepth.errors import CheckpointError
from langdepth.utils.files import not_the_file_itself
from langdepth.utils.reading import open_regular, read_text
from langdepth.utils.tensors import read_pickle, read_safetensors, reading_tensors, tensors_of

_MAX_CONFIG = 1_000_000  # bytes
# Beside the weights in some files: OpenAI's three scalars, and tables that networks compute themselves.
_NO_WEIGHTS = re.compile(r"input_resolution|context_length|vocab_size|(.*\.)?(attn_mask|position_ids)")


def check_file(path: Path, architecture: str, expected_bytes: int) -> int:
    """The most bytes a training checkpoint of this model could have; the file must be readable and within that."""
    try:
        open_regular(path).close()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give a file of CLIP weights") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); give a file of CLIP weights") from None
    size, limit = path.stat().st_size, 4 * expected_bytes + 2**26
    if size > limit:
        raise CheckpointError(
            f"{path}: has {size / 1e6:.0f} MB, far more than {architecture} needs ({expected_bytes / 1e6:.0f} MB); "
            "give its weights, or state the architecture of this file"
        )
    return limit


def read_tensors(path: Path, architecture: str, limit: int) -> dict[str, Tensor]:
    """The tensors of a file under its own names; the content says which kind it is."""
    with open_regular(path) as file:
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
    return tensors_of(content, path)


class _Module:
    """Stands for a TorchScript module while its archive is read: attributes, no code."""


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


def stated_activation(path: Path, stored: Mapping[str, Tensor]) -> bool | None:
    """Whether the file, or the configuration beside it, says QuickGELU (True) or GELU (False)."""
    if "input_resolution" in stored:  # OpenAI's archives, all of them trained with QuickGELU
        return True
    hugging_face = _is_hugging_face(stored)
    beside = path.with_name("config.json" if hugging_face else "open_clip_config.json")
    try:
        config = json.loads(read_text(beside, _MAX_CONFIG))
        if hugging_face:
            activation = config["vision_config"].get("hidden_act", "quick_gelu")
            return {"quick_gelu": True, "gelu": False}.get(activation)
        return bool(config["model_cfg"].get("quick_gelu", False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # not there, or of another kind
        return None


def in_open_clip_names(path: Path, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under open_clip's names. Raises CheckpointError for other models."""
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
                raise CheckpointError(f"{path}: of '{query[1]}' query, key or value is missing or of another shape")
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
