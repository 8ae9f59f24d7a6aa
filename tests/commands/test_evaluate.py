"""``langdepth evaluate`` as a user meets it: files, names, messages and exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from langdepth import cli
from tests.helpers import FakeSystem, Run, grey, save_image

HEADER = "path_rgb,path_depth,source,split,depth_scale"


def write_pair(name: str, factor: float = 1.0, source: str = "lab", split: str = "val") -> str:
    """A grey image for which the fake system's depth is ``factor`` times the target; returns its index row."""
    save_image(Path(f"data/{name}.png"), grey(0.4))
    depth = (1 + 9 * 102 / 255) / factor
    Image.fromarray(np.full((48, 64), round(depth * 1000), np.uint16)).save(f"data/{name}_depth.png")
    return f"{name}.png,{name}_depth.png,{source},{split},0.001"


def write_index(*rows: str) -> None:
    Path("data/index.csv").write_text("\n".join([HEADER, *rows]) + "\n")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Run) -> Run:
    """Run the command in an empty folder with the fake system and four images; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    for place in ("weights.checkpoint", "runtimes.opening"):
        monkeypatch.setattr(f"langdepth.{place}.load", lambda name, **options: FakeSystem())
    write_index(
        write_pair("a"), write_pair("b", 1.1), write_pair("c", 2.0, source="car"), write_pair("d", 3.0, split="train")
    )

    def call(*arguments: object, root: str = "data", out: str = "result.json") -> tuple[int, str, str]:
        device = [] if "--predictions" in arguments else ["--device", "cpu"]
        return command("evaluate", "--root", root, "--out", out, *device, *arguments)

    return call


def result(path: str = "result.json") -> dict:
    return json.loads(Path(path).read_text())


def test_as_in_the_documentation(run: Run) -> None:
    code, out, _ = run(
        "--system", "tiny", "--data", "folder", "--split", "val", "--source", "lab", "--protocol", "nyu-eigen"
    )
    assert code == 0
    report = result()
    assert (report["dataset"], report["split"], report["images"]) == ("folder (source lab)", "val", 2)
    assert report["image_mean"]["abs_rel"] == pytest.approx(0.05, rel=0.01)
    assert report["protocol"]["name"] == "nyu-eigen"
    assert sorted(path.name for path in Path().glob("result*")) == [
        "result.json",
        "result_error_by_range.png",
        "result_images.csv",
        "result_sheet.png",
    ]
    lines = out.splitlines()
    assert lines[0].startswith("fake on folder (source lab), 2 images, nyu-eigen (a389146ad185)")
    assert lines[1].split() == list(report["image_mean"])
    for line, mean in zip(lines[2:4], ("image_mean", "pixel_mean"), strict=True):
        name, *numbers = line.split()
        assert name == mean
        assert [float(n) for n in numbers] == pytest.approx(list(report[mean].values()), abs=1e-4)


@pytest.mark.parametrize("kind", ["none", "median", "least_squares"])
def test_alignment_switch(run: Run, kind: str) -> None:
    assert run("--source", "car", "--alignment", kind)[0] == 0
    assert result()["image_mean"]["abs_rel"] == pytest.approx(1 if kind == "none" else 0, abs=1e-3)
    assert result()["protocol"]["name"] == ("full" if kind == "none" else f"full+alignment={kind}")


def test_every_switch_reaches_the_protocol(run: Run) -> None:
    code, _, _ = run(
        *("--protocol", "nyu-eigen", "--flip", "false", "--crop", "none", "--frame", "kb"),
        *("--clamp-prediction", "false", "--min-depth", "0.5", "--max-depth", "20"),
        *("--window", "40x48", "--stride", "20x24"),
    )
    assert code == 0
    protocol = result()["protocol"]
    assert (
        protocol["name"] == "nyu-eigen+frame=kb+flip=false+clamp_prediction=false+crop=none+min_depth=0.5+max_depth=20"
        "+window=40x48+stride=20x24"
    )
    assert (protocol["flip"], protocol["crop"], protocol["max_depth"]) == (False, "none", 20.0)
    assert protocol["hash"] != "a389146ad185"


def test_limit_is_stated(run: Run) -> None:
    assert run("--limit", "1")[0] == 0
    assert (result()["dataset"], result()["images"], result()["split"]) == ("folder (first 1)", 1, None)


def test_bad_images_are_skipped_and_named(run: Run) -> None:
    rows = [write_pair(name) for name in ("good", "cut", "gone", "small", "empty")]
    write_index(*rows)
    Path("data/cut.png").write_bytes(Path("data/cut.png").read_bytes()[:60])
    Path("data/gone_depth.png").unlink()
    Image.fromarray(np.full((24, 32), 2000, np.uint16)).save("data/small_depth.png")
    Image.fromarray(np.zeros((48, 64), np.uint16)).save("data/empty_depth.png")
    code, out, err = run()
    assert code == 0
    assert (result()["images"], result()["skipped"]) == (1, 4)
    assert ", 1 images, 4 skipped, " in out
    lines = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert len(lines) == 4
    for name in (
        "cut.png",
        "gone_depth.png",
        "small_depth.png: depth is 32x24, but its image",
        "empty.png: no known",
    ):
        assert sum(name in line for line in lines) == 1, name


def test_nothing_usable_fails_and_writes_nothing(run: Run) -> None:
    write_index(write_pair("a"))
    Path("data/a.png").write_text("no image")
    code, _, err = run()
    assert code == 1
    assert err.splitlines()[-1] == "langdepth evaluate: none of the 1 images of 'folder' is usable, see the lines above"
    assert not Path("result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--protocol", "nyu-egen"], 2, "unknown protocol 'nyu-egen': did you mean 'nyu-eigen'?"),
        (["--alignment", "mean"], 2, "--alignment: expected one of none, median, least_squares, disparity, got 'mean'"),
        (["--flip", "maybe"], 2, "--flip"),
        (["--min-depth", "90", "--protocol", "nyu-eigen"], 2, "90 to 10 m is not usable"),
        (["--split", "vall"], 2, "no row has split 'vall': did you mean 'val'?"),
        (["--data", "foldr"], 2, "unknown data set 'foldr': did you mean 'folder'?"),
        (["--limit", "0"], 2, "limit must be at least 1, got 0"),
        (["--batch-size", "0"], 2, "batch size must be at least 1, got 0"),
        (["--prediction-scale", "0.001"], 2, "--prediction-scale is for --predictions"),
        (["--system", "tiny", "--predictions", "data"], 2, "--system is for systems, and --predictions evaluates"),
        (["--clip-weights", "random", "--predictions", "data"], 2, "--clip-weights is for systems"),
        (["--device", "cpu", "--predictions", "data"], 2, "--device is for systems"),
        (["--dtype", "float32", "--predictions", "data"], 2, "--dtype is for systems"),
        (["--captions", "data", "--predictions", "data"], 2, "--captions is for systems"),
        (["--overlay", "data", "--predictions", "data"], 2, "--overlay is for systems"),
        (["--without-caption", "stop"], 2, "--without-caption is of captions; give --captions, too"),
        (["--protocl", "full"], 2, "unknown option '--protocl': did you mean '--protocol'?"),
    ],
)
def test_mistakes_cost_one_line(run: Run, arguments: list[str], code: int, message: str) -> None:
    found, _, err = run(*arguments)
    assert found == code
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("result.json").exists()


def test_missing_data_folder(run: Run) -> None:
    code, _, err = run(root="nowhere")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "nowhere: no such folder" in err


def test_out_is_required(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "--root", "data"]) == 2
    assert "required: --out" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["out", "html"])
@pytest.mark.parametrize("place", ["folder", "result.txt", "file/result", "closed/result"])
def test_unwritable_places_are_refused_before_the_work(
    run: Run, monkeypatch: pytest.MonkeyPatch, place: str, option: str
) -> None:
    Path("folder").mkdir()
    Path("file").touch()
    Path("closed").mkdir(mode=0o500)
    if os.access("closed", os.W_OK):  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "closed")
    monkeypatch.setattr("langdepth.weights.checkpoint.load", lambda name, **options: pytest.fail("began to work"))
    if "/" in place:
        place += ".json" if option == "out" else ".html"
    code, _, err = run(out=place) if option == "out" else run("--html", place)
    assert code == (1 if "/" in place else 2)
    assert len(err.splitlines()) == 1
    assert place in err


def test_help_is_quick_and_has_a_working_example() -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "langdepth", "evaluate", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert time.monotonic() - start < 5  # generous: machines differ; that torch stays out is what makes it quick
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)
    assert "langdepth evaluate --data folder --root rooms --protocol full --out result.json" in done.stdout


def test_help_of_all_commands_imports_nothing_heavy() -> None:
    code = """
