"""Captions: the published layouts read, packed and found again, and every mistake in them as one line."""

from __future__ import annotations

import csv
import gzip
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from langdepth.cli import main
from langdepth.data.base import open_dataset
from langdepth.errors import LangdepthError, UsageError
from langdepth.text.caption_features import open_captions
from langdepth.text.captions import Caption, ClipSentences, pack, published_feature, read_captions
from langdepth.text.clip_text import encode_sentences
from langdepth.training.loaders import collate
from tests.helpers import write_folder
from tests.miniatures import published_captions

KITCHEN, STREET = "A kitchen with a sink.", "A car on a street."


def features(count: int, width: int = 8) -> np.ndarray:
    """(count, width) float16 of norm 1."""
    rows = np.random.default_rng(0).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def packed(folder: Path) -> Path:
    """Three images, two captions."""
    kitchen, street = features(2)
    captions = [
        Caption("k_1/rgb_1", KITCHEN),
        Caption("drive/image_02/data/0069", STREET),
        Caption("k_1/rgb_2", KITCHEN),
    ]
    assert pack(captions, {KITCHEN: kitchen, STREET: street}, folder) == (3, 2, 0)
    return folder


def published(root: Path) -> tuple[Path, Path]:
    """The two trees as they are published."""
    kitchen, street = features(2)
    captions = {
        "nyu/train/k_1/rgb_1": (KITCHEN, kitchen),
        "nyu/test/k/rgb_1": (KITCHEN, kitchen),
        "kitti/train/d/image_02/data/0000000069": (STREET, street),
    }
    return published_captions(root, captions)


def test_packing_replaces_no_captions_of_others(tmp_path: Path) -> None:
    source = tmp_path / "captions.csv"
    source.write_text("image,caption,note\na.jpg,A room.,mine\n")
    words, feature = [Caption("a", "A room.")], {"A room.": np.ones(2, np.float16)}
    with pytest.raises(LangdepthError, match=r"captions\.csv exists and was not written by langdepth"):
        pack(words, feature, tmp_path)
    assert "mine" in source.read_text()
    for _ in range(2):
        pack(words, feature, tmp_path / "packed")


def test_the_published_trees_are_packed_bit_by_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, feat = published(tmp_path)
    command = ["data", "pack-captions", "--text", str(text), "--features", str(feat), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "3 images, 2 distinct captions" in capsys.readouterr().out
    captions = open_captions(tmp_path / "out")
    assert (len(captions), captions.width) == (3, 8)
    assert isinstance(captions.features, np.memmap)
    found = captions.find("sync/k_1/rgb_1.jpg")
    assert found is not None
    assert found[0] == KITCHEN
    np.testing.assert_array_equal(captions.features[found[1]], features(2)[0])


def test_tables_are_packed_and_captions_without_feature_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gzip.open(tmp_path / "x_captions.csv.gz", "wt", newline="") as file:
        rows = [("image", "caption"), ("k_1/rgb_1.jpg", KITCHEN), ("k_1/rgb_2.jpg", STREET), ("s/3.png", KITCHEN)]
        csv.writer(file).writerows(rows)
    np.savez(tmp_path / "f.npz", caption=np.array([KITCHEN]), feature=features(1))
    out = tmp_path / "out"
    command = [
        "data",
        "pack-captions",
        "--text",
        str(tmp_path),
        "--features",
        str(tmp_path / "f.npz"),
        "--out",
        str(out),
    ]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "2 images, 1 distinct captions" in printed.out
    assert "1 images have a caption without feature" in printed.err
    assert open_captions(out).find("k_1/rgb_2") is None


def test_a_image_is_found_by_the_end_of_its_path_or_by_its_sentence(tmp_path: Path) -> None:
    captions = open_captions(packed(tmp_path))
    assert captions.find("2011/drive/image_02/data/0069.png") == (STREET, 1)
    assert captions.find("rgb_1.jpg") is None  # a file's name alone would fit too many
    assert captions.find("other/rgb_1.jpg") is None
    assert captions.find("rgb_1.jpg", STREET) == (STREET, 1)
    assert captions.find("k_1/rgb_1.jpg", "A sentence of one's own.") is None
    assert captions.feature(1).dtype == torch.float32


def test_samples_carry_caption_and_feature(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", [{"text": KITCHEN}, {"text": STREET}])
    dataset = open_dataset("folder", root, captions=packed(tmp_path / "captions"))
    batch = collate([dataset[0], dataset[1]])
    assert batch.text == [KITCHEN, STREET]
    assert batch.text_features is not None
    np.testing.assert_array_equal(batch.text_features.numpy(), features(2).astype(np.float32))
    assert collate([open_dataset("folder", root)[0]]).text_features is None


def test_a_image_without_caption_stops_or_is_neutral(tmp_path: Path) -> None:
    root, captions = write_folder(tmp_path / "data", [{"text": KITCHEN}, {}]), packed(tmp_path / "captions")
    with pytest.raises(LangdepthError, match=r"1\.png: has no caption in .*\(1 of 2 images\); .*neutral"):
        open_dataset("folder", root, captions=captions)
    batch = collate(list(open_dataset("folder", root, captions=captions, without_caption="neutral")))  # type: ignore[call-overload]
    assert batch.text == [KITCHEN, None]
    assert batch.text_features is not None
    assert batch.text_features.norm(dim=1).tolist() == [pytest.approx(1, abs=1e-3), 0]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (features(2) * np.float16(1.01), r"feature 0 has norm 1\.01 instead of 1"),
        (np.array([[1, 0], [np.nan, 0]], np.float16), "feature 1 has norm nan"),
        (features(2).astype(np.float32), r"expected \(N, D\) float16"),
        (features(1), "row '1' is not one of the 1 features"),
    ],
)
def test_wrong_packed_features(tmp_path: Path, array: np.ndarray, message: str) -> None:
    packed(tmp_path)
    np.save(tmp_path / "features.npy", array)
    with pytest.raises(LangdepthError, match=message):
        open_captions(tmp_path)


