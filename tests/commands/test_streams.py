"""Standard streams that are closed or cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from langdepth import cli


@pytest.mark.parametrize("streams", [("stdin", "stdout", "stderr"), ("stdout",), ("stderr",)])
@pytest.mark.parametrize("closed", [False, True])
def test_streams_that_are_not_there(
    streams: tuple[str, ...], closed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in streams:
        stream = open(os.devnull) if closed else None  # noqa: SIM115
        if stream is not None:
            stream.close()
        monkeypatch.setattr(sys, name, stream)
    assert cli.main(["--help"]) == 0
    assert cli.main(["nope"]) == 2
    assert cli.main(["predict", str(tmp_path / "gone.jpg")]) == 1
    if "stdin" in streams:
        assert cli.main(["predict", "-", "--out", str(tmp_path)]) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
@pytest.mark.parametrize(("word", "code"), [("--help", 1), ("--version", 1), ("systems", 1), ("nope", 2)])
def test_a_full_disk_behind_the_streams_is_no_traceback(word: str, code: int) -> None:
    command = [sys.executable, "-m", "langdepth", word]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert ended.returncode == code
        assert len(ended.stderr.splitlines()) == 1
        if word == "nope":
            assert subprocess.run(command, stderr=full, check=False).returncode == code


def test_a_backend_of_matplotlib_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "langdepth", "predict", str(tmp_path / "a.jpg"), "--colormap", "virids"]
    ended = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, check=False, env={**os.environ, "MPLBACKEND": "nope"}
    )
    assert ended.stderr == "langdepth predict: unknown color map 'virids': did you mean 'viridis'?\n"
