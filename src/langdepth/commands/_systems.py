"""Options of the commands that say which system they use."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from langdepth.errors import UsageError, printable, say
from langdepth.text.prompts import read_changes

if TYPE_CHECKING:
    from langdepth.systems.contract import Predicts


@dataclass(frozen=True, kw_only=True)
class WordOptions:
    """Distance words of one's own, for systems that compare with such words.

    Args:
        prompts: A published prompt set, for example depthclip-bins-3, or a YAML file with words, bin_centers, templates
            and, where they differ, scenes (docs/words.md).
    """

    prompts: str | None = None
    words: str | None = None
    bins: str | None = None

    @cached_property
    def changes(self) -> dict[str, Any]:
        """What ``prompts``, ``words`` and ``bins`` state. Raises UsageError."""
        return read_changes(self.prompts, self.words, self.bins)


@dataclass(frozen=True, kw_only=True)
class SystemOptions(WordOptions):
    """Which system.

    Args:
        system: Registry name (see "langdepth systems"), .safetensors file, hub id owner/name, or transformers:NAME
            (or :FOLDER) for a depth model of that library; without it tiny. Given several times, the mean of all of
            them counts.
        base: For systems that give metres to relative maps (rsa, vgld): the system that makes these, as --system names
            it, for example transformers:NAME; or the maps, a folder with files of the images' names (.npy, .npz, .exr,
            16-bit .png).
        download: Fetch the weights that a system's authors publish, where they are not on this machine, without asking
            (also LANGDEPTH_DOWNLOAD=1). On a terminal you are asked; otherwise nothing is fetched.
    """

    system: list[str] | None = None
    clip_weights: str | None = None
    base: str | None = None
    depth_kind: Literal["metric", "relative", "disparity"] | None = None
    download: bool = False

    @cached_property
    def maps(self) -> Path | None:
        """The relative maps that ``base`` names, if it names no system."""
        from langdepth.data.relative import maps_of

        return maps_of(self.base)

    @property
    def base_system(self) -> str | None:
        """The system that ``base`` names, if it names no maps."""
        return None if self.maps is not None else self.base

    def require_base_used(self, system: Predicts) -> None:
        """Raise UsageError for maps in ``base`` that the system does not take."""
        from langdepth.data.relative import relative_maps

        if self.maps is not None and system.overlay_kind.what != relative_maps("disparity").what:
            raise UsageError(f"--base {self.maps}: '{system.name}' makes its own depth maps; leave --base out")

    def fetch_weights(self) -> None:
        """Fetch published weights of the systems that are not here, where somebody agrees. Raises LangdepthError."""
        from langdepth.systems.registry import PUBLISHED, REGISTRY

        names = [name for name in (*(self.system or ()), self.base_system) if name in REGISTRY and name in PUBLISHED]
        if not names:
            return
        from langdepth.weights import fetch, published

        for name in names:
            if published.is_here(name):
                continue
            if self.download or fetch.asked_by_environment():
                fetch.get(name, lambda line: say(line, file=sys.stderr))
            elif sys.stdin.isatty() and sys.stderr.isatty():
                fetch.get(name, ask)


def ask(line: str) -> None:
    """Ask whether it is to be fetched. Raises UsageError for anything but yes."""
    print(printable(f"{line}. Fetch it? [y/N] "), end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing is fetched; give a .safetensors file instead, or fetch the weights another way")
