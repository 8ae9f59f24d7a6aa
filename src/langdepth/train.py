"""Training from a recipe: Lightning's Trainer around any system.

What is random in a step follows from (seed, step, rank) alone and what a batch holds from (seed, epoch, place), so a run that
was interrupted anywhere and resumed ends with the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from langdepth import protocols, registry
from langdepth.config import from_mapping, to_mapping
from langdepth.data.folder import FolderDataset
from langdepth.data.sampling import Draws, Sizes, TrainingLoader, TrainingSet, collate, source_weights, training_shapes
from langdepth.data.transforms import Augmentation, TrainTransform
from langdepth.errors import LangdepthError, NonFiniteLossError, UsageError
from langdepth.io import atomic_path
from langdepth.metrics import DepthMetrics
from langdepth.inference import infer
from langdepth.systems.base import System
from langdepth.types import Batch


@dataclass(frozen=True, kw_only=True)
class SystemSection:
    """Which system, and how it starts."""

    name: str = "tiny"
    options: dict[str, Any] = field(default_factory=dict)
    """Values of the system's own config."""
    prepare: dict[str, Any] = field(default_factory=dict)
    """What the system's ``prepare_training`` takes: files of start weights or features."""
    weights: str | None = None
    """Continue from these weights (anything ``langdepth.load`` opens) instead of preparing."""


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """What is learned from and judged on: an indexed folder (data/folder.py)."""

    root: Path
    train_split: str = "train"
    val_split: str = "val"
    val_source: str | None = None
    weights: dict[str, float] = field(default_factory=dict)
    """Source name -> mean number of times each of its pictures is drawn in an epoch; 1 if not named."""
    aspects: tuple[float, ...] = (4 / 3,)
    """Width / height of the shapes that training pictures are cut to."""
    batch_size: int = 8
    workers: int = 2
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0 or not self.aspects or min(self.aspects) <= 0:
            raise ValueError("batch_size must be at least 1, workers at least 0, aspects positive")


@dataclass(frozen=True, kw_only=True)
class OptimSection:
    """AdamW and its schedule over all steps of the run."""

    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["one_cycle", "poly", "cosine", "constant"] = "one_cycle"
    warm_up: float = 0.1
    """Share of the steps in which the rate rises (linear; one_cycle: cosine)."""
    power: float = 0.9
    """Exponent of the poly schedule."""
    clip: float = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    accumulate: int = 1
    """Batches per optimiser step."""


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """How the run goes."""

    out: Path = Path("runs/run")
    epochs: int = 10
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    ema: float = 0.0
    """Decay of the moving average of the weights per step; 0 switches it off. Judged and saved are the averaged weights."""
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    compile: bool = False
    """torch.compile for the system's parts; slower start, quicker steps."""
    protocol: str = "full"
    """Evaluation protocol of the validation pictures."""
    monitor: str = "abs_rel"
    """Metric (image mean) whose best epoch is kept."""
    validate_every: int = 1
    """Epochs between validations."""
    checkpoint_every: int = 100
    """Steps between the checkpoints that ``--resume`` continues from."""
    log_every: int = 20
    previews: int = 4
    """Validation pictures drawn after each validation."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What a NaN or infinite loss does: stop the run, or leave the batch out."""
    max_steps: int = -1
    """End early after so many steps; -1 = all epochs."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run."""

    system: SystemSection = field(default_factory=SystemSection)
    data: DataSection
    optim: OptimSection = field(default_factory=OptimSection)
    train: TrainSection = field(default_factory=TrainSection)


def read_recipe(content: Mapping[str, Any]) -> Recipe:
    """A recipe from plain nested data. Raises UsageError naming a wrong key and the nearest right one."""
    recipe = from_mapping(Recipe, content)
    from langdepth.metrics import METRICS

    protocols.get(recipe.train.protocol)
    registry.entry(recipe.system.name)
    if recipe.train.monitor not in METRICS:
        raise UsageError(f"train.monitor: '{recipe.train.monitor}' is not a metric; known: {', '.join(METRICS)}")
    return recipe


# ------------------------------------------------------------------------------------------------------------- the module


