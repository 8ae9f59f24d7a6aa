"""What an ONNX file of ours states about itself: one JSON text among its metadata. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from langdepth._version import __version__
from langdepth.config import from_mapping, to_mapping
from langdepth.errors import CheckpointError, LangdepthError
from langdepth.evaluation.protocols import ScaleKind
from langdepth.records import InputSpec
from langdepth.utils.onnx_files import BESIDE, KEY

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """A graph and the system that it was made of.

    ``kind``: "network" takes float32 images (B, 3, h, w) in [0, 1] at network size and gives depth (B, 1, h', w');
    "whole" takes bytes (B, H, W, 3) of any size and gives depth (B, H, W) at that size; "words" takes tokens (1, n) and
    gives features (1, D); "imagine" takes noise (N, C, h / 16, w / 16) and gives depth (N, 1, h, w); "draw" does so
    near an image (1, 3, h, w), for a ``spread`` (1,) from 0 to 1. ``inputs``: names of the inputs beside the image.
    ``words``, ``imagine``, ``draw``: files beside it with these graphs, None where there is none. ``words_sha256``: of
    the first of them, None where it is not stated. ``network_size``: the only (height, width) inside a "whole" one,
    None for any. ``vocabulary``, ``max_words``: of a "words" graph. The other fields are those of
    ``systems.contract.Predicts``.
    """

    kind: Literal["network", "whole", "words", "imagine", "draw"]
    system: str = ""
    about: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    scale_kind: str = "metric"
    scenes: tuple[str, ...] = ()
    text_per_image: bool = True
    takes_overlay: bool = False
    input_spec: InputSpec = field(default_factory=lambda: InputSpec(multiple_of=1))
    provenance: dict[str, Any] = field(default_factory=dict)
    network_size: tuple[int, int] | None = None
    inputs: tuple[str, ...] = ()
    words: str | None = None
    words_sha256: str | None = None
    imagine: str | None = None
    draw: str | None = None
    vocabulary: tuple[str, ...] = ()
    max_words: int = 0
    langdepth_version: str = __version__

    def __post_init__(self) -> None:
        if self.scale_kind not in get_args(ScaleKind):
            raise ValueError(f"unknown scale_kind {self.scale_kind!r}; known: {', '.join(get_args(ScaleKind))}")
        for name in ("scenes", "inputs", "vocabulary"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"'{name}' has an entry twice")
        for name in BESIDE:
            file = getattr(self, name)
            if file is not None and (not file or Path(file).name != file or "\0" in file):
                raise ValueError(f"'{name}' is {file!r}, which is no name of a file beside it")
        if self.network_size is not None and min(self.network_size) < 1:
            raise ValueError(f"no network has the size {self.network_size}")
        if self.kind == "words" and self.max_words < 1:
            raise ValueError(f"no sentence has {self.max_words} words")

    def to_json(self) -> str:
        """The text that ``from_metadata`` reads."""
        return json.dumps({"format": FORMAT, **to_mapping(self)})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], label: str) -> GraphFacts:
        """The facts among the metadata of a file, which messages call ``label``.

        Raises:
            CheckpointError: The file is not ours, is of a newer format, or states what cannot be.
        """
        if KEY not in metadata:
            raise CheckpointError(f"{label}: not exported by langdepth (it does not state which system it holds)")
        try:
            stated = json.loads(metadata[KEY], parse_constant=_refuse)
            version = stated.pop("format")
        except (ValueError, RecursionError, AttributeError, KeyError):
            raise CheckpointError(f"{label}: what it states about itself is damaged; export it again") from None
        if version != FORMAT:
            raise CheckpointError(
                f"{label}: its format {version} is not known to langdepth {__version__}; update langdepth"
            )
        known = {one.name for one in fields(cls)}
        try:
            return from_mapping(cls, {key: value for key, value in stated.items() if key in known}, "its metadata ")
        except (LangdepthError, ValueError, TypeError) as error:
            raise CheckpointError(f"{label}: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
