"""Training in two gloo processes, started by the plain command with ``train.devices: 2``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from langdepth.data.base import open_dataset
from langdepth.evaluation import protocols
from langdepth.evaluation.evaluate import evaluate
from langdepth.systems import registry
from langdepth.training.run import read_recipe, train
from langdepth.weights import checkpoint
from tests.helpers import LEARNER, without_few

REPOSITORY = Path(__file__).parents[2]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def content(tmp_path: Path, sample_folder: Path) -> dict[str, Any]:
    return {
        "system": {"name": "learner"},
        "data": {"root": str(sample_folder), "batch_size": 1, "workers": 0},
        "optim": {"lr": 0.01},
        "train": {"out": str(tmp_path / "run"), "ema": 0.5, "epochs": 2, "accelerator": "cpu", "log_every": 1},
    }


@pytest.fixture
def start(tmp_path: Path, content: dict[str, Any]) -> Start:
    """Start the command for ``content`` with fields over it."""

    def call(*arguments: object) -> subprocess.Popen[str]:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        words = [
            "train",
            "--config",
            tmp_path / "recipe.yaml",
            "--train.devices",
            2,
            "--train.strategy",
            "ddp",
            *arguments,
        ]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.train_and_tell", *map(str, words)],
            cwd=REPOSITORY,
            # The command sets the log level before it imports torch, which the test's script does earlier.
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "RANKS_FOLDER": str(tmp_path)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return call


def test_both_processes_end_with_the_same_weights(
    start: Start, tmp_path: Path, sample_folder: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start("--system.options.poison", "scene0004", "--train.non_finite", "skip")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert [line.split(" loss")[0] for line in lines if " loss " in line] == [
        f"epoch {1 + step // 4} step {step}/6" for step in range(1, 7)
    ]
    assert sum(line.startswith("done: ") for line in lines) == 1
    warning = r"langdepth train: warning: the loss is not finite in epoch (\d), step \d, for \S*scene0004/0.jpg; .*\n"
    expected = f"({warning}){{2}}"
    assert re.fullmatch(expected, without_few(err)), err

    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert ranks[0]["drawn"] == ranks[1]["drawn"]
    assert set(ranks[0]["drawn"]) == {True, False}
    for name, value in ranks[0]["weights"].items():
        assert torch.equal(ranks[1]["weights"][name], value), name
        assert value.isfinite().all(), name

    monkeypatch.setitem(registry.REGISTRY, LEARNER.name, LEARNER)
    system = checkpoint.load(tmp_path / "run" / "last.safetensors")
    numbers = system.provenance["numbers"]
    alone = evaluate(system, open_dataset("folder", sample_folder, split="val"), protocols.get("full"), progress=False)
    assert {name: numbers[name] for name in alone["image_mean"]} == pytest.approx(alone["image_mean"], rel=1e-6)
    assert numbers["images"] == 2

    # One process sees other batches: the gradients of two were averaged, not one process's taken.
    content["train"]["out"] = str(tmp_path / "single")
    single = checkpoint.load(train(read_recipe(content)) / "last.safetensors").state_dict()
    assert not torch.equal(single["body.0.weight"], system.state_dict()["body.0.weight"])


def test_a_loss_that_is_not_finite_stops_both_with_one_line(start: Start) -> None:
    process = start("--system.options.poison", "scene0004")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert re.fullmatch(
        r"langdepth train: the loss is not finite in epoch 1, .*scene0004/0.jpg; check .*\n", without_few(err)
    ), err


def test_sigterm_to_the_first_process_saves_and_ends_both(start: Start, tmp_path: Path) -> None:
    process = start("--train.epochs", 100000, "--train.validate_every", 100000)
    assert process.stdout is not None
    for line in process.stdout:
        if " step 2/" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert re.fullmatch(
        r"langdepth train: stopped by SIGTERM after step \d+; .*continue with --resume\n", without_few(err)
    ), err
    step = torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)["global_step"]
    again = start("--train.epochs", 100000, "--train.validate_every", 100000, "--resume", "--train.max_steps", step + 1)
    out, err = again.communicate(timeout=240)
    assert (again.returncode, without_few(err)) == (0, "")
    assert f" step {step + 1}/" in out


def test_sigterm_while_one_process_waits_for_the_other(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No handler of Python runs in such a wait."""
    monkeypatch.setenv("STUCK", "1")
    process = start("--train.max_steps", 2)
    assert process.stdout is not None
    for line in process.stdout:
        if "evaluating" in line:  # two processes write to one pipe: lines may run together
            break
    since = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=240)
    assert time.monotonic() - since < 20
    assert process.returncode == 1
    assert re.fullmatch(
        r"langdepth train: stopped by SIGTERM after step 2; .*continue with --resume\n", without_few(err)
    ), err
    assert torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)["global_step"] == 2
