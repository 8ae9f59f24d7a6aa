"""The file of `benchmark`: which systems are evaluated on which data sets under which protocols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from langdepth.config import from_mapping, load_yaml
from langdepth.data.base import layout, open_dataset
from langdepth.data.choice import PairChoice
from langdepth.data.rows import RowDataset
from langdepth.errors import LangdepthError, UsageError, explained
from langdepth.evaluation import protocols
from langdepth.evaluation.protocols import Alignment, Protocol, ScaleKind
from langdepth.records import WithoutCaption
from langdepth.systems import registry


@dataclass(frozen=True, kw_only=True)
class MatrixSystem:
    """A row. ``system``: registry name, weights file, hub id or ``transformers:FOLDER``; or, instead of it,
    ``predictions``: a folder of finished depth maps with one subfolder per data set, called like it in the matrix.
    ``prompts``: a published prompt set, or a YAML file, for systems that compare with distance words."""

    system: str = ""
    name: str = ""
    clip_weights: str | None = None
    prompts: str | None = None
    base: str | None = None
    depth_kind: ScaleKind | None = None
    predictions: Path | None = None
    prediction_scale: float | None = None

    @property
    def label(self) -> str:
        """The name of the row."""
        return self.name or self.system or str(self.predictions)


@dataclass(frozen=True, kw_only=True)
class MatrixData(PairChoice):
    """A data set and the protocols it is evaluated under; without any, its own.

    ``captions``: packed captions, for the systems that read words per image; the others
    get the images alone. ``overlay``: folder of overlays, for the systems that take one.
    ``trust_unit``: take depth as it is, even where its unit seems wrong.
    """

    root: Path
    data: str = "folder"
    name: str = ""
    source: str | None = None
    limit: int | None = None
    captions: Path | None = None
    without_caption: WithoutCaption | None = None
    overlay: Path | None = None
    trust_unit: bool = False
    protocols: tuple[str, ...] = ()
    alignment: Alignment = "none"

    @property
    def label(self) -> str:
        """Its name in the table."""
        return self.name or " ".join(part for part in (self.data, self.source) if part)

    @property
    def kept(self) -> str | None:
        """The split that is evaluated."""
        return self.shown or layout(self.data).CARD.split

    def open(self, captions: Path | None) -> RowDataset | LangdepthError:
        """The data set with these captions, or why there is none."""
        try:
            return open_dataset(
                self.data,
                self.root,
                self.split if self.list is not None else self.kept,
                self.source,
                captions=captions,
                without_caption=self.without_caption or "stop",
                trust_unit=self.trust_unit,
                list=self.list,
                truth_root=self.truth_root,
            )
        except Exception as error:
            return cause(error)

    def rules(self) -> Sequence[Protocol]:
        """The protocols with the alignment, each once."""
        names = dict.fromkeys(self.protocols) or (layout(self.data).CARD.protocol,)
        return [protocols.get(name).override(alignment=self.alignment) for name in names]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What a matrix file says. Without ``systems``: all of the registry."""

    data: list[MatrixData]
    systems: tuple[MatrixSystem | str, ...] = field(default_factory=lambda: tuple(registry.list_systems()))

    def rows(self) -> list[MatrixSystem]:
        """The systems as records."""
        return [MatrixSystem(system=row) if isinstance(row, str) else row for row in self.systems]


def read_matrix(path: Path) -> Matrix:
    """A matrix file (YAML). Raises UsageError for unknown keys, wrong values, and two rows or columns of one name."""
    matrix = from_mapping(Matrix, load_yaml(path, "matrix"))
    if not matrix.data:
        raise UsageError(f"{path}: data names no data set")
    if not matrix.systems:
        raise UsageError(f"{path}: systems names no system; leave the key out to run all of them")
    for what, labels in (("systems", [row.label for row in matrix.rows()]), ("data", [d.label for d in matrix.data])):
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise UsageError(f"{path}: two of {what} are called '{twice}'; give each a name")
    for row in matrix.rows():
        if bool(row.system) == (row.predictions is not None):
            raise UsageError(f"{path}: '{row.label}' needs either system or predictions")
        if row.predictions is None and row.prediction_scale is not None:
            raise UsageError(f"{path}: '{row.label}' is a system; prediction_scale is for predictions, leave it out")
        for key in ("clip_weights", "prompts", "base"):
            if row.predictions is not None and getattr(row, key) is not None:
                raise UsageError(f"{path}: '{row.label}' are predictions; {key} is for systems, leave it out")
    for data in matrix.data:
        if data.captions is None and data.without_caption is not None:
            raise UsageError(f"{path}: '{data.label}': without_caption is of captions; give captions, too")
        data.rules()  # wrong names are known before the work
    return matrix


def cause(error: Exception) -> LangdepthError:
    """What a cell says of an error."""
    return error if isinstance(error, LangdepthError) else LangdepthError(explained(error))
