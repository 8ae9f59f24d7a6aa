"""``langdepth evaluate``: score a system on a data set under a named protocol."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from langdepth.commands._parse import members, require_use, run
from langdepth.commands._results import ColorOptions
from langdepth.commands._systems import SystemOptions
from langdepth.data.choice import PairChoice
from langdepth.errors import UsageError, say
from langdepth.evaluation import protocols
from langdepth.prediction.options import Precision, read_formats
from langdepth.records import WithoutCaption
from langdepth.utils.files import make_folder

if TYPE_CHECKING:
    from langdepth.evaluation.predictions import Predictions
    from langdepth.evaluation.saved import SaveMaps
    from langdepth.systems.capabilities import DepthSystem

EXAMPLE = """
langdepth data sample rooms
langdepth evaluate --data folder --root rooms --protocol full --out result.json
langdepth evaluate --root rooms --protocol full --out result.json --save npy,color,error --range 0,10
langdepth evaluate --system tiny --root rooms --split val --protocol nyu-eigen --alignment median --out aligned.json
langdepth evaluate --system tiny --data nyu --root nyu --out nyu.json
"""
FINISHED = "is for systems, and --predictions evaluates finished depth maps; leave one out"


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(_with_switches(evaluate), arguments, "langdepth evaluate", EXAMPLE)


def _with_switches(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` with an option for each switch of a protocol, replacing ``**switches``."""

    @wraps(function)
    def called(**values: Any) -> None:
        function(**values)

    own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    hints = get_type_hints(protocols.Protocol)
    for name, switch in protocols.SWITCHES.items():
        own.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None))
        called.__annotations__ = {**called.__annotations__, name: hints[name]}
        called.__doc__ = f"{called.__doc__}    {name}: {switch.help}\n    "
    called.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    return called


@dataclass(frozen=True, kw_only=True)
class Evaluated(SystemOptions):
    """What is evaluated: a system, or finished depth maps.

    Args:
        depth_kind: What the numbers of a transformers model, of relative maps or of predictions are: metres, depth up
            to a factor, or disparity (the larger the nearer; needs --alignment disparity). Without it the kind of model
            decides, maps are disparity, and predictions are metric.
        predictions: Evaluate the finished depth maps in this folder instead of a system; docs/evaluate.md says how they
            are found.
        prediction_scale: Units of depth per stored unit of the predictions' 16-bit PNGs.

    Raises:
        UsageError: For options of the one that are given for the other.
    """

    predictions: Path | None = None
    prediction_scale: float | None = None

    def __post_init__(self) -> None:
        finished = self.predictions is not None
        given = {"system": self.system, "clip_weights": self.clip_weights, "base": self.base}
        given |= {"prompts": self.prompts, "words": self.words, "bins": self.bins}
        require_use(not finished, FINISHED, **given, download=self.download or None)
        advice = "is for --predictions; systems state their own unit"
        require_use(finished, advice, prediction_scale=self.prediction_scale)

    def load(self, root: Path) -> DepthSystem | Predictions:
        """The system, or the maps of the images below ``root``."""
        from langdepth.evaluation.predictions import Predictions
        from langdepth.weights.checkpoint import load

        if self.predictions is not None:
            return Predictions(self.predictions, root, self.depth_kind or "metric", self.prediction_scale)
        names = members(self.system)
        self.fetch_weights()
        if sys.stderr.isatty():
            say(f"loading {', '.join(names)}", file=sys.stderr)
        system = load(
            names,
            clip_weights=self.clip_weights,
            prompts=self.changes,
            base=self.base_system,
            depth_kind=self.depth_kind,
        )
        self.require_base_used(system)
        return system


@dataclass(frozen=True, kw_only=True)
class MapOptions(ColorOptions):
    """Which maps are kept, and the colors of maps and sheet.

    Args:
        save: What to keep of each image, with commas: the formats of predict (depth16, kitti16, npy, npz, color,
            normals, ply, glb, rrd, html, exr, pfm) for the depth map as evaluated, and error (PNG of |prediction -
            target| / target); with --save-dir alone depth16,color,error.
        save_dir: Folder for them; without it RESULT_maps beside the report. --predictions takes it.
    """

    save: str | None = None
    save_dir: Path | None = None

    def maps(self, report: Path) -> SaveMaps | None:
        """What is kept of an evaluation with this report, or None."""
        from langdepth.evaluation.saved import FORMATS, SaveMaps

        if self.save is None and self.save_dir is None:
            return None
        formats = read_formats("depth16,color,error" if self.save is None else self.save, FORMATS)
        folder = report.with_name(f"{report.stem}_maps") if self.save_dir is None else self.save_dir
        return SaveMaps(folder=folder, formats=formats, colors=self.colors)