import sys
from langdepth import cli
for name in cli.COMMANDS:
    try:
        cli.main([name, "--help"])
    except SystemExit:  # argparse's
        pass
sys.exit(" ".join({"torch", "numpy", "PIL", "matplotlib"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert done.stdout.count("usage: ") >= len(cli.COMMANDS)


def test_the_example_of_the_help_works(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from langdepth.commands.evaluate import EXAMPLE

    for line in EXAMPLE.strip().splitlines()[:2]:
        assert cli.main(line.split()[1:]) == 0, line
    assert result()["images"] > 0


def test_saved_maps_are_evaluated_again_as_printed(run: Run) -> None:
    code, out, _ = run(
        "--save", "npy,kitti16,color,error", "--range", "0,10", "--colormap", "viridis", "--flip", "true"
    )
    assert code == 0
    assert out.splitlines()[-1] == "written: result.json, result_maps"
    names = {path.name for path in Path("result_maps").iterdir()}
    assert names == {"maps.json"} | {
        f"{name}{end}" for name in "abcd" for end in (".npy", ".png", "_color.png", "_error.png")
    }
    first = result()
    assert run("--predictions", "result_maps", "--flip", "true", out="again.json")[0] == 0
    again = result("again.json")
    assert (again["image_mean"], again["protocol"]) == (first["image_mean"], first["protocol"])
    assert run("--save-dir", "maps")[0] == 0
    assert {path.name for path in Path("maps").glob("a*")} == {"a_depth.png", "a_color.png", "a_error.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--save", "maps"), "--save: unknown format 'maps': "),
        (("--save", "depth16,erorr"), "--save: unknown format 'erorr': did you mean 'error'?"),
        (("--save", ","), "--save: nothing to write; known: depth16, kitti16,"),
        (("--save", "npy", "--range", "5,5"), "--range: expected 0 <= NEAR < FAR"),
        (("--save", "npy", "--save-dir", "data"), "data: holds other files"),
        (("--save", "npy", "--save-dir", "data/index.csv"), "data/index.csv: is a file; give a folder for the maps"),
    ],
)
def test_what_cannot_be_saved(run: Run, options: tuple[str, ...], message: str) -> None:
    before = sorted(Path("data").iterdir())
    code, _, err = run(*options)
    assert code != 0
    assert message in err
    assert len(err.splitlines()) == 1
    assert sorted(Path("data").iterdir()) == before


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path, sample_folder: Path, command: Run) -> None:
    root = os.fsdecode(os.fsencode(tmp_path) + b"/donn\xe9es")
    try:
        shutil.copytree(sample_folder, root)
    except OSError:
        pytest.skip("a file system of UTF-8 names")
    report = Path(f"{root}.json")
    for stream in (sys.stdout, sys.stderr):  # as with the console script
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code, _, err = command("evaluate", "--root", root, "--split", "val", "--out", report, "--html", f"{root}.html")
    assert (code, "codec" in err) == (0, False)
    assert report.is_file()
    code, _, err = command("evaluate", "--root", f"{root}x", "--out", report)
    assert (code, err.count("\n")) == (1, 1)


