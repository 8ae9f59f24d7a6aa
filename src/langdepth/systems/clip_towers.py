"""What systems share that hold both towers of a CLIP model and feed the text tower with learned vectors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langdepth.backbones.clip import ClipImageTower
from langdepth.backbones.clip_weights import find_clip_weights
from langdepth.errors import UsageError
from langdepth.records import InputSpec
from langdepth.systems.base import System
from langdepth.systems.capabilities import StandsOnClip
from langdepth.text.clip_text import ClipTextTower


class ClipTowers(System, StandsOnClip):
    """``tower`` and ``text_tower`` of one CLIP model, both in the weights file.

    ``config`` states ``architecture`` and ``quick_gelu``. ``text_length``, ``embeds_words``: see ``ClipTextTower``.
    """

    config: Any

    def __init__(self, config: Any, input_spec: InputSpec, text_length: int, *, embeds_words: bool = True) -> None:
        super().__init__(config, input_spec)
        self.tower = ClipImageTower(config.architecture, quick_gelu=config.quick_gelu)
        self.text_tower = ClipTextTower(
            config.architecture, quick_gelu=config.quick_gelu, length=text_length, embeds_words=embeds_words
        )
        self.text_tower.require_argmax(config.architecture)

    def load_foundation(self, clip_weights: str | Path | None = None, prompts: Mapping[str, Any] | None = None) -> None:
        """Fill both towers from CLIP weights: a file, None for open_clip's download, or "random".

        Raises UsageError and CheckpointError.
        """
        if prompts:
            raise UsageError(f"the system '{self.name}' has no distance words or bins to set; leave them out")
        weights = find_clip_weights(clip_weights, self.config.architecture, self.config.quick_gelu)
        self.tower.load_state_dict(weights.visual())
        self.text_tower.load_weights(weights)
        source = f"CLIP {self.config.architecture}: {weights.source}"
        self.provenance |= {"source": source, "clip_sha256": weights.sha256}

    def prepare_training(self, clip_weights: str | None = None) -> None:
        """CLIP weights for both towers, unless the system continues from trained weights."""
        if not self.was_loaded:
            self.load_foundation(clip_weights)
