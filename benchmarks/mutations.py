"""What thousands of damaged and hostile inputs do to the commands: a seeded campaign, counted by kind of file.

Every case writes a small input, changes it (bytes, fields of headers, values that are valid but absurd), and runs one
command on it in a process of its own, with 4 GB of memory above what the imports take and 20 seconds. What comes out is
compared with what must hold:

accepted         exit code 0 and results that are right: finite depth of the image's size, the same as an independent
                 reader of the same file gives, the same depth for the same pixels
refused          exit code 1 or 2 and one line for each thing that is wrong, in words of the library
traceback        an error that nobody foresaw
crash            the process ended by a signal
hang             more than 20 seconds
memory           more than 4 GB, or "not enough memory" below that
damaged file     a file under its final name that cannot be read, or one of a name that is still being written
outside          something written beside the place that was named for results
nonsense         accepted, but not right; or refused although it is whole
poor line        no line, no file or option in it, a line of another library, or hundreds of characters too many

    python benchmarks/mutations.py --cases 500 --seed 1
    python benchmarks/mutations.py --cases 40 --seed 1 --kind weights --keep faults
    python benchmarks/mutations.py --seed 1 --only weights:17 --keep faults     # one case again

The exit code is 1 where any fault was found. ``--keep`` leaves the inputs of faults, the command and its output.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import ROOT, parser, use_threads, write
from hostile.archives import archives
from hostile.cameras import cameras
from hostile.cases import LONGEST_LINE, OTHERS, SECONDS, Case, Outcome, Random, pool, state
from hostile.command_lines import command_lines
from hostile.depth import containers, depth_files
from hostile.images import images
from hostile.own_files import own_files
from hostile.recipes import recipe_fields, recipes
from hostile.service import service
from hostile.sets import SET, plain_set, write_index
from hostile.texts import indexes, lists
from hostile.videos import clip_content, videos
from hostile.weights import checkpoints, weights

GOOD = ("accepted", "refused")
FAULTS = pool("traceback|crash|hang|memory|damaged file|outside|nonsense|poor line", "|")
MEMORY = 4_000_000_000

KINDS: dict[str, tuple[Callable[[Random, Path], Case], int]] = {  # and its share of the cases
    "images": (images, 22),
    "depth": (depth_files, 16),
    "containers": (containers, 5),
    "indexes": (indexes, 10),
    "lists": (lists, 9),
    "recipes": (recipes, 11),
    "weights": (weights, 9),
    "checkpoints": (checkpoints, 6),
    "archives": (archives, 10),
    "own files": (own_files, 8),
    "command lines": (command_lines, 10),
    "videos": (videos, 12),
    "cameras": (cameras, 8),
    "service": (service, 6),
}


def prepare(folder: Path) -> None:
    """Import what the commands import and write the weights that cases change, so that each case only forks."""
    sys.path.insert(0, str(ROOT))
    import av
    import h5py  # noqa: F401
    import python_multipart  # noqa: F401
    import scipy.io  # noqa: F401
    import torch
    from PIL import Image
    from tests.helpers import Learner

    from langdepth.data.sets import nyu
    from langdepth.serving import server  # noqa: F401
    from langdepth.systems import card, registry
    from langdepth.systems.capabilities import ConvertsOfficial

    class Small(Learner, ConvertsOfficial):
        """Its checkpoints have our names."""

        name = "small"

        def convert_official(self, state_dict: Mapping[str, Any]) -> Any:
            own = self.state_dict()
            report = {"used": [k for k in state_dict if k in own], "ignored": [k for k in state_dict if k not in own]}
            report["missing"] = [k for k in own if k not in state_dict]
            return {k: v for k, v in state_dict.items() if k in own}, report

    Image.init()
    av.logging.set_level(None)
    state["Small"] = Small
    sys.modules["mutations_small"] = type(sys)("mutations_small")
    sys.modules["mutations_small"].Small = Small  # type: ignore[attr-defined]
    registry.REGISTRY["small"] = card.Entry(name="small", target="mutations_small:Small", summary="small", paper="none")
    torch.manual_seed(0)
    state["small system"] = registry.build("small").eval()
    state["small file"] = state["small system"].save(folder / "small.safetensors")
    state["tiny file"] = registry.entry("tiny").weights.path  # type: ignore[union-attr]
    state["small"] = str(state["small file"])
    nyu.CARD = replace(nyu.CARD, splits={"train": 1, "test": 1})  # as many as the cases' files have
    _warm(folder)


def _warm(folder: Path) -> None:
    """Run the commands once, so that what they import late is there."""
    from langdepth import cli

    work = folder / "warm"
    work.mkdir()
    plain_set(work, Random(0))
    (work / "clip.mp4").write_bytes(clip_content(Random(0), work)[1])
    (work / "camera.txt").write_text("60 0 31.5\n0 60 23.5\n0 0 1\n")
    small, root = ["--system", state["small"]], ["--root", str(work / "set")]
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        for argv in (
            ["predict", str(work / "set/good.png"), "--out", str(work / "out"), "--save", "npy,npz,color,ply", *small],
            ["predict", str(work / "clip.mp4"), "--out", str(work / "out"), "--save", "npy,depth-video", *small],
            [
                "predict",
                str(work / "set/good.png"),
                "--out",
                str(work / "out"),
                "--camera",
                str(work / "camera.txt"),
                "--save",
                "npz,normals",
                *small,
            ],
            ["evaluate", *root, "--data", "folder", "--out", str(work / "r.json"), *small],
            ["data", "check", str(work / "set")],
            ["data", "prepare", "folder", "--source", "missing", "--out", str(work / "out")],
            ["convert", "missing.pth", "--system", "small", "--out", "w.safetensors"],
            ["train", "--config", "missing.yaml"],
            ["imagine", "a room", "--samples", "1", "--out", str(work / "out")],
            ["benchmark", "missing.yaml", "--out", str(work / "out")],
        ):
            cli.main(argv)
        state["own"] = folder / "own"
        _write_own(state["own"])
    gc.freeze()


def _write_own(folder: Path) -> None:
    """What commands leave and read again: a cache, a finished table, a paused training, packed captions."""
    import numpy as np
    import torch
    import yaml

    from langdepth import cli

    folder.mkdir()
    plain_set(folder, Random(0))
    write_index(
        folder / "set", [{**SET[0], "split": "train", "source": "a"}, {**SET[1], "split": "val", "source": "a"}]
    )
    matrix = {
        "data": [{"root": "set", "data": "folder", "protocols": ["full"]}],
        "systems": [{"system": state["small"]}],
    }
    (folder / "matrix.yaml").write_text(yaml.safe_dump(matrix))
    recipe = recipe_fields(Random(0))
    recipe["system"]["name"] = "small"
    recipe["train"] |= {"epochs": 2, "out": "out/run"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    torch.save(state["small system"].state_dict(), folder / "whole.pth")
    features = np.eye(2, 8, dtype=np.float16)
    np.savez(folder / "features.npz", caption=np.array(["a room", "a street"]), feature=features)
    (folder / "captions.csv").write_text("image,caption\ngood,a room\nchanged,a street\n")
    here = Path.cwd()
    os.chdir(folder)
    for line in (
        "data cache folder --root set --out out/cache",
        "convert whole.pth --system small --out whole.safetensors",
        "benchmark matrix.yaml --out out/matrix",
        "train --config recipe.yaml --train.max_steps 1",
        "data pack-captions --text captions.csv --features features.npz --out out/packed",
    ):
        if cli.main(line.split()):
            raise SystemExit(f"the campaign cannot start: {line}")
    os.chdir(here)


def evaluated(case: Case, outcome: Outcome, before: Mapping[str, Any], peak: int) -> tuple[str, str]:
    """The kind of outcome, and what is wrong about it."""
    text = outcome.out + outcome.err
    if "Traceback" in text or "not foreseen" in text:
        return "traceback", next(line for line in text.splitlines()[::-1] if line.strip())
    if peak > MEMORY or "not enough memory" in text:
        return "memory", f"{peak / 1e6:,.0f} MB"
    if outcome.code not in (0, 1, 2):
        return "crash", f"exit code {outcome.code}"
    after = snapshot(outcome.folder)
    beside = [name for name in after if after[name] != before.get(name) and not name.startswith("work/out")]
    beside += [name for name in before if name not in after and not name.startswith("work/out")]
    if beside and "train.out = " not in case.change:  # which says where else it may write
        return "outside", ", ".join(beside[:3])
    for path in sorted((outcome.folder / "work/out").rglob("*")):
        name = str(path.relative_to(outcome.folder))
        flaw = damage(path) if after[name] != before.get(name) else None
        if flaw:
            return "damaged file", f"{path.name}: {flaw}"
    poor = poor_line(outcome, case.argv)
    if poor:
        return "poor line", poor
    wrong = case.right(outcome) if outcome.code == 0 or (case.partly and outcome.code == 1) else None
    return ("nonsense", wrong) if wrong else ("accepted" if outcome.code == 0 else "refused", "")


def snapshot(folder: Path) -> dict[str, Any]:
    """What lies in the folder of a case, with sizes and times."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            status = os.lstat(path)
            found[os.path.relpath(path, folder)] = (
                status.st_mode,
                None if name in folders else (status.st_size, status.st_mtime_ns),
            )
    return found


