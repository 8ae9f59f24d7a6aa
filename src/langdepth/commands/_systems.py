"""Options of the commands that say which system they use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SystemOptions:
    """Which system.

    Args:
        system: Registry name (see "langdepth systems"), .safetensors file, hub id owner/name, or transformers:NAME
            (or :FOLDER) for a depth model of that library; without it tiny. Given several times, the mean of all of
            them counts.
        base: For systems that give metres to relative maps (rsa, vgld): the system that makes these, as --system names
            it, for example transformers:NAME; or the maps, a folder with files of the images' names (.npy, .npz, .exr,
            16-bit .png).
    """

    system: list[str] | None = None
    clip_weights: str | None = None
    base: str | None = None
    depth_kind: Literal["metric", "relative", "disparity"] | None = None

    @cached_property
    def maps(self) -> Path | None:
        """The relative maps that ``base`` names, if it names no system."""
        from langdepth.data.relative import maps_of

        return maps_of(self.base)

    @property
    def base_system(self) -> str | None:
        """The system that ``base`` names, if it names no maps."""
        return None if self.maps is not None else self.base
