"""OpenVINO: any system that torch computes, as a graph that it computes on the CPU.

A system is traced and converted once for each network size, and kept in the cache folder under a key of its tensors and
its configuration.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from langdepth._version import __version__
from langdepth.errors import CheckpointError, LangdepthError, UsageError, first_line
from langdepth.runtimes.facts import GraphFacts
from langdepth.runtimes.graph import GraphSystem, OncePerProcess, computing, thread_count
from langdepth.systems.contract import HasMembers
from langdepth.utils.files import atomic_paths, foreign_writer, temporary_folder
from langdepth.utils.onnx_files import KEY
from langdepth.utils.plugins import needs_packages

if TYPE_CHECKING:
    import onnx

    from langdepth.systems.base import System

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_TRACE = 1  # raised where the same tensors give another graph


def openvino_module() -> Any:
    """OpenVINO. Raises UsageError where it is not installed."""
    with needs_packages():
        import openvino

        return openvino


class OpenvinoGraph:
    """The graph of one file of OpenVINO's, ``.xml`` with ``.bin`` beside it.

    Args:
        path: The ``.xml``.
        facts: What it is; None: as the file itself states.
        defaults: Of the inputs that may be left out, which OpenVINO does not know.
        dtype: The precision that it computes in, "float32" or "bfloat16".

    Raises:
        CheckpointError: The file is damaged or not ours.
    """

    def __init__(
        self,
        path: str | Path,
        facts: GraphFacts | None = None,
        defaults: Mapping[str, npt.NDArray[Any]] | None = None,
        dtype: str = "float32",
    ) -> None:
        self.path, self.defaults = Path(path), dict(defaults or {})
        self._model = OncePerProcess(partial(_compiled, self.path, dtype))
        self.facts = facts or _stated(self.path)

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Inputs by name to outputs by name; inputs that are left out have their default."""
        compiled = self._model()
        with computing(self.path):
            request = compiled.create_infer_request()
            found = request.infer({**self.defaults, **inputs}, share_inputs=True)
            return {name: found[name].copy() for name in (output.any_name for output in compiled.outputs)}

    def opens(self) -> bool:
        """Whether its file is there and whole."""
        try:
            self._model()
        except CheckpointError:
            return False
        return True

    def shape(self, name: str) -> tuple[int | None, ...]:
        """The shape of an input, None where any number does."""
        stated = self._model().input(name).partial_shape
        return tuple(side.get_length() if side.is_static else None for side in stated)


def _compiled(path: Path, dtype: str) -> Any:
    how = {"INFERENCE_PRECISION_HINT": _PRECISIONS[dtype], "PERFORMANCE_HINT": "LATENCY"}
    how |= {"INFERENCE_NUM_THREADS": str(thread_count()), "NUM_STREAMS": "1"}
    model = _read(path)
    with computing(path):
        return openvino_module().Core().compile_model(model, "CPU", how)


def _stated(path: Path) -> GraphFacts:
    model = _read(path)
    stated = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
    return GraphFacts.from_metadata({} if stated is None else {KEY: stated}, str(path))


def _read(path: Path) -> Any:
    try:
        return openvino_module().Core().read_model(path)
    except RuntimeError:
        raise CheckpointError(f"{path}: missing, damaged or not a file of OpenVINO's") from None


