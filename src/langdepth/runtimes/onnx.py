"""ONNX Runtime: files that ``langdepth export`` and the package hold, computed without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property, lru_cache, partial
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
from langdepth.utils.files import expanded, not_the_file_itself
from langdepth.utils.onnx_files import OnnxFlaw, require_sound
from langdepth.utils.reading import file_sha256, require_regular

_SHARE = 0.75  # of the machine's memory, for graphs of others


class OnnxGraph:
    """The graph of one ``.onnx`` file, which is opened when it is first used.

    ``facts`` and calls raise CheckpointError for a file that is missing, damaged or not ours.

    Args:
        path: The file.
        label: Its name in messages.
        checked: It is known to be what it was when it was written, so that it is not searched for damage.
        part: The kind of graph that it is for other files; None: a system's own.
        sha256: Of the file, where the others state it.
    """

    def __init__(
        self,
        path: str | Path,
        label: str | None = None,
        *,
        checked: bool = False,
        part: str | None = None,
        sha256: str | None = None,
    ) -> None:
        self.path, self.label = expanded(path).absolute(), label or str(path)
        self.part, self.sha256 = part, sha256
        self._session = OncePerProcess(partial(_open, self.path, self.label, checked))

    @cached_property
    def facts(self) -> GraphFacts:
        """What the file states about itself."""
        session = self._session()
        facts = GraphFacts.from_metadata(session.get_modelmeta().custom_metadata_map, self.label)
        _require_agreement(session, facts, self.label)
        if self.part is None and facts.kind not in ("network", "whole"):
            raise CheckpointError(f"{self.label}: is a part of other files; name one of these")
        if self.part not in (None, facts.kind) or self.sha256 not in (None, file_sha256(self.path)):
            raise CheckpointError(
                f"{self.label}: is not the file that was written with the one that names it; put that beside it, or "
                "export again"
            )
        return facts

    def _own_session(self) -> Any:
        _ = self.facts  # raises for a file that is not ours, or not the one that belongs to others
        return self._session()

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        session = self._own_session()
        names = [output.name for output in session.get_outputs()]
        with computing(self.label):
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def shape(self, name: str) -> tuple[int | None, ...]:
        session = self._own_session()
        inputs = (*session.get_inputs(), *session.get_overridable_initializers())
        found = next(one.shape for one in inputs if one.name == name)
        return tuple(side if isinstance(side, int) else None for side in found)


def _open(path: Path, label: str, checked: bool) -> Any:
    try:
        require_regular(path)
        if not checked and not_the_file_itself(path) is None:
            require_sound(path)
    except OnnxFlaw as flaw:
        raise CheckpointError(f"{label}: {flaw}") from None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename == str(path):
            raise MissingCheckpointError(f"{label}: no such file") from None
        part = "" if error.filename == str(path) else f"; its tensors lie in {error.filename}"
        raise CheckpointError(f"{label}: cannot be read ({error.strerror}{part})") from None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = thread_count(), 1
    options.log_severity_level = 4  # what goes wrong is raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait leave the cores alone
    if not checked and _limit_memory() == os.getpid():
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has exceptions of its own
        if is_memory_error(error):
            raise CheckpointError(f"{label}: not enough memory for its network") from None
        other = not_the_file_itself(path)
        if other is None and re.search("opset|unsupported model ir version", str(error).lower()):
            other = "written for a newer ONNX than the installed onnxruntime reads; pip install -U onnxruntime"
        raise CheckpointError(f"{label}: {other or 'damaged, truncated or not an ONNX file'}") from None


def _machine_memory() -> int:
    """Bytes of memory that this machine has, or that its container may take; 0 where that is not stated."""
    if not hasattr(os, "sysconf"):
        return 0
    stated = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        return min(stated, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return stated


@lru_cache(maxsize=1)
def _limit_memory() -> int:
    """Limit the memory that graphs of this process may take; a node in one may ask for any. Returns its number.

    A forked process has no use for the limit: another thread may have held its lock in that moment.
    """
    from onnxruntime import OrtAllocatorType, OrtArenaCfg, OrtMemoryInfo, OrtMemType, create_and_register_allocator

    how = OrtArenaCfg(
        {"max_mem": int(_SHARE * _machine_memory()), "arena_extend_strategy": 1}
    )  # as much as is asked for
    place = OrtMemoryInfo("Cpu", OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, OrtMemType.DEFAULT)
    create_and_register_allocator(place, how)
    return os.getpid()


_IMAGES, _VALUES, _ROWS = ("tensor(uint8)", 4), ("tensor(float)", 4), ("tensor(float)", 2)
_WORDS = {"text": _ROWS, "scene": ("tensor(int64)", 1)}
_INPUTS: dict[str, dict[str, tuple[str, int]]] = {
    "network": {"image": _VALUES},
    "whole": {"image": _IMAGES},
    "words": {"tokens": ("tensor(int64)", 2)},
    "imagine": {"noise": _VALUES},
    "draw": {"image": _VALUES, "noise": _VALUES, "spread": ("tensor(float)", 1)},
}
"""Kind and number of axes of the inputs of each kind of graph."""
_OUTPUTS = {"words": ("features", _ROWS), "whole": ("depth", ("tensor(float)", 3))}


def _require_agreement(session: Any, facts: GraphFacts, label: str) -> None:
    """Raise CheckpointError where a graph has not the inputs and outputs that its metadata states."""
    inputs = dict(_INPUTS[facts.kind])
    if facts.takes_overlay and facts.kind in ("network", "whole"):
        inputs["overlay"] = inputs["image"]
    taken = (*session.get_inputs(), *session.get_overridable_initializers())
    found, given = ({one.name: (one.type, len(one.shape)) for one in some} for some in (taken, session.get_outputs()))
    inputs |= {one: _WORDS.get(one, found.get(one, _VALUES)) for one in facts.inputs if one not in inputs}
    name, output = _OUTPUTS.get(facts.kind, ("depth", _VALUES))
    probs = next((one.shape for one in session.get_outputs() if one.name == "scene_probs"), None)
    if found != inputs:
        wrong = f"inputs {_listed(found)} are not {_listed(inputs)}"
    elif any(one != output for one in (given.get(name), given.get("sigma", output))):
        wrong = f"outputs {_listed(given)} are without {_listed({name: output})}"
    elif probs is not None and (len(probs) != 2 or probs[1] not in (len(facts.scenes), None, str(probs[1]))):
        wrong = f"scene_probs {probs} are not of its {len(facts.scenes)} scenes"
    else:
        return
    raise CheckpointError(f"{label}: its graph is not what its metadata states ({wrong}); export it again")


def _listed(stated: Mapping[str, tuple[str, int]]) -> str:
    return ", ".join(f"{name} {kind} of {axes} axes" for name, (kind, axes) in sorted(stated.items())) or "none"


def open_onnx(path: str | Path, label: str | None = None, *, checked: bool = False) -> GraphSystem:
    """The system in an ``.onnx`` file, with the encoder of sentences that it names beside itself.

    See ``OnnxGraph`` for the arguments.

    Raises:
        CheckpointError: A file is missing, damaged or not ours.
    """
    graph = OnnxGraph(path, label, checked=checked)
    facts = graph.facts

    def beside(part: str, sha256: str | None = None) -> OnnxGraph | None:
        name = getattr(facts, part)
        return None if name is None else OnnxGraph(graph.path.parent / name, part=part, sha256=sha256)

    words, imagining, drawing = beside("words", facts.words_sha256), beside("imagine"), beside("draw")
    sentences = None if words is None else Sentences(words)
    if imagining is None or drawing is None:
        system = GraphSystem(graph, "onnx", sentences)
    else:
        system = ImaginingGraphSystem(graph, "onnx", sentences=sentences, imagining=imagining, drawing=drawing)
    system.provenance |= {"weights": graph.label, "sha256": None}
    return system
