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
from tests.docs.things import ROOT, THINGS, clone, first_batch_alone, serve_beside, shrink
from tests.stand_ins import efficientnet_package

PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
PARTS = [
    pytest.param(page.relative_to(ROOT).as_posix(), steps, id=f"{page.relative_to(ROOT).as_posix()}:{number}")
    for page in PAGES
    for number, steps in enumerate(read_page(page), 1)
]
HELPS = [(), *((name,) for name in cli.COMMANDS), *(("data", verb) for verb in VERBS)]

# Blocks that no test can run, each marked in its page with the reason. Keep them few.
NOT_RUN = {
    "docs/serve.md": ["it needs curl; the Python block below asks the same"],
    "docs/page.md": ["npm fetches ONNX Runtime; tests/docs/test_try.py builds the page"],
    "docs/systems/depthclip.md": ["open_clip downloads the weights"],
    "docs/systems/tiny.md": [
        "the images that the weights were trained on are not published as one folder; "
        "tests/commands/test_recipes.py runs it"
    ],
}

# These train by recipes, whose steps are taken by tests/commands/test_recipes.py.
RECIPES_OF = ("docs/systems/", "docs/coming-from-the-papers.md")

# What the reader of a help text has.
HELP: dict[tuple[str, ...], tuple[str, ...]] = {
    (): ("photo.jpg",),
    ("predict",): ("photo.jpg", "photos", "clip.mp4", "RN50.pt"),
    ("prompts",): ("photo.jpg", "RN50.pt"),
    ("train",): ("images",),
    ("evaluate",): ("nyu",),
    ("benchmark",): ("matrix.yaml",),
    ("bench",): ("photos",),
    ("convert",): ("RN50.pt", "best.pth", "model.pt", "coarse.pth"),
    ("export",): ("photos", "RN50.pt"),
    ("weights",): ("vgld_midas-1_nk_t.pth",),
    ("scale",): ("map.png", "map.npy", "photo.jpg"),
    ("scenes",): ("open_clip_model.safetensors",),
    ("data list",): ("nyu",),
    ("data prepare",): ("nyu_depth_v2_labeled.mat",),
    ("data check",): ("nyu", "images"),
    ("data cache",): ("nyu",),
    ("data show",): ("nyu",),
    ("data caption",): ("photos", "Salesforce/blip-image-captioning-base"),
    ("data pack-captions",): ("text", "text_feat"),
    ("data sam",): ("photos", "sam_vit_h_4b8939.pth"),
}
HELP = {tuple(" ".join(verbs).split()): things for verbs, things in HELP.items()}
HELP[("data",)] = tuple(dict.fromkeys(name for verbs, names in HELP.items() if "data" in verbs for name in names))


@pytest.fixture
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh clone as the current folder, small systems, no network."""
    clone(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / ".cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shrink(monkeypatch)
    efficientnet_package(monkeypatch, tmp_path_factory.getbasetemp(), 0)  # of the extra "imagenet"
    services = serve_beside(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield tmp_path
    for service in services:
        service.stop()


def passed(outcome: Outcome) -> None:
    if outcome.failures:
        pytest.fail("\n".join(outcome.failures), pytrace=False)
    assert not outcome.unused, f"given and never named: {outcome.unused}"


@pytest.mark.parametrize(("page", "steps"), PARTS)
def test_the_blocks_of_a_page_run_as_printed(
    page: str, steps: list[Given | Block], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.startswith(RECIPES_OF):
        monkeypatch.setattr("langdepth.training.run._fit", first_batch_alone)
    passed(run_page(page, steps, folder, THINGS))


def test_few_blocks_are_not_run() -> None:
    marked = {page.relative_to(ROOT).as_posix(): marked_blocks(page) for page in PAGES}
    assert {page: blocks for page, blocks in marked.items() if blocks} == NOT_RUN


def marked_blocks(page: Path) -> list[str]:
    """The reasons that a page gives for blocks that are not run."""
    blocks = (step for part in read_page(page) for step in part if isinstance(step, Block))
    return [block.not_run for block in blocks if block.not_run]


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