class ConvertedGraph:
    """A torch system's network in OpenVINO, a graph for each network size that images have.

    Args:
        system: In eval mode.
        dtype: The precision that it computes in, "float32" or "bfloat16".
    """

    def __init__(self, system: System, dtype: str = "float32") -> None:
        from langdepth.runtimes.trace import facts_of

        words = system.graph_inputs()
        self.system, self.dtype = system, dtype
        self.facts = facts_of(system, "network", tuple(words))
        self._defaults = {name: value.cpu().numpy() for name, value in words.items()}
        self._graphs: dict[tuple[int, int], OpenvinoGraph] = {}
        self._lock, self._key = threading.Lock(), _key_of(system)

    def __getstate__(self) -> dict[str, Any]:
        return {"system": self.system, "dtype": self.dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """See ``OpenvinoGraph``."""
        height, width = inputs["image"].shape[2:]
        with self._lock:
            graph = self._graphs.get((height, width)) or self._converted((height, width))
        return graph(inputs)

    def shape(self, name: str) -> tuple[int | None, ...]:
        """The shape of an input for words, None where any number does."""
        shape = self._defaults[name].shape
        return shape if name == "text" and not self.system.text_per_image else (None, *shape[1:])

    def _converted(self, size: tuple[int, int]) -> OpenvinoGraph:
        from langdepth.runtimes.trace import network_graph
        from langdepth.utils.cache import cache_folder

        path = cache_folder() / "openvino" / f"{self._key}-{size[0]}x{size[1]}.xml"
        graph = OpenvinoGraph(path, self.facts, self._defaults, self.dtype)
        if not (path.is_file() and path.with_suffix(".bin").is_file() and graph.opens()):
            write(network_graph(self.system, size), self.facts, path)
        self._graphs[size] = graph
        return graph


def _key_of(system: System) -> str:
    """A name for the system's graphs: of its tensors and its configuration."""
    from langdepth.config import to_mapping
    from langdepth.text.cache import add_tensors, content_key

    digest = hashlib.sha256(content_key(_TRACE, __version__, system.name, to_mapping(system.config)).encode())
    add_tensors(digest, system.state_dict())
    return digest.hexdigest()


class _Encoder:
    """Sentences to features by the torch system's own encoder."""

    def __init__(self, system: Any) -> None:
        self.system = system

    def encode(self, sentences: Sequence[str]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = self.system.encode_text(list(sentences)).cpu().numpy()
        return found


class OpenvinoSystem(GraphSystem):
    """A torch system that OpenVINO computes: it predicts, and nothing else.

    Raises:
        UsageError: OpenVINO is not installed, or there are several systems in one.
    """

    def __init__(self, system: System, dtype: str = "float32") -> None:
        openvino_module()
        if isinstance(system, HasMembers):
            raise UsageError("OpenVINO computes one system at a time; take the runtime torch for several")
        encoder: Any = _Encoder(system) if hasattr(system, "encode_text") else None
        super().__init__(ConvertedGraph(system.eval(), dtype), "openvino", encoder, tuple(_PRECISIONS))
        self._in: dict[str, OpenvinoSystem] = {dtype: self}

    def for_inference(self, device: Any = None, dtype: str = "float32") -> GraphSystem:
        super().for_inference(device, dtype)
        graph: Any = self.graph
        if dtype not in self._in:  # compiled once for each precision
            self._in[dtype] = OpenvinoSystem(graph.system, dtype)
        return self._in[dtype]


def write(model: onnx.ModelProto, facts: GraphFacts, path: Path) -> None:
    """Write an ONNX graph as ``.xml`` and ``.bin`` of OpenVINO's. Words are inputs that must be given there."""
    with temporary_folder(path) as folder:
        convert(model, facts, folder / path.name)
        files = [path.with_suffix(suffix) for suffix in (".bin", ".xml")]  # the last one says that both are there
        with atomic_paths(*files) as parts:
            for file, part in zip(files, parts, strict=True):
                shutil.move(folder / file.name, part)


def convert(model: onnx.ModelProto, facts: GraphFacts, made: Path) -> None:
    """``write`` into a folder of one's own. Raises OSError where its disk is full, LangdepthError for the graph."""
    openvino = openvino_module()
    names = {one.name for one in model.graph.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del model.graph.initializer[:]  # defaults would be constants
    model.graph.initializer.extend(kept)
    source = made.with_suffix(".onnx")
    source.write_bytes(model.SerializeToString())
    try:
        with foreign_writer(made.parent):
            network = openvino.Core().read_model(source)
            network.set_rt_info(facts.to_json(), [KEY])
            openvino.save_model(network, made, compress_to_fp16=False)
            openvino.Core().read_model(made)  # its writer does not say all
    except RuntimeError as error:
        raise LangdepthError(f"OpenVINO cannot convert the graph: {first_line(error)}") from error
