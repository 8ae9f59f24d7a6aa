"""Training from a recipe: Lightning's Trainer around any system.

Data flow: recipe -> the system as it starts (start.safetensors) -> batches that follow from the seed (sampling.py) ->
losses, optimiser, moving average -> now and then resume.ckpt, and evaluation on the validation images -> last and best
.safetensors.

What is random in a step follows from (seed, epoch, batch, rank) alone and what a batch holds from (seed, epoch, place):
a run that was interrupted anywhere and resumed ends with the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from langdepth.data.overlays import with_overlays
from langdepth.data.rows import RowDataset
from langdepth.data.transforms import TrainTransform
from langdepth.errors import LangdepthError, ShortMemoryError, UsageError, first_line, is_memory_error, say
from langdepth.evaluation import protocols
from langdepth.evaluation.evaluate import require_comparable
from langdepth.systems import registry
from langdepth.systems.capabilities import DepthSystem
from langdepth.training.callbacks import PlainCheckpointIO, ResumePoint
from langdepth.training.features import FeatureCache
from langdepth.training.loaders import TrainingLoader, TrainingSet, Transform
from langdepth.training.logs import PlainProgress, loggers
from langdepth.training.module import DepthTraining
from langdepth.training.recipe import Recipe, read_recipe
from langdepth.training.sampling import BatchPlan, Sizes, source_weights, training_shapes
from langdepth.training.sections import DataSection, TrainSection
from langdepth.training.sets import open_sets
from langdepth.training.start import claim_folder, require_readable, start_system
from langdepth.training.stopping import Stopped, Stopping
from langdepth.training.validation import KeepWeights, Validation
from langdepth.utils.arguments import checked
from langdepth.utils.locks import locked
from langdepth.weights.checkpoint import require_available
from langdepth.weights.files import save

__all__ = ["Recipe", "read_recipe", "train"]

FEW = 10  # validation images below which their mean says little


@checked
def train(recipe: Recipe, *, resume: bool = False) -> Path:
    """Run a recipe; returns the run folder ``recipe.train.out``.

    The folder then holds recipe.yaml (resolved), start.safetensors, resume.ckpt, metrics.csv, TensorBoard logs,
    previews, last.safetensors and best.safetensors (which ``langdepth.load`` opens). ``resume`` continues the run in
    that folder from resume.ckpt, also mid-epoch, or from its start if there is none yet.

    Raises:
        UsageError: For a wrong recipe and for a folder that holds another run.
        NonFiniteLossError: Naming images.
        LangdepthError: Data cannot be read, files cannot be written, memory is short, or SIGTERM came.
    """
    first = getattr(rank_zero_only, "rank", 0) == 0  # of one run's processes
    with _quiet_lightning(), Stopping(recipe.train.out) as stopping:
        try:
            with locked(recipe.train.out) if first else nullcontext():
                return _train(recipe, resume, stopping)
        except Stopped:
            stopping.end_others()
            raise (LangdepthError(stopping.message()) if stopping.leads else SystemExit(1)) from None
        except Exception:
            if stopping.asked and not stopping.leads:  # the first process has ended before this one
                raise SystemExit(1) from None
            raise


def _train(recipe: Recipe, resume: bool, stopping: Stopping) -> Path:
    out, data = recipe.train.out, recipe.data
    if recipe.system.weights is not None and not resume:
        require_available(recipe.system.weights)  # before the data is opened, which may take minutes
    train_set, val_set = open_sets(data)
    weights = source_weights([row.source for row in train_set.rows], data.weights)
    resume_point, validation = ResumePoint(recipe, stopping), Validation(recipe, val_set, len(train_set), stopping)
    trainer = _trainer(recipe, [KeepWeights(recipe, validation), resume_point, validation], resume)
    stopping.guard(trainer)
    if trainer.is_global_zero:  # the other processes find the folder as this one leaves it
        claim_folder(recipe, resume)
    start = out / "start.safetensors"
    continued = start.is_file() and (resume or not trainer.is_global_zero)
    system = start_system(recipe, start if continued else None, train_set.captions)
    require_comparable(system, protocols.get(recipe.train.protocol))
    for dataset in (train_set, val_set):
        dataset.require_words_for(system)
        dataset.rows = with_overlays(dataset.rows, system, data.overlay)
    loader = _training_loader(recipe, system, train_set, weights, trainer)
    steps = recipe.train.epochs * math.ceil(len(loader) / recipe.accumulate)
    if trainer.is_global_zero:
        if not continued:
            save(system, start)  # from here on there is a run to continue
        _announce(recipe, trainer, steps, len(train_set), len(val_set))
    if recipe.train.compile:
        for child in system.children():
            child.compile(dynamic=False)
    checkpoint = resume_point.path if resume and resume_point.path.exists() else None
    if checkpoint is not None:
        require_readable(checkpoint)
    _fit(trainer, DepthTraining(system, recipe, steps), loader, checkpoint)
    return out


def _announce(recipe: Recipe, trainer: pl.Trainer, steps: int, learned: int, validated: int) -> None:
    data = recipe.data
    if recipe.optim.effective_batch is not None:
        say(
            f"{recipe.images_per_step} images per step: {data.batch_size} at once on each of "
            f"{trainer.world_size} devices, {recipe.accumulate} times"
        )
    say(
        f"{recipe.system.name}: {steps} steps, learning from {learned} images, validating on {validated} "
        f"({data.validation}); {trainer.strategy.root_device}"
    )
    if validated < FEW:
        warnings.warn(
            f"only {validated} validation image{'s' * (validated > 1)} ({data.validation}): which weights are best is "
            "largely chance; validate on more, or use last.safetensors",
            stacklevel=2,
        )


def _fit(trainer: pl.Trainer, module: DepthTraining, loader: TrainingLoader, checkpoint: Path | None) -> None:
    """Lightning's loop; what ends it comes out as one of our errors, as KeyboardInterrupt or as SystemExit."""
    grouped = torch.distributed.is_initialized()
    try:
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
            raise KeyboardInterrupt from None
        raise
    except LangdepthError:
        raise
    except (RuntimeError, MemoryError) as error:
        if is_memory_error(error):
            raise ShortMemoryError(
                f"{module.device}: not enough memory for batches of {module.recipe.data.batch_size}; lower "
                "data.batch_size (and raise optim.accumulate) or the system's input area"
            ) from error
        if trainer.world_size == 1 and "DataLoader worker" not in str(error):
            raise  # ours; the others are about processes that died
        raise LangdepthError(f"process {trainer.global_rank}: {first_line(error)}") from error
    finally:
        loader.close()
        # Lightning leaves the group it made to the interpreter's end, where its threads may abort the process.
        if trainer.world_size > 1 and not grouped and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


