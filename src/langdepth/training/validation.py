"""Validation: the system is evaluated at intervals, and its best and last weights are kept."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import distributed

from langdepth.data.rows import RowDataset
from langdepth.errors import ImageError
from langdepth.evaluation import protocols
from langdepth.evaluation.batch import evaluate_batch
from langdepth.evaluation.evaluate import evaluate
from langdepth.evaluation.metrics import HIGHER_IS_BETTER
from langdepth.evaluation.sheet import sheet_row
from langdepth.prediction import viz
from langdepth.records import Batch
from langdepth.training.callbacks import within_step
from langdepth.training.module import DepthTraining
from langdepth.training.recipe import Recipe
from langdepth.training.stopping import Stopping
from langdepth.utils.files import atomic_path
from langdepth.weights.files import save

SHOWN = ("abs_rel", "rmse", "log10", "delta1")


class Validation(Callback):
    """Evaluates the system at intervals and at the end; logs, draws previews, and keeps the weights.

    ``last.safetensors`` was evaluated last, ``best.safetensors`` is best in the first monitored metric,
    ``best-METRIC.safetensors`` in another one. A run that continues from weights evaluates them first: they stay best
    if no step improves on them. ``images``: number of training images, for the record.

    The checkpoint to continue from is always written before: a run that ends while it evaluates does so again when it
    continues.
    """

    def __init__(self, recipe: Recipe, dataset: RowDataset, images: int, stopping: Stopping) -> None:
        self.recipe, self.dataset, self.images, self.stopping = recipe, dataset, images, stopping
        self.protocol = protocols.get(recipe.train.protocol)
        self.best: dict[str, tuple[float, int]] = {}  # metric -> its best value so far, and after which step
        self.evaluated_step: int | None = None
        self._ended = False
        self._seconds, self._since = 0.0, time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module, settings = cast(DepthTraining, pl_module), self.recipe.train
        if trainer.global_step == 0:
            due = "continued_from" in module.system.provenance
        else:
            due = settings.validate_every_steps is None and trainer.current_epoch % settings.validate_every == 0
        if due:
            self._evaluate(trainer, module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        # Not at the end of the step before: what that step logs is written after it.
        every = self.recipe.train.validate_every_steps
        if every is not None and trainer.global_step > 0 and trainer.global_step % every == 0:
            self._evaluate(trainer, cast(DepthTraining, pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = cast(DepthTraining, pl_module)
        self._ended = True
        paused = trainer.global_step < module.steps
        self._evaluate(trainer, module, paused=paused)
        weights = self.recipe.train.out / "best.safetensors"
        if paused:
            place = f"paused after step {trainer.global_step} of {module.steps}, continue with --resume"
            module.print(f"{place}; best so far: {weights}")
        else:
            module.print(f"done: {weights}")
        metric = self.recipe.train.monitors[0]
        value, step = self.best.get(metric, (0.0, -1))  # known to the first process
        if step == 0:
            start = module.system.provenance["continued_from"]["weights"]
            module.print(f"no step improved {metric} ({value:.4f}): best.safetensors is the start, {start}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._ended:  # Lightning leaves out the end of training where no step was left to do
            self.on_train_end(trainer, pl_module)

    def _evaluate(self, trainer: pl.Trainer, module: DepthTraining, paused: bool = False) -> None:
        if trainer.global_step == self.evaluated_step:
            return
        with self.stopping.between_steps():
            if trainer.world_size > 1:  # running statistics are each process's own; those of the first are saved
                for buffer in module.buffers():
                    distributed.broadcast(buffer, src=0)
            report = evaluate(module.evaluated, self.dataset, self.protocol, progress=sys.stderr.isatty())
            step = trainer.global_step
            means = report["image_mean"]
            for logger in trainer.loggers:
                logger.log_metrics({f"val/{name}": value for name, value in means.items()}, step=step)
                logger.save()
            shown = ", ".join(f"{name} {means[name]:.4f}" for name in SHOWN)
            module.print(f"step {step}/{module.steps} evaluated on {report['images']} images: {shown}")
            if trainer.is_global_zero:
                self._keep(module, report, step, paused)
                self._draw_previews(module, step)
            module.system.train()
        self.evaluated_step = step

    def _keep(self, module: DepthTraining, report: Mapping[str, Any], step: int, paused: bool) -> None:
        module.evaluated.provenance = self.record(module, step, report)
        kept = ["last"] if step > 0 else []  # where it lies, a run has begun that a new one must not write over
        for number, metric in enumerate(self.recipe.train.monitors):
            value, before = report["image_mean"][metric], self.best.get(metric)
            sign = 1 if HIGHER_IS_BETTER[metric] else -1
            # A pause must not change what the whole run calls best.
            if before is None or (not paused and sign * value > sign * before[0]):
                kept.append(f"best-{metric}" if number else "best")
                self.best[metric] = value, step
        if kept:
            first, *others = (self.recipe.train.out / f"{name}.safetensors" for name in kept)
            save(module.evaluated, first, also=others)

    def record(self, module: DepthTraining, step: int, report: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The provenance of the system after ``step``, without paths, which would be of this machine."""
        facts = {key: value for key, value in module.system.provenance.items() if key != "numbers"}
        if step == 0 and "continued_from" in facts:  # what a recipe states of its weights is not true of these
            facts["training"] = {"steps": 0, "note": "the start of a run, unchanged"}
        else:
            if "continued_from" in facts:
                facts["source"] = f"trained further from {facts['continued_from']['weights']}"
            stated = {"licence": self.recipe.train.licence, "source": self.recipe.train.source}
            facts |= {key: text for key, text in stated.items() if text is not None}
            facts["training"] = self._training(module, step)
        if report is not None:
            facts["numbers"] = {
                "protocol": f"{self.protocol.name} ({self.protocol.hash})",
                "data": f"{report['dataset']}, split {report['split']}",
                "images": report["images"],
                **report["image_mean"],
            }
        return facts

    def _training(self, module: DepthTraining, step: int) -> dict[str, Any]:
        recipe, optim = self.recipe, self.recipe.optim
        return {
            "epochs": round(recipe.train.epochs * step / module.steps, 2),
            "steps": step,
            "seed": recipe.train.seed,
            "seconds": round(self._seconds_so_far()),
            "images": self.images,
            "batch_size": recipe.images_per_step,
            "optimiser": f"{type(module.trainer.optimizers[0]).__name__}, lr {optim.lr:g}, {optim.schedule}",
            "ema": recipe.train.ema,
            "precision": recipe.train.precision,
            "recipe_hash": recipe.hash,
        }

    def _draw_previews(self, module: DepthTraining, step: int) -> None:
        """A sheet of a few images, the same ones every time: ground truth, prediction, error."""
        count = min(self.recipe.train.previews, len(self.dataset))
        rows = []
        for index in range(0, len(self.dataset), len(self.dataset) // max(1, count))[:count]:
            with suppress(ImageError):  # evaluation has reported it
                sample = self.dataset[index]
                batch = evaluate_batch(module.evaluated, [sample], self.protocol)
                rows.append(sheet_row(batch, 0, "/".join(Path(sample.path).parts[-2:])))
        if rows:
            with atomic_path(self.recipe.train.out / "previews" / f"step_{step:07d}.jpg") as path:
                Image.fromarray(viz.sheet(rows)).save(path, quality=85)

    def _seconds_so_far(self) -> float:
        return self._seconds + time.monotonic() - self._since

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "evaluated_step": self.evaluated_step,
            "seconds": self._seconds_so_far(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.evaluated_step = state_dict["best"], state_dict["evaluated_step"]
        self._seconds = state_dict["seconds"]


class KeepWeights(Callback):
    """Saves the weights every ``train.save_every_steps`` steps: ``steps/NUMBER.safetensors``."""

    def __init__(self, recipe: Recipe, validation: Validation) -> None:
        self.folder, self.every = recipe.train.out / "steps", recipe.train.save_every_steps
        self.accumulate, self.validation = recipe.accumulate, validation

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if within_step(trainer, batch_idx, self.accumulate) or not trainer.is_global_zero:
            return
        if self.every is None or trainer.global_step % self.every:
            return
        module = cast(DepthTraining, pl_module)
        module.evaluated.provenance = self.validation.record(module, trainer.global_step)
        save(module.evaluated, self.folder / f"{trainer.global_step:07d}.safetensors")
