"""Training from a recipe: Lightning's Trainer around any system.

Data flow: recipe -> the system as it starts (kept in start.safetensors) -> batches that follow from the seed
(data/sampling.py) -> losses, AdamW, moving average -> every so many steps resume.ckpt, every so many epochs
``langdepth.evaluate`` on the validation pictures -> last and best .safetensors.

What is random in a step follows from (seed, epoch, batch, rank) alone and what a batch holds from (seed, epoch, place):
a run that was interrupted anywhere and resumed ends with the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import csv
import inspect
import logging
import math
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback, ProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor, distributed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from langdepth import protocols, registry, viz
from langdepth.checkpoint import load, save
from langdepth.config import from_mapping, load_yaml, to_mapping
from langdepth.data.base import open_dataset
from langdepth.data.feature_cache import FeatureCache
from langdepth.data.loader import TrainingLoader, TrainingSet, Transform
from langdepth.data.nyu_adapters import NyuAdapterTransform
from langdepth.data.rows import RowDataset
from langdepth.data.sampling import Draws, Sizes, few_shots, source_weights, training_shapes
from langdepth.data.transforms import TrainTransform
from langdepth.data.wordepth_pictures import RULES, WorDepthTransform
from langdepth.errors import CheckpointError, ImageError, LangdepthError, NonFiniteLossError, UsageError, first_line
from langdepth.evaluate import evaluate, judge, require_comparable
from langdepth.io import atomic_path
from langdepth.recipe import DataSection, OptimSection, Recipe, TrainSection, read_recipe
from langdepth.report import sheet_row
from langdepth.systems.base import System
from langdepth.types import Batch

__all__ = ["Recipe", "read_recipe", "train"]

NAMED = 8  # offending pictures named in a message
SHOWN = ("abs_rel", "rmse", "log10", "delta1")
OPTIMISERS = {"adamw": "AdamW", "sgd": "SGD"}


def train(recipe: Recipe, *, resume: bool = False) -> Path:
    """Run a recipe; returns the run folder ``recipe.train.out``.

    The folder then holds recipe.yaml (resolved), start.safetensors, resume.ckpt, metrics.csv, TensorBoard logs,
    previews, last.safetensors and best.safetensors (which ``langdepth.load`` opens). ``resume`` continues the run in
    that folder from resume.ckpt, also in mid-epoch, or from its start if there is none yet.

    Raises UsageError for a wrong recipe and for a folder that holds another run, NonFiniteLossError naming pictures,
    LangdepthError when data cannot be read, files cannot be written, memory is short, or after SIGTERM.
    """
    with _quiet_lightning():
        return _train(recipe, resume)


def _train(recipe: Recipe, resume: bool) -> Path:
    out = recipe.train.out
    data, protocol = recipe.data, protocols.get(recipe.train.protocol)
    opened = partial(
        open_dataset, captions=data.captions, without_caption=data.without_caption, trust_unit=data.trust_unit
    )
    train_set = opened(data.name, data.root, data.train_split)
    val_set = opened(data.name, data.root, data.val_split, data.val_source)
    more = [opened(other.name, other.root, other.split) for other in data.more]
    train_set.rows = [row for dataset in (train_set, *more) for row in dataset.rows]
    if data.shots is not None:
        rows = train_set.rows
        train_set.rows = [rows[i] for i in few_shots([row.scene for row in rows], data.shots, data.shots_seed)]
    weights = source_weights([row.source for row in train_set.rows], data.weights)
    resume_point = ResumePoint(recipe)
    trainer = _trainer(recipe, [resume_point, Validation(recipe, val_set, pictures=len(train_set))])
    if trainer.is_global_zero:  # the other processes find the folder as this one leaves it
        _check_folder(recipe, resume)
        with atomic_path(out / "recipe.yaml") as path:
            path.write_text(yaml.safe_dump(to_mapping(recipe), sort_keys=False), encoding="utf-8")
    start = out / "start.safetensors"
    system = _start_system(recipe, start)
    require_comparable(system, protocol)
    _require_overlays(system, train_set, val_set)
    loader = _training_loader(recipe, system, train_set, weights, trainer)
    if trainer.is_global_zero and not start.is_file():  # from here on there is a run to continue
        save(system, start)
    if trainer.is_global_zero and recipe.optim.effective_batch is not None:
        print(
            f"{recipe.pictures_per_step} pictures per step: {data.batch_size} at once on each of "
            f"{trainer.world_size} devices, {recipe.accumulate} times",
            flush=True,
        )
    steps = recipe.train.epochs * math.ceil(len(loader) / recipe.accumulate)
    module = DepthTraining(system, recipe, steps)
    if recipe.train.compile:
        for child in system.children():
            child.compile(dynamic=False)
    checkpoint = resume_point.path if resume and resume_point.path.exists() else None
    if checkpoint is not None:
        _check_readable(checkpoint)
    grouped = torch.distributed.is_initialized()
    try:
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        if resume_point.interrupted:  # Lightning turns Ctrl-C into an exit
            raise KeyboardInterrupt from None
        raise
    except torch.OutOfMemoryError as error:
        raise LangdepthError(
            f"{module.device}: not enough memory for batches of {data.batch_size}; lower data.batch_size (and raise "
            "optim.accumulate) or the system's input area"
        ) from error
    except RuntimeError as error:
        if trainer.world_size == 1 and "DataLoader worker" not in str(error):
            raise  # ours; the others tell of processes that died
        raise LangdepthError(f"process {trainer.global_rank}: {first_line(error)}") from error
    finally:
        # Lightning leaves the group it made to the interpreter's end, where its threads may abort the process.
        if trainer.world_size > 1 and not grouped and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return out


# Setting up


def _check_folder(recipe: Recipe, resume: bool) -> None:
    """Refuse to mix two runs."""
    out = recipe.train.out
    started = (out / "start.safetensors").exists()
    if not resume:
        if started:
            raise UsageError(f"{out}: holds a run already; continue it with --resume or choose another --train.out")
        return
    if not started:
        raise UsageError(f"{out}: holds no run to continue; start one without --resume")
    stored = read_recipe(load_yaml(out / "recipe.yaml")).identity()
    for key, value in recipe.identity().items():
        if value != stored.get(key):
            raise UsageError(
                f"{out}: this run has {key} = {stored.get(key)}, not {value}; a run continues with its own recipe, "
                f"--config {out / 'recipe.yaml'}"
            )


def _check_readable(checkpoint: Path) -> None:
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{checkpoint}: is damaged; without it --resume starts from the beginning") from error


def _start_system(recipe: Recipe, start: Path) -> System:
    """The system as training starts from it: from the file ``start`` of a run that is continued, else prepared."""
    section = recipe.system
    weights = str(start) if start.is_file() else section.weights
    torch.manual_seed(recipe.train.seed)
    try:
        system = load(weights) if weights else registry.build(section.name, section.options)
    except ValueError as error:
        raise UsageError(f"system.options: {error}") from None
    if system.name != section.name:
        raise UsageError(f"system.weights: {weights} holds '{system.name}', the recipe says '{section.name}'")
    made_with = to_mapping(system.config)
    wanted = to_mapping(from_mapping(type(system.config), made_with | section.options, "system.options."))
    for key, value in wanted.items():
        if value != made_with[key]:
            raise UsageError(f"system.options.{key}: {weights} was made with {made_with[key]}, the recipe says {value}")
    if type(system).loss is System.loss or not any(p.requires_grad for p in system.parameters()):
        raise UsageError(f"system.name: '{system.name}' has nothing to train")
    try:
        inspect.signature(system.prepare_training).bind(**section.prepare)
    except TypeError as error:
        raise UsageError(f"system.prepare: {error}") from None
    system.prepare_training(**section.prepare)
    return system.train()


def _require_overlays(system: System, *datasets: RowDataset) -> None:
    """Raise UsageError where a system that looks at overlays would not find one."""
    for row in (row for dataset in datasets for row in dataset.rows if system.takes_overlay):
        if row.path_overlay is None:
            raise UsageError(
                f"{row.path_rgb}: '{system.name}' needs an overlay beside every picture; name it in the column "
                f"path_overlay of index.csv (line {row.line})"
            )


def _training_loader(
    recipe: Recipe, system: System, pictures: RowDataset, weights: list[float], trainer: pl.Trainer
) -> TrainingLoader:
    data = recipe.data
    sizes = Sizes(system.input_spec, data.aspects, data.crop)
    draws = Draws(
        shapes=training_shapes(pictures, sizes),
        sizes=sizes.sizes,
        weights=weights,
        batch_size=data.batch_size,
        seed=recipe.train.seed,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )
    dataset = TrainingSet(pictures, _transform(data, system, sizes.sizes))
    if data.cache == "none":
        return TrainingLoader(dataset, draws, data.workers)
    drawn = {index: sizes.sizes[shape] for index, shape in enumerate(draws.shapes) if weights[index] > 0}
    features = FeatureCache(system, dataset, drawn, data.augmentation.flip)
    trainer.callbacks.append(FillFeatures(features, data.batch_size))  # type: ignore[attr-defined]
    return TrainingLoader(dataset, draws, data.workers, finish=features.add)


def _transform(data: DataSection, system: System, sizes: list[tuple[int, int]]) -> Transform:
    """From stored pictures to those of the network's ``sizes``."""
    if data.pipeline == "standard":
        return TrainTransform(
            data.augmentation,
            system.input_spec.area or math.prod(sizes[0]),
            resized=data.crop is None,
            kb_sources=data.kb_sources,
        )
    if data.pipeline in RULES:
        return WorDepthTransform(RULES[data.pipeline])
    two_views = data.pipeline == "nyu-adapters-two-views"
    return NyuAdapterTransform(sizes, two_views=two_views, reference_exact=data.reference_exact)


