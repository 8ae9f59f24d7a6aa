"""Training: what a step does, what the run folder holds, and that an interrupted run ends as if it never was."""

from __future__ import annotations

import csv
import errno
import itertools
import math
import os
import re
import signal
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import langdepth.training.start
from langdepth.data.base import open_dataset
from langdepth.data.rows import RowDataset
from langdepth.errors import (
    CheckpointError,
    LangdepthError,
    MissingCheckpointError,
    NonFiniteLossError,
    UsageError,
)
from langdepth.records import InputSpec
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.tiny.model import CLIP_FEATURES as TEXT_COLUMNS
from langdepth.training import validation
from langdepth.training.logs import MetricsFile
from langdepth.training.module import DepthTraining, MovingAverage, rate, scheduler
from langdepth.training.recipe import read_recipe
from langdepth.training.run import train
from langdepth.training.sections import OptimSection
from langdepth.training.start import require_readable
from langdepth.utils.reading import file_sha256
from langdepth.weights import checkpoint
from tests.helpers import LEARNER, Learner, LearnerConfig
from tests.systems.test_tiny import CAPTIONS

Run = Callable[..., Path]
NAMES = ("best", "last")
STEPS = 9  # of the recipe below on the sample folder: 6 training images in batches of 2, 3 epochs


def train_learner(root: Path, out: Path, resume: bool = False, **fields: Any) -> Path:
    """Train the learner on the data in ``root``; fields of the recipe by their dotted names. Returns the run folder."""
    content: dict[str, dict[str, Any]] = {
        "system": {"name": "learner"},
        "data": {"root": str(root), "batch_size": 2, "workers": 0},
        "optim": {"lr": 0.01},
        "train": {"out": str(out), "epochs": 3, "ema": 0.5, "accelerator": "cpu", "log_every": 1, "previews": 0},
    }
    for name, value in fields.items():
        section, key = name.split("__")
        content[section][key] = value
    return train(read_recipe(content), resume=resume)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sample_folder: Path) -> Run:
    """``train_learner`` on the sample folder."""
    monkeypatch.setitem(registry.REGISTRY, LEARNER.name, LEARNER)

    def call(out: str = "run", *, resume: bool = False, **fields: Any) -> Path:
        return train_learner(sample_folder, tmp_path / out, resume, **fields)

    return call


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, sample_folder: Path) -> Run:
    """Whole runs to compare with, each made once. Do not write into their folders."""
    made: dict[str, Path] = {}

    def call(**fields: Any) -> Path:
        if str(fields) not in made:
            made[str(fields)] = train_learner(sample_folder, tmp_path_factory.mktemp("whole") / "run", **fields)
        return made[str(fields)]

    return call


def resume_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "resume.ckpt", weights_only=True)
    return state


