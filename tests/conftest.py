"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from matplotlib.figure import Figure

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch: processes side by side get a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import langdepth.api  # noqa: F401  before a test puts something in the place of what it imports
from langdepth import cli
from langdepth.data.tools.sample import write_sample
from langdepth.evaluation import plots, report
from tests.browser import Browser, open_browser
from tests.helpers import Run

# The same examples in every run, and no failures because a machine was busy.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


# The files and folders that take longest. Processes side by side begin with them: xdist would give out the files of
# most tests first, and end with one process alone in a file of few long tests.
LONGEST = (
    "tests/docs/test_commands",
    "tests/commands/test_recipes",
    "tests/test_notebooks",
    "tests/training/test_train",
    "tests/distributed",
    "tests/plugin",
    "tests/commands/test_mutations",
    "tests/systems",
)


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order of ``pytest_collection_modifyitems`` also under xdist."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if item.nodeid.startswith(name)), 99))


PLOTS = ("plot_error_by_range", "plot_medians")


@pytest.fixture(scope="session", autouse=True)
def _empty_plots() -> Iterator[None]:
    """Reports have empty plots: to draw them takes longer than to evaluate small images."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PLOTS:
            patch.setattr(report, name, lambda *_: Figure(figsize=(1, 1)))
        yield


@pytest.fixture
def drawn_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have their plots."""
    for name in PLOTS:
        monkeypatch.setattr(report, name, getattr(plots, name))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``langdepth``; returns exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; without one the test is skipped."""
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An indexed folder of 8 synthetic images 64x48 (6 rooms, 2 streets; 6 train, 2 val). Do not write into it."""
    return write_sample(tmp_path_factory.mktemp("data") / "sample", count=8, size=(48, 64))


@pytest.fixture
def rgb() -> npt.NDArray[np.uint8]:
    """An image of noise."""
    return np.random.default_rng(0).integers(0, 256, (36, 48, 3), dtype=np.uint8)


@pytest.fixture
def depth() -> npt.NDArray[np.float32]:
    """A depth map of noise in metres, without values in a corner."""
    values = np.random.default_rng(1).uniform(0.5, 9.5, (36, 48)).astype(np.float32)
    values[:4, :5] = 0
    return values