def evaluate(
    *,
    root: Path,
    out: Path,
    html: Path | None = None,
    kept: MapOptions,
    evaluated: Evaluated,
    data: str = "folder",
    choice: PairChoice,
    source: str | None = None,
    limit: int | None = None,
    captions: Path | None = None,
    without_caption: WithoutCaption | None = None,
    overlay: Path | None = None,
    trust_unit: bool = False,
    protocol: str | None = None,
    device: str | None = None,
    dtype: Precision | None = None,
    batch_size: int = 1,
    **switches: Any,
) -> None:
    """Score a system on a data set under a named protocol.

    Writes a JSON report and, beside it, two images: error against the depth of the ground truth, and a sheet of the
    best, median and worst images. Switches that change the protocol are marked in its name and change its hash.

    Args:
        root: Folder of the data set.
        out: The report to write, for example result.json.
        html: Write the report there, too, as one page with images, for example result.html.
        kept: Which maps are kept.
        evaluated: What is evaluated.
        data: Which data set (see "langdepth data list"); folder is a folder with an index.csv.
        choice: Which pairs of it.
        split: Which split of it; without one, the data set's own for evaluation, and of a folder everything.
        source: Keep the rows of one source.
        limit: Evaluate the first images only, this many.
        captions: Captions with CLIP features, for systems that read them (wordepth): a packed folder (langdepth data
            pack-captions), the folder above the published text/ and text_feat/, or another form that
            docs/systems/wordepth.md names; sentences alone for systems that read those (rsa, vgld).
        without_caption: What an image without one does: stop (the default), or be evaluated as if nothing were known
            about it.
        overlay: Folder of overlays (langdepth data sam), for systems that take one (msa-sam); without it the nearest
            sam_out beside or above the images.
        protocol: nyu-eigen, kitti-eigen-garg, kitti-eigen, full, or a paper's own, such as depthclip-reference;
            docs/protocols.md gives each to the pixel. Without one, the data set's own.
    """
    require_use(captions is not None, "is of captions; give --captions, too", without_caption=without_caption)
    if evaluated.predictions is not None:
        require_use(False, FINISHED, captions=captions, overlay=overlay, device=device, dtype=dtype)

    from langdepth.data.base import layout, open_dataset

    card = layout(data).CARD
    if choice.list is None:
        choice = replace(choice, split=choice.split or card.split)
    rules = protocols.get(protocol or card.protocol).override(**switches)
    colors = kept.colors
    _check_writable(out, "--out", ".json")
    if html is not None:
        _check_writable(html, "--html", ".html")

    from langdepth.evaluation.evaluate import evaluate as run_evaluation

    maps = kept.maps(out)
    words: dict[str, Any] = {"captions": captions, "without_caption": without_caption or "stop"}
    dataset = open_dataset(data, root, source=source, trust_unit=trust_unit, **words, **vars(choice))
    report = run_evaluation(
        evaluated.load(root),
        dataset,
        rules,
        overlay=overlay or evaluated.maps,
        limit=limit,
        out=out,
        html=html,
        save=maps,
        colors=colors,
        batch_size=batch_size,
        device=device or "auto",
        dtype=dtype or "float32",
    )
    say(*table(report))
    say(f"written: {out}" + (f", {maps.folder}" if maps else ""))


def table(report: dict[str, Any]) -> list[str]:
    """The means of a report, line by line."""
    rules = report["protocol"]
    skipped = f", {report['skipped']} skipped" if report["skipped"] else ""
    names = list(report["image_mean"])
    lines = [
        f"{report['system']} on {report['dataset']}, {report['images']} images{skipped}, "
        f"{rules['name']} ({rules['hash']}), {report['seconds']:.1f} s",
        " " * 10 + "".join(f"{name:>10}" for name in names),
    ]
    for mean in ("image_mean", "pixel_mean"):
        lines.append(f"{mean:<10}" + "".join(f"{report[mean][name]:>10.4f}" for name in names))
    if report["boundaries"] is not None:
        accuracy, completeness = (report["boundaries"][kind] for kind in ("accuracy", "completeness"))
        lines.append(f"depth boundary errors: accuracy {accuracy:.3f} px, completeness {completeness:.3f} px")
    return lines


def _check_writable(path: Path, option: str, suffix: str) -> None:
    """Whether a report can be written is known before the work, not after it."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give a file name, for example {path / f'result{suffix}'}")
    if path.suffix.lower() != suffix:
        raise UsageError(f"{path}: {option} takes a name that ends in {suffix}")
    make_folder(path.parent, path)
