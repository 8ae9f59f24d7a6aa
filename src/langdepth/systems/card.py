"""card.yaml: what is known about the systems of a folder without importing them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langdepth.config import MAX_YAML_BYTES, from_mapping, plain_loader
from langdepth.errors import UsageError, first_line
from langdepth.utils.plugins import load_target
from langdepth.utils.reading import read_text

if TYPE_CHECKING:
    from langdepth.systems.base import System

MODELS_FOLDER = Path(__file__).parents[1] / "models"


@dataclass(frozen=True, kw_only=True)
class GraphRecord:
    """An ONNX file made of weights, beside them in langdepth's ``models`` folder, and its checksum."""

    file: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where the file lies in the installed package."""
        return MODELS_FOLDER / self.file


@dataclass(frozen=True, kw_only=True)
class WeightRecord:
    """Where weights come from and what may be done with them.

    ``file`` is relative to langdepth's ``models`` folder, in the card of another package to the card's folder. An empty
    ``sha256`` is not checked. ``onnx``: the same network for runtimes without torch.
    """

    file: str
    sha256: str
    licence: str
    source: str
    onnx: GraphRecord | None = None

    @property
    def path(self) -> Path:
        """Where the file lies in the installed package."""
        return MODELS_FOLDER / self.file


@dataclass(frozen=True, kw_only=True)
class PublishedRecord:
    """Weights that a paper's authors publish as a file; those under the name of a system are converted to it.

    Where: ``url``, or ``google_drive``, the id of the file there, or ``open_clip``, "ARCHITECTURE/TAG", which that
    library downloads. ``file``: what the authors call it. An empty ``sha256`` is not known: then the first download
    counts. ``clip_weights``: what conversion needs of CLIP, an open_clip tag. ``holds``: a tensor by which a file
    that is kept as it is can be known.
    """

    summary: str
    licence: str
    file: str = ""
    url: str | None = None
    google_drive: str | None = None
    open_clip: str | None = None
    sha256: str = ""
    clip_weights: str | None = None
    holds: str | None = None

    def __post_init__(self) -> None:
        if sum(place is not None for place in (self.url, self.google_drive, self.open_clip)) != 1:
            raise ValueError("published weights lie at one of url, google_drive and open_clip")
        if self.open_clip is None and (not self.file.strip(".") or Path(self.file).name != self.file):
            raise ValueError(f"'{self.file}' is no name of a file")

    @property
    def source(self) -> str:
        """Where a person finds it."""
        if self.open_clip is not None:
            return f"open_clip, {self.open_clip}"
        return self.url or f"https://drive.google.com/file/d/{self.google_drive}/view"


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """A row of a paper's results table: ``metrics`` by our names; ``source`` says where it stands.

    ``data``: the data set, whole, in the split that is evaluated unless another is asked for.
    """

    source: str
    data: str
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class CardEntry:
    """One system of a card; what it leaves out is the card's own.

    ``target`` is "module:class", the module relative to the card's package; ``preset`` holds config values that differ
    from the defaults. ``paper_url`` and ``repository`` are addresses of the paper and of its authors' program, None
    where there is none. ``numbers``: the paper's results by protocol.
    """

    summary: str
    target: str | None = None
    paper: str | None = None
    paper_url: str | None = None
    repository: str | None = None
    preset: dict[str, Any] = field(default_factory=dict)
    weights: WeightRecord | None = None
    numbers: dict[str, Numbers] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card.yaml: what its systems share, and each of them.

    ``pipelines``: names of the paper's training images (``data.pipeline`` of a recipe) -> "module:function". The
    function takes the network's sizes, a list of (height, width), and ``reference_exact=`` where the official code has
    mistakes to repeat. It returns what makes a training sample: (stored Sample, (height, width)) -> Sample.
    ``published``: the authors' weights by name.
    """

    paper: str
    paper_url: str | None = None
    repository: str | None = None
    target: str | None = None
    systems: dict[str, CardEntry]
    published: dict[str, PublishedRecord] = field(default_factory=dict)
    pipelines: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Entry(CardEntry):
    """One registry name; its ``target`` has the full name of the module.

    ``package``: what pip calls the package that adds it, None for langdepth.
    """

    name: str
    target: str
    paper: str
    package: str | None = None

    @property
    def about(self) -> str:
        """Summary and paper, as Markdown for model cards."""
        return f"{self.summary[:1].upper()}{self.summary[1:]}.\n\nPaper: {self.paper}.\n\n"

    def system_class(self) -> type[System]:
        """Import and return the class."""
        cls: type[System] = load_target(self.target, f"the system '{self.name}'")
        return cls


def read_card(
    path: Path, module: str, package: str | None = None
) -> tuple[list[Entry], dict[str, str], dict[str, PublishedRecord]]:
    """The systems of a card, its training pipelines as name -> "module:function", and its published weights by name.

    Args:
        path: The card.yaml.
        module: The package it lies in, to which its targets are relative.
        package: What pip calls the package, None for langdepth itself.

    Raises:
        UsageError: The card cannot be read, or a key or value is wrong.
    """
    import yaml

    loader = plain_loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    try:
        card = from_mapping(Card, yaml.load(read_text(path, MAX_YAML_BYTES), loader), "card.")
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read as a card: {first_line(error)}") from None
    shared = {name: getattr(card, name) for name in ("target", "paper", "paper_url", "repository")}
    entries = []
    for name, system in card.systems.items():
        facts = shared | {key: value for key, value in vars(system).items() if value is not None}
        if ":" not in (facts["target"] or ""):
            raise UsageError(f"{path}: the system '{name}' needs a target, for example model:MySystem")
        facts["target"] = f"{module}.{facts['target']}"
        if system.weights is not None and package is not None:
            facts["weights"] = replace(system.weights, file=str(path.parent / system.weights.file))
        entries.append(Entry(name=name, package=package, **facts))
    return entries, {name: f"{module}.{target}" for name, target in card.pipelines.items()}, card.published
