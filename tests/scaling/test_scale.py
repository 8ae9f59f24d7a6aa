"""`langdepth scale`: metres from words, the photo, known distances and the camera's height; what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import langdepth
from langdepth.camera import Camera
from langdepth.cli import main
from langdepth.errors import ImageError, UsageError
from langdepth.prediction.results import DepthResult
from langdepth.scaling.scale import in_metres
from langdepth.utils.depth_files import read_depth16

HEIGHT, WIDTH = 36, 48
LOCATION = (5, 7)


@pytest.fixture(scope="module")
def depth() -> np.ndarray[Any, Any]:
    """Metres of a floor seen from 1.5 m above it, and a wall 6 m away."""
    camera = Camera.from_fov(60, WIDTH, HEIGHT)
    below = (np.arange(HEIGHT) - camera.cy) / camera.fy
    floor = 1.5 / np.maximum(below, 1e-6)
    return np.repeat(np.minimum(floor, 6)[:, None], WIDTH, 1).astype(np.float32)


@pytest.fixture
def relative(tmp_path: Path, depth: np.ndarray[Any, Any]) -> Path:
    path = tmp_path / "map.npy"
    np.save(path, depth / 7)
    return path


def write_png(path: Path, values: np.ndarray[Any, Any]) -> Path:
    Image.fromarray((values / values.max() * 60000).astype(np.uint16)).save(path)
    return path


def median(result: DepthResult) -> float:
    return float(np.median(result.depth[result.valid]))


def test_words_of_larger_places_give_larger_metres(depth: np.ndarray[Any, Any]) -> None:
    sentences = ("a cup on a table", "a bathroom with a toilet", "a living room with a couch", "a street with cars")
    found = [median(langdepth.scale(depth / 7, sentence)) for sentence in sentences]
    assert found == sorted(found)
    assert found[0] < 1.2 < found[2] < 6 < found[3]


def test_the_map_keeps_its_proportions_and_says_how_sure_it_is(depth: np.ndarray[Any, Any]) -> None:
    holes = depth.copy() / 7
    holes[3, 4] = np.nan
    result = langdepth.scale(holes, "a kitchen with a sink")
    assert result.scale_kind == "metric"
    assert not result.valid[3, 4]
    assert result.depth[3, 4] == 0
    ratio = result.depth[result.valid] / depth[result.valid]
    assert np.ptp(ratio) < 1e-5 * ratio.mean()
    facts = result.provenance["scale"]
    (low, high), (lower, higher) = facts["interval_67"], facts["interval_95"]
    assert lower < low < facts["median"] < high < higher
    assert facts["median"] == pytest.approx(median(result), rel=1e-5)
    assert facts["from"] == ["words"]
    assert "research" in result.provenance["weights"]["licence"]


@pytest.mark.parametrize("inverse", [False, True])
def test_a_known_distance_decides_and_narrows_the_interval(depth: np.ndarray[Any, Any], inverse: bool) -> None:
    row, column = LOCATION
    given = 0.3 / depth if inverse else depth / 7
    distances = [(column, row, float(depth[row, column])), (1, 30, float(depth[30, 1]))]
    both = langdepth.scale(given, "a room with a door", known=distances, inverse=inverse)
    alone = langdepth.scale(given, "a room with a door", inverse=inverse)
    assert np.abs(np.log(both.depth / depth)).max() < 0.1
    widths = [np.ptp(np.log(result.provenance["scale"]["interval_95"])) for result in (both, alone)]
    assert widths[0] < 0.75 * widths[1]


def test_several_known_distances_find_the_shift_of_an_inverse_map(depth: np.ndarray[Any, Any]) -> None:
    known = [(x, y, float(depth[y, x])) for x, y in ((2, 5), (9, 22), (20, 28), (30, 35), (4, 31))]
    result = langdepth.scale(5 / depth + 0.4, known=known, inverse=True)
    assert np.abs(np.log(result.depth / depth)).max() < 0.1


def test_the_height_of_the_camera_gives_the_scale(depth: np.ndarray[Any, Any]) -> None:
    camera = Camera.from_fov(60, WIDTH, HEIGHT)
    result = langdepth.scale(depth / 7, camera=camera, camera_height=1.5)
    assert np.abs(result.depth / depth - 1).max() < 0.02
    assert result.provenance["scale"]["from"] == ["camera height 1.5"]
    with pytest.raises(ImageError, match="shows no floor"):
        langdepth.scale(np.ones((HEIGHT, WIDTH)), camera=camera, camera_height=1.5)


def test_the_photo_says_something_beside_the_words(tmp_path: Path, depth: np.ndarray[Any, Any]) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(photo)
    alone, both = (langdepth.scale(depth / 7, text, image=photo) for text in (None, "a toilet"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = langdepth.predict(photo).depth
    assert median(alone) == pytest.approx(float(np.median(expected)), rel=1e-3)
    assert both.provenance["scale"]["from"] == ["photo", "words"]
    # Through twice the focal length things look twice as near, whoever states it.
    lens = Camera.guess(WIDTH, HEIGHT, 2 * langdepth.load("tiny").input_spec.focal)
    far = langdepth.scale(depth / 7, image=photo, camera=lens)
    assert median(far) == pytest.approx(2 * median(alone), rel=1e-3)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 50
    with Image.open(photo) as image:
        image.save(tmp_path / "plain.jpg")
        image.save(tmp_path / "tele.jpg", exif=exif)
    stated = Camera.from_exif({0xA405: 50}, WIDTH, HEIGHT)
    plain, tele, given = (
        median(langdepth.scale(depth / 7, image=tmp_path / name, camera=camera))
        for name, camera in (("plain.jpg", None), ("tele.jpg", None), ("plain.jpg", stated))
    )
    assert plain != tele == given
    # Sometimes the embedded model is far off; a distance is not.
    with pytest.warns(UserWarning, match="photo: says"):
        known = langdepth.scale(depth / 7, image=photo, known=[(5, 7, float(depth[7, 5]))]).provenance["scale"]
    deviations = [
        np.log(facts["interval_95"][1] / facts["median"]) / facts["deviation"]
        for facts in (both.provenance["scale"], known)
    ]
    assert deviations[0] > 1.3 * deviations[1]
    assert median(both) != median(alone)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_unit_of_a_map_does_not_matter(depth: np.ndarray[Any, Any], inverse: bool) -> None:
    given = (1 / depth if inverse else depth).astype(np.float64)
    usual = langdepth.scale(given, "a kitchen with a sink", inverse=inverse).depth
    for unit in (1e-40, 1e-20, 1e37):  # the first is below what float32 holds in full
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = langdepth.scale(given * unit, "a kitchen with a sink", inverse=inverse).depth
        np.testing.assert_allclose(found, usual, rtol=1e-3)


@pytest.mark.parametrize("deviation", [0, 40])
def test_values_that_are_too_far_apart(deviation: float) -> None:
    random = np.random.default_rng(0)
    values = np.exp(random.normal(0, deviation, (60, 80))) if deviation else random.uniform(-3e38, 3e38, (60, 80))
    with pytest.raises(ImageError, match="its values are too far apart to be those of depth"):
        langdepth.scale(values, "a kitchen with a sink", inverse=True)


def test_what_contradicts_is_named(depth: np.ndarray[Any, Any]) -> None:
    row, column = LOCATION
    with pytest.warns(UserWarning, match=r"distance .*one of them is wrong"):
        wide = langdepth.scale(depth / 7, known=[(column, row, 2.0), (column, row, 9.0)])
    narrow = langdepth.scale(depth / 7, known=[(column, row, 2.0), (column, row, 2.1)])
    widths = [np.ptp(np.log(result.provenance["scale"]["interval_95"])) for result in (wide, narrow)]
    assert widths[0] > 5 * widths[1]


def test_unknown_words_are_named_and_uncertainty_grows_away_from_known_ones(depth: np.ndarray[Any, Any]) -> None:
    for _ in range(2):  # also of a sentence that was read before
        with pytest.warns(UserWarning, match="unknown words are ignored: zyxglorp"):
            langdepth.scale(depth, "a kitchen with a zyxglorp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        langdepth.scale(depth, "a kitchen with a sink " * 9)  # more words than the encoder takes, which all count
    sentences = ("a bedroom with a bed and a lamp", "a ship in a harbor")
    usual, strange = (langdepth.scale(depth, text).provenance["scale"] for text in sentences)
    widths = [np.ptp(np.log(facts["interval_95"])) for facts in (usual, strange)]
    assert widths[1] > 1.3 * widths[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing says how far things are"),
        ({"text": "zyxglorp of the blorf"}, "none of its words is known"),
        ({"known": [(48, 3, 2.0)]}, "lies outside the map, which is 48x36"),
        ({"known": [(-1, 3, 2.0)]}, "lies outside the map"),
        ({"known": [(float("nan"), 3, 2.0)]}, "lies outside the map"),
        ({"known": [(0, 0, 2.0)]}, "has no value at this pixel"),
        ({"known": [(3, 3, -2.0)]}, "a distance is from 0.001 to 1000 metres"),
        ({"known": [(3, 3, float("nan"))]}, "a distance is from 0.001 to 1000 metres"),
        ({"known": [(3, 3, 1e-300)]}, "a distance is from 0.001 to 1000 metres"),
        ({"known": [(3, 3, 1e6)]}, "a distance is from 0.001 to 1000 metres"),
        ({"camera_height": 1.5}, "a camera height needs the camera"),
        ({"camera_height": -1.0, "camera": Camera.from_fov(60, WIDTH, HEIGHT)}, "must be from 0.001 to 1000 metres"),
        ({"known": "3,3=2"}, r"known: expected a list of \(a number, a number, a number\), got '3,3=2'"),
        ({"known": [(3, 3)]}, r"known: expected a list of \(a number, a number, a number\)"),
        ({"known": [(3, 3, "2")]}, "known: expected a list of"),
        ({"known": np.ones((1, 3))}, "known: expected a list of .*, got ndarray"),
        ({"text": ["a kitchen"]}, "text: expected a text or None"),
        ({"text": " "}, "none of its words is known"),
        ({"text": "a room", "inverse": 1}, "inverse: expected True or False, got 1"),
        ({"text": "a room", "camera": "60"}, "camera: expected a Camera, a function or None, got '60'"),
        ({"text": "a room", "camera": lambda width, height: 60}, "camera: expected a Camera, or a function .*, got 60"),
        ({"text": "a room", "camera": lambda: 60}, "camera: the function of .width, height. failed"),
        ({"text": "a room", "camera": Camera.from_fov(60, 9, 9)}, "is for 9x9 pixels, the image is 48x36"),
        ({"camera_height": "1.5"}, "camera_height: expected a number or None"),
        ({"text": "a room", "words": "a room"}, "unexpected keyword argument 'words'"),
    ],
)
def test_options_that_make_no_sense(depth: np.ndarray[Any, Any], options: dict[str, Any], message: str) -> None:
    given = depth.copy()
    given[0, 0] = 0
    with pytest.raises(UsageError, match=message):
        langdepth.scale(given, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((4, 5), np.uint8), r"8 bits \(uint8\) holds 256 steps"),
        (np.ones((4, 5), np.int8), "256 steps"),
        (np.ones((4, 5), bool), "holds real numbers, found bool"),
        (np.ones((4, 5), complex), "holds real numbers, found complex128"),
        (np.zeros((4, 5), np.uint16), "no pixel of the relative map has a value"),
        (None, r"is a file or an array of numbers \(H, W\), got NoneType"),
        ([[1, 2], [3]], r"is a file or an array of numbers \(H, W\), got list"),
        (b"bytes", "is a file or an array of numbers"),
        (np.ones((4, 5, 3), np.float32), r"is an array of numbers \(H, W\)"),
        (np.full((4, 5), np.nan), "no pixel of the relative map has a value"),
        (np.zeros((4, 5)), "no pixel of the relative map has a value"),
    ],
)
def test_arrays_that_are_no_relative_map(values: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        langdepth.scale(values, "a kitchen")


def test_the_same_value_everywhere_is_no_inverse_map() -> None:
    with pytest.raises(ImageError, match="same value everywhere"):
        langdepth.scale(np.zeros((4, 5)), "a kitchen", inverse=True)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.int64, np.float16])
@pytest.mark.parametrize("inverse", [False, True])
def test_maps_of_whole_numbers(depth: np.ndarray[Any, Any], tmp_path: Path, kind: Any, inverse: bool) -> None:
    numbers = np.rint(3000 / depth if inverse else 1000 * depth).astype(kind)
    numbers[0, 0] = 0
    np.save(tmp_path / "map.npy", numbers)
    for given in (numbers, tmp_path / "map.npy"):
        result = langdepth.scale(given, "a kitchen with a sink", inverse=inverse)
        assert result.valid[0, 0] == (inverse and kind == np.float16)  # of whole numbers 0 is no value, as in PNGs
        expected = langdepth.scale(numbers.astype(np.float32), "a kitchen with a sink", inverse=inverse)
        np.testing.assert_allclose(result.depth[1:], expected.depth[1:], rtol=1e-2)


def test_masked_pixels_have_no_value(depth: np.ndarray[Any, Any]) -> None:
    result = langdepth.scale(np.ma.masked_less(depth, 5.5), "a kitchen with a sink")
    assert np.array_equal(result.valid, depth >= 5.5)


def test_an_inverse_map_of_zeros_does_not_put_all_at_the_end(depth: np.ndarray[Any, Any]) -> None:
    given = 0.3 / depth
    given[:24] = 0  # most of it
    with pytest.warns(UserWarning, match="67% of its pixels have its smallest value, .*; they count as no value"):
        result = langdepth.scale(given, "a kitchen with a sink", inverse=True)
    assert not result.valid[:24].any()
    assert result.valid[24:].all()
    assert 0.5 < median(result) < 5
    given[16:24] = 0.1  # a sky
    assert langdepth.scale(given, "a kitchen with a sink", inverse=True).valid.all()


@pytest.mark.parametrize("inverse", [False, True])
def test_a_map_that_is_read_the_wrong_way_round(
    depth: np.ndarray[Any, Any], tmp_path: Path, inverse: bool, recwarn: pytest.WarningsRecorder
) -> None:
    right, wrong = (depth / 7, 0.3 / depth) if not inverse else (0.3 / depth, depth / 7)
    known = [(5, 7, 6.0), (5, 35, float(depth[35, 5]))]
    advice = "leave --inverse out" if inverse else "give --inverse"
    langdepth.scale(right, known=known, inverse=inverse)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=f"order of the known distances contradicts; {advice}"):
        langdepth.scale(wrong, known=known, inverse=inverse)
    camera = Camera.from_fov(60, WIDTH, HEIGHT)
    with pytest.raises(ImageError, match=f"shows no floor.*; read the other way round it shows one: {advice}"):
        langdepth.scale(wrong, camera=camera, camera_height=1.5, inverse=inverse)


def test_the_photo_shows_which_way_round_a_map_is() -> None:
    photo = Path(langdepth.__file__).parent / "runtimes" / "desk.jpg"
    estimate = langdepth.predict(photo).depth
    for given, inverse in ((estimate, False), (1 / estimate, True)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            langdepth.scale(given, image=photo, inverse=inverse)
        with pytest.warns(UserWarning, match="which the photo contradicts"):
            langdepth.scale(given, image=photo, inverse=not inverse)


def test_negative_values_are_no_depth(depth: np.ndarray[Any, Any]) -> None:
    with pytest.warns(UserWarning, match=r"of its values are below 0.* left out; give --inverse if larger is nearer"):
        assert not langdepth.scale(depth - 5, "a kitchen with a sink").valid.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = 0.3 / depth - 0.1 + 1e-4 * np.arange(WIDTH)
        assert langdepth.scale(given, "a kitchen with a sink", inverse=True).valid.all()


def test_who_says_which_way_round_a_map_is(depth: np.ndarray[Any, Any], tmp_path: Path, capsys: Any) -> None:
    def stated(given: Any, *options: str) -> tuple[str, str]:
        facts = langdepth.scale(given, "a room", inverse=bool(options)).provenance["scale"]
        if isinstance(given, Path):
            assert main(["scale", str(given), *options, "--text", "a room", "--out", str(tmp_path / "out")]) == 0
            note = "nothing says whether larger values are farther or nearer; read as farther, --inverse reads them as"
            assert (note in capsys.readouterr().err) == (facts["map_stated_by"] == "nobody")
        return facts["map"], facts["map_stated_by"]

    np.save(tmp_path / "a.npy", depth)
    own = DepthResult(depth=3 / depth, valid=depth > 0, system="x", unit="relative", scale_kind="disparity")
    assert stated(tmp_path / "a.npy") == stated(depth) == ("larger is farther", "nobody")
    assert stated(tmp_path / "a.npy", "--inverse") == ("larger is nearer", "user")
    assert stated(own.save(tmp_path / "own.npz")) == ("larger is nearer", "file")


def test_the_command_writes_metres(tmp_path: Path, depth: np.ndarray[Any, Any], capsys: Any) -> None:
    source, out = write_png(tmp_path / "map.png", 0.4 / depth), tmp_path / "metres"
    row, column = LOCATION
    known = f"{column},{row}={depth[row, column]}"
    line = ["scale", str(source), "--inverse", "--text", "a room", "--known", known, "--out", str(out)]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "% (from distance" in printed
    assert "m with 67 %" in printed
    metres, _ = read_depth16(out / "map_depth.png")
    assert np.abs(np.log(metres / depth)).max() < 0.3
    assert sorted(path.name for path in out.iterdir()) == ["map_color.png", "map_depth.png"]
    # The result states that it holds metres.
    assert main(["scale", str(out / "map_depth.png"), "--text", "a room", "--out", str(tmp_path / "again")]) == 2
    assert "holds metres already" in capsys.readouterr().err


def test_the_command_takes_the_camera_for_its_height(relative: Path, capsys: Any) -> None:
    out = relative.parent / "metres"
    assert (
        main(["scale", str(relative), "--camera-height", "1.5", "--fov", "60", "--save", "npy", "--out", str(out)]) == 0
    )
    assert main(["scale", str(relative), "--text", "a room", "--fov", "60", "--out", str(out)]) == 2
    assert "is for --image, --camera-height, npz, normals, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["{npy}"], "nothing says how far things are"),
        (["{npy}", "--text", "zyxglorp"], "none of its words is known"),
        (["{png8}", "--text", "a room"], "whose 256 steps are too few"),
        (["{npy8}", "--text", "a room"], "8.npy: a relative map of 8 bits (uint8) holds 256 steps"),
        (["{npy}", "--known", "3,4=1,2"], "expected X,Y=METRES"),
        (["{npy}", "--known", "3,4=nan"], "a distance is from 0.001 to 1000 metres"),
        (["{npy}", "--known", "inf,4=2"], "lies outside the map"),
        (["{npy}", "--camera-height", "high", "--fov", "60"], "expected a number"),
        (["{npy}", "--camera-height", "1.5", "--fov", "360"], "field of view"),
        (["{npy}", "--text", ""], "--text: expected a value"),
        (["{npy}", "--image", "{missing}"], "no such file"),
        (
            ["{npy}", "{npy8}", "--text", "a room"],
            "8.npy': too much; 'langdepth scale' takes one relative_map and options",
        ),
        (["{missing}", "--text", "a room"], "no such file"),
        (["{npy}", "--text", "a room", "--image", "{photo}"], "resize the map to the photo's size"),
        (["{npy}", "--known", "3,4"], "expected X,Y=METRES"),
        (["{npy}", "--known", "300,4=2"], "lies outside the map"),
        (["{npy}", "--camera-height", "1.5"], "needs the camera"),
        (["{npy}", "--text", "a room", "--save", "npy", "--out", "{here}"], "is the map itself"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    relative: Path, capsys: Any, line: list[str], message: str
) -> None:
    folder = relative.parent
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "8.png")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "photo.png")
    np.save(folder / "8.npy", np.ones((36, 48), np.uint8))
    names = {
        "npy8": folder / "8.npy",
        "npy": relative,
        "png8": folder / "8.png",
        "missing": folder / "no.npy",
        "photo": folder / "photo.png",
    }
    before = sorted(folder.rglob("*"))
    out = [] if "--out" in line else ["--out", str(folder / "metres")]
    assert main(["scale", *(word.format(here=folder, **names) for word in line), *out]) != 0
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(folder.rglob("*")) == before


def test_relative_results_get_metres_and_keep_what_they_know(depth: np.ndarray[Any, Any]) -> None:
    camera = Camera.from_fov(60, WIDTH, HEIGHT)
    disparity = DepthResult(
        depth=3 / depth,
        valid=np.ones_like(depth, bool),
        system="some model",
        unit="relative",
        scale_kind="disparity",
        camera=camera,
        provenance={"path": "photo.jpg"},
    )
    found = in_metres([disparity, disparity], ["a kitchen with a sink", "a street with cars"])
    assert isinstance(found, list)
    assert median(found[0]) < 4 < median(found[1])
    assert found[0].depth[0, 0] > found[0].depth[-1, 0]  # far where the disparity is small
    assert (found[0].scale_kind, found[0].unit, found[0].system) == ("metric", "metre", "some model")
    assert found[0].camera == camera
    assert found[0].provenance["path"] == "photo.jpg"
    assert found[0].provenance["scale"]["from"] == ["words"]
    with pytest.raises(UsageError, match="need a sentence, one for all images or one for each"):
        in_metres([disparity, disparity], ["a kitchen"])


def scene(name: str) -> np.ndarray[Any, Any]:
    """Depth in metres: an object before a far wall, nearly all of it as far; or a floor that rises to the camera."""
    if name == "floor":
        return np.repeat(np.linspace(6, 1.5, 48)[:, None], 64, axis=1)
    depth = np.full((48, 64), 4.25)
    depth[:, :8] += np.linspace(0, 0.25, 8)
    depth[16:32, 18:30] = 1.0
    return depth


@pytest.mark.parametrize("name", ["object", "floor"])
def test_two_distances_outweigh_where_an_inverse_map_begins(name: str) -> None:
    """Maps that were brought to 0 ... 1 have a shift of many of their medians."""
    depth = scene(name)
    inverse = 1 / depth
    relative = ((inverse - inverse.min()) / np.ptp(inverse) + 1e-5).astype(np.float32)
    known = [(x, y, float(depth[y, x])) for x, y in ((12, 4), (24, 24 if name == "object" else 44))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = langdepth.scale(relative, inverse=True, known=known)
    np.testing.assert_allclose(found.depth, depth, rtol=0.05)


def test_depth_beyond_the_limit_is_said() -> None:
    relative = np.linspace(1, 4, 48 * 64, dtype=np.float32).reshape(48, 64)
    with pytest.warns(UserWarning, match=r"\d% of its pixels come out beyond 1000 m"):
        found = langdepth.scale(relative, known=[(0, 0, 500.0)])
    assert found.depth.max() == 1000
    assert max(found.provenance["scale"]["interval_95"]) <= 1000
