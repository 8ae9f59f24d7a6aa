"""``langdepth predict``: depth of images, folders, globs, stdin or clips, written to files."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from langdepth._version import __version__
from langdepth.commands._jobs import Job, find_jobs, follow_names, say_how_read, with_captions, with_overlays
from langdepth.commands._parse import members, require_use, run
from langdepth.commands._progress import bar, complain, say
from langdepth.commands._results import Known, Losses, ResultOptions, result_line
from langdepth.commands._systems import SystemOptions
from langdepth.commands._video import PredictOutput, require_of_clips
from langdepth.errors import LangdepthError, UsageError
from langdepth.prediction.background import Background
from langdepth.prediction.done import Done, origin, stamp
from langdepth.prediction.inputs import STDIN
from langdepth.prediction.options import Precision, PredictOptions
from langdepth.prediction.video.sources import ClipOptions, is_clip
from langdepth.records import Runtime, WithoutCaption
from langdepth.utils.files import make_folder

if TYPE_CHECKING:
    from langdepth.prediction.results import DepthResult, Lost

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
    failed = 0
    if clips:
        from langdepth.commands._clips import ClipRun, predict_clips

        run = ClipRun(by=by, said=said, output=output, out=out, options=options, chosen=clip, resume=resume)
        failed = predict_clips(clips, run)
    if images:
        asked = ImageRun(by=by, said=said, overlay=overlay, output=output, out=out, options=options)
        failed |= predict_images(images, asked, recursive=recursive, resume=resume)
    return failed


@dataclass(frozen=True, kw_only=True)
class ImageRun:
    """What is asked for the images, see ``predict``."""

    by: PredictSystem
    said: Said
    overlay: Path | None
    output: PredictOutput
    out: Path
    options: PredictOptions


def predict_images(images: list[str], run: ImageRun, *, recursive: bool, resume: bool) -> int:
    """Predict images and write their files; the exit code."""
    done = Done(run.out)
    jobs, problems = _jobs(images, run, done, recursive)
    known = len(jobs)
    if resume:
        follow_names(jobs, run.out, done)
        jobs = [job for job in jobs if job.source == STDIN or not done.has([*job.targets.values()], job.made_of)]
    if known > len(jobs):
        say(f"{known - len(jobs)} of {known} images were already done")
    failed = len(problems)
    if jobs:
        results, metres_by_camera = _results(jobs, run, done)
        failed += _write_all(results, len(jobs), run, done, metres_by_camera)
        if known + len(problems) > 1:
            say(f"{known + len(problems) - failed} done, {failed} failed, results in {run.out}")
    return 1 if failed else 0


def _jobs(images: list[str], run: ImageRun, done: Done, recursive: bool) -> tuple[list[Job], list[LangdepthError]]:
    """The images with what is said about each, and what is wrong with the others."""
    by, said, output = run.by, run.said, run.output
    changes = by.changes
    jobs, problems = find_jobs(images, run.out, output.suffixes, recursive, done)
    for problem in problems:
        complain(problem)
    if run.overlay is not None or by.maps is not None:
        jobs = with_overlays(jobs, run.overlay, by.maps)
    if said.captions is not None:
        jobs = with_captions(jobs, said.captions, said.without_caption or "stop", problems)
    if jobs:
        by.fetch_weights()
    content = asdict(output) | {"save": None}, asdict(replace(run.options, device=None, batch_size=1))
    how = origin(__version__, *by.facts(), changes, said.text, said.scene, stamp(output.camera), *content)
    return [replace(job, made_of=job.origin(how)) for job in jobs], problems


def _results(
    jobs: list[Job], run: ImageRun, done: Done
) -> tuple[Generator[tuple[Job, DepthResult | LangdepthError]], bool]:
    """Load the system and predict: images come as they are taken. And whether their cameras decide about metres."""
    from langdepth.prediction.network import usual_focal
    from langdepth.prediction.predictor import predict_stream
    from langdepth.prediction.results import WRITERS

    by, said, output = run.by, run.said, run.output
    options = replace(run.options, device=run.options.device or "auto")
    system = by.load(options.device, options.dtype)
    metres_by_camera = usual_focal(system) is not None
    output.require_fit(system, output.formats, words=said.text is not None or said.captions is not None)
    make_folder(run.out)
    done.start()
    if by.maps is not None and by.depth_kind is None:
        say_how_read(jobs[0].overlay)
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
    return _in_metres(results, said.text) if in_metres else results, metres_by_camera


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
    run: ImageRun,
    done: Done,
    metres_by_camera: bool,
) -> int:
    """Write the results of ``count`` images and print a line for each; returns how many failed."""
    failed, cameras, losses, skies, output = 0, Counter[Known](), Losses(), 0, run.output
    with bar(count) as advance:
        for line in written(results, output, done):
            advance()
            if isinstance(line, LangdepthError):
                failed += 1
                complain(line)
            else:
                say(line.text)
                cameras[line.camera] += 1
                skies += line.sky
                losses.add(line.lost)
    if skies and count > 1:
        say(f"sky has no value in {skies} of {sum(cameras.values())} images; --sky keep gives it what the system does")
    for loss in losses.lines:
        complain(loss)
    output.say_cameras(cameras, keep_distortion=run.options.keep_distortion, metres=metres_by_camera)
    return failed


class Line(NamedTuple):
    """What is printed of an image whose files are there."""

    text: str
    camera: Known
    lost: dict[str, Lost]
    sky: bool


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
    sky = bool(result.provenance.get("sky"))
    return Line(result_line(job.source, job.targets, result), Known.of(result), output.lost(result), sky)
