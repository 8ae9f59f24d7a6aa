"""``langdepth bench``: a line for each runtime and precision, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langdepth.commands import bench as command_of_bench
from langdepth.errors import LangdepthError
from langdepth.runtimes import bench, opening
from tests.helpers import Run

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_it_compares_what_is_installed(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_has_bfloat16_units", lambda: False)
    monkeypatch.setattr(bench, "runtimes_here", lambda name: ["torch", "onnx"])
    out = tmp_path / "bench.json"
    options = ["--images", EXAMPLES, "--size", "96x128", "--threads", 1, "--seconds", 0, "--out", out]
    code, shown, problem = command("bench", *options)
    assert (code, problem) == (0, "")
    lines = shown.splitlines()
    assert lines[0].startswith("tiny, 2 images of 96x128, 1 threads, ")
    assert [line.split()[:3] for line in lines[2:4]] == [
        ["torch", "float32", lines[2].split()[2]],
        ["*", "onnx", "float32"],
    ]
    assert "fastest with the same depth" in shown
    found = json.loads(out.read_text())
    torch, onnx = found["choices"]
    assert (found["auto"], found["threads"], torch["runtime"], onnx["runtime"]) == ("onnx", 1, "torch", "onnx")
    assert 0 < onnx["mean"] < onnx["largest"] < 1e-4
    assert onnx["delta1"] == 1
    assert "mean" not in torch
    assert onnx["rounds"] == bench.ROUNDS
    assert 0 < onnx["seconds"] < onnx["start_seconds"]
    assert onnx["peak_bytes"] is None or 5e7 < onnx["peak_bytes"] < torch["peak_bytes"]


def test_a_place_that_cannot_be_written_is_said_before_the_work(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "measure", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").write_bytes(b"")
    for command_line in (["bench"], ["export", "tiny"]):
        out = tmp_path / "file" / "deep" / "a.onnx"
        code, _, problem = command(*command_line, "--out", out)
        why = "cannot be written (Not a directory); give another place"
        assert (code, problem) == (1, f"langdepth {command_line[0]}: {out}: {why}\n")


def test_what_one_choice_cannot_do_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [bench.Measured(runtime=one, dtype=dtype) for one, dtype in (("onnx", "bfloat16"), ("onnx", "float32"))]  # type: ignore[arg-type]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    bench.measure(choices, bench.Subject(system="tiny", paths=[EXAMPLES / "desk.jpg"]), threads=1, seconds=0)
    assert "no ONNX file" in str(choices[0].failed)
    assert choices[1].failed is None
    assert choices[1].difference is None, "nothing to compare with"
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_a_process_that_dies_is_reported() -> None:
    one = bench.Measured(runtime="onnx")
    with bench._reported(one):
        raise EOFError
    assert "perhaps for lack of memory" in str(one.failed)


def test_processes_that_die_in_mid_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, or the one that the others are compared with."""
    choices = [bench.Measured(runtime="torch"), bench.Measured(runtime="torch", dtype="bfloat16")]
    monkeypatch.setattr(bench, "_process", lambda one, *_: contextlib.nullcontext(Dying(one)))
    subject = bench.Subject(system="tiny", paths=[EXAMPLES / "desk.jpg"])
    bench.measure(choices, subject, seconds=0)
    assert [one.failed is None for one in choices] == [False, True]
    assert (
        command_of_bench._advice(choices, "torch")
        == "fastest: torch bfloat16, whose depth is another than the first line's"
    )
    with pytest.raises(LangdepthError, match="was ended"):
        bench.measure(choices[:1], subject, seconds=0)


class Dying:
    """The pipe to a process that gives a depth; the first choice's then dies."""

    def __init__(self, one: bench.Measured) -> None:
        self.one, self.asked = one, False

    def send(self, _: bool) -> None:
        self.asked = True

    def recv(self) -> Any:
        if not self.asked:
            return np.full((4, 4), 2.0 if self.one.dtype == "bfloat16" else 1.0, np.float32)
        if self.one.dtype == "float32":
            raise EOFError
        return 0.5, None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threads", "0"], "--threads must be from 1 to 1024"),
        (["--threads", "100000"], "--threads must be from 1 to 1024"),
        (["--seconds", "inf"], "--seconds must be a number from 0 on"),
        (["--seconds", "nan"], "--seconds must be a number from 0 on"),
        (["--size", "16x640"], "at least 32 pixels"),
        (["--size", "90000x90000"], "megapixels is more than the limit"),
        (["--images", "none"], "no such folder"),
        (["--system", "none.onnx"], "no such file"),
    ],
)
def test_wrong_requests(command: Run, options: list[Any], words: str) -> None:
    code, shown, problem = command("bench", *options)
    assert (code in (1, 2), shown) == (True, "")
    assert words in problem
    assert problem.count("\n") == 1


def test_what_can_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opening.runtimes_here("a.onnx") == ["onnx"]
    assert opening.runtime_of_auto("a.onnx") == opening.runtime_of_auto("tiny") == "onnx"
    assert opening.runtime_of_auto("depthclip") == "torch"
    monkeypatch.setattr(opening, "find_spec", lambda name: object() if name == "torch" else None)
    assert opening.runtimes_here("tiny") == ["torch", "onnx"]
    assert opening.runtimes_here("depthclip") == ["torch"]
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    assert opening.runtimes_here("tiny") == ["onnx"]
    assert opening.runtimes_here("depthclip") == []


def test_units_for_bfloat16_are_read_from_the_processors_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (("flags\t: fpu avx512_bf16 amx", True), ("flags\t: fpu avx2", False), ("", False)):
        monkeypatch.setattr(bench, "_content", lambda path, flags=flags: flags)
        assert bench._has_bfloat16_units() is expected
