"""``langdepth predict --captions``: every image is predicted with its own sentence or feature."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from langdepth.systems import registry
from langdepth.text.captions import Caption, pack
from langdepth.weights import checkpoint
from tests.helpers import Run, grey, save_image
from tests.miniatures import published_captions
from tests.prediction.test_words import WIDTH, WORDEPTH, Reader, features

ROWS = features(2).half().numpy()
SENTENCES = ("A kitchen with a sink.", "A car on a street.")
NPY = ("--save", "npy")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Run) -> Run:
    """Run the command in a folder with the images a, b and c/d, for which the depth says how many words were read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: Reader())
    for name in ("a.png", "b.png", "c/d.png"):
        save_image(Path("photos", name), grey(0.5))
    return partial(command, "predict")


def words(name: str) -> int:
    return round(float(np.load(f"depth/{name}.npy").mean()) / 5.5)


def sentences(folder: Path, **captions: str) -> None:
    for name, sentence in captions.items():
        path = folder / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(sentence)


@pytest.mark.parametrize("folder", ["photos", "captions"])
def test_a_text_file_beside_the_image_or_in_a_parallel_folder(run: Run, folder: str) -> None:
    sentences(Path(folder), a="one two three", b="one", c__d="one two")
    code, out, err = run("photos", "--recursive", "--captions", folder, *NPY)
    assert (code, err) == (0, "")
    assert [words(name) for name in ("a", "b", "c/d")] == [3, 1, 2]
    assert "3 done, 0 failed" in out
    assert run("photos/a.png", "--captions", folder, *NPY)[0] == 0
    assert run("photos/*.png", "--captions", folder, *NPY)[0] == 0


@pytest.mark.parametrize("prefix", ["", "photos/"])
def test_a_table_of_captions(run: Run, prefix: str) -> None:
    table = f'image,caption\n{prefix}a.png,one two\n{prefix}b.png,"one, two, three"\n{prefix}c/d.png,one\n'
    Path("captions.csv").write_text(table)
    code, _, err = run("photos", "--recursive", "--captions", "captions.csv", *NPY)
    assert (code, err) == (0, "")
    assert [words(name) for name in ("a", "b", "c/d")] == [2, 3, 1]


def test_an_image_without_caption_is_reported_or_neutral(run: Run) -> None:
    sentences(Path("captions"), a="one two three")
    code, out, err = run("photos", "--captions", "captions", *NPY)
    assert code == 1
    assert err == (
        "langdepth predict: photos/b.png: has no caption in captions; add one, or predict such images without words: "
        "--without-caption neutral\n"
    )
    assert "1 done, 1 failed" in out
    assert not Path("depth/b.npy").exists()
    code, out, err = run("photos", "--captions", "captions", "--without-caption", "neutral", *NPY)
    assert (code, err) == (0, "")
    assert [words(name) for name in ("a", "b")] == [3, 1]


def test_a_sentence_that_the_system_refuses_costs_its_image_alone(run: Run) -> None:
    sentences(Path("captions"), a="xyzzy", b="one two")
    code, out, err = run("photos", "--captions", "captions", *NPY)
    assert (code, err) == (1, "langdepth predict: photos/a.png: text 'xyzzy': none of its words is known\n")
    assert "1 done, 1 failed" in out
    assert words("b") == 2


@pytest.mark.parametrize("form", ["packed", "trees", "apart"])
def test_captions_with_features_as_they_are_published(
    form: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = registry.build("wordepth-s", WORDEPTH).save(tmp_path / "w.safetensors")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    images = ("kitchen/rgb_00001", "street/rgb_00002")
    for image in images:
        save_image(Path("nyu", f"{image}.png"), grey(0.5))
    table = dict(zip(SENTENCES, ROWS, strict=True))
    text, feat = published_captions(
        Path("WorDepth"), {f"nyu/test/{image}": (s, table[s]) for image, s in zip(images, SENTENCES, strict=True)}
    )
    pack([Caption(*pair) for pair in zip(images, SENTENCES, strict=True)], table, "packed")
    np.savez("f.npz", caption=SENTENCES, feature=ROWS)
    source = {"packed": "packed", "trees": "WorDepth", "apart": f"{text},f.npz"}[form]
    assert feat.is_dir()
    code, _, err = run("nyu", "--recursive", "--system", str(weights), "--captions", source, *NPY, "--device", "cpu")
    assert (code, err) == (0, "")
    system = checkpoint.load(weights)
    for image, row in zip(images, ROWS, strict=True):
        assert row.shape == (WIDTH,)
        expected = system.predict(f"nyu/{image}.png", text=row.astype(np.float32))
        np.testing.assert_allclose(np.load(f"depth/{image}.npy"), expected.depth, rtol=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--captions", "gone"], 1, "gone: no such file or folder"),
        (["--captions", "photos"], 1, "photos: holds no captions"),
        (["--captions", "captions", "--text", "a bed"], 2, "--text and --captions both say what the images show"),
    ],
)
def test_mistakes_cost_one_line(run: Run, arguments: list[str], code: int, message: str) -> None:
    sentences(Path("captions"), a="one")
    found, out, err = run("photos/a.png", *arguments, *NPY)
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert message in err
