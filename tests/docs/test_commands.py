"""Every command block of README and docs/, and every ``--help`` example, runs as it is printed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from langdepth import cli
from langdepth.commands.data import VERBS
from tests.docs.reader import Block, Given, read_help, read_page
from tests.docs.runner import Outcome, run_page
from tests.docs.things import ROOT, THINGS, clone, shrink

# Pages whose commands still name files that a reader does not have.
_PENDING = ("clip-adapters", "few-shot-clip", "mde-clip", "prompt-clip", "scaledepth", "tiny", "wordepth")
PENDING = {"docs/data.md", *(f"docs/systems/{name}.md" for name in _PENDING)}
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
HELPS = [(), *((name,) for name in cli.COMMANDS), *(("data", verb) for verb in VERBS)]

# Blocks that no test can run, each marked in its page with the reason. Keep them few.
NOT_RUN = {"docs/systems/depthclip.md": 1}

# What the reader of a help text has.
HELP: dict[tuple[str, ...], tuple[str, ...]] = {
    (): ("photo.jpg",),
    ("predict",): ("photo.jpg", "photos", "RN50.pt"),
    ("prompts",): ("photo.jpg", "RN50.pt"),
    ("train",): ("pictures",),
    ("evaluate",): ("nyu",),
    ("benchmark",): ("matrix.yaml",),
    ("convert",): ("RN50.pt", "best.pth", "model.pt", "coarse.pth"),
    ("scenes",): ("open_clip_model.safetensors",),
    ("data list",): ("nyu",),
    ("data prepare",): ("nyu_depth_v2_labeled.mat",),
    ("data check",): ("nyu", "pictures"),
    ("data cache",): ("nyu",),
    ("data show",): ("nyu",),
    ("data caption",): ("photos", "Salesforce/blip-image-captioning-base"),
    ("data pack-captions",): ("text", "text_feat"),
    ("data sam",): ("photos", "sam_vit_h_4b8939.pth"),
}
HELP = {tuple(" ".join(verbs).split()): things for verbs, things in HELP.items()}
HELP[("data",)] = tuple(dict.fromkeys(name for verbs, names in HELP.items() if "data" in verbs for name in names))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh clone as the current folder, small systems, no network."""
    clone(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / ".cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shrink(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield tmp_path


def passed(outcome: Outcome) -> None:
    if outcome.failures:
        pytest.fail("\n".join(outcome.failures), pytrace=False)
    assert not outcome.unused, f"given and never named: {outcome.unused}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_blocks_of_a_page_run_as_printed(page: Path, folder: Path) -> None:
    name = page.relative_to(ROOT).as_posix()
    if name in PENDING:
        pytest.skip("its commands name files that a reader does not have")
    outcome = run_page(name, read_page(page), folder, THINGS)
    passed(outcome)
    assert len(outcome.not_run) == NOT_RUN.get(name, 0), outcome.not_run


@pytest.mark.parametrize("verbs", HELPS, ids=" ".join)
def test_the_examples_of_a_help_text_run_as_printed(
    verbs: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        cli.main([*verbs, "--help"])
    steps: list[Given | Block] = [Given(0, HELP.get(verbs, ())), read_help(capsys.readouterr().out)]
    outcome = run_page(f"langdepth {' '.join(verbs)} --help", steps, folder, THINGS)
    assert outcome.ran, "no example"
    passed(outcome)
