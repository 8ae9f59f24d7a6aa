"""What the framework asks of systems, and what the package exports."""

from __future__ import annotations

import pytest

import langdepth
from langdepth.errors import UsageError
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.capabilities import (
    ConvertsOfficial,
    DepthSystem,
    HasFrozenTrunk,
    Imagines,
    StandsOnClip,
    TakesPrompts,
    Trainable,
    require,
    require_text_for_each,
)
from tests.helpers import FakeSystem


@pytest.mark.parametrize(
    ("capability", "words", "able"),
    [
        (Imagines, "draws no depth from words; choose another system: wordepth-", {"wordepth-tiny"}),
        (StandsOnClip, "uses no CLIP weights; leave them out, or choose another system: cabins, ", {"depthclip"}),
        (TakesPrompts, "has no distance words or bins to set; leave them out, or choose", {"prompt-clip"}),
        (ConvertsOfficial, "has no official checkpoint to convert; choose another system: cabins, ", {"msa"}),
        (HasFrozenTrunk, "has no frozen trunk; choose another", {"few-shot-clip"}),
    ],
)
def test_a_system_without_a_capability_names_systems_with_it(
    capability: type[DepthSystem], words: str, able: set[str]
) -> None:
    tiny = registry.build("tiny")
    with pytest.raises(UsageError, match=f"the system 'tiny' {words}"):
        require(tiny, capability)
    assert able <= set(registry.systems_with(capability))
    assert "tiny" not in registry.systems_with(capability)


def test_what_only_another_runtime_can_is_said_to_be_so() -> None:
    system = FakeSystem()
    system.name, system.runtime = "wordepth-tiny", "openvino"
    with pytest.raises(UsageError, match="'wordepth-tiny' draws no depth from words in the runtime 'openvino'; what"):
        require(system, Imagines)


def test_a_system_with_it_is_returned() -> None:
    tiny = registry.build("tiny")
    assert require(tiny, Trainable) is tiny


def test_every_system_can_do_what_the_base_class_says_and_no_more() -> None:
    """Optional abilities are inherited: none is a member of System that refuses."""
    own = {name for name in vars(System) if not name.startswith("_")}
    assert own == {
        *("device", "normalise", "inference_copy", "predict", "save", "save_pretrained", "push_to_hub"),
        *("from_pretrained", "exports", "graph_inputs", "scene_indices", "was_loaded"),
    }
    assert not isinstance(System(None, FakeSystem().input_spec), Trainable | Imagines | StandsOnClip)


def test_other_threads_may_make_the_copy_for_inference_again() -> None:
    class Replaced(FakeSystem):
        inference_copy = System.inference_copy  # type: ignore[assignment]

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, None if name == "_inference_copy" else value)

    assert isinstance(Replaced().inference_copy(), Replaced)


def test_the_package_exports_what_users_need() -> None:
    assert set(langdepth.__all__) <= set(dir(langdepth))
    assert all(getattr(langdepth, name) is not None for name in langdepth.__all__)
    assert issubclass(langdepth.UsageError, langdepth.LangdepthError)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        langdepth.lode  # noqa: B018


@pytest.mark.parametrize(("text", "given"), [("a kitchen", "one str"), (["a", "b", "c"], "3 texts")])
def test_every_image_has_a_sentence_of_its_own(text: str | list[str], given: str) -> None:
    with pytest.raises(UsageError, match=f"^{given} for 2 images; give a list with a sentence for each"):
        require_text_for_each(text, 2)
    require_text_for_each(["a", "b"], 2)