def assert_same(found: Any, expected: Any) -> None:
    """Equal in every bit, tensors in nested containers included."""
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, moving average, optimiser, schedule, metrics and best weights."""
    ends = resume_state(found), resume_state(expected)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_same(ends[0][key], ends[1][key])
    rows = [{row["step"]: row for row in read_metrics(folder)} for folder in (found, expected)]
    for step, row in rows[1].items():  # a pause is evaluated in addition
        assert {k: v for k, v in rows[0][step].items() if row[k]} == {k: v for k, v in row.items() if v}
    for name in ("best.safetensors", "last.safetensors"):
        assert_same(load_file(found / name), load_file(expected / name))


def at_call(number: int, do: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, which on one of its calls does something else first."""
    calls = itertools.count(1)

    def called(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            do()
        return function(*arguments, **options)

    return called


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def reports_of(metric: str, values: list[float]) -> Callable[..., dict[str, Any]]:
    """``evaluate`` with given values of one metric, call by call."""
    evaluate, left = validation.evaluate, iter(values)

    def called(*arguments: Any, **options: Any) -> dict[str, Any]:
        report = evaluate(*arguments, **options)
        report["image_mean"][metric] = next(left)
        return report

    return called


def test_checkpoints_do_not_go_through_the_systems_folder_for_temporary_files(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.mkstemp", lambda *_, **__: pytest.fail("a temporary file elsewhere"))
    assert resume_state(run(train__epochs=1))["global_step"] == 3


@pytest.mark.parametrize("part", ["state_dict", "optimizer_states"])
def test_a_run_does_not_continue_from_numbers_that_are_not_finite(run: Run, part: str) -> None:
    folder = run(train__max_steps=3)
    state = resume_state(folder)
    tensor = (
        state["state_dict"]["system.body.0.weight"]
        if part == "state_dict"
        else state["optimizer_states"][0]["state"][0]["exp_avg"]
    )
    tensor.view(-1)[0] = math.nan
    torch.save(state, folder / "resume.ckpt")
    with pytest.raises(CheckpointError, match=rf"resume.ckpt: tensor '{part}\.\S+' holds values that are not finite"):
        run(resume=True)


def test_training_does_not_start_from_numbers_that_are_not_finite(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(self: Learner) -> None:
        self.frozen.weight.data[0, 0] = math.inf

    monkeypatch.setattr(Learner, "prepare_training", prepare)
    with pytest.raises(
        CheckpointError, match=r"system.prepare: tensor 'frozen.weight' holds values that are not finite"
    ):
        run()


class TestResume:
    @pytest.mark.parametrize(("pauses", "workers"), [((3,), 0), ((4, 5), 1), ((1, 3, 6, 8), 0)], ids=str)
    def test_a_paused_run_ends_as_if_it_never_was(
        self, run: Run, uninterrupted: Run, pauses: tuple[int, ...], workers: int
    ) -> None:
        for i, pause in enumerate((*pauses, -1)):
            paused = run("paused", resume=i > 0, train__max_steps=pause, data__workers=workers)
            if pause > 0:
                assert resume_state(paused)["global_step"] == pause
        assert resume_state(paused)["global_step"] == STEPS
        assert_same_run(paused, uninterrupted())

    def test_with_accumulation(self, run: Run) -> None:
        whole = run("whole", optim__accumulate=2)
        run("paused", optim__accumulate=2, train__max_steps=3)
        assert_same_run(run("paused", optim__accumulate=2, resume=True), whole)
        assert resume_state(whole)["global_step"] == 6  # batches 2 + 1 in each of 3 epochs

    @pytest.mark.parametrize("dies_in", [1, 3, 6, 7])
    def test_a_killed_run_continues_from_its_last_save(
        self, run: Run, uninterrupted: Run, monkeypatch: pytest.MonkeyPatch, dies_in: int
    ) -> None:
        whole = uninterrupted()
        monkeypatch.setattr(Learner, "loss", at_call(dies_in, interrupt, Learner.loss))
        with pytest.raises(KeyboardInterrupt):
            run("killed", train__checkpoint_every=2)
        assert_same_run(run("killed", resume=True), whole)

    @pytest.mark.parametrize("step", [3, 5, 9])
    def test_sigterm_ends_after_the_step_in_progress(
        self, run: Run, uninterrupted: Run, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        whole = uninterrupted()
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(Learner, "loss", at_call(step, terminate, Learner.loss))
        with pytest.raises(LangdepthError, match=rf"^stopped by SIGTERM after step {step}; .*continue with --resume$"):
            run("stopped")
        assert signal.getsignal(signal.SIGTERM) is before
        assert_same_run(run("stopped", resume=True), whole)

    @pytest.mark.parametrize("dies_in", [1, 3])
    @pytest.mark.parametrize("how", ["killed", "terminated"])
    def test_a_run_that_ends_while_it_evaluates_does_so_again(
        self, run: Run, uninterrupted: Run, monkeypatch: pytest.MonkeyPatch, dies_in: int, how: str
    ) -> None:
        whole = uninterrupted()
        end = interrupt if how == "killed" else terminate
        monkeypatch.setattr(validation, "evaluate", at_call(dies_in, end, validation.evaluate))
        with pytest.raises(KeyboardInterrupt if how == "killed" else LangdepthError):
            run("ended")
        monkeypatch.undo()
        monkeypatch.setitem(registry.REGISTRY, LEARNER.name, LEARNER)
        assert_same_run(run("ended", resume=True), whole)

    @pytest.mark.parametrize(("how", "dies_in"), [("killed", 1), ("killed", 5), ("terminated", 2)])
    def test_in_mid_epoch_too(
        self, run: Run, uninterrupted: Run, monkeypatch: pytest.MonkeyPatch, how: str, dies_in: int
    ) -> None:
        fields = {"train__validate_every_steps": 2, "train__save_every_steps": 4}
        whole = uninterrupted(**fields)
        end = interrupt if how == "killed" else terminate
        monkeypatch.setattr(validation, "evaluate", at_call(dies_in, end, validation.evaluate))
        with pytest.raises(KeyboardInterrupt if how == "killed" else LangdepthError):
            run("ended", **fields)
        ended = run("ended", **fields, resume=True)
        assert_same_run(ended, whole)
        for path in (whole / "steps").glob("*.safetensors"):
            assert_same(load_file(ended / "steps" / path.name), load_file(path))

    def test_a_pause_does_not_change_what_is_best(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(validation, "evaluate", reports_of("abs_rel", [0.5, 0.3, 0.1, 0.4]))  # steps 3, 6, 7, 9
        run(train__max_steps=7)
        folder = run(resume=True)
        steps = [checkpoint.load(folder / f"{name}.safetensors").provenance["training"]["steps"] for name in NAMES]
        assert steps == [6, 9]

    def test_a_finished_run_stays_as_it_is(self, run: Run) -> None:
        folder = run()
        before = {path: load_file(path) for path in folder.glob("*.safetensors")}
        run(resume=True)
        assert_same({path: load_file(path) for path in folder.glob("*.safetensors")}, before)

    def test_continuing_needs_no_second_preparation(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        run(train__max_steps=2)
        system = registry.build("learner")
        loaded: list[str] = []

        def load(name: str) -> System:
            loaded.append(name)
            return checkpoint.load(name)

        monkeypatch.setattr(langdepth.training.start, "load", load)
        monkeypatch.setattr(checkpoint.registry, "build", lambda *_: system)
        folder = run(resume=True)
        assert loaded == [str(folder / "start.safetensors")]

    def test_another_recipe_is_refused_and_another_pace_is_not(self, run: Run) -> None:
        folder = run(train__max_steps=2)
        with pytest.raises(UsageError, match=r"run: this run has optim.lr = 0.01, not 0.02; .*recipe.yaml"):
            run(resume=True, optim__lr=0.02)
        run(resume=True, train__max_steps=3, train__log_every=7, data__workers=1, train__non_finite="skip")
        assert resume_state(folder)["global_step"] == 3

    def test_folders_are_not_mixed(self, run: Run, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="holds no run to continue"):
            run(resume=True)
        run(train__max_steps=1)
        with pytest.raises(UsageError, match="holds a run already; continue it with --resume"):
            run()

    @pytest.mark.parametrize("name", ["best.safetensors", "best-rmse.safetensors", "last.md", "metrics.csv"])
    def test_files_of_others_are_not_replaced(self, run: Run, tmp_path: Path, name: str) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / name).write_text("mine")
        with pytest.raises(LangdepthError, match=rf"{name}:? exists"):
            run(train__max_steps=1)
        assert (tmp_path / "run" / name).read_text() == "mine"

    @pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"x" * len(b)])
    def test_a_damaged_resume_point_is_one_line(self, run: Run, damage: Callable[[bytes], bytes]) -> None:
        path = run(train__max_steps=2) / "resume.ckpt"
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(
            LangdepthError,
            match=r"^\S*resume.ckpt: is damaged; .*$",
        ):
            run(resume=True)

    def test_a_full_disk_keeps_the_resume_point(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = run(train__max_steps=2)
        before = (folder / "resume.ckpt").read_bytes()

        def full(trainer: Any, path: Path) -> None:
            path.write_bytes(b"half a che")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("lightning.pytorch.Trainer.save_checkpoint", full)
        with pytest.raises(LangdepthError, match=r"resume.ckpt: cannot be written \(No space left on device\)"):
            run(resume=True)
        assert (folder / "resume.ckpt").read_bytes() == before
        assert not list(folder.glob("*partial*")) + list(folder.glob(".*partial*"))
        monkeypatch.undo()


def test_the_seed_decides(run: Run, uninterrupted: Run) -> None:
    first, again, other = uninterrupted(), run("again"), run("other", train__seed=1)
    assert_same_run(again, first)
    weights = [load_file(folder / "last.safetensors")["body.0.weight"] for folder in (first, other)]
    assert not torch.equal(*weights)


class TestNonFinite:
    BAD = "scene0004"  # a training image of the sample folder

    @pytest.mark.parametrize("poisoned", ["loss", "gradient"])
    def test_stops_and_names_the_image(self, run: Run, tmp_path: Path, poisoned: str) -> None:
        options = {"poison": self.BAD, "poisoned": poisoned}
        with pytest.raises(NonFiniteLossError) as caught:
            run(system__options=options, data__batch_size=3, train__checkpoint_every=1)
        message = str(caught.value)
        assert message.startswith(f"the {poisoned} is not finite in epoch 1, step ")
        assert message.count("0.jpg") == 1
        assert f"{self.BAD}/0.jpg; check these images" in message
        for path in (tmp_path / "run").glob("resume.ckpt"):  # what was saved before is clean
            assert all(v.isfinite().all() for v in torch.load(path, weights_only=True)["state_dict"].values())

    def test_many_images_are_a_matter_of_the_rate(self, run: Run) -> None:
        with pytest.raises(NonFiniteLossError, match=r"0\.jpg, .*0\.jpg; lower optim.lr"):
            run(system__options={"poison": "scene"})

    @pytest.mark.parametrize("poisoned", ["loss", "gradient"])
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_a_skipped_step_changes_nothing(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, poisoned: str, accumulate: int
    ) -> None:
        step = DepthTraining.optimizer_step
        changed: list[tuple[bool, bool]] = []
        window: list[str] = []

        def state(module: DepthTraining) -> dict[str, Any]:
            optimiser = module.trainer.optimizers[0].state_dict()["state"]
            weights = {**module.state_dict(), **{f"{k}.{n}": v for k, s in optimiser.items() for n, v in s.items()}}
            return {name: value.clone() for name, value in weights.items()}

        def watched(module: DepthTraining, *arguments: Any) -> None:
            before = state(module)
            step(module, *arguments)
            after = state(module)
            same = before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in after)
            changed.append((any(self.BAD in path for path in window), not same))
            window.clear()

        loss = Learner.loss

        def noted(system: Learner, batch: Any, **drawn: Any) -> dict[str, Tensor]:
            window.extend(batch.path if system.training else ())
            return loss(system, batch, **drawn)

        monkeypatch.setattr(DepthTraining, "optimizer_step", watched)
        monkeypatch.setattr(Learner, "loss", noted)
        with pytest.warns(UserWarning, match=f"the {poisoned} is not finite .*{self.BAD}.* left out"):
            folder = run(
                system__options={"poison": self.BAD, "poisoned": poisoned},
                train__non_finite="skip",
                optim__accumulate=accumulate,
            )
        assert {bad for bad, _ in changed} == {True, False}
        if accumulate == 1:
            assert all(different != bad for bad, different in changed)
        else:  # of a larger step, good batches move the running statistics; weights are seen in the end
            assert all(different for bad, different in changed if not bad)
        assert all(v.isfinite().all() for v in load_file(folder / "last.safetensors").values())


def lasting(values: list[float]) -> list[float]:
    return [round(value, 6) for value in values]


class TestSchedule:
    @pytest.mark.parametrize(
        ("schedule", "middle"),
        [
            ("one_cycle", (1 + math.cos(math.pi * 0.5)) / 2),
            ("cosine", 0.5),
            ("poly", 0.5**0.9),
            ("constant", 1.0),
        ],
    )
    def test_rises_and_falls(self, schedule: Any, middle: float) -> None:
        factor = rate(OptimSection(schedule=schedule, warm_up=0.2), 100)
        rates = [factor(step) for step in range(101)]
        assert 0 < rates[0] < 0.06
        assert all(b > a for a, b in itertools.pairwise(rates[:20]))
        assert rates[19] == rates[20] == 1
        assert rates[60] == pytest.approx(middle)
        assert all(b <= a for a, b in itertools.pairwise(rates[20:]))
        assert rates[100] == pytest.approx(1 if schedule == "constant" else 0)

    def test_warm_up_is_linear_or_along_a_cosine(self) -> None:
        for schedule, expected in (("poly", [0.25, 0.5, 0.75, 1]), ("one_cycle", [0.146447, 0.5, 0.853553, 1])):
            factor = rate(OptimSection(schedule=schedule, warm_up=0.4), 10)  # type: ignore[arg-type]
            assert lasting([factor(step) for step in range(4)]) == expected

    def test_steps_down_at_the_milestones(self) -> None:
        factor = rate(OptimSection(schedule="step", milestones=(1, 3), factor=0.5, warm_up=0), steps=20, epochs=4)
        assert [factor(step) for step in range(20)] == [1.0] * 5 + [0.5] * 10 + [0.25] * 5

    @pytest.mark.parametrize(
        "wrong",
        [
            {"schedule": "step"},
            {"schedule": "step", "milestones": (3, 3)},
            {"schedule": "step", "milestones": (0, 3)},
            {"milestones": (3,)},
        ],
    )
    def test_milestones_are_for_the_step_schedule(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="milestones must be rising numbers of epochs"):
            OptimSection(**wrong)

    @pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "poly", "constant"])
    def test_without_warm_up_starts_at_the_top(self, schedule: Any) -> None:
        factor = rate(OptimSection(schedule=schedule, warm_up=0), 10)
        assert [factor(0), factor(10)] == pytest.approx([1, 1 if schedule == "constant" else 0])

    @pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "poly"])
    def test_ends_where_it_is_asked_to(self, schedule: Any) -> None:
        to_zero, to_end = (
            rate(OptimSection(schedule=schedule, warm_up=0, lr=0.1, end_lr=end), 10) for end in (0, 0.02)
        )
        assert [to_end(step) for step in (0, 4, 10)] == pytest.approx([1, 0.2 + 0.8 * to_zero(4), 0.2])
        with pytest.raises(ValueError, match="end_lr must be from 0 to lr"):
            OptimSection(schedule=schedule, lr=0.1, end_lr=0.2)

    @pytest.mark.parametrize("steps", [1, 10, 40])  # of 10 the rise would be one step
    def test_torch_one_cycle_rises_from_a_25th_and_lowers_beta1(self, steps: int) -> None:
        optim = OptimSection(schedule="torch_one_cycle", lr=0.5, end_lr=0.001, warm_up=0.1)
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.5, 0.05, 0.0)]
        optimiser = torch.optim.AdamW(groups)
        schedule, seen = scheduler(optimiser, optim, steps, epochs=1), []
        for _ in range(steps):
            seen.append([group["lr"] for group in optimiser.param_groups] + [optimiser.param_groups[0]["betas"][0]])
            optimiser.step()
            schedule.step()
        if steps == 40:
            assert lasting(seen[0]) == [0.02, 0.002, 0, 0.95]
            assert lasting(seen[3]) == [0.5, 0.05, 0, 0.85]
            assert lasting(seen[-1]) == [0.001, 0.0001, 0, 0.95]
        assert all(row[1] == pytest.approx(row[0] / 10) for row in seen)

    def test_spans_the_run(self, run: Run) -> None:
        rows = read_metrics(run(optim__schedule="poly", optim__warm_up=0, optim__power=1.0))
        assert [float(row["lr"]) for row in rows] == pytest.approx([0.01 * (1 - i / STEPS) for i in range(STEPS)])


