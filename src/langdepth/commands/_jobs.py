"""The images that `predict` is to do: what is found, what is said about each, where its results go."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langdepth.commands._progress import complain, say
from langdepth.errors import LangdepthError, UsageError, first_few
from langdepth.prediction.done import Done, origin, stamp
from langdepth.prediction.inputs import STDIN, find_images
from langdepth.prediction.names import unique_names
from langdepth.records import WithoutCaption
from langdepth.utils.files import LONGEST_NAME

if TYPE_CHECKING:
    from langdepth.prediction.words import Words


@dataclass(frozen=True, eq=False)
class Job:
    """One image: where it is ("-" is stdin), its place below the folder of results, the file for each format.

    name: that of its results without their ends. made_of: what its results depend on, see ``prediction.done``.
    """

    source: str
    place: Path
    targets: dict[str, Path]
    name: Path
    overlay: Path | None = None
    caption: Words | None = None
    made_of: str = ""

    def origin(self, how: str) -> str:
        """What its results depend on, ``how`` it is predicted included."""
        feature = None if self.caption is None or self.caption.feature is None else self.caption.feature.tolist()
        sentence = None if self.caption is None else self.caption.sentence
        return origin(how, stamp(self.source), stamp(self.overlay), sentence, feature)

    def open(self) -> Any:
        """What ``read_image`` takes."""
        return sys.stdin.buffer if self.source == STDIN else self.source


def with_overlays(jobs: list[Job], masks: Path | None, maps: Path | None) -> list[Job]:
    """Each image with the one file, or with its own in the one folder, of masks or relative maps."""
    from langdepth.data.masks import MASKS
    from langdepth.data.overlays import Overlays
    from langdepth.data.relative import relative_maps

    kind, overlay = (MASKS, masks) if maps is None else (relative_maps("disparity"), maps)
    assert overlay is not None
    if overlay.is_dir():
        found = Overlays(overlay, kind)
        return [replace(job, overlay=found.find(job.place, job.source) or found.published(job.place)) for job in jobs]
    if len(jobs) > 1:
        raise UsageError(f"{overlay} is no folder, but there are {len(jobs)} images; each needs its own")
    return [replace(job, overlay=overlay) for job in jobs]


def say_how_read(relative_map: Path | None) -> None:
    """Say what maps are taken for that do not say it themselves; one stands for all."""
    from langdepth.utils.depth_files import read_map

    with suppress(LangdepthError):  # which the image's own line says
        if relative_map is not None and read_map(relative_map)[1] is None:
            how = "taken for disparity, the larger the nearer; --depth-kind says otherwise"
            complain(f"{relative_map}: does not say what it holds: {how}")


def with_captions(jobs: list[Job], source: Path, without: WithoutCaption, problems: list[LangdepthError]) -> list[Job]:
    """Each image with its own words; those that must have some and have none go to ``problems``."""
    from langdepth.prediction.words import find_caption
    from langdepth.text.caption_features import open_captions

    captions, kept = open_captions(source, sentences_alone=True), []
    for job in jobs:
        caption = find_caption(captions, str(job.place), job.source)
        if caption is None and without == "stop":
            problems.append(
                LangdepthError(
                    f"{job.source}: has no caption in {captions.reach}; add one, or predict such images without words: "
                    "--without-caption neutral"
                )
            )
            complain(problems[-1])
        else:
            kept.append(replace(job, caption=caption))
    return kept


def find_jobs(
    inputs: list[str], out: Path, suffixes: dict[str, str], recursive: bool, done: Done
) -> tuple[list[Job], list[LangdepthError]]:
    """The images to do, each with its own output names, and what is wrong with the inputs."""
    from langdepth.prediction.results import require_own

    if STDIN in inputs and (sys.stdin.isatty() or getattr(sys.stdin, "name", "") == os.devnull):
        raise UsageError("- reads one image from stdin; send one in: langdepth predict - < photo.jpg")
    found = find_images(inputs, out, recursive)
    problems = found.problems
    if found.note and found.files:
        complain(found.note)
    jobs = []
    names = unique_names([place for _, place in found.files], [*suffixes.values()])
    for (source, place), base in zip(found.files, names, strict=True):
        targets = {name: out / base.with_name(base.name + suffix) for name, suffix in suffixes.items()}
        longest = max((target.name for target in targets.values()), key=lambda name: len(os.fsencode(name)))
        try:
            if len(os.fsencode(longest)) > LONGEST_NAME:
                raise LangdepthError(f"the name of its result, {longest}, is too long; shorten its own")
            for target in targets.values():
                if not (done.owns(target) or done.is_damaged(target)):
                    require_own(target)
        except LangdepthError as error:
            problems.append(LangdepthError(f"{source}: {error}"))
        else:
            jobs.append(Job(source, place, targets, name=out / base))
    return jobs, problems


def follow_names(jobs: list[Job], out: Path, done: Done) -> None:
    """Let results of an earlier run have the names that the images have now, and say so."""
    from langdepth.prediction.results import WRITERS

    ends = [writer.suffix for writer in WRITERS.values()]
    images = [(os.path.abspath(job.source), job.place, job.name) for job in jobs if job.source != STDIN]
    moved = done.follow(images, ends)
    if moved:
        few = first_few([f"{old.relative_to(out)} -> {new.relative_to(out)}" for old, new in moved])
        say(f"{len(moved)} results have other names now, as other images came or went: {few}")
