"""Systems by name, file or hub id in the runtime that suits. Imports torch only where torch is to compute."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from langdepth.errors import CheckpointError, UsageError
from langdepth.evaluation.protocols import ScaleKind
from langdepth.records import Runtime
from langdepth.runtimes.graph import GraphSystem
from langdepth.runtimes.onnx import open_onnx
from langdepth.systems import registry
from langdepth.systems.card import WeightRecord
from langdepth.systems.contract import Predicts
from langdepth.utils.arguments import checked
from langdepth.utils.onnx_files import is_onnx
from langdepth.utils.plugins import needs_packages
from langdepth.utils.reading import file_sha256
from langdepth.weights.names import require_meaning

_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/dri/renderD128")  # of NVIDIA, WSL, AMD, Intel


@checked
def load(
    name: str | Path | Sequence[str | Path],
    *,
    runtime: Runtime = "auto",
    device: Any = None,
    dtype: str = "float32",
    offline: bool | None = None,
    clip_weights: str | Path | None = None,
    prompts: Mapping[str, Any] | None = None,
    base: str | None = None,
    depth_kind: ScaleKind | None = None,
) -> Predicts:
    """A system with its weights, ready to predict.

    Args:
        name: As ``weights.checkpoint.load`` takes it, or an ``.onnx`` file of ``langdepth export``.
        runtime: What computes it. "torch" gives a ``System``, which can also be trained, evaluated and saved. "onnx"
            and "openvino" compute on the CPU and only predict. "auto" takes ONNX Runtime for the models in the package,
            unless there is an accelerator or an option needs torch, and torch for all others.
        device: Where torch puts it (default: CPU); "auto" takes an accelerator if there is one. Others: the CPU.
        dtype: The precision that predictions will ask for.
        offline: As ``weights.checkpoint.load`` takes it, as are the next two.
        clip_weights: Where the system stands on CLIP.
        prompts: Words and bins in place of the system's own.
        base: The depth model whose relative maps the system takes, for those that stand on one.
        depth_kind: What the numbers of a model of another library are.

    Raises:
        UsageError: For a name that means nothing, and for a runtime that cannot compute it or is not installed.
        CheckpointError: For a file that is missing, damaged or does not fit.
    """
    if not isinstance(name, str | Path) and len(name) == 1:
        name = name[0]
    if isinstance(name, str | Path) and is_onnx(name):
        if runtime not in ("auto", "onnx"):
            raise UsageError(f"{name}: an ONNX file is computed by the runtime onnx, not by {runtime}")
        fixed = {"distance words and bins": prompts or None, "CLIP weights": clip_weights}
        fixed |= {"base": base, "depth kind": depth_kind}
        for option, value in fixed.items():
            if value is not None:
                raise UsageError(f"{name}: what an ONNX file computes cannot be changed; leave the {option} out")
        return open_onnx(name).for_inference(device, dtype)
    plain = clip_weights is None and not prompts and base is None and depth_kind is None and dtype == "float32"
    record = _graph_record(str(name)) if plain and isinstance(name, str | Path) else None
    if runtime == "auto":
        runtime = "torch" if record is None else runtime_of_auto(str(name), device)
    if runtime == "onnx" and record is not None:
        return _packaged(str(name), record).for_inference(device, dtype)
    if runtime == "onnx":
        raise UsageError(
            f"{name}: is no ONNX file, and the package holds none with these options; write one with "
            "'langdepth export' and load that"
        )
    if find_spec("torch") is None:  # which would not help
        for one in [name] if isinstance(name, str | Path) else name:
            require_meaning(str(one))
    with needs_packages():
        from langdepth.weights import checkpoint

        options: dict[str, Any] = {"clip_weights": clip_weights, "prompts": prompts, "base": base}
        if runtime != "openvino":
            return checkpoint.load(name, device=device, offline=offline, depth_kind=depth_kind, **options)
        from langdepth.runtimes.openvino import OpenvinoSystem

        system = OpenvinoSystem(checkpoint.load(name, offline=offline, depth_kind=depth_kind, **options))
        system.for_inference(device)
        return system


def runtime_of_auto(name: str, device: Any = None) -> Runtime:
    """What "auto" takes for a system in float32 without further options."""
    if is_onnx(name):
        return "onnx"
    return "torch" if _graph_record(name) is None or _on_accelerator(device) else "onnx"


def runtimes_here(name: str) -> list[Runtime]:
    """What can compute a system with the packages that are installed."""
    if is_onnx(name):
        return ["onnx"]
    with_torch = find_spec("torch") is not None
    can: dict[Runtime, bool] = {
        "torch": with_torch,
        "onnx": _graph_record(name) is not None,
        "openvino": with_torch and find_spec("onnx") is not None and find_spec("openvino") is not None,
    }
    return [runtime for runtime, here in can.items() if here]


def _graph_record(name: str) -> WeightRecord | None:
    """The record of weights in the package that have an ONNX file."""
    record = registry.entry(name).weights if name in registry.REGISTRY else None
    return None if record is None or record.onnx is None else record


def _packaged(name: str, record: WeightRecord) -> GraphSystem:
    assert record.onnx is not None
    # The graph reads its tensors from the weights file.
    for part in (record.onnx, record):
        if not part.path.is_file():
            raise CheckpointError(f"{part.path}: a file of '{name}' is missing; reinstall langdepth")
        if file_sha256(part.path) != part.sha256:
            raise CheckpointError(f"{name}: {part.path} is damaged (its sha256 is another); reinstall langdepth")
    system = open_onnx(record.onnx.path, name, checked=True)
    system.provenance |= {"sha256": record.onnx.sha256}
    return system


def _on_accelerator(device: Any) -> bool:
    """Whether torch is to compute on something else than the CPU. Imports torch only where there may be such."""
    if device is None or str(device) == "cpu":
        return False
    if str(device) != "auto":
        return True
    likely = sys.platform == "darwin" or any(Path(driver).exists() for driver in _DRIVERS)
    if not likely or find_spec("torch") is None:
        return False
    import torch

    return torch.accelerator.is_available()
