"""Scene names: every label has a caption scene, and a wrong name is answered with the nearest."""

from __future__ import annotations

import pytest

from langdepth.errors import UsageError
from langdepth.text.scenes import CAPTION_SCENES, SCENE_TO_CAPTION_SCENE, SCENES, scene_index

CAPTIONED = tuple(CAPTION_SCENES)


def test_28_labels_and_each_is_mapped_to_a_scene_that_captions_know() -> None:
    assert len(SCENES) == len(set(SCENES)) == 28
    assert set(SCENE_TO_CAPTION_SCENE) == set(SCENES)
    assert set(SCENE_TO_CAPTION_SCENE.values()) <= set(CAPTIONED)
    assert all(marks for marks in CAPTION_SCENES.values())
    assert all(mark.isalpha() and mark.islower() for marks in CAPTION_SCENES.values() for mark in marks)


@pytest.mark.parametrize("scene", SCENES)
def test_every_label_is_found_and_stands_for_its_caption_scene(scene: str) -> None:
    assert SCENES[scene_index(scene)] == scene
    assert CAPTIONED[scene_index(scene, CAPTIONED)] == SCENE_TO_CAPTION_SCENE[scene]


@pytest.mark.parametrize("name", ["living_room", "living room", "Living-Room", "  LIVING ROOM "])
def test_spelling_variants_are_one_scene(name: str) -> None:
    assert SCENES[scene_index(name)] == "living_room"
    assert CAPTIONED[scene_index(name, CAPTIONED)] == "living room"


def test_a_name_of_the_vocabulary_itself_comes_first() -> None:
    assert [scene_index(name, CAPTIONED) for name in CAPTIONED] == list(range(len(CAPTIONED)))
    assert CAPTIONED[scene_index("study", CAPTIONED)] == "office"


@pytest.mark.parametrize(
    ("name", "scenes", "hint"),
    [
        ("kitchn", SCENES, "did you mean 'kitchen'?"),
        ("living romo", SCENES, "did you mean 'living_room'?"),
        ("streeet", CAPTIONED, "did you mean 'street'?"),
        ("zzz", CAPTIONED, "known: bathroom, bedroom"),
        ("", CAPTIONED, "known: bathroom, bedroom"),
        ("hallway", SCENES, ""),  # a caption scene is no label
    ],
)
def test_unknown_names_get_the_nearest(name: str, scenes: tuple[str, ...], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        scene_index(name, scenes)
    assert str(caught.value).startswith(f"unknown scene '{name}': {hint}")