def test_damaged_metrics_are_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\none,2\n")
    with pytest.raises(LangdepthError, match=r"metrics.csv: is damaged; remove it to resume without it"):
        MetricsFile(tmp_path / "metrics.csv", resume=True)
    (tmp_path / "metrics.csv").unlink()
    os.mkfifo(tmp_path / "metrics.csv")
    with pytest.raises(LangdepthError, match=r"metrics.csv: is damaged"):
        MetricsFile(tmp_path / "metrics.csv", resume=True)


def read_metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class TestSteps:
    @pytest.mark.parametrize(
        ("optim", "kind", "facts"),
        [
            ({"betas": [0.8, 0.95]}, torch.optim.AdamW, {"betas": (0.8, 0.95)}),
            ({"optimiser": "sgd", "momentum": 0.7}, torch.optim.SGD, {"momentum": 0.7}),
        ],
    )
    def test_the_optimiser_is_the_recipes(self, optim: dict[str, Any], kind: type, facts: dict[str, Any]) -> None:
        recipe = read_recipe({"data": {"root": "rooms"}, "optim": {"lr": 0.25, "weight_decay": 0.5, **optim}})
        optimiser = DepthTraining(Learner(), recipe, steps=10).configure_optimizers()["optimizer"]
        assert type(optimiser) is kind
        for group in optimiser.param_groups:
            assert {name: group[name] for name in facts} == facts
            assert group["initial_lr"] == 0.25
            assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.5}

    def test_the_moving_average_by_hand(self, run: Run) -> None:
        seen: list[Tensor] = []

        def note(optimiser: Any, *_: Any) -> None:
            parameters = (p for group in optimiser.param_groups for p in group["params"])
            matrix = next(p for p in parameters if p.shape == (8, 3, 3, 3))  # body.0.weight
            seen.append(matrix.detach().clone())

        handle = register_optimizer_step_post_hook(note)
        try:
            folder = run(train__ema=0.3)
        finally:
            handle.remove()
        assert len(seen) == STEPS
        average = seen[0]
        decays = [2 / 11, 3 / 12, *[0.3] * 6]  # it rises: 4 / 13 would be more than 0.3
        for weight, decay in zip(seen[1:], decays, strict=True):
            average = decay * average + (1 - decay) * weight
        saved = load_file(folder / "last.safetensors")["body.0.weight"]
        assert torch.allclose(saved, average, atol=1e-6)
        assert not torch.allclose(saved, seen[-1], atol=1e-4)

    def test_the_moving_average_counts_batches_as_the_system_does(self) -> None:
        layer = torch.nn.BatchNorm2d(1)
        average = MovingAverage(layer, 0.9)
        for number in range(1, 4):
            layer.num_batches_tracked.fill_(10 * number)
            average.update_parameters(layer)
            assert average.module.num_batches_tracked == 10 * number

    def test_without_warm_up_the_average_starts_from_the_start_weights(self) -> None:
        layer = torch.nn.BatchNorm2d(1)
        average = MovingAverage(layer, 0.9, warm_up=False)
        for weight in (2.0, 3.0):
            layer.weight.data.fill_(weight)
            average.update_parameters(layer)
        assert average.module.weight.item() == pytest.approx(0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 3)
        recipe = {"data": {"root": "rooms"}, "train": {"ema": 0.9}}
        hashes = {
            read_recipe({**recipe, "train": {"ema": 0.9, **train}}).hash
            for train in ({}, {"ema_warm_up": True}, {"ema_warm_up": False})
        }
        assert len(hashes) == 2
        assert "train.ema_warm_up" not in read_recipe(recipe).identity()  # as before there was a choice

    def test_without_average_the_weights_themselves_are_saved(self, run: Run) -> None:
        folder = run(train__ema=0)
        state = resume_state(folder)["state_dict"]
        saved = load_file(folder / "last.safetensors")
        assert set(state) == {f"system.{name}" for name in saved} | {"system._mean", "system._std"} & set(state)
        assert all(torch.equal(state[f"system.{name}"], value) for name, value in saved.items())

    @pytest.mark.parametrize("clip", [0.0, 0.01])
    def test_clipping(self, run: Run, clip: float) -> None:
        norms: list[float] = []

        def note(optimiser: Any, *_: Any) -> None:  # before the closure: the gradients of the step before
            gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
            if gradients:
                norms.append(float(torch.nn.utils.get_total_norm(gradients)))

        handle = register_optimizer_step_post_hook(note)
        try:
            run(optim__clip=clip)
        finally:
            handle.remove()
        assert len(norms) == STEPS
        if clip:
            assert norms == pytest.approx([clip] * STEPS, rel=1e-3)
        else:
            assert min(norms) > 0.01

    def test_accumulated_batches_are_one_step(self, run: Run) -> None:
        steps: list[int] = []
        handle = register_optimizer_step_pre_hook(lambda *_: steps.append(1))
        try:
            folder = run(optim__accumulate=3)
        finally:
            handle.remove()
        assert len(steps) == 3
        assert [row["step"] for row in read_metrics(folder)] == ["1", "2", "3"]

    def test_a_step_draws_once_for_all_its_batches(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[bool] = []
        values: list[float] = []
        original = Learner.loss

        def loss(learner: Learner, batch: Any, scaled: bool) -> dict[str, Tensor]:
            drawn.append(scaled)
            values.append(float(learner.sometimes.detach()))
            return original(learner, batch, scaled)

        monkeypatch.setattr(Learner, "loss", loss)
        run(optim__accumulate=2, optim__weight_decay=0.5)
        steps = [0, 0, 1, 2, 2, 3, 4, 4, 5]  # of the batches: 2 + 1 in each of 3 epochs
        by_step = dict(zip(steps, drawn, strict=True))
        assert [by_step[step] for step in steps] == drawn
        assert set(drawn) == {True, False}
        before = [values[steps.index(step)] for step in range(6)]
        # What a step leaves out gets no gradient, so it neither moves nor decays.
        assert [a != b for a, b in itertools.pairwise(before)] == [by_step[step] for step in range(5)]

    def test_mixed_precision(self, run: Run, uninterrupted: Run) -> None:
        full, mixed = uninterrupted(), run("mixed", train__precision="bf16-mixed")
        weights = [load_file(folder / "last.safetensors") for folder in (full, mixed)]
        assert all(value.isfinite().all() and value.dtype != torch.bfloat16 for value in weights[1].values())
        difference = (weights[0]["body.0.weight"] - weights[1]["body.0.weight"]).abs().max()
        assert 0 < difference < 0.05


class TestRunFolder:
    def test_what_it_holds(self, run: Run, sample_folder: Path) -> None:
        folder = run(train__previews=2, train__licence="mine", train__source="a test")
        assert {path.name for path in folder.iterdir()} == {
            "recipe.yaml",
            "start.safetensors",
            "start.md",
            "resume.ckpt",
            "metrics.csv",
            "tensorboard",
            "previews",
            "best.safetensors",
            "best.md",
            "last.safetensors",
            "last.md",
        }
        assert [path.name for path in sorted((folder / "previews").iterdir())] == [
            f"step_{step:07d}.jpg" for step in (3, 6, 9)
        ]
        assert list((folder / "tensorboard").glob("events*"))
        system = checkpoint.load(folder / "last.safetensors")
        result = system.predict(np.zeros((48, 64, 3), np.uint8))
        assert result.depth.shape == (48, 64)  # type: ignore[union-attr]
        facts = system.provenance
        assert (facts["licence"], facts["source"]) == ("mine", "a test")
        assert facts["training"].items() >= {"epochs": 3, "steps": STEPS, "seed": 0, "images": 6}.items()
        numbers = facts["numbers"]
        assert numbers["images"] == 2
        assert numbers["protocol"].startswith("full (")
        assert str(sample_folder) not in str(facts)
        last = read_metrics(folder)[-1]
        assert float(last["val/abs_rel"]) == pytest.approx(numbers["abs_rel"], rel=1e-6)

    def test_the_numbers_are_those_of_evaluate(self, run: Run, sample_folder: Path) -> None:
        from langdepth.evaluation import protocols
        from langdepth.evaluation.evaluate import evaluate

        system = checkpoint.load(run(train__protocol="nyu-eigen") / "last.safetensors")
        again = evaluate(
            system, open_dataset("folder", sample_folder, split="val"), protocols.get("nyu-eigen"), progress=False
        )
        stated = {name: system.provenance["numbers"][name] for name in again["image_mean"]}
        assert stated == pytest.approx(again["image_mean"], rel=1e-5)

    @pytest.mark.parametrize("monitor", ["abs_rel", "delta1"])
    def test_best_is_the_best_in_the_metric(self, run: Run, monkeypatch: pytest.MonkeyPatch, monitor: str) -> None:
        values = {"abs_rel": [0.5, 0.3, 0.4], "delta1": [0.5, 0.7, 0.6]}[monitor]
        monkeypatch.setattr(validation, "evaluate", reports_of(monitor, values))
        folder = run(train__monitor=monitor)
        steps = [checkpoint.load(folder / f"{name}.safetensors").provenance["training"]["steps"] for name in NAMES]
        assert steps == [6, STEPS]

    def test_the_best_of_every_monitored_metric_is_kept(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(validation, "evaluate", reports_of("abs_rel", [0.5, 0.3, 0.1, 0.4]))
        monkeypatch.setattr(validation, "evaluate", reports_of("rmse", [2.0, 3.0, 1.0, 4.0]))
        monkeypatch.setattr(validation, "evaluate", reports_of("delta1", [0.1, 0.2, 0.9, 0.3]))
        folder = run(train__monitor=["abs_rel", "rmse", "delta1"], train__max_steps=7)
        folder = run(train__monitor=["abs_rel", "rmse", "delta1"], resume=True)
        kept = {path.stem: checkpoint.load(path).provenance["training"]["steps"] for path in folder.glob("best*.s*")}
        assert kept == {"best": 6, "best-rmse": 3, "best-delta1": 9}

    def test_evaluated_every_so_many_steps(self, run: Run) -> None:
        folder = run(train__validate_every_steps=2, train__save_every_steps=3, optim__accumulate=2, train__epochs=4)
        rows = read_metrics(folder)  # 2 steps in each of 4 epochs: the second ends the epoch
        assert [row["step"] for row in rows if row["val/abs_rel"]] == ["2", "4", "6", "8"]
        assert {path.name for path in (folder / "steps").iterdir()} == {
            f"{step:07d}{suffix}" for step in (3, 6) for suffix in (".safetensors", ".md")
        }
        kept = checkpoint.load(folder / "steps" / "0000006.safetensors").provenance
        assert kept["training"]["steps"] == 6
        assert "numbers" not in kept

    def test_evaluated_now_and_then_and_at_the_end(self, run: Run) -> None:
        rows = read_metrics(run(train__validate_every=2))
        assert [row["step"] for row in rows if row["val/abs_rel"]] == ["6", "9"]

    def test_progress_in_a_pipe(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        run(train__log_every=2)
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        assert [line.split(" loss ")[0] for line in lines if " loss " in line] == [
            f"epoch {epoch} step {step}/9" for epoch, step in ((1, 2), (2, 4), (2, 6), (3, 8))
        ]
        assert [line.split(": abs_rel")[0] for line in lines if "evaluated" in line] == [
            f"step {step}/9 evaluated on 2 images" for step in (3, 6, 9)
        ]
        assert (len(lines), lines[-1].split(": ")[0]) == (9, "done")
        assert captured.err == ""

    def test_a_bar_on_a_terminal(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        run()
        out = capsys.readouterr().out
        assert re.search(r"Epoch 2: 100%.*3/3 .*loss=\d", out)
        assert "v_num" not in out
        assert "s/step" not in out
        assert "step 9/9 evaluated on 2 images" in out

    def test_few_validation_images_are_pointed_out(self, run: Run) -> None:
        with pytest.warns(UserWarning, match=r"^only 2 validation images \(val\): which weights are best is largely"):
            run(train__max_steps=1)

    def test_from_a_thread(self, run: Run) -> None:
        with ThreadPoolExecutor(1) as pool:
            assert (pool.submit(run, train__max_steps=1).result() / "last.safetensors").exists()

    def test_the_start_is_evaluated_first_and_kept_if_it_stays_best(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = run("first", train__licence="mine", train__source="a test", train__max_steps=1) / "last.safetensors"
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("paused after step 1 of 9, continue with --resume; best so far: ")
        fields = {"system__weights": str(first), "train__epochs": 2}
        with monkeypatch.context() as patch:
            patch.setattr(validation, "evaluate", reports_of("abs_rel", [0.2, 0.4, 0.3]))
            folder = run("worse", **fields)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "learner: 6 steps, learning from 6 images, validating on 2 (val); cpu"
        assert lines[1].startswith("step 0/6 evaluated on 2 images: abs_rel 0.2000")
        said = "no step improved abs_rel (0.2000): best.safetensors is the start, last.safetensors"
        assert lines[-1] == said != lines[-2]
        assert_same(load_file(folder / "best.safetensors"), load_file(first))
        facts = checkpoint.load(folder / "best.safetensors").provenance
        assert facts["training"] == {"steps": 0, "note": "the start of a run, unchanged"}
        assert facts["numbers"]["abs_rel"] == 0.2

        with monkeypatch.context() as patch:
            patch.setattr(validation, "evaluate", reports_of("abs_rel", [0.2, 0.4, 0.1]))
            folder = run("better", **fields)
        assert "no step" not in capsys.readouterr().out
        facts = checkpoint.load(folder / "best.safetensors").provenance
        assert facts["training"]["steps"] == 6
        assert facts["continued_from"] == {
            "weights": "last.safetensors",
            "sha256": file_sha256(first),
            "licence": "mine",
            "source": "a test",
        }
        assert facts["source"] == "trained further from last.safetensors"
        card = (folder / "best.md").read_text()
        assert f"| continued_from.sha256 | {file_sha256(first)} |" in card

        again = run("again", system__weights=str(folder / "best.safetensors"), train__max_steps=1)
        origin = checkpoint.load(again / "last.safetensors").provenance["continued_from"]
        assert origin["continued_from"] == facts["continued_from"]

    def test_start_weights_keep_their_licence(self, run: Run) -> None:
        first = run("first", train__licence="mine", train__max_steps=1)
        second = run("second", system__weights=str(first / "last.safetensors"), train__max_steps=1)
        assert checkpoint.load(second / "last.safetensors").provenance["licence"] == "mine"
        start = load_file(second / "start.safetensors")
        assert_same(start, load_file(first / "last.safetensors"))


class TestRefused:
    def test_what_cannot_be_trained(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        class Fixed(System):
            Config = LearnerConfig

            def __init__(self, config: LearnerConfig) -> None:
                super().__init__(config, InputSpec(area=48 * 64, multiple_of=16))

        monkeypatch.setattr("tests.helpers.Learner", Fixed)
        with pytest.raises(UsageError, match="'learner' has nothing to train"):
            run()

    def test_unknown_preparation(self, run: Run) -> None:
        with pytest.raises(UsageError, match=r"system.prepare: .*unexpected keyword argument 'captions'"):
            run(system__prepare={"captions": "x"})

    def test_weights_of_another_system(self, run: Run) -> None:
        with pytest.raises(UsageError, match="no-such"):
            run(system__weights="no-such")

    def test_missing_weights_before_the_data_is_opened(self, run: Run) -> None:
        with pytest.raises(MissingCheckpointError, match=r"^none.safetensors: no such file"):
            run(system__weights="none.safetensors", data__root="no-such-folder")

    def test_options_that_the_weights_do_not_have(self, run: Run) -> None:
        weights = str(run("first", train__max_steps=1) / "last.safetensors")
        message = r"system.options.width: \S*last.safetensors was made with 8, the recipe says 4"
        with pytest.raises(UsageError, match=message):
            run("second", system__weights=weights, system__options={"width": 4})
        run("second", system__weights=weights, system__options={"width": 8}, train__max_steps=1)

    def test_a_worker_that_dies_is_one_line(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        parent, read = os.getpid(), RowDataset.stored
        monkeypatch.setattr(
            RowDataset, "stored", lambda self, i: read(self, i) if os.getpid() == parent else os._exit(1)
        )
        with pytest.raises(LangdepthError, match="DataLoader worker"):
            run(data__workers=1)

    @pytest.mark.parametrize(
        "fields", [{"train__strategy": "dpd"}, {"train__accelerator": "cpuu"}, {"train__accelerator": "tpu"}]
    )
    def test_hardware_that_is_not_there(self, run: Run, fields: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"^train.accelerator, devices, strategy, precision: .+$"):
            run(**fields)
        assert not (tmp_path / "run" / "start.safetensors").exists()

    def test_depth_without_unit_needs_an_alignment(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Learner, "scale_kind", "relative")
        with pytest.raises(UsageError, match="up to a factor"):
            run()

    def test_memory(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def short(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("tried to allocate")

        monkeypatch.setattr(Learner, "loss", short)
        with pytest.raises(LangdepthError, match=r"not enough memory for batches of 2; lower data\.batch_size"):
            run()


class TestLossGoesDown:
    def losses(self, folder: Path) -> list[float]:
        return [float(row["train/total"]) for row in read_metrics(folder)]

    def test_learner(self, run: Run) -> None:
        still = dict.fromkeys(("zoom_probability", "rotate_probability", "colour_probability", "flip", "grey"), 0.0)
        losses = self.losses(run(train__epochs=20, optim__lr=0.05, data__augmentation=still))
        assert np.mean(losses[-6:]) < 0.6 * np.mean(losses[:6])

    def test_tiny(self, run: Run, tmp_path: Path) -> None:
        features = np.random.default_rng(0).normal(size=(len(CAPTIONS), TEXT_COLUMNS)).astype(np.float16)
        file = tmp_path / "captions.npz"
        np.savez(file, caption=CAPTIONS, feature=features, train_count=np.ones(len(CAPTIONS), int))
        options = {"encoder": 0, "area": 48 * 64, "widths": [8, 8, 12, 16], "bins": 8, "text_features": 16}
        folder = run(
            system__name="tiny",
            system__options=options | {"vocabulary": ["a"]},
            system__prepare={"text_features": str(file)},
            train__epochs=8,
            optim__lr=0.005,
        )
        losses = self.losses(folder)
        assert np.mean(losses[-6:]) < 0.75 * np.mean(losses[:6])


def test_a_resume_point_with_a_part_of_another_length_is_damaged(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(8)}}, tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole") as old, zipfile.ZipFile(tmp_path / "resume.ckpt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + (b"xx" if name.endswith("data/0") else b""))
    with pytest.raises(CheckpointError, match=r"resume\.ckpt: is damaged; without it"):
        require_readable(tmp_path / "resume.ckpt")