def damage(path: Path) -> str | None:
    """What is wrong about a file under its final name."""
    import numpy as np
    from PIL import Image

    if ".partial" in path.name and "target" not in path.parts:
        return "is left half-written"
    if not path.is_file() or "target" in path.parts or "c" in path.parts or "cache" in path.parts:
        return None
    try:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".npy":
            np.load(path)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                [arrays[name] for name in arrays]
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            load_file(path)
        elif path.suffix in (".mkv", ".mp4"):
            import av

            with av.open(str(path)) as container:
                return None if any(True for _ in container.decode(video=0)) else "has no frames"
    except Exception as error:
        return str(error)
    return None


def poor_line(outcome: Outcome, argv: Sequence[str]) -> str | None:
    """Which line is no message of the library's."""
    lines = [line for line in outcome.err.splitlines() if not re.fullmatch(r"\d+ of \d+ \w+", line)]  # progress
    if outcome.code and not lines and not outcome.out:
        return "nothing is said"
    if outcome.code == 2 and sum(not re.match(r"skipped: |[a-z ]+: warning: ", line) for line in lines) != 1:
        return f"{len(lines)} lines for wrong usage"
    for line in lines:
        if not re.match(r"(langdepth( [a-z-]+){0,2}|skipped): |camera unknown for ", line):
            return f"a line of somebody else: {line[:300]}"
    for line in (*lines, *(outcome.out.splitlines() if outcome.code else ())):
        other = OTHERS.search(line)
        if other and other[0] not in " ".join(argv):
            return f"'{other[0]}' in: {line[:300]}"
        holds_all = argv[0] == "benchmark" or "--json" in argv
        if len(line) > LONGEST_LINE + max(map(len, argv)) and not holds_all:
            return f"{len(line)} characters: {line[:200]}"
        if not line.isprintable():
            return f"characters that steer a terminal: {line[:200]!r}"
    return None


