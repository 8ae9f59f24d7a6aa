"""Two gloo processes: metrics and the whole evaluation give what one process gives."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from langdepth.errors import LangdepthError
from langdepth.evaluation import protocols
from langdepth.evaluation.evaluate import evaluate
from langdepth.evaluation.saved import SaveMaps
from langdepth.prediction.arrays import not_finite
from langdepth.records import DepthOutput
from tests.evaluation.test_evaluate import Broken, Images
from tests.helpers import FakeSystem

# 7 images for 2 processes: an uneven share, a broken file and a depth map without a value among them
FACTORS = (1.0, 1.1, None, 1.3, float("inf"), 0.8, 2.0)


def case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    prediction, target = (torch.rand(3, 1, 6, 8, generator=random) * 9 + 0.5 for _ in range(2))
    mask = torch.rand(3, 1, 6, 8, generator=random) < 0.6
    mask[seed % 3] &= seed != 4  # one image of one process has no valid pixel
    return prediction, target, mask


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return value.tolist() if isinstance(value, Tensor) else value


def measure(seeds: list[int]) -> dict[str, Any]:
    from langdepth.evaluation.accumulator import DepthMetrics

    metrics = DepthMetrics()
    for seed in seeds:
        metrics.update(*case(seed))
    found: dict[str, Any] = plain(metrics.compute())
    return found


class Listed(Images):
    """Images with keys, by which their maps are named."""

    @property
    def rows(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(key=f"{index}.png") for index in range(len(self))]


class Stopping(FakeSystem):
    """Fails in its own way in the second process."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, *inputs: Any) -> DepthOutput:
        if self.rank == 1:
            raise ZeroDivisionError("of its own")
        return super().forward(*inputs)


def work(rank: int, folder: Path) -> None:
    slow = [name for name in ("torchmetrics", "transformers", "scipy.ndimage") if name in sys.modules]
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        shares = ([1, 2, 3], [4])  # processes need not have the same number of batches
        report = evaluate(
            FakeSystem(),
            Listed(*FACTORS),
            protocols.get("full"),
            batch_size=2,
            progress=False,
            out=folder / "result.json",
            save=SaveMaps(folder=folder / "maps", formats=("npy",)),
        )
        failures = []
        for system in (Broken(), Stopping(rank)):
            with pytest.raises((LangdepthError, ZeroDivisionError)) as caught:
                evaluate(system, Images(*[1.0] * 6), protocols.get("full"), progress=False, out=folder / "result2.json")
            failures.append(f"{caught.typename}: {caught.value}")
        answer = {"slow": slow, "metrics": measure(shares[rank]), "report": report, "failures": failures}
        (folder / f"{rank}.json").write_text(json.dumps(answer))
    finally:
        distributed.destroy_process_group()
    os._exit(0)  # on a busy machine, gloo's threads were once still there at the interpreter's end, which then aborts


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("gloo")
    multiprocessing.spawn(work, args=(folder,), nprocs=2)
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_metrics_are_those_of_all_images(answers: tuple[Path, list[dict[str, Any]]]) -> None:
    alone = measure([1, 2, 3, 4])
    assert (alone["images"], alone["skipped"]) == (11, 1)
    for answer in answers[1]:
        found = answer["metrics"]
        assert found == pytest.approx(alone, rel=1e-12)


def test_both_processes_report_what_one_would_to_the_last_bit(answers: tuple[Path, list[dict[str, Any]]]) -> None:
    alone = evaluate(FakeSystem(), Images(*FACTORS), protocols.get("full"), batch_size=2, progress=False)
    assert (alone["images"], alone["skipped"]) == (5, 2)
    for answer in answers[1]:
        report = answer["report"]
        assert report.pop("seconds") > 0
        assert report == {key: alone[key] for key in report}


def test_one_process_writes_the_files(answers: tuple[Path, list[dict[str, Any]]]) -> None:
    written = sorted(path.name for path in answers[0].glob("result*"))
    assert written == ["result.json", "result_error_by_range.png", "result_images.csv", "result_sheet.png"]


def test_both_processes_save_their_share_of_the_maps(answers: tuple[Path, list[dict[str, Any]]]) -> None:
    """Of all images that can be read; the record beside them says that nothing is missing."""
    readable = [f"{index}.npy" for index, factor in enumerate(FACTORS) if factor is not None]
    assert sorted(path.name for path in (answers[0] / "maps").iterdir()) == [*readable, "maps.json"]
    assert json.loads((answers[0] / "maps" / "maps.json").read_text())["complete"] is True


def test_evaluation_imports_nothing_slow_that_it_does_not_use(answers: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [answer["slow"] for answer in answers[1]] == [[], []]


def test_what_fails_in_one_process_ends_all(answers: tuple[Path, list[dict[str, Any]]]) -> None:
    """Without a word the first would wait for the second; image 5, whose depth is NaN, is the second's."""
    nan = f"grey/5.png: 'fake' {not_finite()}"
    assert [answer["failures"] for answer in answers[1]] == [
        [f"LangdepthError: process 1 of 2 failed: {nan}", "LangdepthError: process 1 of 2 failed: of its own"],
        [f"LangdepthError: {nan}", "ZeroDivisionError: of its own"],
    ]