def test_damaged_packed_files(tmp_path: Path) -> None:
    with pytest.raises(LangdepthError, match=r"no such file or folder; known forms: .*pack-captions"):
        open_captions(tmp_path / "nowhere")
    packed(tmp_path)
    (tmp_path / "captions.csv").write_text("image,caption\nx,y\n")
    with pytest.raises(LangdepthError, match="has no column row"):
        open_captions(tmp_path)
    (tmp_path / "features.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(LangdepthError, match="is damaged, truncated or not an array of features"):
        open_captions(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(1, 8), "norm"),
        (torch.ones(2, 8), r"expected one tensor \(1, D\)"),
        ([1.0], r"expected one tensor"),
        (Path("x"), r"expected one tensor \(1, D\), found a Pure"),
        (Fraction(1), r"holds Python objects other than tensors \(fractions.Fraction\)"),
        (torch.eye(8)[:1].to_sparse(), "tensor 'feature' is sparse"),
    ],
)
def test_wrong_published_features(tmp_path: Path, value: object, message: str) -> None:
    torch.save(value, tmp_path / "f.pt")
    with pytest.raises(LangdepthError, match=message):
        published_feature(tmp_path / "f.pt")


def test_a_caption_needs_its_feature_and_features_one_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, feat = published(tmp_path)
    (feat / "nyu/train/k_1/rgb_1.pt").unlink()
    command = ["data", "pack-captions", "--text", str(text), "--features", str(feat), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "rgb_1.pt: no such file; every caption needs its feature" in capsys.readouterr().err
    torch.save(torch.eye(8)[:1].half(), feat / "nyu/train/k_1/rgb_1.pt")
    assert main(command) == 1
    assert "is not that of other images with its caption" in capsys.readouterr().err
    wide = {KITCHEN: features(1)[0], STREET: features(1, 4)[0]}
    with pytest.raises(LangdepthError, match="different widths: 4, 8"):
        pack([Caption("a/b", KITCHEN), Caption("a/c", STREET)], wide, tmp_path / "out")
    with pytest.raises(LangdepthError, match="none of the 1 captions has a feature"):
        pack([Caption("a/b", "x")], wide, tmp_path / "out")
    assert main([*command[:4], "--out", "x"]) == 2
    assert "--features DIR or --clip-weights FILE" in capsys.readouterr().err


def test_empty_and_contradicting_captions(tmp_path: Path) -> None:
    table = tmp_path / "c.csv"
    table.write_text("image,caption\na/b.jpg,\n")
    with pytest.raises(LangdepthError, match="line 2: caption is empty"):
        read_captions(table)
    table.write_text("image,caption\na/b.jpg,x\na/b.png,y\n")
    with pytest.raises(LangdepthError, match="a/b has two captions, 'x' and 'y'"):
        read_captions(table)
    table.unlink()
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(LangdepthError, match="the caption is empty"):
        read_captions(tmp_path)
    with pytest.raises(LangdepthError, match="no such file or folder"):
        read_captions(tmp_path / "nowhere")


@pytest.mark.filterwarnings("ignore:.*random")
def test_clip_reads_sentences_as_the_published_features_were_made() -> None:
    clip = ClipSentences("random", "RN-small")
    encoded = clip.encode([STREET, KITCHEN, STREET])
    assert torch.equal(encoded[0], encoded[2])
    assert not torch.equal(encoded[0], encoded[1])
    assert torch.equal(encoded, encoded.half().float())
    torch.testing.assert_close(encoded.norm(dim=1), torch.ones(3), atol=1e-3, rtol=0)
    exact = encode_sentences([STREET], clip.weights)[0]
    assert torch.equal(encoded[0], exact.half().float())
    for _ in range(2):  # also when its features are known
        with pytest.warns(UserWarning, match="120 tokens, of which CLIP takes the first 75"):
            clip.encode(["very long text " * 40])
    with pytest.raises(UsageError, match="a text is empty"):
        clip.encode([KITCHEN, " "])
