"""``langdepth train`` as a user meets it: recipes, overrides, messages, exit codes, signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from langdepth import cli
from langdepth.systems import registry
from langdepth.weights import checkpoint
from tests.helpers import LEARNER, Learner, Run, without_few, write_folder

REPOSITORY = Path(__file__).parents[2]


def write_recipe(path: Path, root: Path, **train: Any) -> Path:
    content = {
        "system": {"name": "learner"},
        "data": {"root": str(root), "batch_size": 2, "workers": 0},
        "train": {"out": str(path.parent / "run"), "epochs": 2, "accelerator": "cpu", "previews": 0, **train},
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sample_folder: Path, command: Run) -> Run:
    """Run the command in an empty folder with a recipe for the learner; returns exit code, stdout, stderr.

    Without the warning of the few validation images.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry.REGISTRY, LEARNER.name, LEARNER)
    write_recipe(tmp_path / "recipe.yaml", sample_folder)

    def call(*arguments: object, config: str = "recipe.yaml") -> tuple[int, str, str]:
        code, out, err = command("train", "--config", config, *arguments)
        return code, out, without_few(err)

    return call


def refused(answer: tuple[int, str, str], code: int, pattern: str) -> None:
    assert answer[0] == code
    assert answer[1] == ""
    assert re.fullmatch(f"langdepth train: .*{pattern}.*\n", answer[2])


def test_as_in_the_documentation(run: Run) -> None:
    code, out, err = run("--train.out", "runs/second", "--optim.lr=5e-4", "--data.weights.synthetic_street", "2")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"done: {Path('runs/second/best.safetensors')}"
    resolved = yaml.safe_load(Path("runs/second/recipe.yaml").read_text())
    assert resolved["optim"]["lr"] == 5e-4
    assert resolved["data"]["weights"] == {"synthetic_street": 2.0}
    code, out, err = run("--resume", config="runs/second/recipe.yaml")
    assert (code, err) == (0, "")


