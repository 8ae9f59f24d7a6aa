"""ONNX Runtime: files that ``langdepth export`` and the package hold, computed without torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from langdepth.errors import CheckpointError, MissingCheckpointError, is_memory_error
from langdepth.runtimes.facts import GraphFacts
from langdepth.runtimes.graph import (
    Arrays,
    GraphSystem,
    ImaginingGraphSystem,
    OncePerProcess,
    Sentences,
    computing,
    thread_count,
)
from langdepth.utils.files import not_the_file_itself
from langdepth.utils.reading import require_regular


class OnnxGraph:
    """The graph of one ``.onnx`` file, which is opened when it is first used.

    ``facts`` and calls raise CheckpointError for a file that is missing, damaged or not ours.
    """

    def __init__(self, path: str | Path, label: str | None = None) -> None:
        self.path, self.label = Path(path), label or str(path)
        self._session = OncePerProcess(partial(_open, self.path, self.label))

    @cached_property
    def facts(self) -> GraphFacts:
        """What the file states about itself."""
        return GraphFacts.from_metadata(self._session().get_modelmeta().custom_metadata_map, self.label)

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        session = self._session()
        names = [output.name for output in session.get_outputs()]
        with computing(self.label):
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def shape(self, name: str) -> tuple[int | None, ...]:
        session = self._session()
        inputs = (*session.get_inputs(), *session.get_overridable_initializers())
        found = next(one.shape for one in inputs if one.name == name)
        return tuple(side if isinstance(side, int) else None for side in found)


def _open(path: Path, label: str) -> Any:
    try:
        require_regular(path)
    except FileNotFoundError:
        raise MissingCheckpointError(f"{label}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{label}: cannot be read ({error.strerror})") from None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = thread_count(), 1
    options.log_severity_level = 4  # what goes wrong is raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait leave the cores alone
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has exceptions of its own
        if is_memory_error(error):
            raise CheckpointError(f"{label}: not enough memory for its network") from None
        other = not_the_file_itself(path)
        if other is None and "opset" in str(error).lower():
            other = "written for a newer ONNX than the installed onnxruntime reads; pip install -U onnxruntime"
        raise CheckpointError(f"{label}: {other or 'damaged, truncated or not an ONNX file'}") from None


def open_onnx(path: str | Path, label: str | None = None) -> GraphSystem:
    """The system in an ``.onnx`` file, with the encoder of sentences that it names beside itself.

    Raises:
        CheckpointError: A file is missing, damaged or not ours.
    """
    graph = OnnxGraph(path, label)
    facts = graph.facts
    if facts.kind not in ("network", "whole"):
        raise CheckpointError(f"{graph.label}: is a part of other files; name one of these")

    def beside(name: str | None) -> OnnxGraph | None:
        return None if name is None else OnnxGraph(graph.path.parent / Path(name).name)

    words, imagining, drawing = map(beside, (facts.words, facts.imagine, facts.draw))
    sentences = None if words is None else Sentences(words)
    if imagining is None or drawing is None:
        system = GraphSystem(graph, "onnx", sentences)
    else:
        system = ImaginingGraphSystem(graph, "onnx", sentences=sentences, imagining=imagining, drawing=drawing)
    system.provenance |= {"weights": graph.label, "sha256": None}
    return system
