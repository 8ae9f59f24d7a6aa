"""``langdepth predict``: depth of images, folders, globs, stdin or clips, written to files."""

from __future__ import annotations

import errno
import os
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from langdepth._version import __version__
from langdepth.commands._parse import members, require_use, run
from langdepth.commands._progress import bar, complain, say
from langdepth.commands._results import ResultOptions, make_folder, result_line
from langdepth.commands._systems import SystemOptions
from langdepth.commands._video import PredictOutput, require_of_clips
from langdepth.errors import LangdepthError, UsageError, first_few
from langdepth.prediction.background import Background
from langdepth.prediction.done import Done, origin, stamp
from langdepth.prediction.inputs import STDIN, find_images
from langdepth.prediction.names import unique_names
from langdepth.prediction.options import Precision, PredictOptions
from langdepth.prediction.video.sources import ClipOptions, is_clip
from langdepth.records import Runtime, WithoutCaption
from langdepth.utils.files import LONGEST_NAME

if TYPE_CHECKING:
    from langdepth.prediction.results import DepthResult
    from langdepth.prediction.words import Words

# What the system says about a name that cannot be, and not about the disk.
_OF_THE_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL, errno.ELOOP)
EXAMPLE = """
langdepth predict photo.jpg --text "a kitchen with a sink" --out depth
langdepth predict photos --recursive --save depth16,npz --out depth --resume
langdepth predict photo.jpg --save html --out page
langdepth predict clip.mp4 --save depth-video,side-by-side --out depth
langdepth predict photos --save color --range 0,10 --colormap viridis --out depth
langdepth predict photo.jpg --system depthclip --clip-weights RN50.pt --words "near,far" --bins 1,3 --out words
"""


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(predict, arguments, "langdepth predict", EXAMPLE)


@dataclass(frozen=True, kw_only=True)
class PredictSystem(SystemOptions):
    """What predicts.

    Args:
        depth_kind: What the numbers of a transformers model or of relative maps are where nothing else says it: metres,
            depth up to a factor, or disparity (the larger the nearer; what maps are taken for). Only metres are written
            as metres.
        runtime: What computes it: torch, onnx or openvino; auto takes the fastest of those that are installed and can.
    """

    runtime: Runtime = "auto"

    def facts(self) -> list[Any]:
        """What its depth depends on beside ``changes``."""
        from langdepth.weights.stamps import content_stamp, weights_stamp

        base = None if self.base_system is None else weights_stamp(self.base_system)
        weights = [weights_stamp(name) for name in members(self.system)]
        clip = None if self.clip_weights is None else content_stamp(self.clip_weights)
        return [self.runtime, weights, clip, self.depth_kind, base]

    def load(self, device: str, dtype: Precision) -> Any:
        """The system."""
        from langdepth.runtimes.opening import load

        system = load(
            members(self.system),
            runtime=self.runtime,
            device=device,
            dtype=dtype,
            clip_weights=self.clip_weights,
            prompts=self.changes,
            base=self.base_system,
            depth_kind=self.depth_kind,
        )
        self.require_base_used(system)
        return system


@dataclass(frozen=True, kw_only=True)
class Said:
    """What is said about the images.

    Args:
        text: A sentence about the images, for example "a kitchen with a sink"; without it the image alone is used.
        captions: The caption of each image: a folder of NAME.txt or a CSV with the columns image and caption; or
            captions with CLIP features, as evaluate takes them.
        without_caption: What happens to an image without one: stop (it is reported and skipped; the default), or
            neutral (it is predicted without words).
        scene: The name of the scene the images show, for example kitchen.
    """

    text: str | None = None
    captions: Path | None = None
    without_caption: WithoutCaption | None = None
    scene: str | None = None

    def __post_init__(self) -> None:
        advice = "is of captions; give --captions, too"
        require_use(self.captions is not None, advice, without_caption=self.without_caption)
        if self.text is not None and self.captions is not None:
            raise UsageError("--text and --captions both say what the images show; give one of them")


