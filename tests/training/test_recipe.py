"""Recipes: strict, with an identity."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from langdepth.config import load_yaml, to_mapping
from langdepth.errors import MissingConfigError, UsageError
from langdepth.training.recipe import CIRCUMSTANCES, RECIPES, Recipe, load_recipe, read_recipe
from langdepth.training.sections import DataSection

REPOSITORY = Path(__file__).parents[2]


def plain_recipe(**sections: dict[str, Any]) -> Recipe:
    return read_recipe({"data": {"root": "rooms"}} | sections)


def fields(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> default of every field."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        name = prefix + field.name
        found |= fields(content, f"{name}.") if dataclasses.is_dataclass(content) else {name: content}
    return found


def test_what_may_change_exists() -> None:
    assert set(CIRCUMSTANCES) <= fields(Recipe(data=DataSection(root=Path()))).keys()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_recipes_of_the_package_are_right(path: Path) -> None:
    content = load_recipe(path.stem)
    content["data"].setdefault("root", "asked for")
    recipe = read_recipe(content)
    if recipe.system.weights is None:  # else what was continued from states them
        assert recipe.train.licence
        assert recipe.train.source == f"trained with recipes/{path.name}"
    assert read_recipe(yaml.safe_load(yaml.safe_dump(to_mapping(recipe)))) == recipe


def test_a_recipe_is_given_by_name_or_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").write_text("data: {root: mine}")
    assert load_recipe("tiny") == load_yaml(RECIPES / "tiny.yaml")
    assert load_recipe("./tiny") == {"data": {"root": "mine"}}
    with pytest.raises(MissingConfigError, match=r"^unknown recipe 'tyni': did you mean 'tiny'\? Or give a file$"):
        load_recipe("tyni")
    with pytest.raises(MissingConfigError, match=r"^recipes/tiny.yaml: no such file"):
        load_recipe("recipes/tiny.yaml")


def test_the_hash_follows_what_decides_the_weights() -> None:
    same = plain_recipe(data={"root": "elsewhere", "workers": 0}, train={"max_steps": 5, "out": "x", "licence": "mine"})
    assert same.hash == plain_recipe().hash
    others = [
        plain_recipe(optim={"lr": 2e-3}),
        plain_recipe(system={"options": {"bins": 3}}),
        plain_recipe(data={"root": "rooms", "augmentation": {"flip": 0.1}}),
        plain_recipe(train={"seed": 1}),
    ]
    assert len({recipe.hash for recipe in (same, *others)}) == 5


def test_values_are_checked_however_a_recipe_is_made() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        DataSection(root=Path(), batch_size=0)
    with pytest.raises(UsageError, match=r"^data: batch_size must be at least 1$"):
        plain_recipe(data={"root": "rooms", "batch_size": 0})
    with pytest.raises(UsageError, match=r"^data: augmentation must be left out with pipeline nyu-adapters$"):
        plain_recipe(data={"root": "rooms", "pipeline": "nyu-adapters", "augmentation": {"flip": 0}})
    with pytest.raises(UsageError, match=r"^data: reference_exact must be false with the standard pipeline$"):
        plain_recipe(data={"root": "rooms", "reference_exact": True})
    with pytest.raises(UsageError, match=r"^optim: betas must be two numbers from 0 to below 1$"):
        plain_recipe(optim={"betas": [0.9, 1]})