def test_maps_of_predict_belong_to_the_image_they_were_made_of(run: Run, command: Run) -> None:
    """x_depth.png is the map of x.jpg, although x_depth.jpg is in the data set, too."""
    rows = []
    for name, grey_value in (("x", 0.2), ("x_depth", 0.8)):
        save_image(Path(f"data/images/{name}.jpg"), grey(grey_value))
        assert command("predict", f"data/images/{name}.jpg", "--save", "npy", "--out", "data/truth")[0] == 0
        rows.append(f"images/{name}.jpg,truth/{name}.npy,lab,val,1")
    write_index(*rows)
    assert command("predict", "data/images", "--save", "depth16,kitti16", "--out", "p/images")[0] == 0
    assert Path("p/images/x_depth_2_depth.png").is_file()
    shutil.copytree("p", "copy", copy_function=shutil.copyfile)
    for folder in ("p", "copy"):
        code, _, err = run("--data", "folder", "--split", "val", "--protocol", "full", "--predictions", folder)
        assert (code, "warning" in err.lower()) == (0, False), err
        assert result()["image_mean"]["abs_rel"] == pytest.approx(0, abs=1e-3), folder


def test_the_newest_of_two_maps_is_evaluated(run: Run, command: Run) -> None:
    """a.npy of an earlier run lies beside a_jpg.npy; without the record of predict, a warning names both."""
    for name in ("a.jpg", "a.png"):
        save_image(Path("data/images") / name, grey(0.6))
    write_index("images/a.jpg,truth/a.npy,lab,val,1")
    assert command("predict", "data/images/a.jpg", "--save", "npy", "--out", "data/truth")[0] == 0
    assert command("predict", "data/images/a.jpg", "--text", "no null 5", "--save", "npy", "--out", "p/images")[0] == 0
    assert command("predict", "data/images", "--save", "npy", "--out", "p/images")[0] == 0
    arguments = ("--data", "folder", "--split", "val", "--protocol", "full", "--predictions", "p")
    code, _, err = run(*arguments)
    assert (code, "by name alone" in err) == (0, False), err
    assert result()["image_mean"]["abs_rel"] == pytest.approx(0, abs=1e-3)
    Path("p/images/.langdepth-results.jsonl").unlink()
    code, _, err = run(*arguments)
    assert "warning: p: 1 of 1 maps are matched to images by name alone" in err
    assert (code, "p/images/a.npy is used" in err, "p/images/a_jpg.npy fits as well" in err) == (0, True, True), err


def test_a_recorded_map_that_fits_two_images_is_refused(run: Run, command: Run) -> None:
    save_image(Path("elsewhere/a.jpg"), grey(0.6))
    for name in ("a.jpg", "a.jpeg"):
        save_image(Path("data") / name, grey(0.6))
    write_index(*(f"{name},a_depth.png,lab,val,0.001" for name in ("a.jpg", "a.jpeg")))
    assert command("predict", "elsewhere", "--save", "npy", "--out", "p")[0] == 0
    code, _, err = run("--data", "folder", "--split", "val", "--protocol", "full", "--predictions", "p")
    assert (code, err.count("\n")) == (2, 1), err
    assert re.search(r"p/a\.npy: was made of .*elsewhere/a\.jpg, .* fits both", err), err
