"""Prompt sets: words that stand for distances; the published sets by name, others from YAML.

Word sets and bins of DepthCLIP (arXiv 2207.01077) and of learned prompts (Auty & Mikolajczyk 2023). A sentence may hold
learned tokens, spelled ``<|prompt_0|>``, see ``text/learned_prompts.py``. Importing this module does not import torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from langdepth.config import from_mapping, load_yaml, to_mapping
from langdepth.errors import UsageError, nearest
from langdepth.utils.numbers import plain_number


@dataclass(frozen=True, kw_only=True)
class ScenePrompts:
    """What differs in one scene; None keeps the set's own."""

    words: tuple[str, ...] | None = None
    bin_centers: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Distance words, the sentences they are put into, and the distance of each in metres.

    The defaults are DepthCLIP's. ``templates`` each have one place "{}" for the word; ``scenes``: scene name -> its own
    words or bins, as many as in the set. Raises ValueError for contradictions.
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
                raise ValueError(f"{where}{len(words)} words; at least 2 are needed")
            if not all(word.strip() for word in words) or len(set(words)) < len(words):
                raise ValueError(f"{where}words must not be empty or appear twice: {', '.join(words)}")
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
    # ... the best bins of the two scenes it examines ...
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


# The parts that the prompts of Auty & Mikolajczyk are put together from. Theirs: "learned-static-1o1d" and so on.
TEMPLATES = {
    "paper": "This {object} is {depth}",
    "paper-v1": "This {object} appears to be {depth}",
    "1o1d": "<|prompt_0|> {object} <|prompt_1|> {depth}",
    "1o2d": "<|prompt_0|> {object} <|prompt_1|> <|prompt_2|> {depth}",
    "4o4d": "<|prompt_0|> <|prompt_1|> <|prompt_2|> <|prompt_3|> {object} "
    "<|prompt_4|> <|prompt_5|> <|prompt_6|> <|prompt_7|> {depth}",
}
OBJECTS = {"learned": "<|object_0|>", "patch": "<|imgf_0|>"}
DEPTH_WORDS = {
    "paper": PromptSet().words,
    "depth": (
        "very close", "close", "slightly close", "neither close nor distant", "slightly distant", "distant",
        "very distant",
    ),
    "size": (
        "very small", "small", "slightly small", "neither small nor large", "slightly large", "large", "very large",
    ),
    "colour": ("very red", "red", "slightly red", "neither red nor green", "slightly green", "green", "very green"),
    "random": ("summer", "inian", "fellow", "greg", "bis", "ksh", "aidan"),
}  # fmt: skip


def compose_prompts(
    template: str, object_word: str, depth_words: str, bins: str, depth_range: tuple[float, float]
) -> PromptSet:
    """The prompts of Auty & Mikolajczyk from their parts (docs/systems/prompt-clip.md).

    ``template``: a name of TEMPLATES or a sentence with {object} and {depth}; ``object_word``: a name of OBJECTS or a
    word; ``depth_words``: a name of DEPTH_WORDS or "learned-K", K learned tokens; ``bins``: see ``bin_centers``.
    Raises ValueError for parts that are unknown or do not fit.
    """
    sentence = TEMPLATES.get(template, template)
    if sentence.count("{depth}") != 1 or sentence.count("{object}") > 1:
        raise ValueError(
            f"template '{template}' must have one {{depth}} and at most one {{object}}, or be known: "
            f"{nearest(template, TEMPLATES)}"
        )
    learned = re.fullmatch(r"learned-(\d+)", depth_words)
    if learned is None and depth_words not in DEPTH_WORDS:
        raise ValueError(f"unknown depth_words '{depth_words}': {nearest(depth_words, [*DEPTH_WORDS, 'learned-7'])}")
    words = tuple(f"<|depth_{i}|>" for i in range(int(learned[1]))) if learned else DEPTH_WORDS[depth_words]
    sentence = sentence.replace("{object}", OBJECTS.get(object_word, object_word)).replace("{depth}", "{}")
    return PromptSet(words=words, templates=(sentence,), bin_centers=bin_centers(bins, *depth_range))


def bin_centers(bins: str, near: float, far: float) -> tuple[float, ...]:
    """Distances in metres from a name.

    "even-K": middles of K equal cells from ``near`` to ``far``; "log-K": of K cells equal in the logarithm; "log80-K":
    the same from 0.001 to 80 whatever the range is; "paper": DepthCLIP's. Raises ValueError.
    """
    if bins == "paper":
        return PromptSet().bin_centers
    found = re.fullmatch(r"(even|log|log80)-(\d+)", bins)
    if found is None or int(found[2]) < 1:
        raise ValueError(f"unknown bins '{bins}': give paper, even-K, log-K or log80-K, for example even-7")
    if found[1] == "log80":
        near, far = 0.001, 80.0
    if not 0 < near < far < math.inf:
        raise ValueError(f"depth_range {near} to {far} must rise from above 0")
    shares = [(place + 0.5) / int(found[2]) for place in range(int(found[2]))]
    if found[1] == "even":
        return tuple(near + share * (far - near) for share in shares)
    return tuple(near * (far / near) ** share for share in shares)


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
        changes = load_yaml(prompts, "prompt set") if is_file else to_mapping(find_prompts(prompts))
    if words is not None:
        changes["words"] = [word.strip() for word in words.split(",")]
    if bins is not None:
        try:
            changes["bin_centers"] = [plain_number(number) for number in bins.split(",")]
        except ValueError:
            raise UsageError(f"--bins: expected metres with commas, for example 1,1.5,2; got '{bins}'") from None
    return changes
