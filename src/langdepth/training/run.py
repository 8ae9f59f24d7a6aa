"""Training from a recipe: Lightning's Trainer around any system.

Data flow: recipe -> the system as it starts (kept in start.safetensors) -> batches that follow from the seed
(data/sampling.py) -> losses, AdamW, moving average -> every so many steps resume.ckpt, every so many epochs
``langdepth.evaluation.evaluate`` on the validation images -> last and best .safetensors.

What is random in a step follows from (seed, epoch, batch, rank) alone and what a batch holds from (seed, epoch, place):
a run that was interrupted anywhere and resumed ends with the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import inspect
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from langdepth.config import from_mapping, load_yaml, to_mapping
from langdepth.data.overlays import with_overlays
from langdepth.data.rows import RowDataset
from langdepth.data.transforms import TrainTransform
from langdepth.errors import CheckpointError, LangdepthError, ShortMemoryError, UsageError, first_line, is_memory_error
from langdepth.evaluation import protocols
from langdepth.evaluation.evaluate import require_comparable
from langdepth.systems import registry
from langdepth.systems.capabilities import DepthSystem, Trainable
from langdepth.text.caption_features import Captions
from langdepth.training.callbacks import FillFeatures, ResumePoint
from langdepth.training.checkpoint_io import PlainCheckpointIO
from langdepth.training.features import FeatureCache
from langdepth.training.loaders import TrainingLoader, TrainingSet, Transform
from langdepth.training.logs import Bar, PlainProgress, loggers
from langdepth.training.module import DepthTraining
from langdepth.training.recipe import DataSection, Recipe, TrainSection, read_recipe
from langdepth.training.sampling import Draws, Sizes, source_weights, training_shapes
from langdepth.training.sets import open_sets
from langdepth.training.stopping import Stopped, Stopping
from langdepth.training.validation import KeepWeights, Validation
from langdepth.utils.files import atomic_path, locked
from langdepth.utils.reading import file_sha256
from langdepth.utils.tensors import nested_tensors, require_finite
from langdepth.weights.checkpoint import load
from langdepth.weights.files import save

__all__ = ["Recipe", "read_recipe", "train"]


def train(recipe: Recipe, *, resume: bool = False) -> Path:
    """Run a recipe; returns the run folder ``recipe.train.out``.

    The folder then holds recipe.yaml (resolved), start.safetensors, resume.ckpt, metrics.csv, TensorBoard logs,
    previews, last.safetensors and best.safetensors (which ``langdepth.load`` opens). ``resume`` continues the run in
    that folder from resume.ckpt, also in mid-epoch, or from its start if there is none yet.

    Raises UsageError for a wrong recipe and for a folder that holds another run, NonFiniteLossError naming images,
    LangdepthError when data cannot be read, files cannot be written, memory is short, or after SIGTERM.
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
    out = recipe.train.out
    data, protocol = recipe.data, protocols.get(recipe.train.protocol)
    train_set, val_set = open_sets(data)
    weights = source_weights([row.source for row in train_set.rows], data.weights)
    resume_point, validation = ResumePoint(recipe, stopping), Validation(recipe, val_set, len(train_set), stopping)
    trainer = _trainer(recipe, [KeepWeights(recipe, validation), resume_point, validation], resume)
    stopping.guard(trainer)
    if trainer.is_global_zero:  # the other processes find the folder as this one leaves it
        _check_folder(recipe, resume)
        with atomic_path(out / "recipe.yaml") as path:
            path.write_text(yaml.safe_dump(to_mapping(recipe), sort_keys=False), encoding="utf-8")
    start = out / "start.safetensors"
    continued = start.is_file() and (resume or not trainer.is_global_zero)
    system = _start_system(recipe, start if continued else None, train_set.captions)
    require_comparable(system, protocol)
    for dataset in (train_set, val_set):
        dataset.rows = with_overlays(dataset.rows, system, data.overlay)
    loader = _training_loader(recipe, system, train_set, weights, trainer)
    if trainer.is_global_zero and not continued:  # from here on there is a run to continue
        save(system, start)
    if trainer.is_global_zero and recipe.optim.effective_batch is not None:
        print(
            f"{recipe.images_per_step} images per step: {data.batch_size} at once on each of "
            f"{trainer.world_size} devices, {recipe.accumulate} times",
            flush=True,
        )
    steps = recipe.train.epochs * math.ceil(len(loader) / recipe.accumulate)
    if trainer.is_global_zero:
        print(
            f"{recipe.system.name}: {steps} steps, learning from {len(train_set)} images, validating on {len(val_set)} "
            f"({data.validation}); {trainer.strategy.root_device}",
            flush=True,
        )
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
    except LangdepthError:
        raise
    except (RuntimeError, MemoryError) as error:
        if is_memory_error(error):
            raise ShortMemoryError(
                f"{module.device}: not enough memory for batches of {data.batch_size}; lower data.batch_size (and "
                "raise optim.accumulate) or the system's input area"
            ) from error
        if trainer.world_size == 1 and "DataLoader worker" not in str(error):
            raise  # ours; the others tell of processes that died
        raise LangdepthError(f"process {trainer.global_rank}: {first_line(error)}") from error
    finally:
        loader.close()
        # Lightning leaves the group it made to the interpreter's end, where its threads may abort the process.
        if trainer.world_size > 1 and not grouped and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return out


