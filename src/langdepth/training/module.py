"""The steps of training: loss, optimiser, moving average, learning rate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from langdepth.errors import NonFiniteLossError
from langdepth.records import Batch
from langdepth.systems.capabilities import Trainable
from langdepth.training.recipe import Recipe
from langdepth.training.sections import OptimSection, TrainSection
from langdepth.utils.processes import gathered

NAMED = 8  # offending images named in a message


class DepthTraining(pl.LightningModule):
    """A system in training for ``steps`` optimiser steps: loss, optimiser, moving average."""

    def __init__(self, system: Trainable, recipe: Recipe, steps: int) -> None:
        super().__init__()
        self.system = system
        self.recipe = recipe
        self.steps = steps
        self.average = _average(system, recipe.train)
        self._drawn: dict[str, Any] = {}  # for the optimiser step in progress
        self._batches: list[Batch] = []  # of it
        self._buffers_before: list[Tensor] = []
        self._left_out = False  # the optimiser step in progress changes nothing

    @property
    def evaluated(self) -> Trainable:
        """The system that is evaluated and saved: the moving average if there is one."""
        return cast(Trainable, self.average.module) if self.average is not None else self.system

    def configure_optimizers(self) -> Any:
        optim = self.recipe.optim
        groups = self.system.parameter_groups(optim.lr, optim.weight_decay)
        optimiser = (
            torch.optim.SGD(groups, momentum=optim.momentum)
            if optim.optimiser == "sgd"
            else torch.optim.AdamW(groups, betas=optim.betas)
        )
        schedule = scheduler(optimiser, optim, self.steps, self.recipe.train.epochs)
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
        # All processes must agree, or some would wait forever.
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
        """Stop, or leave the optimiser step in progress out, naming the images that cause it."""
        for buffer, before in zip(self.system.buffers(), self._buffers_before, strict=True):  # running statistics
            buffer.copy_(before)
        names = [name for batch in batches for name in self._offenders(batch)]
        paths = [path for batch in batches for path in batch.path]
        names = [name for part in gathered(names) for name in part]
        everything = len(names) == len(paths) * self.trainer.world_size > 1
        listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        message = (
            f"the {what} is not finite in epoch {self.current_epoch + 1}, step {self.global_step + 1}, for "
            f"{listed or 'the batch as a whole: ' + ', '.join(paths[:NAMED])}"
        )
        if self.recipe.train.non_finite == "stop":
            advice = "lower optim.lr" if everything else "check these images, or continue with train.non_finite: skip"
            raise NonFiniteLossError(f"{message}; {advice}") if self.trainer.is_global_zero else SystemExit(1)
        self._left_out = True
        if self.trainer.is_global_zero:
            warnings.warn(f"{message}; this step is left out", stacklevel=2)

    def _offenders(self, batch: Batch) -> list[str]:
        """Paths of the images whose loss or gradient is not finite even alone."""
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


def scheduler(optimiser: torch.optim.Optimizer, optim: OptimSection, steps: int, epochs: int) -> LRScheduler:
    """What sets the rates of an optimiser before each of ``steps`` steps; every group's own rate is its highest."""
    if optim.schedule != "torch_one_cycle":
        return LambdaLR(optimiser, rate(optim, steps, epochs))
    start_lr = optim.lr / 25
    return OneCycleLR(
        optimiser,
        [group["lr"] for group in optimiser.param_groups],
        total_steps=steps,
        pct_start=optim.warm_up + 1e-12,  # a rise of exactly one step would divide by 0
        div_factor=25,
        final_div_factor=start_lr / optim.end_lr if optim.end_lr else math.inf,
    )


def rate(optim: OptimSection, steps: int, epochs: int = 1) -> Callable[[int], float]:
    """The learning rate of each of ``steps`` steps as a share of ``optim.lr``: up in the warm-up, then as scheduled.

    ``epochs``: how many the steps make up, for milestones. See ``scheduler`` for torch_one_cycle.
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


class MovingAverage(AveragedModel):
    """Exponential moving average of a module's parameters and buffers, by default with a warm-up.

    With ``warm_up`` the first update copies the module, and update n + 1 keeps the share min(``decay``, (1 + n) / (10 +
    n)) of the average: a short run ends near its last weights, where a constant decay would leave it near its first.
    Integer buffers (counts) are copied. (Lightning's EMAWeightAveraging has no warm-up, takes part in Lightning's own
    validation loop only and averages after steps that were left out, too.)
    """

    def __init__(self, module: nn.Module, decay: float, *, warm_up: bool = True) -> None:
        super().__init__(module, multi_avg_fn=partial(_update, decay=decay, warm_up=warm_up), use_buffers=True)
        self.requires_grad_(False)
        if not warm_up:
            self.get_buffer("n_averaged").fill_(1)  # at 0 torch copies the module


def _average(system: nn.Module, train: TrainSection) -> MovingAverage | None:
    return MovingAverage(system, train.ema, warm_up=train.ema_warm_up) if train.ema > 0 else None


@torch.no_grad()
def _update(average: list[Tensor], current: list[Tensor], updates: Tensor, *, decay: float, warm_up: bool) -> None:
    """One update of tensors of one type, in place."""
    if average[0].is_floating_point():
        kept = min(decay, (1 + int(updates)) / (10 + int(updates))) if warm_up else decay
        torch._foreach_lerp_(average, current, 1 - kept)
    else:
        torch._foreach_copy_(average, current)