def child(kind: str, number: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run one case; in a process of its own, which may die of it."""
    from langdepth import cli

    rng = Random(f"{seed}:{kind}:{number}")
    work = folder / "work"
    work.mkdir()
    (folder / "tmp").mkdir()
    os.environ |= {"TMPDIR": str(folder / "tmp"), "HOME": str(folder / "tmp"), "HF_HUB_OFFLINE": "1"}
    tempfile.tempdir = None
    outputs = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err")]
    saved = [os.dup(stream) for stream in (1, 2)]
    for stream, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), stream)
    case = KINDS[kind][0](rng, work)
    if rng.random() < 0.9:  # drawing takes most of an evaluation's time, and of what a case changes it sees nothing
        for name in ("plot_error_by_range", "write_figure"):
            setattr(sys.modules["langdepth.evaluation.evaluate"], name, lambda *_, **__: None)
    for stream in (1, 2):
        os.ftruncate(stream, 0)  # what the making of the case said
    (work / "out").mkdir(exist_ok=True)
    os.chdir(work)
    before = snapshot(folder)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    since = time.monotonic()
    signal.alarm(SECONDS)
    code = cli.main(case.argv)
    signal.alarm(0)
    sys.stdout.flush()
    sys.stderr.flush()
    seconds = time.monotonic() - since
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for stream, kept in zip((1, 2), saved, strict=True):
        os.dup2(kept, stream)
    texts = [path.read_text(errors="surrogateescape") for path in outputs]
    outcome = Outcome(code, *texts, folder)
    facts = {"argv": case.argv, "change": case.change, "code": code, "seconds": seconds, "megabytes": peak / 1e6}
    try:
        found, why = evaluated(case, outcome._replace(folder=folder), before, peak)
    except Exception as error:
        import traceback

        found, why = (
            "nonsense",
            f"the results cannot be evaluated: {type(error).__name__}: {error} {traceback.format_exc()[-600:]}",
        )
    return {**facts, "found": found, "why": why, "out": texts[0][-3000:], "err": texts[1][-3000:]}


def one(kind: str, number: int, seed: int, base: Path) -> dict[str, Any]:
    """What became of a case. It runs in a fork, which is ended with its own children where it takes too long."""
    folder = base / f"{kind.replace(' ', '-')}-{number}"
    folder.mkdir()
    receive, send = os.pipe()
    process = os.fork()
    if not process:
        status = 70
        try:
            os.setsid()
            os.close(receive)
            result = child(kind, number, seed, folder)
            with os.fdopen(send, "w") as stream:
                json.dump(result, stream)
            status = 0
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(send)
    text = b""
    deadline = time.monotonic() + 3 * SECONDS
    while (left := deadline - time.monotonic()) > 0 and select.select([receive], [], [], left)[0]:
        block = os.read(receive, 1 << 16)
        if not block:
            break
        text += block
    os.close(receive)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL) if time.monotonic() > deadline else None
    _, status = os.waitpid(process, 0)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)
    result: dict[str, Any] = json.loads(text) if text else {"argv": [], "change": "", "seconds": 0.0, "megabytes": 0.0}
    if not text:
        ended = os.waitstatus_to_exitcode(status)
        result["found"] = "hang" if ended in (-signal.SIGALRM, -signal.SIGKILL) else "crash"
        outputs = [base / f"{folder.name}.{name}" for name in ("out", "err")]
        result["why"] = f"ended with {ended}"
        result |= {path.suffix[1:]: path.read_text(errors="replace")[-3000:] for path in outputs if path.exists()}
    return {"kind": kind, "number": number, **result}


def campaign(
    numbers: Mapping[str, Sequence[int]], seed: int, keep: Path | None, base: Path
) -> Iterator[dict[str, Any]]:
    """Every case, the kinds in turns, so that a run that is broken off has some of each; inputs of faults are kept."""
    turns = sorted((place / len(m), kind, n) for kind, m in numbers.items() for place, n in enumerate(m))
    for _, kind, number in turns:
        result = one(kind, number, seed, base)
        folder = base / f"{kind.replace(' ', '-')}-{number}"
        if keep is not None and result["found"] in FAULTS:
            target = keep / f"{result['found'].replace(' ', '-')}-{folder.name}"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target, symlinks=True)
            (target / "result.json").write_text(json.dumps(result, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("out", "err"):
            (base / f"{folder.name}.{name}").unlink(missing_ok=True)
        yield result


def shares(cases: int, kinds: Sequence[str]) -> dict[str, range]:
    """The numbers of the cases of each kind, about as many as asked for in all."""
    total = sum(KINDS[kind][1] for kind in kinds)
    return {kind: range(max(1, round(cases * KINDS[kind][1] / total))) for kind in kinds}


def table(counts: Mapping[str, Counter[str]]) -> list[str]:
    """A line per kind, with all that was found and zeros."""
    head = ["kind", "cases", *GOOD, *FAULTS]
    rows = [[kind, found.total(), *(found[name] for name in (*GOOD, *FAULTS))] for kind, found in counts.items()]
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, len(head)))])
    return ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]


def main() -> int:
    """Run the campaign; 1 where a fault was found."""
    options = parser(__doc__)
    options.add_argument("--cases", type=int, default=500, help="about so many in all")
    options.add_argument("--seed", type=int, default=0, help="another seed, other cases")
    options.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be given several times")
    options.add_argument("--only", help="KIND:NUMBER, one case")
    options.add_argument("--keep", type=Path, help="folder for the inputs of faults")
    arguments = options.parse_args()
    use_threads(1)
    numbers: Mapping[str, Sequence[int]] = shares(arguments.cases, arguments.kind or list(KINDS))
    if arguments.only:
        kind, _, number = arguments.only.rpartition(":")
        numbers = {kind: [int(number)]}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    faults: list[dict[str, Any]] = []
    facts: dict[str, Any] = {"seed": arguments.seed, "cases": 0, "seconds": 0.0, "slowest_s": 0.0, "largest_mb": 0.0}
    since = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutations-") as place:
        prepare(Path(place))
        for result in campaign(numbers, arguments.seed, arguments.keep, Path(place)):
            counts[result["kind"]][result["found"]] += 1
            facts |= {"cases": facts["cases"] + 1, "seconds": time.monotonic() - since}
            facts["slowest_s"] = max(facts["slowest_s"], result["seconds"])
            facts["largest_mb"] = max(facts["largest_mb"], result["megabytes"])
            if result["found"] in FAULTS:
                faults.append(result)
                print(f"{result['kind']}:{result['number']}: {result['found']}: {result['why'][:400]}")
                print(f"    {' '.join(result['argv'])[:300]}\n    {result['change'][:200]}", flush=True)
            elif arguments.only:
                print(json.dumps(result, indent=1))
            if facts["cases"] % 500 == 0:
                print("\n".join(table(counts)), flush=True)
    print("\n".join(table(counts)))
    print(
        "{cases} cases, seed {seed}, {seconds:.0f} s; slowest {slowest_s:.1f} s, largest {largest_mb:.0f} MB".format(
            **facts
        )
    )
    found = {kind: {name: count[name] for name in (*GOOD, *FAULTS)} for kind, count in counts.items()}
    write({**facts, "counts": found, "faults": faults}, arguments.out)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
