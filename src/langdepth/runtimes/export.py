"""A system as one file for other programs: bytes of any size in, metres out; compared with torch before it is written.

system -> trace.network_graph -> whole.whole_graph -> [quantised] -> compared -> OUT.onnx, or OUT.xml with OUT.bin
its sentence encoder -> trace.words_graph -> OUT-words.onnx
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from langdepth.errors import LangdepthError, UsageError, first_line
from langdepth.prediction.network import infer
from langdepth.records import InputSpec
from langdepth.runtimes import openvino
from langdepth.runtimes.comparison import PHOTO, Difference
from langdepth.runtimes.facts import GraphFacts
from langdepth.runtimes.trace import OPSET, facts_of, halve, network_graph, state_facts, words_graph
from langdepth.runtimes.whole import whole_graph
from langdepth.systems.base import System
from langdepth.text.encoders import SentenceEncoder
from langdepth.utils.files import atomic_paths, foreign_writer, temporary_folder
from langdepth.utils.images import read_image
from langdepth.utils.onnx_files import states_langdepth
from langdepth.utils.reading import file_sha256

Target = Literal["onnx", "openvino"]
Run = Any
"""What computes a graph: inputs by name -> outputs by name."""
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "openvino": ".xml"}
TOLERANCE = 1e-3  # mean relative difference; sharp comparisons of CLIP features enlarge what rounding leaves
_AT_MOST = 16  # images to compare on
_CALIBRATION = 64  # images whose activations give the ranges of whole numbers


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how far it is from torch."""

    files: list[Path]
    inputs: dict[str, str]
    outputs: dict[str, str]
    difference: Difference
    quantised: Difference | None = None
    network_size: tuple[int, int] | None = None
    """The one that images of every shape have inside; None: as the system has it for their shape."""
    opset: int = OPSET


def export(
    system: System, to: Target, out: Path, photos: Sequence[Path] = (), calibration: Sequence[Path] = ()
) -> Exported:
    """Write the system as one file, and its sentence encoder beside it.

    Args:
        system: With its weights, in eval mode.
        to: The kind of file.
        out: Where to, with the suffix of ``SUFFIXES``.
        photos: Images to compare on; without any the photo of the package.
        calibration: With images, convolutions are computed in whole numbers of 8 bits, whose ranges are those of these
            images.

    Raises:
        UsageError: The system cannot be exported, the suffix is another, or OpenVINO is to get 8 bits.
        LangdepthError: The exported graph gives other depth than torch, or a file of somebody else is in its place;
            nothing is written.
    """
    if out.suffix != SUFFIXES[to]:
        raise UsageError(f"{out}: a file for {to} ends in {SUFFIXES[to]}")
    if calibration and to != "onnx":
        raise UsageError("--int8 is for --to onnx; OpenVINO reads that file, too")
    encoder = getattr(system, "sentences", None)
    words = out.with_name(f"{out.stem}-words.onnx") if isinstance(encoder, SentenceEncoder) else None
    targets = [target for target in (words, out.with_suffix(".bin") if to == "openvino" else None) if target]
    targets.append(out)  # the last one, which names the others
    for target in targets:
        _require_own(target, out)
    with temporary_folder(out) as folder:
        checked, quantised = list(_cases(system, photos)), None
        model, facts, difference = _checked(system, None if words is None else words.name, checked)
        system = _at_one_size(system, facts)
        if words is not None and isinstance(encoder, SentenceEncoder):
            encoder_graph = words_graph(encoder)
            halve(encoder_graph)
            _write_onnx(encoder_graph, folder / words.name)
            facts = replace(facts, words_sha256=file_sha256(folder / words.name))
        if calibration := calibration[:_CALIBRATION]:
            model = _quantised(model, calibration, folder)
            facts = replace(facts, provenance={**facts.provenance, "int8": f"{len(calibration)} images"})
            quantised = _compare(run_onnx(model), system, checked)
        else:
            halve(model)
        state_facts(model, facts)
        shapes = tuple({one.name: _shape(one) for one in stated} for stated in (model.graph.input, model.graph.output))
        if to == "onnx":
            _write_onnx(model, folder / out.name)
        else:
            openvino.convert(model, facts, folder / out.name)
            defaults = {name: value.cpu().numpy() for name, value in system.graph_inputs().items()}
            difference = _compare(openvino.OpenvinoGraph(folder / out.name, facts, defaults), system, checked)
            _require_small(difference, system)
        with atomic_paths(*targets) as parts:
            for target, part in zip(targets, parts, strict=True):
                shutil.move(folder / target.name, part)
    return Exported(
        files=targets[::-1],
        inputs=shapes[0],
        outputs=shapes[1],
        difference=difference,
        quantised=quantised,
        network_size=facts.network_size,
    )


def _checked(system: System, words: str | None, cases: Sequence[Any]) -> tuple[onnx.ModelProto, GraphFacts, Difference]:
    """A graph that is right for images of every shape; or else one in which all have the first image's network size."""
    height, width = cases[0][0].shape[-2:]
    for size in (system.input_spec.size, system.input_spec.network_size(height, width)):
        model, facts = _whole(system, words, size)
        try:
            difference = _compare(run_onnx(model), _at_one_size(system, facts), cases)
            _require_small(difference, system)
        except Exception as error:  # the runtime's own, too: what a trace holds fixed fails at other sizes
            failed = error
            continue
        return model, facts, difference
    raise (
        failed
        if isinstance(failed, LangdepthError)
        else LangdepthError(f"'{system.name}' cannot be computed as a graph: {first_line(failed)}")
    )


