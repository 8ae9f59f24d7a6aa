"""``langdepth train``: run a recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from langdepth.commands import _parse
from langdepth.commands._systems import WordOptions

EXAMPLE = """\
langdepth train --config tiny-finetune --data.root images --train.out runs/mine
langdepth train --config runs/mine/recipe.yaml --resume
Any field of the recipe can be set on the command line by its dotted name; docs/train.md lists them."""


def main(arguments: Sequence[str]) -> int:
    """Parse and run."""
    plain, overrides = _parse.split_overrides(arguments)

    def train(*, config: str, resume: bool = False, own: WordOptions) -> int:
        """Train a system from a recipe.

        Args:
            config: The recipe: the name of one in the package (tiny-finetune), or a YAML file. Its fields can be
                overridden: --section.field VALUE.
            resume: Continue the run in the recipe's train.out from where it stopped, also mid-epoch.
            own: Words of one's own, for system.options.prompts.
        """
        from langdepth.training.recipe import load_recipe, read_recipe

        # torch's C++ parts warn past Python's filters, for example that DDP found no unused parameters.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        content = load_recipe(config)
        for key, value in overrides.items():
            _parse.set_dotted(content, key, value)
        recipe = read_recipe(content)  # mistakes show before the slow import
        if own.changes:
            from langdepth.systems.registry import with_prompts

            options = with_prompts(recipe.system.name, recipe.system.options, own.changes)
            recipe = replace(recipe, system=replace(recipe.system, options=options))
        from langdepth.training.run import train as run_recipe

        run_recipe(recipe, resume=resume)
        return 0

    return _parse.run(train, plain, "langdepth train", EXAMPLE)
