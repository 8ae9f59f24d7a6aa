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
        assert cli.main(["predict", "-", "--out", str(tmp_path)]) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
@pytest.mark.parametrize(
    ("word", "code"), [("--help", 1), ("--version", 1), ("systems", 1), ("nope", 2), ("predict --help", 1)]
)
def test_a_full_disk_behind_the_streams_is_no_traceback(word: str, code: int) -> None:
    command = [sys.executable, "-m", "langdepth", *word.split()]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert ended.returncode == code
        assert len(ended.stderr.splitlines()) == 1
        if word == "nope":
            assert subprocess.run(command, stderr=full, check=False).returncode == code


@pytest.mark.parametrize("backend", ["nope", "svg"])
def test_a_backend_of_matplotlib_need_not_be_there(backend: str) -> None:
    code = (
        "from langdepth.prediction.options import colormaps; colormaps()\n"
        "import matplotlib, os; print(os.environ['MPLBACKEND'], matplotlib.rcParams._get_backend_or_none())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "MPLBACKEND": backend}
    )
    assert (ended.stdout.split(), ended.stderr) == ([backend, "None" if backend == "nope" else backend], "")


def test_what_cannot_be_interrupted_in_one_line_is_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; known = {*sys.modules}; import langdepth.cli; print(*{*sys.modules} - known)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ended.stdout.split()).isdisjoint({"typing", "re", "difflib", "contextlib", "importlib", "collections"})

    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    monkeypatch.setattr(sys, "argv", ["langdepth", "predict"])
    with pytest.raises(SystemExit, match="130"):
        cli.entry_point()
    assert capsys.readouterr().err == "langdepth predict: interrupted; what was already written is kept\n"


def test_interrupts_that_a_module_in_c_makes_errors_of() -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where tests run in the background
        "import langdepth.commands.systems as command\n"
        "from langdepth import cli\n"
        "def importing(_):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt: pass\n"
        "    raise ImportError('initialization failed')\n"
        "command.main = importing\n"
        "sys.argv = ['langdepth', 'systems']\n"
        "cli.entry_point()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    line = "langdepth systems: interrupted; what was already written is kept\n"
    assert (ended.returncode, ended.stderr) == (130, line)


def test_an_interrupt_that_nobody_hears_stays_ignored() -> None:
    code = (
        "import atexit, signal, sys; sys.argv = ['langdepth', '--version']; from langdepth import cli\n"
        "atexit.register(lambda: print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN))\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN); cli.entry_point()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split()[-1] == "True"
