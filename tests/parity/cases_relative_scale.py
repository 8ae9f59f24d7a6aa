"""Golden cases of the systems that give metres to relative maps: RSA's head and losses, VGLD's heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from langdepth.records import Batch
from langdepth.systems import registry
from tests.parity.runner import Case, Compared, Tolerance

CLOSE = Tolerance(rtol=1e-5)
ARCHITECTURES = {1024: "RN50", 512: "ViT-B-16"}


def _official(name: str, weights: dict[str, Tensor] | None, options: dict[str, Any]) -> Any:
    """The system with the authors' weights."""
    system: Any = registry.build(name, options)
    tensors, report = system.convert_official(dict(weights or {}))
    assert not report["missing"]
    assert not report["ignored"]
    system.load_state_dict(tensors)
    return system.eval()


@torch.no_grad()
def rsa_scale(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Captions' features and relative maps to scale, shift, depth and the three losses."""
    features, relative, gt = (torch.from_numpy(arrays[name]) for name in ("text_features", "relative", "gt"))
    for error in ("l1", "huber", "l2"):
        system = _official("rsa", weights, {"error": error, "architecture": ARCHITECTURES[features.shape[1]]})
        scale, shift = system.scale_and_shift(system.text_features(len(features), features))
        if error == "l1":
            yield "scale", scale[:, 0], CLOSE
            yield "shift", shift[:, 0], CLOSE
            overlay = relative[:, None]
            yield "depth", system(torch.zeros_like(gt).repeat(1, 3, 1, 1), features, overlay=overlay).depth[:, 0], CLOSE
        unknown = torch.full((len(gt),), -1)
        batch = Batch(image=gt, depth=gt, mask=gt > 0, scene=unknown, text=[None] * len(gt), path=[""] * len(gt))
        name = {"l1": "loss_L1", "huber": "loss_Huber", "l2": "loss_L2"}[error]
        yield name, system.loss_of(batch, relative[:, None], features)["total"].reshape(1), CLOSE


@torch.no_grad()
def vgld(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Features of captions and images to the domain's logits, scale and shift, for each fusion."""
    text, image = (torch.from_numpy(arrays[name]) for name in ("text_features", "image_features"))
    for fusion in ("t", "i", "tci"):
        own = {key.removeprefix(f"{fusion}/"): v for key, v in (weights or {}).items() if key.startswith(f"{fusion}/")}
        options = {"fusion": fusion, "reference_exact": True, "architecture": ARCHITECTURES[text.shape[1]]}
        system = _official("vgld", own, options)
        words = None if fusion == "i" else text
        inputs = system.head_input({"image": image}, len(text), words)
        scale, shift = system.scale_and_shift(inputs)
        yield f"{fusion}_domain_logits", system.classifier(inputs), CLOSE
        yield f"{fusion}_scale", scale, CLOSE
        yield f"{fusion}_shift", shift, CLOSE


CASES = (
    Case("rsa_scale*", rsa_scale, "rsa_scale"),
    Case("vgld*", vgld, "vgld", ("t", "i", "tci")),
)
