"""Scene names: ScaleDepth's 28 labels (those of NYUv2, and outdoors), and the words that captions know for them."""

from __future__ import annotations

from collections.abc import Sequence

from langdepth.errors import UsageError, nearest

# Index = label, as in ScaleDepth; "excercise_room" is spelled as in the official label files.
SCENES: tuple[str, ...] = (
    "printer_room", "bathroom", "living_room", "study", "conference_room", "study_room", "kitchen", "home_office",
    "bedroom", "dinette", "playroom", "indoor_balcony", "laundry_room", "basement", "excercise_room", "foyer",
    "home_storage", "cafe", "furniture_store", "office_kitchen", "student_lounge", "dining_room", "reception_room",
    "computer_lab", "classroom", "office", "bookstore", "outdoor_scene",
)  # fmt: skip

# The scene vocabulary of captioned images: name -> the words that mark a caption as being about that scene.
CAPTION_SCENES: dict[str, tuple[str, ...]] = {
    "bathroom": ("bathroom", "toilet", "shower"),
    "bedroom": ("bedroom", "bed", "beds"),
    "classroom": ("classroom", "students"),
    "computer lab": ("computers", "monitors"),
    "dining room": ("dining",),
    "hallway": ("hallway", "stairs"),
    "kitchen": ("kitchen", "stove", "refrigerator"),
    "library": ("library", "books"),
    "living room": ("living", "couch"),
    "office": ("office", "cubicle"),
    "store": ("store", "shop"),
    "street": ("street", "road", "highway", "driving"),
}

OUTDOORS = ("street", "outdoor_scene")
"""The names above of places under the sky."""

# The labels that captions have no word for belong to the nearest scene that they name.
_LABELS_OF_CAPTION_SCENES = {
    "office": ("printer_room", "study", "conference_room", "study_room", "home_office", "office"),
    "bathroom": ("bathroom", "laundry_room"),
    "living room": ("living_room", "playroom", "excercise_room", "student_lounge", "reception_room"),
    "kitchen": ("kitchen", "office_kitchen"),
    "bedroom": ("bedroom",),
    "dining room": ("dinette", "cafe", "dining_room"),
    "hallway": ("indoor_balcony", "basement", "foyer"),
    "store": ("home_storage", "furniture_store"),
    "computer lab": ("computer_lab",),
    "classroom": ("classroom",),
    "library": ("bookstore",),
    "street": ("outdoor_scene",),
}
SCENE_TO_CAPTION_SCENE = {label: scene for scene, labels in _LABELS_OF_CAPTION_SCENES.items() for label in labels}


def scene_rows(names: Sequence[str], count: int, scenes: tuple[str, ...] = SCENES) -> list[int]:
    """Indices of the scenes named for ``count`` images. Raises UsageError."""
    if len(names) != count:
        raise UsageError(f"{len(names)} scenes for {count} images; give one for each")
    return [scene_index(name, scenes) for name in names]


def scene_index(name: str, scenes: tuple[str, ...] = SCENES) -> int:
    """Index of a scene name; "_", "-" and spaces count as the same. Raises UsageError naming the nearest scene."""
    wanted = name.strip().lower().replace("_", " ").replace("-", " ")
    for index, scene in enumerate(scenes):
        if scene.replace("_", " ") == wanted:
            return index
    if scenes != SCENES and wanted in (known := {s.replace("_", " "): s for s in SCENES}):
        return scene_index(SCENE_TO_CAPTION_SCENE[known[wanted]], scenes)
    raise UsageError(f"unknown scene '{name}': {nearest(wanted, scenes)}")
