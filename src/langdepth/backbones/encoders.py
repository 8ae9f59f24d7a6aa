"""Image encoders with maps at strides 4, 8, 16 and 32, by name, and what their training starts from."""

from __future__ import annotations

import warnings
from pathlib import Path

from langdepth.backbones.convnext import ConvNeXt
from langdepth.backbones.efficientnet_lite import EfficientNetLite
from langdepth.backbones.swin import SIZES, Swin
from langdepth.errors import UsageError, nearest
from langdepth.utils.tensors import read_checkpoint, require_finite

Encoder = ConvNeXt | Swin | EfficientNetLite
_LITE = {f"efficientnet-lite{size}": size for size in (0, 1, 2)}


def make_encoder(
    name: str, drop_path: float = 0.0, frozen: int = 0, position: tuple[int, int] | None = None
) -> Encoder:
    """The encoder called ``name``: "swin-large", "efficientnet-lite0" ... or timm's name of a ConvNeXt; random weights.

    ``drop_path``: share of dropped branches in the last block, of Swin and ConvNeXt. ``frozen``: stages of an
    EfficientNet-Lite that keep their weights. ``position``: (height, width) of the images that a Swin has a position
    table for. The last four maps and ``channels`` are those of strides 4 to 32. Raises UsageError for unknown names.
    """
    if name in SIZES:
        return Swin(SIZES[name], position=position, drop_path=drop_path)
    if name in _LITE:
        return EfficientNetLite(_LITE[name], frozen)
    if "convnext" in name:
        return ConvNeXt(name, drop_path)
    raise UsageError(f"unknown encoder '{name}': {nearest(name, [*SIZES, *_LITE, 'convnext_large'])}")


def start_encoder(encoder: Encoder, weights: str | None) -> str:
    """Load ImageNet weights for training; returns a line that says what they were.

    ``weights``: for Swin a classifier of the Swin release, for ConvNeXt see ``ConvNeXt.load_pretrained``; "random" for
    tests. An EfficientNet-Lite brings its own. Raises UsageError and CheckpointError.
    """
    if isinstance(encoder, EfficientNetLite):
        if weights is not None:
            raise UsageError("an EfficientNet-Lite brings its own weights; leave system.prepare.encoder_weights out")
        return encoder.load_imagenet_weights()
    if weights == "random" or (weights is None and isinstance(encoder, Swin)):
        warnings.warn(
            "the encoder starts from RANDOM numbers; name a file of its weights in system.prepare.encoder_weights",
            stacklevel=3,
        )
        return "random"
    if isinstance(encoder, ConvNeXt):
        return encoder.load_pretrained(weights)
    encoder.load_release(read_checkpoint(Path(weights or "")))
    require_finite(encoder.state_dict(), Path(weights or ""))
    return Path(weights or "").name
