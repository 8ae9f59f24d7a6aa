"""Files of weights: `.safetensors`, and checkpoints of `torch.save` for `convert`."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cases import Case, Outcome, Random, state
from .changes import ABSURD, NUMBERS, TEXTS, twice
from .images import photo


def safetensors_parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors' bytes."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def safetensors_of(header: Any, body: bytes) -> bytes:
    """A file whose header need not fit its body."""
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + body


def weights_changed(rng: Random, content: bytes) -> tuple[bytes, str]:
    """A weights file with another header, metadata, configuration or tensors."""
    header, body = safetensors_parts(content)
    name = rng.choice([key for key in header if key != "__metadata__"])
    kind = rng.choice(
        ("bytes", "values", "values", "tensor", "tensor", "metadata", "config", "config", "provenance", "lost")
    )
    if kind == "bytes":
        return twice(rng, content)
    if kind == "values":
        floats = {"F32": "<f", "F16": "<e"}
        name = rng.choice([key for key in header if key != "__metadata__" and header[key]["dtype"] in floats])
        start, end = header[name]["data_offsets"]
        form, size = floats[header[name]["dtype"]], 4 if header[name]["dtype"] == "F32" else 2
        value = rng.choice(
            (float("nan"), float("inf"), float("-inf"), 6e4, -6e4, 3e38 if size == 4 else 1.0, 0.0, 1e-40)
        )
        many = rng.random() < 0.3
        at = start if many else start + size * rng.randrange(max(1, (end - start) // size))
        new = struct.pack(form, value) * ((end - start) // size if many else 1)
        return safetensors_of(
            header, body[:at] + new + body[at + len(new) :]
        ), f"{name} {'=' if many else 'has'} {value}"
    if kind == "tensor":
        field = rng.choice(("dtype", "shape", "data_offsets"))
        pools: dict[str, tuple[Any, ...]] = {
            "dtype": ("F16", "BF16", "F64", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", "x", 5, None),
            "shape": (
                [],
                [0],
                [-1],
                [2**40, 2**40],
                [2**63],
                [1, 1, 1, 1, 1],
                "x",
                None,
                [1.5],
                header[name]["shape"][::-1],
            ),
            "data_offsets": (
                [0, 0],
                [4, 0],
                [0, 2**62],
                [-1, 3],
                [0],
                None,
                [0, len(body)],
                [len(body), len(body) + 4],
            ),
        }
        header[name][field] = rng.choice(pools[field])
        return safetensors_of(header, body), f"{name} {field} {header[name][field]}"
    if kind == "lost":
        other = rng.choice(("extra", "gone", "renamed"))
        if other == "extra":
            header[rng.choice(TEXTS)] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
            body += struct.pack("<f", 1)
        else:
            entry = header.pop(name)
            if other == "renamed":
                header[name + rng.choice(TEXTS)] = entry
        return safetensors_of(header, body), f"{name} {other}"
    metadata = header["__metadata__"]
    if kind == "metadata":
        key = rng.choice(("format", "system", "langdepth_version", "licence", "config", "provenance"))
        metadata[key] = rng.choice(
            (*TEXTS, *NUMBERS, "tiny", "depthclip", "langdepth/2", 5, None, {}, "{" * 5000, "[1]")
        )
        if rng.random() < 0.2:
            header["__metadata__"] = rng.choice((None, [], 5, {}, {"format": 1}))
        return safetensors_of(header, body), f"metadata {key} {str(metadata[key])[:20]!r}"
    fields = json.loads(metadata[kind])
    values: list[Any] = [*ABSURD, -1, 0.5, 1e308, None, True, [], {}, *TEXTS[:9], [1, 2], "1e9", 10**400]
    key = rng.choice([*fields, "unknown"])
    fields[key] = rng.choice(values)
    metadata[kind] = json.dumps(fields) if rng.random() < 0.9 else json.dumps(fields).replace(":", ": NaN,", 1)
    return safetensors_of(header, body), f"{kind}.{key} {str(fields[key])[:30]!r}"


def weights(rng: Random, folder: Path) -> Case:
    """predict with changed weights of the small system or of tiny."""
    from PIL import Image

    base = state[rng.choice(("small file",) * 5 + ("tiny file",))]
    changed, change = weights_changed(rng, base.read_bytes())
    (folder / "w.safetensors").write_bytes(changed)
    Image.fromarray(photo(Random(1))).save(folder / "good.png")

    def right(outcome: Outcome) -> str | None:
        import numpy as np
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        import langdepth

        depth = np.load(folder / "out/good.npy")
        if not (np.isfinite(depth).all() and (depth >= 0).all()):
            return f"depth from {depth.min()} to {depth.max()}"
        try:
            stated = load_file(folder / "w.safetensors")
        except SafetensorError:
            return "loaded, though the library of the format refuses it"
        loaded = langdepth.load(folder / "w.safetensors").state_dict()
        if set(loaded) != set(stated) or any(
            not torch.equal(loaded[key], stated[key].to(loaded[key].dtype)) for key in stated
        ):
            return "what is loaded is not what the file holds"
        if not all(value.float().isfinite().all() for value in stated.values()):
            return "tensors that are not finite are loaded"
        return None

    argv = rng.choice((["predict", "good.png", "--system", "w.safetensors", "--out", "out", "--save", "npy"],))
    return Case(argv, f"{base.name}: {change}", right)


def checkpoints(rng: Random, folder: Path) -> Case:
    """convert of changed checkpoints of torch.save."""
    import numpy as np
    import torch

    tensors: dict[Any, Any] = dict(state["small system"].state_dict())
    key = rng.choice([name for name, value in tensors.items() if value.is_floating_point()])
    kind = rng.choice(("bytes", "bytes", "zip", "value", "value", "wrap", "wrap", "object", "name", "legacy"))
    change = kind
    content: Any = tensors
    if kind == "value":
        value = tensors[key]
        made: dict[str, Callable[[], Any]] = {
            "nan": lambda: value * torch.nan,
            "sparse": lambda: value.to_sparse(),
            "meta": lambda: value.to("meta"),
            "half": lambda: value.half(),
            "complex": lambda: value.to(torch.complex64),
            "expanded": lambda: torch.zeros(1).expand(100_000, 100_000),
            "parameter": lambda: torch.nn.Parameter(value),
            "array": lambda: value.numpy(),
            "list": lambda: value.tolist(),
            "none": lambda: None,
            "shape": lambda: value[None],
            "int": lambda: value.long(),
            "bool": lambda: value > 0,
            "scalar": lambda: 1.0,
            "strided": lambda: value.flip(0),
            "float8": lambda: value.to(torch.float8_e4m3fn),
        }
        change = rng.choice(list(made))
        tensors[key] = made[change]()
    elif kind == "wrap":
        change = rng.choice(
            ("state_dict", "model", "model_state_dict", "module.", "_orig_mod.module.", "net", "list", "lightning")
        )
        if change.endswith("."):
            content = {change + name: value for name, value in tensors.items()}
        elif change == "list":
            content = [tensors]
        elif change == "lightning":
            content = {
                "state_dict": tensors,
                "epoch": np.int64(3),
                "loops": {},
                "hyper_parameters": argparse.Namespace(a=1),
            }
        else:
            content = {change: tensors}
    elif kind == "name":
        tensors[rng.choice((*TEXTS, 5, None, ("a",), b"x", True))] = tensors.pop(key)
        change = f"{key} renamed"
    elif kind == "object":
        change = rng.choice(("function", "class", "exception", "lambda", "device", "set"))
        odd: dict[str, Any] = {"function": os.getcwd, "class": Path, "exception": ValueError("x"), "set": {1, 2}}
        odd |= {"lambda": re.compile("x"), "device": torch.device("cpu")}
        content = {"state_dict": tensors, "extra": odd[change]}
    path = folder / rng.choice(("c.pth", "c.pth", "c.pt", "c.ckpt", "c.bin", "c.safetensors", "c"))
    torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind in ("bytes", "legacy"):
        changed, change = twice(rng, path.read_bytes())
        path.write_bytes(changed)
    elif kind == "zip":
        changed, change = zip_changed(rng, path.read_bytes())
        path.write_bytes(changed)

    def right(outcome: Outcome) -> str | None:
        from safetensors.torch import load_file

        stored = load_file(folder / "out/w.safetensors")
        if not all(value.float().isfinite().all() for value in stored.values()):
            return "tensors that are not finite are written"
        return None

    return Case(["convert", path.name, "--system", "small", "--out", "out/w.safetensors"], f"{kind}: {change}", right)


def zip_changed(rng: Random, content: bytes) -> tuple[bytes, str]:
    """A zip file with a member's content changed and right checksums, without one, or with another one twice."""
    out = io.BytesIO()
    kind = rng.choice(("content", "content", "gone", "huge", "order"))
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names if kind != "order" else reversed(names):
            data = old.read(name)
            if name == chosen and kind == "content":
                data, _ = twice(rng, data)
            elif name == chosen and kind == "huge":
                new.writestr(name, data + bytes(30_000_000), zipfile.ZIP_DEFLATED)
                continue
            if name != chosen or kind != "gone":
                new.writestr(name, data)
    return out.getvalue(), f"member {chosen} {kind}"