class DepthTraining(pl.LightningModule):
    """A system in training: loss, optimiser, moving average, validation metrics."""

    def __init__(self, system: System, recipe: Recipe, total_steps: int) -> None:
        super().__init__()
        self.system = system
        self.recipe = recipe
        self.total_steps = total_steps
        self.skipped_batches = 0
        self.metrics = DepthMetrics()
        self.average: AveragedModel | None = None
        if recipe.train.ema > 0:
            self.average = AveragedModel(system, multi_avg_fn=get_ema_multi_avg_fn(recipe.train.ema), use_buffers=True)
            self.average.requires_grad_(False)

    @property
    def judged(self) -> System:
        """The system that is validated and saved: the moving average if there is one."""
        return cast(System, self.average.module) if self.average is not None else self.system

    def configure_optimizers(self) -> Any:
        optim = self.recipe.optim
        groups = self.system.parameter_groups(optim.lr, optim.weight_decay)
        optimiser = torch.optim.AdamW(groups, betas=optim.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate(optim, self.total_steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Seeded per batch, not per run: a resumed run draws the same dropout as one that was never interrupted.
        torch.manual_seed(hash((self.recipe.train.seed, self.current_epoch, batch_idx, self.global_rank)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        losses = self.system.loss(batch)
        total = losses["total"]
        bad = ~torch.isfinite(total.detach())
        if self.trainer.world_size > 1:  # every rank must leave the step out, or the others wait for ever
            bad = self.trainer.strategy.reduce(bad.float(), reduce_op="sum") > 0
        if bool(bad):
            return self._non_finite(batch, losses)
        self.log_dict({f"train/{k}": v.detach() for k, v in losses.items()}, batch_size=len(batch.path))
        return total

    def _non_finite(self, batch: Batch, losses: dict[str, Tensor]) -> Tensor | None:
        parts = ", ".join(f"{k}={float(v):g}" for k, v in losses.items())
        message = (
            f"the loss is not finite in epoch {self.current_epoch}, step {self.global_step} ({parts}); pictures: "
            + (", ".join(batch.path))
        )
        if self.recipe.train.non_finite == "stop":
            raise NonFiniteLossError(message + "; check them, or set train.non_finite: skip")
        self.skipped_batches += 1
        warnings.warn(message + "; batch left out", stacklevel=2)
        return torch.stack([v for k, v in losses.items() if k != "total"]).nan_to_num(0, 0, 0).sum() * 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter in self.system.parameters():  # 0 * NaN is NaN: a skipped batch must not leave any behind
            if parameter.grad is not None and self.recipe.train.non_finite == "skip":
                parameter.grad.nan_to_num_(0, 0, 0)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        accumulate = self.recipe.optim.accumulate
        if self.average is not None and ((batch_idx + 1) % accumulate == 0 or self.trainer.is_last_batch):
            self.average.update_parameters(self.system)

    def on_validation_epoch_start(self) -> None:
        self.metrics.reset()
        self.judged.eval()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        protocol = protocols.get(self.recipe.train.protocol)
        window = (..., *protocol.frame_window(*batch.depth.shape[-2:]))
        image, depth, mask = batch.image[window], batch.depth[window], batch.mask[window]
        prediction = infer(self.judged, image).depth.clamp(protocol.min_depth, protocol.max_depth)
        self.metrics.update(prediction, depth, protocol.valid_mask(depth, mask))

    def on_validation_epoch_end(self) -> None:
        found = self.metrics.compute()
        if int(found["images"]) == 0:
            raise LangdepthError(
                "no validation picture has a usable depth value under the protocol; check data.val_split"
            )
        for name, value in found["image_mean"].items():
            self.log(f"val/{name}", value.float(), rank_zero_only=True, sync_dist=False)
        if not self.trainer.sanity_checking and self.trainer.is_global_zero:
            line = ", ".join(f"{k} {float(v):.4f}" for k, v in found["image_mean"].items() if k in SHOWN)
            print(f"epoch {self.current_epoch + 1}/{self.recipe.train.epochs}: {line}", flush=True)


SHOWN = ("abs_rel", "rmse", "log10", "delta1")


def rate(optim: OptimSection, steps: int) -> Any:
    """Learning rate factor of each step: rises over the warm-up share, then falls to 0 (constant: stays)."""
    rising = max(1, round(optim.warm_up * steps))

    def factor(step: int) -> float:
        if step < rising and optim.warm_up > 0:
            share = (step + 1) / rising
            return (1 - math.cos(math.pi * share)) / 2 if optim.schedule == "one_cycle" else share
        progress = min(1.0, (step - rising) / max(1, steps - rising))
        if optim.schedule == "poly":
            return float((1 - progress) ** optim.power)
        if optim.schedule == "constant":
            return 1.0
        return (1 + math.cos(math.pi * progress)) / 2

    return factor


# ----------------------------------------------------------------------------------------------------------- run and files


class Previews(Callback):
    """After each validation a sheet of the first pictures, truth and prediction, in the run folder."""

    def __init__(self, folder: Path, dataset: FolderDataset, count: int) -> None:
        self.folder, self.dataset = folder, dataset
        step = max(1, len(dataset) // max(1, count))
        self.chosen = list(range(0, len(dataset), step))[:count]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or not self.chosen:
            return
        from PIL import Image

        from langdepth.viz import SheetRow, sheet

        rows = []
        for index in self.chosen:
            sample = self.dataset[index]
            depth = infer(cast(DepthTraining, pl_module).judged, sample.image[None].to(pl_module.device)).depth[0, 0]
            image = (sample.image.permute(1, 2, 0) * 255).byte().numpy()
            truth = sample.depth[0].numpy()
            rows.append(
                SheetRow(image=image, truth=truth, prediction=depth.cpu().numpy(), title=Path(sample.path).name)
            )
        with atomic_path(self.folder / f"epoch_{trainer.current_epoch + 1:04d}.jpg") as path:
            Image.fromarray(sheet(rows)).save(path, quality=85)


class Weights(Callback):
    """Writes ``last.safetensors`` after each validation and ``best.safetensors`` when the monitored metric improves."""

    def __init__(self, folder: Path, monitor: str) -> None:
        self.folder, self.monitor = folder, monitor
        self.best: float | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        module = cast(DepthTraining, pl_module)
        values = {k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        value = values[self.monitor]
        better = (
            value > (self.best or 0) if self.monitor.startswith("delta") else self.best is None or value < self.best
        )
        self._write(module, self.folder / "last.safetensors", trainer, values)
        if better:
            self.best = value
            self._write(module, self.folder / "best.safetensors", trainer, values)

    def _write(self, module: DepthTraining, path: Path, trainer: pl.Trainer, values: dict[str, float]) -> None:
        from langdepth.checkpoint import save

        train = module.recipe.train
        facts = {"epochs": trainer.current_epoch + 1, "steps": trainer.global_step, "seed": train.seed}
        judged = module.judged
        judged.provenance = {
            **module.system.provenance,
            "training": facts,
            "validation": {"protocol": train.protocol, **values},
        }
        save(judged, path)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class StopOnSignal(Callback):
    """SIGTERM ends the run after the current step with a checkpoint to resume from."""

    def __init__(self) -> None:
        self.received = False
        self._previous: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        import signal

        def note(number: int, frame: Any) -> None:
            self.received = True

        self._previous = signal.signal(signal.SIGTERM, note)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.received:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "resume.ckpt")
            trainer.should_stop = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        import signal

        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)


class ResumePoint(Callback):
    """Writes ``resume.ckpt`` every so many steps and after each epoch; the file is replaced, never half-written."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if (trainer.global_step and trainer.global_step % self.every == 0) or trainer.is_last_batch:
            temporary = self.folder / ".resume.ckpt.partial"
            trainer.save_checkpoint(temporary)  # on every rank: sharded strategies gather here
            if trainer.is_global_zero:
                os.replace(temporary, self.folder / "resume.ckpt")


def train(recipe: Recipe, *, resume: bool = False) -> Path:
    """Run a recipe; returns the run folder.

    The folder holds recipe.yaml (resolved), metrics.csv, TensorBoard logs, previews/, resume.ckpt, last.safetensors and
    best.safetensors (which ``langdepth.load`` opens). ``resume`` continues from resume.ckpt, also in mid-epoch.
    Raises UsageError for a folder that holds another run, NonFiniteLossError, LangdepthError.
    """
    out = recipe.train.out
    checkpoint = out / "resume.ckpt"
    if resume and not checkpoint.is_file():
        raise UsageError(f"{out}: there is no resume.ckpt to continue from")
    if not resume and checkpoint.exists():
        raise UsageError(f"{out}: holds a run already; continue it with --resume or choose another --train.out")
    system = _start_system(recipe, out / "start.safetensors")
    val_set = FolderDataset(recipe.data.root, split=recipe.data.val_split, source=recipe.data.val_source)
    stop = StopOnSignal()
    trainer = pl.Trainer(
        default_root_dir=out,
        accelerator=recipe.train.accelerator,
        devices=recipe.train.devices,
        num_nodes=recipe.train.num_nodes,
        strategy=recipe.train.strategy,
        precision=recipe.train.precision,
        max_epochs=recipe.train.epochs,
        max_steps=recipe.train.max_steps,
        gradient_clip_val=recipe.optim.clip or None,
        accumulate_grad_batches=recipe.optim.accumulate,
        check_val_every_n_epoch=recipe.train.validate_every,
        log_every_n_steps=recipe.train.log_every,
        num_sanity_val_steps=1,
        use_distributed_sampler=False,
        logger=_loggers(out),
        callbacks=[
            Weights(out, recipe.train.monitor),
            Previews(out / "previews", val_set, recipe.train.previews),
            ResumePoint(out, recipe.train.checkpoint_every),
            stop,
            LearningRateMonitor("step"),
            TQDMProgressBar(refresh_rate=10) if os.isatty(2) else PlainProgress(recipe.train.log_every),
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=os.isatty(2),
    )
    loader = _training_loader(recipe, system, trainer.global_rank, trainer.world_size)
    total = recipe.train.epochs * math.ceil(len(loader) / recipe.optim.accumulate)
    module = DepthTraining(system, recipe, min(total, recipe.train.max_steps) if recipe.train.max_steps > 0 else total)
    if recipe.train.compile:
        for child in system.children():
            child.compile(dynamic=False)
    if trainer.is_global_zero:
        _write_recipe(recipe, out)
    val_loader = _validation_loader(val_set, recipe.data.workers, trainer.global_rank, trainer.world_size)
    trainer.fit(module, loader, val_loader, ckpt_path=str(checkpoint) if resume else None, weights_only=True)
    if stop.received:
        raise LangdepthError(f"stopped by SIGTERM; continue with --resume ({checkpoint} is written)")
    return out


def _start_system(recipe: Recipe, start: Path) -> System:
    """The system as training starts from it; kept in the file ``start``, so that resuming need not prepare again."""
    from langdepth.checkpoint import load, save

    section = recipe.system
    weights = str(start) if start.is_file() else section.weights
    torch.manual_seed(recipe.train.seed)
    if weights is None:
        system = registry.build(section.name, section.options)
    else:
        system = load(weights)
        if system.name != section.name:
            raise UsageError(f"system.weights: {weights} holds '{system.name}', the recipe says '{section.name}'")
    system.prepare_training(**section.prepare)
    if not start.is_file() and rank_zero_only.rank == 0:
        save(system, start)
    return system.train()


def _training_loader(recipe: Recipe, system: System, rank: int, world_size: int) -> TrainingLoader:
    data = recipe.data
    folder = FolderDataset(data.root, split=data.train_split)
    sizes = Sizes(system.input_spec, data.aspects)
    draws = Draws(
        shapes=training_shapes(folder, sizes),
        sizes=sizes.sizes,
        weights=source_weights([row.source for row in folder.rows], data.weights),
        batch_size=data.batch_size,
        seed=recipe.train.seed,
        rank=rank,
        world_size=world_size,
    )
    area = system.input_spec.area or math.prod(sizes.sizes[0])
    return TrainingLoader(TrainingSet(folder, TrainTransform(data.augmentation, area)), draws, data.workers)


def _validation_loader(dataset: FolderDataset, workers: int, rank: int, world_size: int) -> DataLoader[Any]:
    """This rank's share of the pictures; they have many sizes, so one at a time."""
    share = torch.utils.data.Subset(cast(Any, dataset), range(rank, len(dataset), world_size))
    return DataLoader(share, batch_size=1, collate_fn=collate, num_workers=min(1, workers))


def _write_recipe(recipe: Recipe, out: Path) -> None:
    import yaml

    with atomic_path(out / "recipe.yaml") as path:
        path.write_text(yaml.safe_dump(to_mapping(recipe), sort_keys=False), encoding="utf-8")


def _loggers(out: Path) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(out, name="", version="csv")]
    try:
        loggers.append(TensorBoardLogger(out, name="", version="tensorboard"))
    except ModuleNotFoundError:
        warnings.warn("TensorBoard logs are off: pip install 'langdepth[log]'", stacklevel=2)
    return loggers


class PlainProgress(Callback):
    """A line now and then, for output that goes into a file or a pipe."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._started = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        import time

        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        import time

        if trainer.is_global_zero and (batch_idx + 1) % self.every == 0:
            seconds = (time.monotonic() - self._started) / (batch_idx + 1)
            total = float(trainer.callback_metrics.get("train/total", math.nan))
            print(
                f"epoch {trainer.current_epoch + 1} batch {batch_idx + 1}/{trainer.num_training_batches} "
                f"loss {total:.3f} {seconds:.2f} s/batch",
                flush=True,
            )