def predict(
    images: list[str],
    *,
    by: PredictSystem,
    said: Said,
    overlay: Path | None = None,
    output: PredictOutput,
    clip: ClipOptions,
    out: Path = Path("depth"),
    options: PredictOptions,
    recursive: bool = False,
    resume: bool = False,
) -> int:
    """Depth in metres of images and videos, written to files.

    One line per image says where the files are, its depth range and recognised scene. An image that
    cannot be used is reported and skipped; the exit code is then 1.

    Args:
        images: Image files, folders, quoted globs, or - for one image on stdin; video files, numbered images
            (frames_%04d.png), cameras (webcam:0) and streams (rtsp://..., http://...).
        by: What predicts.
        said: What is said about the images.
        overlay: For systems that take one (msa-sam): the image with masks drawn over it, or the masks (.npz); for
            many images the folder that "langdepth data sam" wrote, or one with files of the same names.
        output: Which files are written of each image and video.
        clip: Which frames of videos are predicted.
        out: Folder for the results; sub-folders of the input are kept.
        options: How depth is predicted.
        recursive: Look into the sub-folders of folders.
        resume: Skip images whose results are all there, made of the same image with the same options and weights.
            Results whose name is another one by now, as other images came or went, are renamed. The frames of videos
            are gone on with.
    """
    advice = "is for a camera whose lens bends the image; give its file with --camera"
    require_use(output.bends, advice, keep_distortion=options.keep_distortion or None)
    if overlay is not None and by.base is not None:
        raise UsageError("--overlay and --base are for different systems; give one of them")
    clips, images = [word for word in images if is_clip(word)], [word for word in images if not is_clip(word)]
    require_of_clips(clips, images, clip, output, overlay)
    failed_clips = 0
    if clips:
        from langdepth.commands._clips import ClipRun, predict_clips

        run = ClipRun(by=by, said=said, output=output, out=out, options=options, chosen=clip, resume=resume)
        failed_clips = predict_clips(clips, run)
        if not images:
            return failed_clips
    changes, done = by.changes, Done(out)
    jobs, problems = find_jobs(images, out, output.suffixes, recursive, done)
    for problem in problems:
        complain(problem)
    if overlay is not None or by.maps is not None:
        jobs = _with_overlays(jobs, overlay, by.maps)
    if said.captions is not None:
        jobs = _with_captions(jobs, said.captions, said.without_caption or "stop", problems)
    known = len(jobs)
    if jobs:
        by.fetch_weights()
    content = asdict(output) | {"save": None}, asdict(replace(options, device=None, batch_size=1))
    how = origin(__version__, *by.facts(), changes, said.text, said.scene, stamp(output.camera), *content)
    jobs = [replace(job, made_of=job.origin(how)) for job in jobs]
    if resume:
        _follow_names(jobs, out, done)
        jobs = [job for job in jobs if job.source == STDIN or not done.has([*job.targets.values()], job.made_of)]
    if known > len(jobs):
        say(f"{known - len(jobs)} of {known} images were already done")
    if not jobs:
        return 1 if problems or failed_clips else 0

    from langdepth.prediction.network import considers_cameras
    from langdepth.prediction.predictor import predict_stream
    from langdepth.prediction.results import WRITERS

    options = replace(options, device=options.device or "auto")
    system = by.load(options.device, options.dtype)
    if not considers_cameras(system):
        output.require_camera_use(f" with '{system.name}'")
    make_folder(out)
    done.start()
    if by.maps is not None and by.depth_kind is None:
        _say_how_read(jobs[0].overlay)
    text = said.text if said.captions is None else lambda job: job.caption
    in_metres = system.scale_kind != "metric" and text is not None
    if in_metres and said.text is not None:
        from langdepth.scaling.words import require_known

        require_known(said.text)
    results = predict_stream(
        system,
        jobs,
        read=Job.open,
        text=None if in_metres else text,
        scene=said.scene,
        camera=output.lens,
        overlay=lambda job: job.overlay,
        keep_image=any(WRITERS[name].image for name in output.formats),
        **vars(options),
    )
    if in_metres:
        results = _in_metres(results, said.text)
    failed = len(problems) + _write_all(results, len(jobs), output, options, done)
    if known + len(problems) > 1:
        say(f"{known + len(problems) - failed} done, {failed} failed, results in {out}")
    return 1 if failed or failed_clips else 0


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


# Before the work: options, inputs, names of outputs.


def _with_overlays(jobs: list[Job], masks: Path | None, maps: Path | None) -> list[Job]:
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