# Setting up


def _training_loader(
    recipe: Recipe, system: DepthSystem, images: RowDataset, weights: list[float], trainer: pl.Trainer
) -> TrainingLoader:
    data = recipe.data
    sizes = Sizes(
        system.input_spec,
        data.aspects,
        data.crop,
        resized=data.pipeline != "standard" and system.input_spec.size is not None,
    )
    draws = BatchPlan(
        shapes=training_shapes(images, sizes),
        sizes=sizes.sizes,
        weights=weights,
        batch_size=data.batch_size,
        seed=recipe.train.seed,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )
    dataset = TrainingSet(images, _transform(data, system, sizes.sizes))
    if data.cache == "none":
        return TrainingLoader(dataset, draws, data.workers)
    drawn = {index: sizes.sizes[shape] for index, shape in enumerate(draws.shapes) if weights[index] > 0}
    features = FeatureCache(system, dataset, drawn, data.augmentation.flip, data.batch_size)
    trainer.callbacks.append(features)  # type: ignore[attr-defined]
    return TrainingLoader(dataset, draws, data.workers, finish=features.add)


def _transform(data: DataSection, system: DepthSystem, sizes: list[tuple[int, int]]) -> Transform:
    """From stored images to those of the network's ``sizes``."""
    if data.pipeline == "standard":
        return TrainTransform(
            data.augmentation,
            system.input_spec.area or math.prod(sizes[0]),
            resized=data.crop is None,
            kb_sources=data.kb_sources,
            focal=system.input_spec.focal,
        )
    options = {"reference_exact": True} if data.reference_exact else {}
    transform: Transform = registry.pipeline(data.pipeline)(sizes, **options)
    return transform


def _trainer(recipe: Recipe, callbacks: list[Callback], resume: bool) -> pl.Trainer:
    settings, optim = recipe.train, recipe.optim
    progress = TQDMProgressBar() if sys.stdout.isatty() else PlainProgress(settings.log_every)
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
            logger=loggers(settings.out, resume),
            callbacks=[*callbacks, progress],
            plugins=PlainCheckpointIO(),
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_autolog_hparams=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        raise UsageError(f"train.accelerator, devices, strategy, precision: {first_line(error)}") from None


def _strategy(settings: TrainSection) -> Any:
    """DDP that allows for parameters without a gradient: frozen parts, and parts that a batch does not use."""
    several = settings.devices * settings.num_nodes > 1
    if several and settings.strategy in ("auto", "ddp"):
        return DDPStrategy(find_unused_parameters=True)
    return settings.strategy


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's notes on hardware, its advertising and its suggestions; warnings and errors stay."""
    noisy = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # between Lightning and torch
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
