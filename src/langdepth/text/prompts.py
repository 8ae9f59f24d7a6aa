"""Which words stand for which distance: prompt sets, the published ones by name, and one's own from YAML.

Word sets and bins of DepthCLIP (arXiv 2207.01077). Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from langdepth.config import from_mapping, load_yaml, to_mapping
from langdepth.errors import UsageError, nearest


@dataclass(frozen=True, kw_only=True)
class ScenePrompts:
    """What differs in one scene; None keeps the set's own."""

    words: tuple[str, ...] | None = None
    bin_centers: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Distance words, the sentences they are put into, and the distance in metres that each stands for.

    The defaults are DepthCLIP's. ``templates`` each have one place "{}" for the word; ``scenes``: scene name -> its own
    words or bins, as many as in the set. Raises ValueError for a set that makes no sense.
    """

    words: tuple[str, ...] = (
        "giant", "extremely close", "close", "not in distance", "a little remote", "far", "unseen",
    )  # fmt: skip
    templates: tuple[str, ...] = ("This object is {}",)
    bin_centers: tuple[float, ...] = (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)
    scenes: dict[str, ScenePrompts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.templates:
            raise ValueError("templates is empty; give at least one, for example 'This object is {}'")
        for template in self.templates:
            if template.count("{}") != 1 or template.replace("{}", "").count("{"):
                raise ValueError(f"template '{template}' must have one place {{}} for the word")
        for place, (words, centers) in zip(("", *self.scenes), self.variants(), strict=True):
            where = f"scene '{place}': " if place else ""
            if len(words) != len(centers):
                raise ValueError(
                    f"{where}{len(words)} words but {len(centers)} bin_centers; give one distance for each word"
                )
            if len(words) != len(self.words):
                raise ValueError(f"{where}{len(words)} words, but the set has {len(self.words)}; give as many")
            if len(words) < 2:
                raise ValueError(f"{where}{len(words)} words; at least 2 are needed to tell distances apart")
            if not all(word.strip() for word in words) or len(set(words)) < len(words):
                raise ValueError(f"{where}words must not be empty or stand twice: {', '.join(words)}")
            if not all(math.isfinite(center) and center > 0 for center in centers):
                raise ValueError(f"{where}bin_centers must be distances above 0 in metres")
            if any(after <= before for before, after in pairwise(centers)):
                raise ValueError(f"{where}bin_centers must rise; order words and distances from near to far")

    def variants(self) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
        """Words and bin centres of the set itself, then of each scene in order."""
        own = [(s.words or self.words, s.bin_centers or self.bin_centers) for s in self.scenes.values()]
        return [(self.words, self.bin_centers), *own]

    def changed(self, changes: Mapping[str, Any]) -> PromptSet:
        """The set with some of its fields replaced, from plain data. Raises UsageError naming a wrong key or value."""
        return from_mapping(PromptSet, {**to_mapping(self), **changes}, where="prompts.")


_NEAR_BINS, _FAR_BINS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5), (2.0, 2.5, 3.0, 3.25, 3.5, 3.75, 4.0)

PROMPT_SETS: dict[str, PromptSet] = {
    "depthclip": PromptSet(),
    # The paper's ablations of bins ...
    "depthclip-bins-1": PromptSet(bin_centers=(1.0, 2.0, 2.25, 2.5, 2.75, 3.0, 4.0)),
    "depthclip-bins-2": PromptSet(bin_centers=(1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)),
    "depthclip-bins-3": PromptSet(bin_centers=_NEAR_BINS),
    "depthclip-bins-4": PromptSet(bin_centers=_FAR_BINS),
    # ... the bins that suit the two scenes it looked at best ...
    "depthclip-scene-bins": PromptSet(
        scenes={"bathroom": ScenePrompts(bin_centers=_NEAR_BINS), "classroom": ScenePrompts(bin_centers=_FAR_BINS)}
    ),
    # ... and of words.
    "depthclip-words-1": PromptSet(
        words=("extremely close", "close", "middle", "a little far", "far", "quite far", "unseen")
    ),
    "depthclip-words-2": PromptSet(
        words=("extremely close", "very close", "close", "a little close", "a little far", "far", "unseen")
    ),
    "depthclip-words-3": PromptSet(
        words=("giant", "close", "a little close", "not in distance", "a bit remote", "far", "unseen")
    ),
}


def find_prompts(prompts: PromptSet | str) -> PromptSet:
    """A prompt set by its name; a set is returned as it is. Raises UsageError naming the nearest name."""
    if isinstance(prompts, PromptSet):
        return prompts
    if prompts not in PROMPT_SETS:
        raise UsageError(f"unknown prompts '{prompts}': {nearest(prompts, PROMPT_SETS)}")
    return PROMPT_SETS[prompts]


def read_changes(prompts: str | None = None, words: str | None = None, bins: str | None = None) -> dict[str, Any]:
    """What a command line wants different from a system's own prompts, for ``PromptSet.changed``.

    ``prompts``: a name of PROMPT_SETS or a YAML file with any of the fields of PromptSet; ``words``: with commas;
    ``bins``: metres with commas. Empty when none is given. Raises UsageError.
    """
    changes: dict[str, Any] = {}
    if prompts is not None:
        is_file = Path(prompts).suffix in (".yaml", ".yml") or Path(prompts).is_file()
        changes = load_yaml(prompts) if is_file else to_mapping(find_prompts(prompts))
    if words is not None:
        changes["words"] = [word.strip() for word in words.split(",")]
    if bins is not None:
        try:
            changes["bin_centers"] = [float(number) for number in bins.split(",")]
        except ValueError:
            raise UsageError(f"--bins: expected metres with commas, for example 1,1.5,2; got '{bins}'") from None
    return changes
