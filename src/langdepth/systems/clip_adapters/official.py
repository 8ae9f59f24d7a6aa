"""The authors' checkpoints of the CLIP adapters: their tensor names and ours, beside CLIP's."""

from __future__ import annotations

from torch import Tensor

ADAPTER_NAMES = {"image_adapter.": "image_adapter.", "text_adapter.": "text_adapter."}
COARSE_NAMES = {
    "coarse_adapter.fc.0.": "coarse.fc.hidden.",
    "coarse_adapter.fc.1.": "coarse.fc.output.",
    "refiner.": "refiner.",
}
EIGEN_NAMES = {"convs.": "convs.", **COARSE_NAMES}
MULTI_SCALE_NAMES = {
    "image_adapter.bridge.bridge.": "decoder.bridge.",
    "image_adapter.": "decoder.",
    "seg_encoder.bridge.": "overlay_encoder.",
}


def both_stages(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a coarse or a refined checkpoint, of which the latter has the coarse ones under a prefix."""
    return {key.removeprefix("coarse_model."): value for key, value in state_dict.items()}
