"""The files of one clip while it is predicted: a folder of frames, whole clips, and where a later run goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from langdepth.commands._video import PredictOutput
from langdepth.errors import LangdepthError
from langdepth.prediction.background import Background
from langdepth.prediction.done import Done
from langdepth.prediction.options import writer_options
from langdepth.prediction.results import WRITERS, DepthResult, require_own, write_result
from langdepth.prediction.video.predicting import FrameResult
from langdepth.prediction.video.sources import OWN
from langdepth.prediction.video.steady import Steady
from langdepth.prediction.video.writing import CLIP_FORMATS, ClipFacts, ClipFile
from langdepth.utils.files import atomic_path, require_marked

TIMES, STATE = "frames.csv", ".langdepth-clip.npz"
_STATE_EVERY = 30  # frames after which what a later run needs is written


@dataclass(frozen=True)
class Place:
    """Where the results of a clip go: name is that of its folder and files without their ends.

    made_of: what they depend on, see ``prediction.done``.
    """

    source: str
    name: Path
    made_of: str

    @property
    def clips(self) -> dict[str, Path]:
        """The file of each format of whole clips."""
        return {kind: self.name.with_name(self.name.name + one.suffix) for kind, one in CLIP_FORMATS.items()}

    def frame(self, index: int, formats: tuple[str, ...]) -> dict[str, Path]:
        """The file of each format of a frame."""
        return {name: self.name / f"{index:06d}{WRITERS[name].suffix}" for name in formats}


@dataclass(frozen=True)
class Begun:
    """What an earlier run has done. frames: how many of the first ones; state: of ``Steady`` after them, or None."""

    frames: int = 0
    state: Mapping[str, Any] | None = None
    complete: bool = False


def begun(place: Place, output: PredictOutput, done: Done) -> Begun:
    """What there is, made of the same. Whole clips are not continued: they are there, or all is done again."""
    clips = [place.clips[kind] for kind in output.clip_formats]
    whole = done.has(clips, place.made_of)
    if not output.frame_formats:
        return Begun(complete=bool(clips) and whole)
    try:
        with np.load(place.name / STATE) as state:
            same = str(state["made_of"]) == place.made_of
            count, complete = int(state["frames"]), bool(state["complete"])
            kept = {name: state[name] for name in ("walk", "level", "grey", "log", "steady") if name in state}
        if "walk" in kept:
            Steady().restored(kept)
    except Exception:  # whatever NumPy raises of a file that is missing, damaged, or of something else
        return Begun()
    files = (place.frame(index, output.frame_formats) for index in range(count))
    if not same or not all(done.has([*targets.values()], place.made_of) for targets in files):
        return Begun()
    if clips:
        return Begun(complete=complete and whole)
    return Begun(count, kept if "walk" in kept else None, complete)


class ClipOutput:
    """Writes what belongs to one clip, in threads; used in a ``with`` block."""

    def __init__(self, place: Place, output: PredictOutput, facts: ClipFacts, done: Done, first: int = 0) -> None:
        self._place, self._output, self._facts, self._done = place, output, facts, done
        self._first, self._written = first, first
        self._frames, self._clips = Background("langdepth-write"), Background("langdepth-encode", 1)
        self.clips = [ClipFile(place.clips[kind], kind, facts) for kind in output.clip_formats]
        for clip in self.clips:
            if not done.owns(clip.path):
                require_marked(clip.path, OWN.encode())
        self._times: io.TextIOWrapper | None = None
        self._state: dict[str, Any] = {}

    def __enter__(self) -> ClipOutput:
        self._frames.__enter__()
        self._clips.__enter__()
        if self._output.frame_formats:
            self._begin_times()
        return self

    def __exit__(self, *error: Any) -> None:
        self._frames.__exit__(*error)
        self._clips.__exit__(*error)
        if self._times is not None:
            with suppress(OSError):
                self._times.close()

    def add(self, frame: FrameResult, state: Mapping[str, Any] | None) -> None:
        """A frame, and what goes on from it. Raises LangdepthError for what could not be written so far."""
        for _ in self._clips.submit(self._encode, frame):
            pass
        if self._output.frame_formats:
            for one, kept in self._frames.submit(self._write, frame, state):
                self._note(one, kept)

    def finish(self) -> None:
        """All frames have come, as far as there are any. Raises LangdepthError."""
        self._flush()
        for clip in self.clips:
            clip.finish()
            if clip.begun:
                self._done.add([clip.path], self._place.made_of, "")

    def complete(self) -> None:
        """A later run has nothing to do. Raises LangdepthError."""
        if self._output.frame_formats:
            self._save_state(self._state, complete=True)

    def cut(self) -> None:
        """It ended before its time: what is there stays, and what can be is kept."""
        with suppress(Exception):
            self._flush()
        for clip in self.clips:
            clip.cut()
        if self._state:
            with suppress(LangdepthError):
                self._save_state(self._state)

    def _flush(self) -> None:
        for _ in self._clips.finish():
            pass
        for one, state in self._frames.finish():
            self._note(one, state)

    @property
    def names(self) -> list[Path]:
        """What has been written."""
        folder = [self._place.name] if self._output.frame_formats and self._written else []
        return folder + [clip.kept for clip in self.clips if clip.begun]

    def _encode(self, frame: FrameResult) -> None:
        for clip in self.clips:
            clip.add(frame.result, frame.time)

    def _write(self, frame: FrameResult, state: Any) -> tuple[FrameResult, Any]:
        targets, result = self._place.frame(frame.number, self._output.frame_formats), frame.result
        for name, path in targets.items():
            if not self._done.owns(path):
                require_own(path)
            write_result(result, path, format=name, **writer_options(name, self._facts.colors, self._facts.unit))
        self._done.add([*targets.values()], self._place.made_of, "")
        return FrameResult(frame.number, frame.time, _without_maps(result)), state

    # Which frame is of which time; where to go on

    def _begin_times(self) -> None:
        path = self._place.name / TIMES
        kept = []
        with suppress(OSError, ValueError, csv.Error), path.open(newline="", encoding="utf-8") as file:
            kept = [row for row in csv.reader(file) if row and row[0].isdecimal() and int(row[0]) < self._first]
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["frame", "time"], *kept])
        self._times = path.open("a", newline="", encoding="utf-8")

    def _note(self, frame: FrameResult, state: Mapping[str, Any] | None) -> None:
        assert self._times is not None
        try:
            csv.writer(self._times).writerow([frame.number, f"{frame.time:.6f}"])
            self._times.flush()
        except OSError as error:
            raise LangdepthError(f"{self._place.name / TIMES}: cannot be written ({error.strerror})") from None
        self._written = frame.number + 1
        if state is not None:
            self._state = {**state, "frames": np.int64(self._written)}
            if self._written % _STATE_EVERY == 0:
                self._save_state(self._state)

    def _save_state(self, state: Mapping[str, Any], complete: bool = False) -> None:
        facts = {"frames": np.int64(self._written), **state, "made_of": self._place.made_of, "complete": complete}
        with atomic_path(self._place.name / STATE, durable=False) as temporary, temporary.open("wb") as file:
            np.savez(file, **facts)


def _without_maps(result: DepthResult) -> DepthResult:
    """A small one, so that waiting lines hold no images."""
    return replace(result, depth=result.depth[:1, :1], valid=result.valid[:1, :1], std=None, sigma=None, image=None)