def test_the_trained_weights_predict(run: Run, sample_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run()[0] == 0
    image = next(sample_folder.rglob("*.jpg"))
    assert cli.main(["predict", str(image), "--system", "run/best.safetensors", "--out", "depth"]) == 0
    assert any(Path("depth").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.epoch", 3], "unknown key 'train.epoch': did you mean 'epochs'"),
        (["--trian.epochs", 3], "unknown key 'trian': did you mean 'train'"),
        (["--data.augmentation.flop", 1], "unknown key 'data.augmentation.flop': did you mean 'flip'"),
        (["--data.augmentation.flip", 2], "data.augmentation: flip must lie between 0 and 1, got 2"),
        (["--system.name", "lerner"], "unknown system 'lerner': did you mean 'learner'"),
        (["--system.options.widht", 3], "unknown key 'system.options.widht': did you mean 'width'"),
        (["--optim.schedule", "onecycle"], "optim.schedule: unknown value 'onecycle': did you mean 'one_cycle'"),
        (["--train.protocol", "nyu-eign"], "unknown protocol 'nyu-eign': did you mean 'nyu-eigen'"),
        (["--train.monitor", "absrel"], "train.monitor: 'absrel' is not a metric: did you mean 'abs_rel'"),
        (["--train.epochs", "many"], "train.epochs: expected int, got 'many'"),
        (["--train.epochs", 0], "train: epochs must be at least 1"),
        (["--train.ema", 1], "train: ema must be from 0 to below 1"),
        (["--train.max_steps", 0], "train: max_steps must be at least 1, or -1 for all"),
        (["--optim.lr", -1], "optim: lr must be above 0"),
        (["--optim.accumulate", 0], "optim: accumulate must be at least 1"),
        (["--data.batch_size", 0], "data: batch_size must be at least 1"),
        (["--data.aspects", "[]"], "data: aspects must be one or more positive numbers"),
        (["--data.weights.rooms", 2], "no training image has source 'rooms': .*synthetic_room"),
        (["--data.weights.synthetic_room", -2], "must be a number from 0 up"),
        (["--data.train_split", "trian"], "no row has split 'trian': did you mean 'train'"),
        (["--data.val_source", "nyu"], "no row has source 'nyu'"),
        (["--train.epochs"], "--train.epochs needs a value"),
        (["--train.epochs", "[3"], r"--train.epochs '\[3': not valid YAML in line 1, column 3: cannot be understood"),
        (["--train.epochs.more", 3], "--train.epochs.more: 'epochs' is a value, not a section"),
        (["--resumed"], "unknown option '--resumed': did you mean '--resume'"),
        (["--resume"], "run: holds no run to continue; start one without --resume"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_wrong_recipes(run: Run, arguments: list[object], message: str) -> None:
    refused(run(*arguments), 2, message)
    assert not Path("run/start.safetensors").exists()


def test_wrong_files(run: Run) -> None:
    refused(run(config="none.yaml"), 2, "none.yaml: no such file")
    Path("list.yaml").write_text("- a\n- b\n")
    refused(run(config="list.yaml"), 2, "list.yaml: a recipe is a mapping")
    Path("broken.yaml").write_text("train: {out: x\n  - y")
    refused(run(config="broken.yaml"), 2, "broken.yaml: not valid YAML in line 2")
    Path("no_data.yaml").write_text("train: {epochs: 2}\n")
    refused(run(config="no_data.yaml"), 2, "key 'data' is required")


def test_wrong_data(run: Run, tmp_path: Path) -> None:
    refused(run("--data.root", "nowhere"), 1, "nowhere: no such folder")
    (tmp_path / "empty").mkdir()
    refused(run("--data.root", "empty"), 1, "empty: has no index.csv")
    (tmp_path / "empty" / "index.csv").write_text("path_rgb,path_depth,depth_scale\n")
    refused(run("--data.root", "empty"), 1, "has no rows")
    assert not Path("run/start.safetensors").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_training_image_is_named(run: Run, tmp_path: Path, workers: int) -> None:
    write_folder(tmp_path / "data", [{"split": "train"}] * 4 + [{"split": "val"}])
    Path("data/2.png").write_bytes(b"not an image")
    code, _, err = run("--data.root", "data", "--data.workers", workers)
    assert code == 1
    assert re.fullmatch("langdepth train: data/2.png: .*\n", err)


def test_validation_images_without_depth(run: Run, tmp_path: Path) -> None:
    write_folder(tmp_path / "data", [{"split": "train"}] * 4 + [{"split": "val"}])
    Image.fromarray(np.zeros((48, 64), np.uint16)).save("data/4_depth.png")
    code, _, err = run("--data.root", "data")
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("skipped: data/4.png")
    assert lines[1].startswith("langdepth train: none of the 1 images of 'folder' is usable")


def test_the_run_folder_holds_another_run(run: Run) -> None:
    assert run("--train.max_steps", 1)[0] == 0
    refused(run(), 2, "run: holds a run already; continue it with --resume or choose another --train.out")


@pytest.mark.parametrize("name", ["recipe.yaml", "start.safetensors", "start.md", "best.md", "last.md"])
def test_files_of_others_in_the_run_folder(run: Run, name: str) -> None:
    Path("run").mkdir()
    Path("run", name).write_text("of somebody else")
    refused(run(), 1, f"run/{name} exists and was not written by langdepth; give another name, or remove it")
    assert [path.read_text() for path in Path("run").iterdir()] == ["of somebody else"]


def test_the_run_folder_cannot_be_written(run: Run) -> None:
    Path("file").write_text("")
    refused(run("--train.out", "file/run"), 1, "file/run: cannot be written")


def test_a_loss_that_is_not_finite(run: Run) -> None:
    code, _, err = run("--system.options.poison", "scene0004")
    assert code == 1
    assert re.fullmatch(
        r"langdepth train: the loss is not finite in epoch 1, step \d, for \S*scene0004/0.jpg; .*\n", err
    )
    code, out, err = run("--system.options.poison", "scene0004", "--train.non_finite", "skip", "--train.out", "other")
    assert code == 0
    assert re.fullmatch(r"(langdepth train: warning: the loss is not finite .*scene0004.* left out\n){2}", err)
    assert out.splitlines()[-1].startswith("done: ")


def test_ctrl_c_keeps_the_resume_point(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, seen = Learner.loss, []

    def interrupted(self: Learner, batch: Any, **drawn: Any) -> dict[str, torch.Tensor]:
        seen.append(batch)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return loss(self, batch, **drawn)

    monkeypatch.setattr(Learner, "loss", interrupted)
    code, _, err = run()
    assert code == 130
    assert err == "langdepth train: interrupted; what was already written is kept\n"
    assert torch.load("run/resume.ckpt", weights_only=True)["global_step"] == 3
    assert run("--resume")[0] == 0


@pytest.mark.parametrize("whole_group", [False, True])
def test_sigterm_saves_and_ends(tmp_path: Path, sample_folder: Path, whole_group: bool) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", sample_folder, epochs=100000, validate_every=100000, log_every=1)
    command = [sys.executable, "-m", "tests.langdepth_with_learner", "train", "--config", str(recipe)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"cwd": REPOSITORY, "text": True, "env": environment}
    process = subprocess.Popen(
        [*command, "--data.workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if " step 4/" in line:
            break
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    stopped = re.fullmatch(
        r"langdepth train: stopped by SIGTERM after step (\d+); \S+/resume.ckpt is written, continue with --resume\n",
        without_few(err),
    )
    assert stopped, err
    step = int(stopped[1])
    assert torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)["global_step"] == step >= 4
    again = subprocess.run(
        [*command, "--resume", "--train.max_steps", str(step + 2)], capture_output=True, check=True, **options
    )
    assert [line.split(" loss")[0].split(" step ")[1] for line in again.stdout.splitlines() if " loss " in line] == [
        f"{step + 1}/300000",
        f"{step + 2}/300000",
    ]
    assert without_few(again.stderr) == ""


def test_the_embedded_weights_learn_from_images_of_ones_own(command: Run, tmp_path: Path) -> None:
    """With nothing but the recipe and a folder whose index has no split."""
    root = write_folder(tmp_path / "data", [{"scene": f"room {number // 2}", "size": (96, 128)} for number in range(8)])
    recipe, out = "tiny-finetune", tmp_path / "run"
    quick = ("--train.max_steps", 1, "--data.workers", 0, "--train.accelerator", "cpu")
    code, said, err = command("train", "--config", recipe, "--data.root", root, "--train.out", out, *quick)
    assert (code, without_few(err)) == (0, "")
    assert re.match(r"tiny: \d+ steps, learning from 6 images, validating on 2 \(0.25 of train held out\); cpu\n", said)
    assert re.search(r"^step 0/\d+ evaluated on 2 images: ", said, re.MULTILINE)
    last = checkpoint.load(out / "last.safetensors").provenance
    tiny = registry.entry("tiny").weights
    assert tiny is not None
    assert last["continued_from"]["weights"] == "tiny"
    assert last["continued_from"]["sha256"] == tiny.sha256
    assert last["licence"] == last["continued_from"]["licence"]
    assert "| continued_from.weights | tiny |" in (out / "last.md").read_text()


def test_help_shows_an_example_and_imports_no_torch() -> None:
    code = "from langdepth import cli; import sys; cli.main(['train', '--help']); sys.exit('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0
    assert "langdepth train --config tiny-finetune" in answer.stdout
