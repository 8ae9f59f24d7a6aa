"""What happens between the steps of training: checkpoints to continue from, validation, stopping."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import distributed

from langdepth import protocols, viz
from langdepth.checkpoint import save
from langdepth.data.feature_cache import FeatureCache
from langdepth.data.rows import RowDataset
from langdepth.errors import ImageError, LangdepthError
from langdepth.evaluate import evaluate, judge
from langdepth.recipe import Recipe
from langdepth.report import sheet_row
from langdepth.training.module import OPTIMISERS, DepthTraining
from langdepth.types import Batch
from langdepth.utils.files import atomic_path

SHOWN = ("abs_rel", "rmse", "log10", "delta1")


class FillFeatures(Callback):
    """Has the features made that a run reads, once the system is on its device."""

    def __init__(self, features: FeatureCache, batch_size: int) -> None:
        self.features, self.batch_size = features, batch_size

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        system = cast(DepthTraining, pl_module).system
        since = time.monotonic()
        made = self.features.fill(system, self.batch_size, trainer.global_rank, trainer.world_size)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            found = f"{len(self.features.files)} views of pictures have features in {self.features.folder}"
            print(f"{found}, {made} of them made in {time.monotonic() - since:.0f} s", flush=True)


class ResumePoint(Callback):
    """Keeps ``resume.ckpt``: every so many steps, after each epoch, and when the run is told to stop.

    SIGTERM ends the run after the step in progress. Ctrl-C ends it at once and loses the steps since the last save.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.path = recipe.train.out / "resume.ckpt"
        self.every, self.max_steps = recipe.train.checkpoint_every, recipe.train.max_steps
        self.accumulate = recipe.accumulate
        self.interrupted = False
        self._told_to_stop = False
        self._up_to_date = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def stop(number: int, frame: Any) -> None:
            self._told_to_stop = True
            if self._up_to_date and trainer.world_size == 1:  # between epochs: nothing to wait for
                raise self._stopped(trainer)

        if threading.current_thread() is threading.main_thread():  # others cannot
            signal.signal(signal.SIGTERM, stop)  # in place of Lightning's handler; it puts back what was there before
        self._stop_if_due(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._up_to_date = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.is_last_batch or (batch_idx + 1) % self.accumulate:  # the epoch's end follows; within a step
            return
        self._stop_if_due(trainer)
        if trainer.should_stop or trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_last_batch:  # and not stopped in mid-epoch
            self._save(trainer)
            self._up_to_date = True
            self._stop_if_due(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_if_due(trainer)  # all processes or none
        if self._told_to_stop:
            raise self._stopped(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)

    def _stop_if_due(self, trainer: pl.Trainer) -> None:
        self._told_to_stop = trainer.strategy.reduce_boolean_decision(self._told_to_stop, all=False)
        if self._told_to_stop or 0 < self.max_steps <= trainer.global_step:
            trainer.should_stop = True

    def _save(self, trainer: pl.Trainer) -> None:
        with atomic_path(self.path) if trainer.is_global_zero else nullcontext(self.path) as path:
            trainer.save_checkpoint(path)

    def _stopped(self, trainer: pl.Trainer) -> BaseException:
        message = f"stopped by SIGTERM after step {trainer.global_step}; {self.path} is written, continue with --resume"
        return LangdepthError(message) if trainer.is_global_zero else SystemExit(1)


class Validation(Callback):
    """Judges the system after every so many epochs and at the end; logs, draws previews, and keeps the weights.

    ``last.safetensors`` is what was judged last, ``best.safetensors`` what did best in the monitored metric.
    ``pictures``: number of training pictures, for the weights' record.
    """

    def __init__(self, recipe: Recipe, dataset: RowDataset, pictures: int) -> None:
        self.recipe, self.dataset, self.pictures = recipe, dataset, pictures
        self.protocol = protocols.get(recipe.train.protocol)
        self.best: float | None = None
        self.judged_step = 0
        self._seconds, self._since = 0.0, time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The resume point is written already: a run that dies while it judges does so again when it continues.
        if trainer.current_epoch % self.recipe.train.validate_every == 0:
            self._judge(trainer, cast(DepthTraining, pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = cast(DepthTraining, pl_module)
        self._judge(trainer, module, paused=trainer.global_step < module.steps)

    on_fit_end = on_train_end  # Lightning leaves out the end of training where no step was left to do

    def _judge(self, trainer: pl.Trainer, module: DepthTraining, paused: bool = False) -> None:
        if trainer.global_step == self.judged_step:
            return
        if trainer.world_size > 1:  # running statistics are each process's own; those of the first are saved
            for buffer in module.buffers():
                distributed.broadcast(buffer, src=0)
        report = evaluate(
            module.judged,
            self.dataset,
            self.protocol,
            split=self.recipe.data.validation,
            source=self.recipe.data.val_source,
            progress=sys.stderr.isatty(),
        )
        self.judged_step = trainer.global_step
        means = report["image_mean"]
        for logger in trainer.loggers:
            logger.log_metrics({f"val/{name}": value for name, value in means.items()}, step=self.judged_step)
            logger.save()
        shown = ", ".join(f"{name} {means[name]:.4f}" for name in SHOWN)
        module.print(f"step {self.judged_step}/{module.steps} judged on {report['images']} pictures: {shown}")
        if trainer.is_global_zero:
            self._keep(module, report, paused)
            self._draw_previews(module)
        module.system.train()

    def _keep(self, module: DepthTraining, report: Mapping[str, Any], paused: bool) -> None:
        module.judged.provenance = {**module.system.provenance, **self._facts(module, report)}
        out = self.recipe.train.out
        save(module.judged, out / "last.safetensors")
        value = report["image_mean"][self.recipe.train.monitor]
        sign = 1 if self.recipe.train.monitor.startswith("delta") else -1
        # A pause must not change what the whole run calls best.
        if self.best is None or (not paused and sign * value > sign * self.best):
            save(module.judged, out / "best.safetensors")
            self.best = value

    def _facts(self, module: DepthTraining, report: Mapping[str, Any]) -> dict[str, Any]:
        """What the weights' record says about this run; no paths, which would be of this machine."""
        recipe = self.recipe
        stated = {"licence": recipe.train.licence, "source": recipe.train.source}
        return {key: text for key, text in stated.items() if text is not None} | {
            "training": {
                "epochs": round(recipe.train.epochs * self.judged_step / module.steps, 2),
                "steps": self.judged_step,
                "seed": recipe.train.seed,
                "seconds": round(self._seconds_so_far()),
                "pictures": self.pictures,
                "batch_size": recipe.pictures_per_step,
                "optimiser": f"{OPTIMISERS[recipe.optim.optimiser]}, lr {recipe.optim.lr:g}, {recipe.optim.schedule}",
                "ema": recipe.train.ema,
                "precision": recipe.train.precision,
                "recipe_hash": recipe.hash,
            },
            "numbers": {
                "protocol": f"{self.protocol.name} ({self.protocol.hash})",
                "data": f"{report['dataset']}, split {report['split']}",
                "images": report["images"],
                **report["image_mean"],
            },
        }

    def _draw_previews(self, module: DepthTraining) -> None:
        """A sheet of a few pictures, the same ones every time: truth, prediction, error."""
        count = min(self.recipe.train.previews, len(self.dataset))
        rows = []
        for index in range(0, len(self.dataset), len(self.dataset) // max(1, count))[:count]:
            with suppress(ImageError):  # evaluation has reported it
                sample = self.dataset[index]
                rows.append(
                    sheet_row(judge(module.judged, [sample], self.protocol), "/".join(Path(sample.path).parts[-2:]))
                )
        if rows:
            with atomic_path(self.recipe.train.out / "previews" / f"step_{self.judged_step:07d}.jpg") as path:
                Image.fromarray(viz.sheet(rows)).save(path, quality=85)

    def _seconds_so_far(self) -> float:
        return self._seconds + time.monotonic() - self._since

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "judged_step": self.judged_step, "seconds": self._seconds_so_far()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.judged_step, self._seconds = (state_dict[key] for key in ("best", "judged_step", "seconds"))