def _say_how_read(relative_map: Path | None) -> None:
    """Say what maps are taken for that do not say it themselves; one stands for all."""
    from langdepth.utils.depth_files import read_map

    with suppress(LangdepthError):  # which the image's own line says
        if relative_map is not None and read_map(relative_map)[1] is None:
            how = "taken for disparity, the larger the nearer; --depth-kind says otherwise"
            complain(f"{relative_map}: does not say what it holds: {how}")


def _with_captions(jobs: list[Job], source: Path, without: WithoutCaption, problems: list[LangdepthError]) -> list[Job]:
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


def _follow_names(jobs: list[Job], out: Path, done: Done) -> None:
    """Let results of an earlier run have the names that the images have now, and say so."""
    from langdepth.prediction.results import WRITERS

    ends = [writer.suffix for writer in WRITERS.values()]
    images = [(os.path.abspath(job.source), job.place, job.name) for job in jobs if job.source != STDIN]
    moved = done.follow(images, ends)
    if moved:
        few = first_few([f"{old.relative_to(out)} -> {new.relative_to(out)}" for old, new in moved])
        say(f"{len(moved)} results have other names now, as other images came or went: {few}")


def _in_metres(
    results: Generator[tuple[Job, DepthResult | LangdepthError]], text: str | None
) -> Generator[tuple[Job, DepthResult | LangdepthError]]:
    """Relative results in metres by what is said about their images; as they are where nothing is."""
    from langdepth.scaling.scale import scaled

    with closing(results):
        for job, result in results:
            sentence = text if job.caption is None else job.caption.sentence
            if sentence and not isinstance(result, LangdepthError):
                try:
                    result = scaled(result, sentence)
                except LangdepthError as error:
                    named = str(error).startswith(f"{job.source}: ")
                    result = error if named else LangdepthError(f"{job.source}: {error}")
            yield job, result


# The work: write in the background while the next images are predicted.


def _write_all(
    results: Generator[tuple[Job, DepthResult | LangdepthError]],
    count: int,
    output: ResultOptions,
    options: PredictOptions,
    done: Done,
) -> int:
    """Write the results of ``count`` images and print a line for each; returns how many failed."""
    failed, cameras, clipped = 0, Counter[str](), list[int]()
    with bar(count) as advance:
        for line in written(results, output, done):
            advance()
            if isinstance(line, LangdepthError):
                failed += 1
                complain(line)
            else:
                say(line.text)
                cameras[line.camera] += 1
                clipped += [line.clipped] if line.clipped else []
    if clipped:
        images = f"{len(clipped)} image{'s' * (len(clipped) > 1)}"
        complain(f"depth16: {sum(clipped)} pixels of {images} lie beyond its reach, see the warning")
    if cameras and (output.with_camera or output.camera):
        said = output.camera_line(cameras, straightened=output.bends and not options.keep_distortion)
        if "guess" in cameras:
            complain(said)
        else:
            say(said)
    return failed


class Line(NamedTuple):
    """What is printed of an image whose files are there."""

    text: str
    camera: str
    clipped: int


def written(
    results: Generator[tuple[Job, DepthResult | LangdepthError]], output: ResultOptions, done: Done
) -> Iterator[Line | LangdepthError]:
    """A line per image once its files are there, or the error. A place that cannot be written ends the run."""
    with Background("langdepth-write") as pool, closing(results):  # no more results before the threads are left
        for job, result in results:
            if isinstance(result, LangdepthError):
                yield result
            else:
                yield from pool.submit(_write, job, result, output, done)
        yield from pool.finish()


def _write(job: Job, result: DepthResult, output: ResultOptions, done: Done) -> Line | LangdepthError:
    """Write the files of one image; the error, where it is only this image that has no file.

    Raises LangdepthError where others would fail as well.
    """
    try:
        output.write(result, job.targets)
    except MemoryError:
        return LangdepthError(f"{job.source}: not enough memory to write its results")
    except LangdepthError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _OF_THE_NAME:
            return LangdepthError(f"{job.source}: {error}")
        raise
    image = "" if job.source == STDIN else os.path.abspath(job.source)
    done.add([*job.targets.values()], job.made_of, image)
    source = "guess" if result.camera is None else result.camera.source
    return Line(result_line(job.source, job.targets, result), source, output.clipped(result))
