"""Losses of ScaleDepth and of the toolbox it is published in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from langdepth import losses
from tests.parity.runner import Compared, Tolerance

CLOSE = Tolerance(rtol=1e-5)
GRADIENT = Tolerance(rtol_of_max=1e-5)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


def _with_gradient(name: str, loss: Callable[[Tensor], Tensor], array: np.ndarray, part: str) -> Compared:
    """The loss of ``array`` as ``name``, its gradient as ``name.grad_part``."""
    value = _tensor(array).requires_grad_()
    found = loss(value)
    found.backward()
    assert value.grad is not None
    yield name, found, CLOSE
    yield f"{name}.grad_{part}", value.grad, GRADIENT


def scaledepth_losses(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Depth, scene and bin losses with their gradients."""
    target, scale, relative = (_tensor(arrays[name]) for name in ("gt", "scale", "relative"))
    known, one = target > 0, torch.ones(len(target))
    for name, limit in (("max_none", None), ("max_10", 10.0)):

        def sig_plus(relative: Tensor, scale: Tensor, limit: float | None = limit, warm_up: bool = False) -> Tensor:
            return losses.sig_plus(relative, scale, target, known, max_depth=limit, warm_up=warm_up)

        yield from _with_gradient(f"sigloss.{name}", lambda p: sig_plus(p, one), arrays["pred"], "pred")
        yield from _with_gradient(f"sigplus.{name}", lambda r: sig_plus(r, scale), arrays["relative"], "relative")
        yield from _with_gradient(f"sigplus.{name}", lambda s: sig_plus(relative, s), arrays["scale"], "scale")
    yield "sigloss.warmup_first_call", sig_plus(_tensor(arrays["pred"]), one, warm_up=True), CLOSE
    yield "sigloss.warmup_second_call", sig_plus(_tensor(arrays["pred"]), one), CLOSE

    logits, label = _tensor(arrays["scene_logits"]), _tensor(arrays["label"])
    yield from _with_gradient(
        "scene_ce.on_probabilities",
        lambda x: 0.01 * losses.scene_cross_entropy(x, label, form="probabilities"),
        arrays["scene_logits"],
        "logits",
    )
    yield from _with_gradient(
        "scene_ce.on_logits", lambda x: 0.01 * losses.scene_cross_entropy(x, label), arrays["scene_logits"], "logits"
    )
    unknown = _tensor(arrays["label_with_ignore"]).clamp_min(-1)
    yield (
        "scene_ce.ignore_minus100",
        0.01 * losses.scene_cross_entropy(logits, unknown, mean_over_all=True),
        CLOSE,
    )
    yield "celoss.loss", losses.scene_cross_entropy(logits, label), CLOSE

    def chamfer(edges: Tensor) -> Tensor:
        return 0.1 * losses.bin_chamfer((edges[:, 1:] + edges[:, :-1]) / 2, target, target >= losses.EPSILON)

    yield from _with_gradient("bins_chamfer", chamfer, arrays["bin_edges"], "edges")

    def toolbox_silog(prediction: Tensor) -> Tensor:
        # In millimetres: the value is the same, and the truth of half a millimetre is not clamped.
        per_picture = zip((1000 * prediction).split(1), (1000 * target).split(1), known.split(1), strict=True)
        return torch.stack([losses.silog(p, t, k, 0.5, 1.0) for p, t, k in per_picture]).mean()

    yield from _with_gradient("toolbox_silog.eps_1e-6", toolbox_silog, arrays["pred"], "pred")
