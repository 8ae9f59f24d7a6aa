"""Captions with features: every form in which people have them is opened and gives the same, mistakes cost one line."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from langdepth.data.base import open_dataset
from langdepth.errors import LangdepthError, UsageError
from langdepth.text.caption_features import open_captions, read_caption_features
from langdepth.text.captions import Caption, pack
from tests.helpers import write_folder
from tests.miniatures import published_captions

WIDTH = 8
SENTENCES = ["A kitchen with a sink.", "A car on a street.", "A bed, and a lamp."]
IMAGES = {
    "nyu/train/kitchen_0028b/rgb_00045": 0,
    "nyu/train/kitchen_0028b/rgb_00046": 0,
    "nyu/test/bedroom/rgb_00001": 2,
    "kitti/train/2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069": 1,
}


def features() -> np.ndarray:
    """(3, 8) float16 of norm 1, one for each sentence."""
    rows = np.random.default_rng(0).normal(size=(len(SENTENCES), WIDTH))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def keys() -> dict[str, int]:
    """Images as split lists name them, without data set and split."""
    return {image.split("/", 2)[2]: row for image, row in IMAGES.items()}


def trees(root: Path) -> Path:
    """The folder above the published trees."""
    published_captions(root, {image: (SENTENCES[row], features()[row]) for image, row in IMAGES.items()})
    return root


def table(root: Path) -> Path:
    """A CSV of the captions, as the data set's own lists name the images."""
    root.mkdir(exist_ok=True)
    path = root / "nyu_captions.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *((f"{k}.jpg", SENTENCES[r]) for k, r in keys().items())])
    return path


def npz(root: Path, **more: object) -> Path:
    """The sentences with their features; no image is named."""
    root.mkdir(exist_ok=True)
    np.savez(root / "features.npz", caption=SENTENCES, feature=features(), **more)  # type: ignore[arg-type]
    return root / "features.npz"


def packed(root: Path) -> Path:
    found = dict(zip(SENTENCES, features(), strict=True))
    pack([Caption(image, SENTENCES[row]) for image, row in keys().items()], found, root / "packed")
    return root / "packed"


def source(form: str, root: Path) -> str:
    """What a person who has this form types."""
    made = {
        "packed": lambda: packed(root),
        "trees": lambda: trees(root / "WorDepth"),
        "text tree": lambda: trees(root / "WorDepth") / "text",
        "feature tree": lambda: trees(root / "WorDepth") / "text_feat",
        "both trees": lambda: f"{trees(root) / 'text'},{trees(root) / 'text_feat'}",
        "csv and npz": lambda: f"{table(root)},{npz(root)}",
        "csv and tree": lambda: f"{table(root)}, {trees(root) / 'text_feat'}",
        "csv and packed": lambda: f"{table(root)},{packed(root)}",
        "trees moved apart": lambda: moved(root),
    }
    return str(made[form]())


def moved(root: Path) -> str:
    trees(root)
    return f"{(root / 'text').rename(root / 'words')},{(root / 'text_feat').rename(root / 'numbers')}"