# Setting up


def _check_folder(recipe: Recipe, resume: bool) -> None:
    """Refuse to mix two runs. One that ended before its first checkpoint leaves nothing that could be lost."""
    out = recipe.train.out
    start = out / "start.safetensors"
    if not resume:
        if any((out / name).exists() for name in ("resume.ckpt", "last.safetensors")):
            raise UsageError(f"{out}: holds a run already; continue it with --resume or choose another --train.out")
        if start.is_file():
            start.unlink()
        return
    if not start.exists():
        raise UsageError(f"{out}: holds no run to continue; start one without --resume")
    stored, wanted = read_recipe(load_yaml(out / "recipe.yaml")).identity(), recipe.identity()
    for key in {**wanted, **stored}:
        value = wanted.get(key)
        if value != stored.get(key):
            raise UsageError(
                f"{out}: this run has {key} = {stored.get(key)}, not {value}; a run continues with its own recipe, "
                f"--config {out / 'recipe.yaml'}"
            )


def _check_readable(checkpoint: Path) -> None:
    """Raise CheckpointError where a run cannot continue from the file."""
    advice = "without it --resume starts from the beginning"
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpicklers raise almost anything for a damaged file
        if is_memory_error(error):
            raise CheckpointError(f"{checkpoint}: not enough memory to read it") from error
        raise CheckpointError(f"{checkpoint}: is damaged; {advice}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{checkpoint}: holds no training run; {advice}")
    learned = {key: content.get(key) for key in ("state_dict", "optimizer_states")}
    require_finite(dict(nested_tensors(learned)), checkpoint, advice)


def _start_system(recipe: Recipe, start: Path | None, captions: Captions | None = None) -> Trainable:
    """The system as training starts from it: from the file ``start`` of a run that is continued, else prepared.

    ``captions``: those of the data, which also prepare a system whose recipe names no others.
    """
    section = recipe.system
    weights = section.weights if start is None else str(start)
    torch.manual_seed(recipe.train.seed)
    try:
        system = load(weights) if weights else registry.build(section.name, section.options)
    except LangdepthError:
        raise
    except ValueError as error:
        raise UsageError(f"system.options: {error}") from None
    if system.name != section.name:
        raise UsageError(f"system.weights: {weights} holds '{system.name}', the recipe says '{section.name}'")
    made_with = to_mapping(system.config)
    wanted = to_mapping(from_mapping(type(system.config), made_with | section.options, "system.options."))
    for key, value in wanted.items():
        if value != made_with[key]:
            raise UsageError(f"system.options.{key}: {weights} was made with {made_with[key]}, the recipe says {value}")
    if not isinstance(system, Trainable) or not any(p.requires_grad for p in system.parameters()):
        raise UsageError(f"system.name: '{system.name}' has nothing to train")
    if start is None and section.weights is not None:
        system.provenance["continued_from"] = _origin(section.weights, system.provenance)
    _prepare(system, recipe, captions)
    return system.train()


def _origin(weights: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of trained weights says about those that training continued from: no path of this machine."""
    path = Path(weights).expanduser()
    is_file = path.suffix == ".safetensors" and path.is_file()
    origin = {
        "weights": path.name if is_file else weights,
        "sha256": file_sha256(path) if is_file else provenance.get("sha256"),
    }
    return origin | {key: provenance[key] for key in ("licence", "source", "continued_from") if key in provenance}


def _prepare(system: Trainable, recipe: Recipe, captions: Captions | None) -> None:
    """Have the system load what it starts from; ``captions`` are those of the data."""
    if captions is not None and not system.text_per_image:
        raise UsageError(f"data.captions: '{system.name}' takes no captions of images; leave them out")
    takes, files = inspect.signature(system.prepare_training), dict(recipe.system.prepare)
    named = files.get("text_features") not in (None, str(recipe.data.captions))
    if captions is not None and "text_features" in takes.parameters and not named:
        files["text_features"] = captions
    try:
        takes.bind(**files)
    except TypeError as error:
        raise UsageError(f"system.prepare: {error}") from None
    system.prepare_training(**files)
    require_finite(system.state_dict(), "system.prepare", "give other files to start from")


def _training_loader(
    recipe: Recipe, system: DepthSystem, images: RowDataset, weights: list[float], trainer: pl.Trainer
) -> TrainingLoader:
    data = recipe.data
    sizes = Sizes(system.input_spec, data.aspects, data.crop)
    draws = Draws(
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
    features = FeatureCache(system, dataset, drawn, data.augmentation.flip)
    trainer.callbacks.append(FillFeatures(features, data.batch_size))  # type: ignore[attr-defined]
    return TrainingLoader(dataset, draws, data.workers, finish=features.add)


def _transform(data: DataSection, system: DepthSystem, sizes: list[tuple[int, int]]) -> Transform:
    """From stored images to those of the network's ``sizes``."""
    if data.pipeline == "standard":
        return TrainTransform(
            data.augmentation,
            system.input_spec.area or math.prod(sizes[0]),
            resized=data.crop is None,
            kb_sources=data.kb_sources,
        )
    options = {"reference_exact": True} if data.reference_exact else {}
    transform: Transform = registry.pipeline(data.pipeline)(sizes, **options)
    return transform


def _trainer(recipe: Recipe, callbacks: list[Callback], resume: bool) -> pl.Trainer:
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