def _trainer(recipe: Recipe, callbacks: list[Callback]) -> pl.Trainer:
    settings, optim = recipe.train, recipe.optim
    progress = Bar() if sys.stdout.isatty() else PlainProgress(settings.log_every)
    try:
        return pl.Trainer(
            default_root_dir=settings.out,
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=_strategy(settings),
            precision=settings.precision,
            max_epochs=settings.epochs,
            gradient_clip_val=optim.clip or None,
            accumulate_grad_batches=recipe.accumulate,
            log_every_n_steps=settings.log_every,
            use_distributed_sampler=False,
            logger=_loggers(settings.out),
            callbacks=[*callbacks, progress],
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_autolog_hparams=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        raise UsageError(f"train.accelerator, devices, strategy, precision: {first_line(error)}") from None


def _strategy(settings: TrainSection) -> Any:
    """DDP that allows for parameters without a gradient: frozen parts, and parts that a batch does not reach."""
    several = settings.devices * settings.num_nodes > 1
    return (
        DDPStrategy(find_unused_parameters=True)
        if several and settings.strategy in ("auto", "ddp")
        else settings.strategy
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's notes on hardware, its advertising and its suggestions; warnings and errors stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # between Lightning and torch
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# The steps


class DepthTraining(pl.LightningModule):
    """A system in training for ``steps`` optimiser steps: loss, optimiser, moving average."""

    def __init__(self, system: System, recipe: Recipe, steps: int) -> None:
        super().__init__()
        self.system = system
        self.recipe = recipe
        self.steps = steps
        self.average: AveragedModel | None = None
        if recipe.train.ema > 0:
            self.average = AveragedModel(system, multi_avg_fn=get_ema_multi_avg_fn(recipe.train.ema), use_buffers=True)
            self.average.requires_grad_(False)
        self._drawn: dict[str, Any] = {}  # for the optimiser step in progress
        self._batches: list[Batch] = []  # of it
        self._buffers_before: list[Tensor] = []
        self._left_out = False  # the optimiser step in progress changes nothing

    @property
    def judged(self) -> System:
        """The system that is validated and saved: the moving average if there is one."""
        return cast(System, self.average.module) if self.average is not None else self.system

    def configure_optimizers(self) -> Any:
        optim = self.recipe.optim
        groups = self.system.parameter_groups(optim.lr, optim.weight_decay)
        optimiser = (
            torch.optim.SGD(groups, momentum=optim.momentum)
            if optim.optimiser == "sgd"
            else torch.optim.AdamW(groups, betas=optim.betas)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate(optim, self.steps, self.recipe.train.epochs))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # One draw for all processes and all batches of an optimiser step.
        decisive = np.random.SeedSequence((self.recipe.train.seed, self.global_step)).generate_state(1)[0]
        self._drawn = self.system.draw_step(torch.Generator().manual_seed(int(decisive)))
        # Seeded per batch, not per run: a resumed run draws the same dropout as one that was never interrupted.
        place = (self.recipe.train.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._buffers_before = [buffer.clone() for buffer in self.system.buffers()]
        losses = self.system.loss(batch, **self._drawn)
        self._batches.append(batch)
        # All processes must agree, or some would wait for ever.
        if not self.trainer.strategy.reduce_boolean_decision(bool(losses["total"].isfinite())):
            self._not_finite("loss", [batch])
            return 0 * torch.stack([p.float().sum() for p in self.system.parameters() if p.requires_grad]).sum()
        facts = {"step": self.global_step + 1.0, "lr": max(g["lr"] for g in self.trainer.optimizers[0].param_groups)}
        values = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(facts | values, batch_size=len(batch.path))
        self.log("loss", losses["total"].detach(), prog_bar=True, logger=False, batch_size=len(batch.path))
        return losses["total"]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for p in self.system.parameters() if p.grad is not None]
        if (
            not self._left_out
            and self.recipe.train.precision != "16-mixed"  # there the gradient scaler leaves such steps out
            and not bool(torch.nn.utils.get_total_norm(gradients).isfinite())
        ):
            self._not_finite("gradient", self._batches)
        if self._left_out:
            optimizer.zero_grad(set_to_none=True)  # a parameter without gradient keeps its value and its moments

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        if self.average is not None and not self._left_out:
            self.average.update_parameters(self.system)
        self._batches, self._left_out = [], False

    def _not_finite(self, what: str, batches: list[Batch]) -> None:
        """Stop, or leave the optimiser step in progress out, naming the pictures that are to blame."""
        for buffer, before in zip(self.system.buffers(), self._buffers_before, strict=True):  # running statistics
            buffer.copy_(before)
        names = [name for batch in batches for name in self._offenders(batch)]
        seen = [path for batch in batches for path in batch.path]
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            distributed.all_gather_object(gathered, names)
            names = [name for part in gathered for name in part]
        everything = len(names) == len(seen) * self.trainer.world_size > 1
        listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        message = (
            f"the {what} is not finite in epoch {self.current_epoch + 1}, step {self.global_step + 1}, for "
            f"{listed or 'the batch as a whole: ' + ', '.join(seen[:NAMED])}"
        )
        if self.recipe.train.non_finite == "stop":
            advice = "lower optim.lr" if everything else "check these pictures, or continue with train.non_finite: skip"
            raise NonFiniteLossError(f"{message}; {advice}") if self.trainer.is_global_zero else SystemExit(1)
        self._left_out = True
        if self.trainer.is_global_zero:
            warnings.warn(f"{message}; this step is left out", stacklevel=2)

    def _offenders(self, batch: Batch) -> list[str]:
        """Paths of the pictures whose loss or gradient is not finite even alone."""
        parameters = [p for p in self.system.parameters() if p.requires_grad]
        names = []
        self.system.eval()  # running statistics stay as they are
        for i, path in enumerate(batch.path):
            total = self.system.loss(batch[i : i + 1], **self._drawn)["total"]
            values = [total, *torch.autograd.grad(total, parameters, allow_unused=True)]
            if not all(bool(value.isfinite().all()) for value in values if value is not None):
                names.append(path)
        self.system.train()
        return names


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


def rate(optim: OptimSection, steps: int, epochs: int = 1) -> Callable[[int], float]:
    """The learning rate of each of ``steps`` steps as a share of ``optim.lr``: up in the warm-up, then as scheduled.

    ``epochs``: how many the steps make up, for milestones.
    """
    rising = round(optim.warm_up * steps)

    def factor(step: int) -> float:
        if step < rising:
            share = (step + 1) / rising
            return (1 - math.cos(math.pi * share)) / 2 if optim.schedule == "one_cycle" else share
        progress = min(1.0, (step - rising) / max(1, steps - rising))
        if optim.schedule == "constant":
            return 1.0
        if optim.schedule == "step":
            return float(optim.factor ** sum(step * epochs >= milestone * steps for milestone in optim.milestones))
        if optim.schedule == "poly":
            left = float((1 - progress) ** optim.power)
        else:
            left = (1 + math.cos(math.pi * progress)) / 2
        end = optim.end_lr / optim.lr
        return end + (1 - end) * left

    return factor


# The run folder


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
            split=self.recipe.data.val_split,
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


class MetricsFile(Logger):
    """``metrics.csv``: a row per logged step. A resumed run writes the rows of the steps that it repeats anew."""

    name = "metrics.csv"
    version = ""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = {int(row["step"]): {k: v for k, v in row.items() if v} for row in csv.DictReader(file)}

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The recipe stands in its own file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        number = int(step or 0)
        rounded = {name: f"{value:.7g}" for name, value in metrics.items()}
        self.rows.setdefault(number, {"step": number}).update(rounded)

    @rank_zero_only
    def save(self) -> None:
        columns = dict.fromkeys(["step", *sorted({name for row in self.rows.values() for name in row})])
        with atomic_path(self.path) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(row for _, row in sorted(self.rows.items()))

    def finalize(self, status: str) -> None:
        self.save()


def _loggers(out: Path) -> list[Logger]:
    loggers: list[Logger] = [MetricsFile(out / "metrics.csv")]
    try:
        loggers.append(TensorBoardLogger(out, name="", version="tensorboard"))
    except ModuleNotFoundError:
        warnings.warn("TensorBoard logs are off: pip install 'langdepth[log]'", stacklevel=2)
    return loggers


class Bar(TQDMProgressBar):
    """Lightning's bar for terminals, without its version of the run."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class PlainProgress(ProgressBar):
    """A line every so many steps, for output that goes into a file or a pipe."""

    is_enabled = True  # asked for before something is printed

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self._last: tuple[int, float] = 0, 0.0

    def disable(self) -> None:
        """Nothing to do: only the first process prints."""

    def print(self, *words: Any, **options: Any) -> None:
        print(*words, **options, flush=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = trainer.global_step, time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step, (before, since) = trainer.global_step, self._last
        if not trainer.is_global_zero or step == before or step % self.every:
            return
        now = time.monotonic()
        self._last = step, now
        loss = float(trainer.callback_metrics.get("loss", math.nan))
        self.print(
            f"epoch {trainer.current_epoch + 1} step {step}/{cast(DepthTraining, pl_module).steps} "
            f"loss {loss:.3f} {(now - since) / (step - before):.2f} s/step"
        )
