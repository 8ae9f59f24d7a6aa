"""A system as a graph that a runtime other than torch computes. Imports no torch.

Data flow: image (B, 3, h, w) in [0, 1], words as arrays -> ``Graph`` -> depth (B, 1, h', w'); sentences -> tokens ->
the words' own graph -> features (B, D).
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from langdepth._version import __version__
from langdepth.errors import CheckpointError, ShortMemoryError, UsageError, first_line, is_memory_error
from langdepth.prediction.predictor import predict_images
from langdepth.prediction.results import DepthResult
from langdepth.records import DepthOutput
from langdepth.runtimes.facts import GraphFacts
from langdepth.systems.contract import Imagines, Predicts
from langdepth.text.scenes import scene_index
from langdepth.text.vocabulary import Vocabulary
from langdepth.utils.threads import MOST_THREADS

Made = TypeVar("Made")
Arrays = dict[str, npt.NDArray[Any]]
_NORM_TOLERANCE = 0.02
_NOISE_STRIDE = 16  # pixels of a depth map to one cell of its noise


class Graph(Protocol):
    """A graph in some runtime. Several threads may call it at once; it can be pickled."""

    @property
    def facts(self) -> GraphFacts:
        """What it states about itself."""
        ...

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Inputs by name to outputs by name; inputs that are left out have their default."""
        ...

    def shape(self, name: str) -> tuple[int | None, ...]:
        """The shape of an input, None where any number does."""
        ...


