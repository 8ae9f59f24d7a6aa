"""``langdepth predict`` for clips: what is predicted of them, and how they end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from langdepth._version import __version__
from langdepth.commands._clip_files import Begun, ClipOutput, Place, begun
from langdepth.commands._progress import bar, complain, say
from langdepth.commands._results import Known, Losses, lost_in
from langdepth.commands._video import PredictOutput
from langdepth.commands._window import Window
from langdepth.errors import LangdepthError, UsageError
from langdepth.prediction.done import Done, origin, stamp
from langdepth.prediction.names import unique_names
from langdepth.prediction.network import usual_focal
from langdepth.prediction.options import PredictOptions
from langdepth.prediction.video import sources
from langdepth.prediction.video.clip import Clip, rate_of
from langdepth.prediction.video.predicting import (
    FrameResult,
    clip_colors,
    first_look,
    look_at,
    predict_frames,
    steady_of,
)
from langdepth.prediction.video.reading import open_clip
from langdepth.prediction.video.sources import ClipOptions
from langdepth.prediction.video.writing import CLIP_FORMATS, ClipFacts, side_by_side
from langdepth.utils.files import make_folder
from langdepth.utils.numbers import short_number

_MILLIMETRE = 0.001
_FIRST = 15  # frames by which the colors of a camera's images are chosen
_ROOM = 2  # times the farthest depth of the first look, that 16 bits hold where depth has no unit


@dataclass(frozen=True, kw_only=True)
class ClipRun:
    """What holds for all clips of a command; by, said: the options of predict of these names."""

    by: Any
    said: Any
    output: PredictOutput
    out: Path
    options: PredictOptions
    chosen: ClipOptions
    resume: bool

    @cached_property
    def done(self) -> Done:
        """The record of results."""
        return Done(self.out)

    @cached_property
    def system(self) -> Any:
        """Loaded when the first clip needs it."""
        system = self.by.load(self.options.device or "auto", self.options.dtype)
        self.output.require_fit(system, self.output.frame_formats, words=self.said.text is not None)
        return system

    @cached_property
    def how(self) -> dict[str, Any]:
        """What ``predict_frames`` takes."""
        metres, text = None, self.said.text
        if self.system.scale_kind != "metric" and text is not None:
            from langdepth.scaling.scale import scaled
            from langdepth.scaling.words import require_known

            require_known(text)
            metres, text = partial(scaled, text=text), None
        words = {"metres": metres, "text": text, "scene": self.said.scene}
        return {**words, "camera": self.output.lens, **vars(self.options), "device": self.options.device or "auto"}

    @cached_property
    def in_metres(self) -> bool:
        """Whether the results are."""
        return self.system.scale_kind == "metric" or self.how["metres"] is not None

    @property
    def needs_look(self) -> bool:
        """Whether something depends on how far away things are in the whole clip."""
        colors = self.output.colored and self.output.colors.minimum is None
        unit = bool(self.output.in_units) and self.output.depth_unit is None and not self.in_metres
        return colors or unit

    def unit(self, look: tuple[float, float, float] | None) -> float:
        """Of the 16-bit depth of a clip: the one given, a millimetre, or what fits where the depth has no unit."""
        if self.output.depth_unit is not None:
            return self.output.depth_unit
        return _MILLIMETRE if self.in_metres or look is None else _ROOM * look[2] / 65535

    def place(self, source: str, name: Path) -> Place:
        """Where the results of a clip go, and what they depend on."""
        output = replace(self.output, show=False)
        options = replace(self.options, device=None, batch_size=1)
        said = [self.said.text, self.said.scene]
        files: list[Any] = [*sources.sequence(source)] if sources.is_pattern(source) else [source]
        content = asdict(output), asdict(options), asdict(self.chosen), [stamp(file) for file in files]
        words = self.by.changes, said, stamp(self.output.camera)
        made_of = origin(__version__, "clip", *self.by.facts(), *words, *content)
        return Place(source, self.out / name, made_of)


def predict_clips(clips: list[str], run: ClipRun) -> int:
    """Depth of clips, one after the other; one that cannot be used is reported, and the exit code is then 1.

    Raises:
        UsageError: For options that are not for clips.
    """
    for option, value in (("captions", run.said.captions), ("base", run.by.maps)):
        if value is not None:
            raise UsageError(f"--{option} has a file for each image; of a video leave it out, or take its frames apart")
    if run.resume and any(sources.is_live(clip) for clip in clips):
        raise UsageError("--resume is of files; a camera shows something else each time")
    names = unique_names([sources.place_of(clip) for clip in clips], [one.suffix for one in CLIP_FORMATS.values()])
    run.by.fetch_weights()
    failed = 0
    with _terminated_like_interrupted():
        for source, place in zip(clips, names, strict=True):
            try:
                failed += not _predict_clip(source, place, run)
            except UsageError:
                raise
            except LangdepthError as error:
                complain(error)
                failed += 1
    return 1 if failed else 0


def _predict_clip(source: str, name: Path, run: ClipRun) -> bool:
    """One clip; whether all of it could be used. Raises LangdepthError."""
    clip = open_clip(source, run.chosen)
    with closing(clip):
        place = run.place(source, name)
        earlier = begun(place, run.output, run.done) if run.resume else Begun()
        if earlier.complete:
            say(f"{source} was already done")
            return True
        _ = run.system  # and what does not go with it is known before anything is written
        if run.output.frame_formats or run.output.clip_formats:
            make_folder(run.out)
            run.done.start()
        if earlier.frames:
            say(f"{source}: {earlier.frames} frames were already done")
        window = Window(source) if run.output.show else None
        tally = _Tally((*run.output.frame_formats, *run.output.clip_formats))
        try:
            _run(clip, place, earlier, run, window, tally)
        finally:
            if window is not None:
                window.close()
    for problem in clip.problems:
        complain(problem)
    return not clip.problems


def _run(clip: Clip, place: Place, earlier: Begun, run: ClipRun, window: Window | None, tally: _Tally) -> None:
    steady = steady_of(clip)
    if steady is not None and earlier.state is not None:
        steady.restored(earlier.state)
    look = first_look(run.system, clip, **run.how) if run.needs_look else None
    decoded = clip.frames(earlier.frames)
    frames = predict_frames(run.system, clip, decoded, steady=steady, **run.how)
    with closing(decoded), closing(frames):
        coming: Iterable[FrameResult] = frames
        goes_on = run.output.frame_formats and not clip.live
        if look is None and run.needs_look:
            first = list(islice(frames, _FIRST))
            look, goes_on = look_at(frame.result for frame in first), False
            coming = chain(first, frames)
        facts = ClipFacts(clip_colors(run.output.colors, look), run.unit(look), rate_of(clip))
        with ClipOutput(place, run.output, facts, run.done, earlier.frames) as files:
            try:
                with bar(clip.count and clip.count - earlier.frames, "frame") as advance, _ended_by_hand(clip):
                    for frame in coming:
                        files.add(frame, _state(steady) if goes_on else None)
                        tally.add(frame, facts.unit)
                        advance()
                        if window is not None and not window.show(side_by_side(frame.result, facts)):
                            break
                files.finish()
                if not clip.live and not clip.problems:
                    files.complete()
            except BaseException:
                files.cut()
                if files.names:
                    complain(f"{clip.name}: ended after {tally.count} frames; kept: {', '.join(map(str, files.names))}")
                raise
            say(tally.line(clip, files))
            for loss in tally.losses.lines:
                complain(f"{clip.name}: {loss}")
            run.output.say_cameras(
                {} if tally.camera is None else {tally.camera: tally.count},
                keep_distortion=run.options.keep_distortion,
                metres=usual_focal(run.system) is not None,
                thing="frame",
            )


def _state(steady: Any) -> dict[str, Any]:
    return {"steady_off": np.True_} if steady is None else steady.state()


@contextmanager
def _ended_by_hand(clip: Clip) -> Iterator[None]:
    """Ctrl-C is the common end of a camera, and no interruption."""
    try:
        yield
    except KeyboardInterrupt:
        if not clip.live:
            raise


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Inside, SIGTERM does what Ctrl-C does, so that clips are closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Tally:
    """What is printed of a clip."""

    def __init__(self, formats: Iterable[str] = ()) -> None:
        self._formats, self.losses = tuple(formats), Losses("frame")
        self.count, self._first, self._last, self._skies = 0, 0.0, 0.0, 0
        self._low, self._high = np.inf, 0.0
        self._medians: list[float] = []
        self._unit = "m"
        self.camera: Known | None = None

    def add(self, frame: FrameResult, unit: float) -> None:
        """A frame that was predicted. ``unit``: of 16-bit depth."""
        self._first, self._last = frame.time if self.count == 0 else self._first, frame.time
        self.count += 1
        self._skies += bool(frame.result.provenance.get("sky"))
        self.camera = Known.of(frame.result)
        self.losses.add(lost_in(frame.result, self._formats, unit))
        self._unit = "m" if frame.result.scale_kind == "metric" else "(relative)"
        depth = frame.result.depth[frame.result.valid]
        if depth.size:
            self._low, self._high = min(self._low, float(depth.min())), max(self._high, float(depth.max()))
            self._medians.append(float(np.median(depth)))

    def line(self, clip: Clip, files: ClipOutput) -> str:
        """The summary."""
        made = f" -> {', '.join(map(str, files.names))}" if files.names else ""
        line = f"{clip.name}{made}; {self.count} frames, second {self._first:.2f} to {self._last:.2f}"
        if self._medians:
            middle = np.median(self._medians)
            numbers = " / ".join(map(short_number, (self._low, middle, self._high)))
            line += f"; depth {numbers} {self._unit} (min / median / max)"
        if self._skies:
            line += f"; sky has no value in {self._skies} of {self.count} frames"
        if clip.dropped:
            line += f"; {clip.dropped} frames were dropped, as they came faster than they were predicted"
        return line
