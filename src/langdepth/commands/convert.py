"""``langdepth convert``: the authors' checkpoints and CLIP weights to .safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langdepth.commands import _parse
from langdepth.commands._systems import WordOptions
from langdepth.errors import UsageError, say

EXAMPLE = """\
langdepth convert RN50.pt --system depthclip --out depthclip.safetensors
langdepth convert best.pth --system clip-adapter --out clip-adapter.safetensors
langdepth convert model.pt --system mde-clip --clip-weights RN50.pt --out mde-clip.safetensors
langdepth convert coarse.pth --system clip-coarse-refined --options.stage coarse --out coarse.safetensors
Any field of the system's config can be set, --options.field VALUE; langdepth systems show NAME lists them."""
SHOWN = 12


def main(arguments: Sequence[str]) -> int:
    """Parse and run."""
    plain, overrides = _parse.split_overrides(arguments)

    def convert(
        checkpoint: Path,
        *,
        system: str,
        out: Path,
        licence: str | None = None,
        clip_weights: str | None = None,
        own: WordOptions,
    ) -> None:
        """Convert a checkpoint of a system's authors, or CLIP weights for a zero-shot system, to one .safetensors.

        Prints how many tensors were used and which have no part in the system; none may be missing.

        Args:
            checkpoint: The file to read; pickles are opened for tensors only.
            system: Registry name of what the checkpoint holds (see "langdepth systems").
            out: The .safetensors file to write, which "langdepth predict --system" takes.
            licence: The terms of the weights, which the file will state.
            clip_weights: A CLIP model, for checkpoints without the features of their words (mde-clip, mde-clip-unet).
            own: Words of one's own.
        """
        from langdepth.systems import registry

        registry.entry(system)
        for key in overrides:
            if not key.startswith("options."):
                raise UsageError(f"unknown option '--{key}': options of the system are given as --options.field VALUE")
        from langdepth.weights.convert import convert as run

        given: dict[str, Any] = {"options": {}}
        for key, value in overrides.items():
            _parse.set_dotted(given, key, value)
        options = registry.with_prompts(system, given["options"], own.changes)
        done = run(checkpoint, system, out, options, licence=licence, clip_weights=clip_weights)
        say(f"used: {len(done.used)} tensors")
        say(f"ignored: {_listed(done.ignored)}")
        for option, (value, choices) in done.assumed.items():
            say(f"{option}: {value}, as '{system}' has it; checkpoints do not record it: {choices}")
        say(f"written: {done.path}")

    return _parse.run(convert, plain, "langdepth convert", EXAMPLE)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} tensors ({', '.join(names[:SHOWN])}{more})" if names else "none"