class OncePerProcess(Generic[Made]):
    """What ``make`` gives, made when it is first asked for; again in a forked process, which has none of its threads.

    It is pickled without what was made, so ``make`` must be picklable.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._found: Made | None = None
        _alive.add(self)

    def __call__(self) -> Made:
        with self._lock:
            if self._found is None:
                self._found = self._make()
            return self._found

    def __reduce__(self) -> Any:
        return OncePerProcess, (self._make,)

    def leave_to_parent(self) -> None:
        """In a forked process: what the parent made would wait for its threads when it is freed, so it never is."""
        if self._found is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._found))
        self._found, self._lock = None, threading.Lock()


_alive: weakref.WeakSet[OncePerProcess[Any]] = weakref.WeakSet()


def _in_forked_child() -> None:
    for one in _alive:
        one.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


@contextmanager
def computing(label: object) -> Iterator[None]:
    """Whatever a runtime raises inside, as one line that names the file ``label``."""
    try:
        yield
    except Exception as error:  # runtimes have exceptions of their own
        if is_memory_error(error) or "allocate" in str(error):
            raise ShortMemoryError(f"{label}: not enough memory for the network") from None
        raise CheckpointError(f"{label}: cannot be computed here: {first_line(error)}") from error


def thread_count() -> int:
    """Threads to compute with: OMP_NUM_THREADS where it is set, else the cores that this process may use."""
    stated = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if stated.isdecimal() and int(stated) > 0:
        return min(int(stated), MOST_THREADS)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Sentences:
    """Sentences to features by the graph of a small sentence encoder."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._encoded: dict[str, npt.NDArray[np.float32]] = {}

    def encode(self, sentences: Sequence[str]) -> npt.NDArray[np.float32]:
        """(B, D) of norm 1; each distinct sentence is computed once. See ``Vocabulary.check`` for errors."""
        rows = self.vocabulary.encoded(self._encoded, sentences, self._encode)
        return np.stack(rows)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words that it knows."""
        return Vocabulary(self.graph.facts.vocabulary, self.graph.facts.max_words)

    def _encode(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        features: npt.NDArray[np.float32] = self.graph({"tokens": np.array([tokens], np.int64)})["features"][0]
        return features


class GraphSystem(Predicts):
    """What ``langdepth.load`` gives where torch does not compute: it predicts, and nothing else.

    Args:
        graph: A graph of the kind "network" or "whole".
        runtime: "onnx" or "openvino".
        sentences: What encodes sentences, None where the system takes none.
        dtypes: Precisions that the graph can be computed in.
    """

    def __init__(
        self, graph: Graph, runtime: str, sentences: Sentences | None = None, dtypes: Sequence[str] = ("float32",)
    ) -> None:
        facts = graph.facts
        self.graph, self.sentences, self.runtime, self.dtypes = graph, sentences, runtime, tuple(dtypes)
        self.name, self.about, self.scale_kind = facts.system, facts.about, facts.scale_kind
        self.scenes, self.text_per_image = facts.scenes, facts.text_per_image
        self.takes_overlay, self.config, self.input_spec = facts.takes_overlay, facts.config, facts.input_spec
        self.takes_windows = facts.kind != "whole" or facts.network_size is not None
        self.provenance = {**facts.provenance, "langdepth_version": __version__}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(
            f"a system of the runtime '{self.runtime}' only predicts and has no '{name}'; load it with runtime='torch'"
        )

    def predict(self, images: Any, **options: Any) -> DepthResult | list[DepthResult]:
        """Depth of one image or many; see ``langdepth.prediction.predictor.predict_images`` for the options."""
        return predict_images(self, images, **options)

    def __call__(
        self, image: npt.NDArray[Any], text: Any = None, scene: Any = None, **overlay: npt.NDArray[Any]
    ) -> DepthOutput:
        for view in (image, *overlay.values()):
            if view.ndim != 4 or view.shape[1] != 3:
                raise UsageError(f"images have shape {view.shape}; '{self.name}' takes (B, 3, height, width)")
        words = self._words(len(image), text, scene)
        whole = self.graph.facts.kind == "whole"
        views = {"image": image, **overlay}
        if whole:
            for name, view in views.items():
                views[name] = np.rint(view * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1)
        found = self.graph({**{name: np.ascontiguousarray(view) for name, view in views.items()}, **words})
        maps: dict[str, Any] = {name: found[name] for name in ("depth", "sigma") if name in found}
        if whole:
            maps = {name: one[:, None] for name, one in maps.items()}
        depth: Any = maps["depth"]
        probs: Any = found.get("scene_probs")
        fits = depth.shape[:2] == (len(image), 1) and depth.size > 0
        fits = fits and all(one.shape == depth.shape for one in maps.values())
        if not fits or (probs is not None and probs.shape != (len(image), len(self.scenes))):
            raise CheckpointError(
                f"'{self.name}': its graph gives {depth.shape} for images {image.shape}; export it again"
            )
        return DepthOutput(**maps, scene_probs=probs)

    def _words(self, count: int, text: Any, scene: Any) -> Arrays:
        """Words as inputs of the graph; nothing for what is not said. Raises UsageError."""
        if text is not None and scene is not None:
            raise UsageError("give a text or a scene, not both")
        for name, value in (("text", text), ("scene", scene)):
            if value is not None and name not in self.graph.facts.inputs:
                raise UsageError(f"the system '{self.name}' takes no {name} in the runtime '{self.runtime}'")
        if scene is not None:
            named = [scene_index(one, self.scenes) if isinstance(one, str) else int(one) for one in scene]
            return {"scene": np.array(named, np.int64)}
        if text is None:
            return {}
        if isinstance(text, np.ndarray):
            return {"text": self._features(count, text)}
        if self.sentences is None:
            raise UsageError(f"the system '{self.name}' takes no sentence about the image in '{self.runtime}'")
        return {"text": self.sentences.encode(text)}

    def _features(self, count: int, text: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        expected = self.graph.shape("text")
        goal = (count, *expected[1:]) if self.text_per_image else expected
        if text.shape != goal:
            per = "image" if self.text_per_image else "word"
            raise UsageError(f"text features have shape {text.shape}; '{self.name}' takes one row per {per}, {goal}")
        norms = np.linalg.norm(text.astype(np.float32), axis=1)
        if self.text_per_image and not ((np.abs(norms - 1) <= _NORM_TOLERANCE) | (norms == 0)).all():
            raise UsageError(
                f"text features have norms from {norms.min():.3g} to {norms.max():.3g}, not 1; divide each by its norm"
            )
        return np.ascontiguousarray(text, np.float32)

    # -- what prediction asks for ----------------------------------------------------------------------------------

    def for_inference(self, device: Any = None, dtype: str = "float32") -> GraphSystem:
        if str(device or "cpu") not in ("auto", "cpu"):
            raise UsageError(
                f"the runtime '{self.runtime}' computes on the CPU, not on '{device}'; take torch for that"
            )
        if dtype not in self.dtypes:
            raise UsageError(
                f"the runtime '{self.runtime}' computes '{self.name}' in {' or '.join(self.dtypes)}, not in {dtype}; "
                "take the runtime torch for that"
            )
        return self

    @contextmanager
    def inference(self, dtype: str | None = None) -> Iterator[None]:
        yield

    @contextmanager
    def side_by_side(self, most: int) -> Iterator[tuple[int, Callable[[], None]]]:
        # Batches side by side share the threads of the runtime and leave fewer of them waiting.
        yield min(thread_count(), most), lambda: None

    def as_input(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array


class ImaginingGraphSystem(GraphSystem, Imagines):
    """A ``GraphSystem`` of a system that imagines.

    Args:
        graph: As for ``GraphSystem``.
        runtime: The same.
        imagining: A graph of the kind "imagine".
        drawing: A graph of the kind "draw".
        **others: The other arguments of ``GraphSystem``.
    """

    def __init__(self, graph: Graph, runtime: str, *, imagining: Graph, drawing: Graph, **others: Any) -> None:
        super().__init__(graph, runtime, **others)
        self.imagining, self.drawing = imagining, drawing

    def draw_noise(
        self, count: int, height: int, width: int, generator: np.random.Generator | None = None
    ) -> npt.NDArray[np.float32]:
        """Standard normal noise (count, C, height / 16, width / 16)."""
        step = self.input_spec.multiple_of
        if min(height, width) < step or height % step or width % step:
            raise UsageError(f"a depth map of {width} x {height} is not possible; take multiples of {step}")
        channels = self.imagining.shape("noise")[1] or 1
        shape = (count, channels, height // _NOISE_STRIDE, width // _NOISE_STRIDE)
        return (generator or np.random.default_rng()).standard_normal(shape, np.float32)

    def imagine(self, text: Any, noise: npt.NDArray[np.float32]) -> DepthOutput:
        depth: Any = self.imagining({"noise": noise, **self._words(len(noise), text, None)})["depth"]
        return DepthOutput(depth=depth)

    def draw(self, image: npt.NDArray[Any], text: Any, noise: npt.NDArray[np.float32], spread: float) -> DepthOutput:
        if len(image) != 1:
            raise UsageError(f"samples are drawn near one image at a time, got {len(image)}")
        inputs = {"image": np.ascontiguousarray(image), "noise": noise, "spread": np.array([spread], np.float32)}
        depth: Any = self.drawing({**inputs, **self._words(1, text, None)})["depth"]
        return DepthOutput(depth=depth)