def _at_one_size(system: System, facts: GraphFacts) -> System:
    """The system as the graph has it: with one network size, where the graph has one."""
    if facts.network_size is None or facts.network_size == system.input_spec.size:
        return system
    twin = copy.copy(system)
    twin.input_spec = replace(system.input_spec, size=facts.network_size)
    return twin


def _whole(system: System, words: str | None, size: tuple[int, int] | None) -> tuple[onnx.ModelProto, GraphFacts]:
    spec = replace(system.input_spec, size=size)
    inside = replace(facts_of(system, "whole", tuple(system.graph_inputs())), input_spec=spec, network_size=size)
    model = whole_graph(network_graph(system, size), inside)
    # Images come at their own size.
    facts = replace(inside, words=words, input_spec=InputSpec(multiple_of=1, focal=spec.focal))
    state_facts(model, facts)
    onnx.checker.check_model(model, full_check=True)
    return model, facts


def _shape(stated: onnx.ValueInfoProto) -> str:
    kind = stated.type.tensor_type
    sides = ", ".join(side.dim_param or str(side.dim_value) for side in kind.shape.dim)
    return f"{onnx.TensorProto.DataType.Name(kind.elem_type).lower()} ({sides})"


# -- comparing -------------------------------------------------------------------------------------------------------


def _cases(system: System, photos: Sequence[Path]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Batches (B, 3, H, W) of bytes, of several shapes, and words of every kind that the graph takes."""
    generator = torch.Generator().manual_seed(0)
    for path in (photos or [PHOTO])[:_AT_MOST]:
        image = torch.from_numpy(np.array(read_image(path).pixels)).permute(2, 0, 1)[None]
        height, width = image.shape[-2:]
        yield image, {}
        yield image[..., : max(32, width // 2)], {}
        yield torch.cat([image, image.flip(-1)])[..., : max(32, height // 2), :], {}
        for name, default in system.graph_inputs().items():
            if name == "scene":
                yield image, {"scene": torch.tensor([len(system.scenes) - 1])}
            elif system.text_per_image:
                text = torch.randn(default.shape, generator=generator)
                yield image, {name: torch.nn.functional.normalize(text, dim=-1)}


def _require_small(difference: Difference, system: System) -> None:
    if not difference.mean <= TOLERANCE:
        raise LangdepthError(
            f"'{system.name}' as a graph differs from torch by {difference}, above {TOLERANCE:g}; nothing is written"
        )


def _compare(run: Run, system: System, cases: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> Difference:
    found = Difference()
    for image, words in cases:
        overlay = image.flip(-1).contiguous() if system.takes_overlay else None
        try:
            output = infer(system, image, words.get("text"), words.get("scene"), overlay=overlay)
        except UsageError:
            if words:  # a scene of which these weights know nothing
                continue
            raise
        images = {"image": image} if overlay is None else {"image": image, "overlay": overlay}
        inputs = {name: value.permute(0, 2, 3, 1).contiguous().numpy() for name, value in images.items()}
        inputs |= {name: value.numpy() for name, value in words.items()}
        found.add(run(inputs)["depth"], output.depth[:, 0].numpy())
    return found


def run_onnx(model: onnx.ModelProto) -> Run:
    """The graph in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run


# -- files -----------------------------------------------------------------------------------------------------------


def _require_own(path: Path, out: Path) -> None:
    """Raise LangdepthError where ``path`` is a folder or a file of somebody else; a .bin is whose its .xml is."""
    if path.is_dir():
        raise LangdepthError(f"{path}: is a folder; give another --out")
    stating = out if path.suffix == ".bin" else path
    if not path.exists() or (stating.is_file() and states_langdepth(stating)):
        return
    raise LangdepthError(f"{path} exists and was not written by langdepth; give another --out, or remove it")


def _write_onnx(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString(deterministic=True))


def _quantised(model: onnx.ModelProto, photos: Sequence[Path], folder: Path) -> onnx.ModelProto:
    """With convolutions of 8-bit whole numbers; activations' ranges are those of ``photos``."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Photos(CalibrationDataReader):
        def __init__(self) -> None:
            self.paths = iter(photos)

        def get_next(self) -> dict[str, Any] | None:
            path = next(self.paths, None)
            if path is None:
                return None
            return dict.fromkeys(images, np.array(read_image(path).pixels)[None])  # an overlay is much like its image

    images = [one.name for one in model.graph.input if one.name in ("image", "overlay")]
    plain, prepared, done = (folder / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
    plain.write_bytes(model.SerializeToString())
    try:
        onnxruntime.set_default_logger_severity(4)
        with foreign_writer(folder):
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(done),
                Photos(),
                op_types_to_quantize=["Conv"],  # linear layers on the image's vector set the scale, and cost nothing
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    except (OSError, LangdepthError):  # a full disk, an image
        raise
    except Exception as error:  # the library has exceptions of its own
        raise LangdepthError(f"the graph cannot be computed in 8 bits: {first_line(error)}") from error
    finally:
        onnxruntime.set_default_logger_severity(2)
    found: onnx.ModelProto = onnx.load(done)
    return found
