"""Recipes: everything that decides a training run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langdepth.config import from_mapping, load_yaml, to_mapping
from langdepth.errors import MissingConfigError, UsageError, nearest
from langdepth.training.sections import DataSection, OptimSection, SystemSection, TrainSection
from langdepth.utils.arguments import checked

RECIPES = Path(__file__).parents[1] / "recipes"

# Where things lie and how the run is carried out: these may change when a run continues, all other fields may not.
_MAY_CHANGE = {
    "system": "prepare weights",
    "data": "root truth_root trust_unit captions overlay cache workers",
    "train": "out accelerator strategy checkpoint_every save_every_steps log_every previews non_finite max_steps "
    "licence source",
}
CIRCUMSTANCES = tuple(f"{section}.{name}" for section, names in _MAY_CHANGE.items() for name in names.split())

# Fields that recipes did not always have, with their defaults: where they have them they are left out of a recipe's
# identity, so that older runs keep their hash and continue.
LATER: dict[str, Any] = {
    **dict.fromkeys(("data.hold_out", "data.train_list", "data.val_list", "train.validate_every_steps")),
    "train.ema_warm_up": True,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. Raises UsageError or ValueError naming a wrong value."""

    system: SystemSection = field(default_factory=SystemSection)
    data: DataSection
    optim: OptimSection = field(default_factory=OptimSection)
    train: TrainSection = field(default_factory=TrainSection)

    def __post_init__(self) -> None:
        at_once = self._at_once
        wanted = self.optim.effective_batch
        if wanted is not None and wanted % at_once:
            raise UsageError(
                f"optim.effective_batch: {wanted} images per step cannot be made of {at_once} at once "
                f"(data.batch_size {self.data.batch_size} on {at_once // self.data.batch_size} devices); change one"
            )

    @property
    def _at_once(self) -> int:
        """Images in one batch of all devices."""
        return self.data.batch_size * self.train.devices * self.train.num_nodes

    @property
    def accumulate(self) -> int:
        """Batches per optimiser step."""
        wanted = self.optim.effective_batch
        return self.optim.accumulate if wanted is None else wanted // self._at_once

    @property
    def images_per_step(self) -> int:
        """On all devices together."""
        return self._at_once * self.accumulate

    def identity(self) -> dict[str, Any]:
        """Every field that decides the trained weights, by its dotted name."""
        fields = {key: value for key, value in _flat(to_mapping(self)) if not key.startswith(CIRCUMSTANCES)}
        fields["data.more"] = [{k: v for k, v in more.items() if k != "truth_root"} for more in fields["data.more"]]
        return {key: value for key, value in fields.items() if key not in LATER or value != LATER[key]}

    @property
    def hash(self) -> str:
        """Twelve hex digits of the SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:12]


@checked
def load_recipe(name: str | Path) -> dict[str, Any]:
    """The content of a recipe of the package, by its name ("tiny"), or of a YAML file, by its path.

    Raises UsageError for an unknown name and for a file that cannot be read.
    """
    shipped = {path.stem: path for path in RECIPES.glob("*.yaml")}
    if str(name) not in shipped and re.fullmatch(r"[\w-]*", str(name)) and not Path(name).is_file():
        raise MissingConfigError(f"unknown recipe '{name}': {nearest(str(name), shipped)} Or give a file")
    return load_yaml(shipped.get(str(name), Path(name)))


def read_recipe(content: Mapping[str, Any]) -> Recipe:
    """A recipe from plain nested data. Raises UsageError naming a wrong key and the nearest right one."""
    return from_mapping(Recipe, content)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