FORMS = (
    "packed", "trees", "text tree", "feature tree", "both trees", "csv and npz", "csv and tree", "csv and packed",
    "trees moved apart",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_each_image_its_caption_and_training_the_same_features(form: str, tmp_path: Path) -> None:
    given = source(form, tmp_path)
    opened = open_captions(given)
    assert (len(opened), opened.width) == (len(IMAGES), WIDTH)
    for image, row in keys().items():
        found = opened.find(f"root/{image}.jpg")
        assert found is not None
        assert found.row is not None
        assert found.sentence == SENTENCES[row]
        assert torch.equal(opened.feature(found.row), torch.from_numpy(features()[row].astype(np.float32)))
    data = read_caption_features(given, WIDTH)
    exact = torch.nn.functional.normalize(torch.from_numpy(features().astype(np.float32)), dim=1)
    assert sorted(data.captions) == sorted(SENTENCES)
    assert torch.equal(data.features, exact[[SENTENCES.index(sentence) for sentence in data.captions]])


def test_a_part_of_the_trees_is_a_source_of_its_own(tmp_path: Path) -> None:
    root = trees(tmp_path)
    for part in ("text/nyu", "text_feat/nyu/train"):
        opened = open_captions(root / part)
        assert opened.find("kitchen_0028b/rgb_00045.jpg") is not None
        assert opened.find("2011_09_26_drive_0002_sync/image_02/data/0000000069.png") is None
    assert len(read_caption_features(root / "text/kitti").captions) == 1


@pytest.mark.parametrize("counts", [{}, {"train_count": [5, 6, 7]}, {"train_count": "damaged"}])
def test_a_table_needs_no_counts(counts: dict[str, object], tmp_path: Path) -> None:
    assert read_caption_features(npz(tmp_path, **counts)).captions == SENTENCES


def test_a_table_alone_finds_images_by_their_own_sentence(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", [{"text": SENTENCES[1]}, {"text": SENTENCES[0]}])
    dataset = open_dataset("folder", root, captions=npz(tmp_path))
    for index, row in enumerate((1, 0)):
        found = dataset[index].text_features
        assert found is not None
        assert torch.equal(found, torch.from_numpy(features()[row].astype(np.float32)))
    bare = write_folder(tmp_path / "bare", [{}])
    with pytest.raises(
        LangdepthError, match=r"features\.npz, which names no images \(name both: CAPTIONS,.*\) \(1 of 1"
    ):
        open_dataset("folder", bare, captions=npz(tmp_path))


def test_features_of_another_norm_are_divided_by_it_and_unit_ones_keep_their_bits(tmp_path: Path) -> None:
    long = features().astype(np.float32) * np.array([[1], [7], [1]], np.float32)
    np.savez(tmp_path / "f.npz", caption=SENTENCES, feature=long)
    opened = open_captions(tmp_path / "f.npz")
    assert opened.features is not None
    np.testing.assert_array_equal(opened.features[[0, 2]], features()[[0, 2]])
    np.testing.assert_allclose(opened.features[1], features()[1], atol=1e-3)


def test_captions_whose_feature_is_not_in_the_table_are_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", caption=SENTENCES[:1], feature=features()[:1])
    opened = open_captions(f"{table(tmp_path)},{tmp_path / 'f.npz'}")
    assert len(opened) == 2
    assert opened.find("bedroom/rgb_00001.jpg") is None
    np.savez(tmp_path / "f.npz", caption=["x"], feature=features()[:1])
    with pytest.raises(LangdepthError, match="none of the 4 captions has a feature"):
        open_captions(f"{tmp_path / 'nyu_captions.csv'},{tmp_path / 'f.npz'}")


def test_the_digest_follows_from_the_content_alone(tmp_path: Path) -> None:
    digests = {open_captions(source(form, tmp_path / form.replace(" ", "-"))).sha256 for form in ("trees", "text tree")}
    assert len(digests) == 1
    changed = trees(tmp_path / "changed")
    (changed / "text/nyu/test/bedroom/rgb_00001.txt").write_text(SENTENCES[0])
    assert open_captions(changed).sha256 not in digests


def test_captions_without_features_are_sentences_where_those_are_enough(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A cat.\n")
    opened = open_captions(tmp_path, sentences_alone=True)
    assert opened.find("a.jpg") == ("A cat.", None)
    assert opened.find("a.jpg", "a sentence of the index") == ("A cat.", None)
    for given in (tmp_path, table(tmp_path)):
        with pytest.raises(LangdepthError, match=r"holds captions without features; known forms: .*TEXT,FEATURES"):
            open_captions(given)


def test_a_width_that_the_system_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="features have 8 numbers, the system takes 1024"):
        read_caption_features(npz(tmp_path), 1024)


# Damage


GOOD = {"caption": ["a", "b"], "feature": np.ones((2, 3))}


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"caption": ["a", "b"]}, "not a file of caption features, the arrays caption .*: it has no array 'feature'"),
        ({**GOOD, "feature": np.ones((3, 3))}, r"2 captions and features \(3, 3\) do not belong together"),
        ({**GOOD, "feature": np.ones(2)}, r"features \(2,\) do not belong together"),
        ({"caption": [], "feature": np.ones((0, 3))}, "do not belong together"),
        ({**GOOD, "feature": [[1.0, np.nan], [1, 1]]}, "some features are not finite or zero, the first is feature 0"),
        ({**GOOD, "feature": [[1.0, 1], [1e300, 0]]}, "some features are not finite or zero, the first is feature 1"),
        ({**GOOD, "feature": [[1.0, 1], [0, 0]]}, "some features are not finite or zero, the first is feature 1"),
        ({**GOOD, "caption": ["a", " "]}, "a caption is empty"),
        ({"caption": ["a", "a"], "feature": np.eye(2)}, "the caption 'a' has two different features"),
        (
            {**GOOD, "caption": np.array(["a", None], dtype=object)},
            "not a file of .*: it holds Python objects",
        ),
    ],
)
@pytest.mark.filterwarnings("error")
def test_wrong_arrays_are_one_line(tmp_path: Path, arrays: dict[str, object], expected: str) -> None:
    path = tmp_path / "f.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(LangdepthError, match=expected) as caught:
        read_caption_features(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated", "npy"])
def test_damaged_files_are_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "f.npz"
    np.savez(path, **GOOD)  # type: ignore[arg-type]
    whole, array = path.read_bytes(), io.BytesIO()
    np.save(array, np.ones(3))
    contents = {"empty": b"", "text": b"caption,feature\n", "truncated": whole[: len(whole) // 2]}
    path.write_bytes(contents.get(damage, array.getvalue()))
    if damage == "missing":
        path.unlink()
    message = {"missing": "no such file", "empty": r"empty \(0 bytes\)"}.get(damage, "not a file of")
    with pytest.raises(LangdepthError, match=message) as caught:
        read_caption_features(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_table_that_unpacks_to_too_much_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("feature.npy", bytes(5_000_000))
    monkeypatch.setattr("langdepth.utils.tensors.SPARE_BYTES", 4_000_000)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(LangdepthError, match=r"unpacks to 5 MB from 0\.0"):
        open_captions(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no feature", r"rgb_00001\.pt: no such file; every caption needs its feature"),
        ("pickle", r"rgb_00001\.pt: expected one tensor \(1, D\), found a Pure"),
        ("norm", r"rgb_00001\.pt: feature 0 has norm 2"),
        ("width", "the features have different widths: 4, 8"),
        ("empty caption", r"rgb_00001\.txt: the caption is empty"),
    ],
)
def test_damaged_trees_are_one_line(tmp_path: Path, damage: str, message: str) -> None:
    root = trees(tmp_path)
    feature, text = (root / f"text{kind}/nyu/test/bedroom/rgb_00001" for kind in ("_feat", ""))
    if damage == "empty caption":
        text.with_suffix(".txt").write_text(" ")
    elif damage == "no feature":
        feature.with_suffix(".pt").unlink()
    else:
        content = {"pickle": Path("x"), "norm": torch.eye(8)[:1] * 2, "width": torch.eye(4)[:1]}[damage]
        torch.save(content, feature.with_suffix(".pt"))
    with pytest.raises(LangdepthError, match=message) as caught:
        open_captions(root)
    assert "\n" not in str(caught.value)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(LangdepthError, match="nowhere: no such file or folder; known forms"):
        open_captions(tmp_path / "nowhere")
    with pytest.raises(LangdepthError, match="words: no such file or folder"):
        open_captions(f"{tmp_path / 'words'},{npz(tmp_path)}")
    with pytest.raises(LangdepthError, match=r"gone\.npz: no such file or folder"):
        open_captions(f"{table(tmp_path)},{tmp_path / 'gone.npz'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LangdepthError, match="holds no captions"):
        open_captions(tmp_path / "empty")
