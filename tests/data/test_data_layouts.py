"""Where images and ground truth lie: roots as papers print them, separate roots, list files, and parts of a set."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from langdepth.data.base import find_rows, open_dataset
from langdepth.data.hold_out import group_name, held_out
from langdepth.data.lists import shipped
from langdepth.data.rows import Row
from langdepth.data.sets import nyu
from langdepth.errors import LangdepthError, UsageError
from langdepth.systems import registry
from langdepth.text.scenes import SCENES
from langdepth.training.recipe import read_recipe
from langdepth.training.run import train
from langdepth.training.sets import open_sets
from tests import miniatures
from tests.helpers import LEARNER, FakeSystem, Run, write_folder
from tests.miniatures import Builder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, command: Run) -> Run:
    """Run a command line; returns exit code, stdout, stderr."""
    monkeypatch.setattr("langdepth.weights.checkpoint.load", lambda name, **options: FakeSystem())
    return command


def keys(rows: list[Row]) -> list[str]:
    return [row.key for row in rows]


# Roots


@pytest.mark.parametrize(
    ("folder", "split", "wanted"),
    [
        ("nyu_depth_v2/official_splits/test", "test", miniatures.NYU_TEST),
        ("nyu_depth_v2/official_splits", "test", miniatures.NYU_TEST),
        ("nyu_depth_v2", "test", miniatures.NYU_TEST),
        ("nyu_depth_v2/sync", "sync", miniatures.NYU_SYNC),
    ],
)
def test_a_folder_of_nyu_is_a_root(
    folder: str, split: str, wanted: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = miniatures.nyu_sync(tmp_path, monkeypatch) / folder
    rows = find_rows("nyu", root, split)
    assert keys(rows) == list(wanted)
    assert {row.scene for row in rows} == {nyu.scene_label(key.split("/")[0]) for key in wanted}


def test_the_labelled_training_images_alone_are_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_exported(tmp_path, monkeypatch) / "official_splits" / "train"
    assert keys(find_rows("nyu", root)) == sorted(miniatures.NYU_TRAIN)


def test_frames_in_the_layout_of_mmsegmentation_are_those_of_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = miniatures.nyu_annotated_frames(tmp_path, monkeypatch)
    rows = find_rows("nyu", root, "sync")
    assert keys(rows) == list(miniatures.NYU_FRAMES)
    assert [row.scene_run for row in rows] == ["kitchen_0028b", "living_room_0019"]
    with pytest.raises(LangdepthError, match="holds no split train"):
        find_rows("nyu", root, "train")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("kitchen_0028b", "kitchen"),
        ("bathroom_00045.jpg", "bathroom"),
        ("bathroom_0001_00012.jpg", "bathroom"),
        ("nyu_office_00003.jpg", "office"),
        ("nyu_office", "office"),
        ("living_room", "living_room"),
        ("laundry_room1.jpg", None),
        ("bathroom__0001.jpg", None),
        ("00045.jpg", None),
        ("kitchens_00045.jpg", None),
    ],
)
def test_scene_labels_follow_the_published_rule(name: str, label: str | None) -> None:
    assert nyu.scene_label(name) == (-1 if label is None else SCENES.index(label))


# Separate roots


@pytest.mark.parametrize(
    ("name", "build", "split", "truth"),
    [
        ("kitti", miniatures.kitti_wordepth, "test", "kitti_ground_truth"),
        ("kitti", miniatures.kitti_raw, "test", "train"),
        ("nyu", miniatures.nyu_sync, "sync", None),
        ("nyu", miniatures.nyu_exported, "test", None),
        ("ibims1", miniatures.ibims_raw, "test", None),
        ("folder", miniatures.folder, "train", None),
    ],
)
def test_ground_truth_may_have_a_root_of_its_own(
    name: str, build: Builder, split: str, truth: str | None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build(tmp_path / "set", monkeypatch)
    together = find_rows(name, root, split)
    apart = tmp_path / "elsewhere"
    for row in together:
        for path in dict.fromkeys((row.path_depth, *row.needs)):
            drive = row.scene_run if truth is not None else ""
            place = path.relative_to(next(p for p in path.parents if p.name == drive).parent if drive else root)
            (apart / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, apart / place)
    options = ("--data", name, "--root", root, "--split", split, "--out", tmp_path / "r.json", "--device", "cpu")
    assert run("evaluate", *options)[0] == 1
    code, _, err = run("evaluate", *options, "--truth-root", apart)
    assert code == 0, err
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["images"], report["skipped"]) == (len(together), 0)
    assert all(row.path_depth.is_relative_to(apart) for row in find_rows(name, root, split, truth_root=apart))
    assert run("data", "check", name, "--root", root, "--truth-root", apart, "--split", split)[0] == 0


def test_the_tree_of_the_ground_truth_may_start_further_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_sync(tmp_path / "set", monkeypatch)
    apart = tmp_path / "truth"
    for row in find_rows("nyu", root, "test"):
        place = apart / row.key.split("/")[0] / row.path_depth.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(row.path_depth, place)
    assert len(open_dataset("nyu", root, "test", truth_root=apart)) == 2


def test_frames_in_a_cache_have_no_other_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.cached(tmp_path / "cache", monkeypatch)
    with pytest.raises(UsageError, match="have their ground truth beside them"):
        find_rows("cache", root, truth_root=tmp_path)


# List files


def bts_lines(rows: list[Row], slash: str = "", up: str = "") -> list[str]:
    """Lines as BTS has them, with the ground truth beside the image."""
    return [f"{slash}{up}{row.key} {slash}{up}{row.key.split('/')[0]}/{row.path_depth.name} 518.8579" for row in rows]


@pytest.mark.parametrize("kind", ["plain", "slash", "up", "absolute", "whole root"])
def test_lists_in_the_form_of_bts(kind: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = miniatures.nyu_sync(tmp_path / "set", monkeypatch)
    root = whole / "nyu_depth_v2" / "sync"
    rows = find_rows("nyu", root, "sync")
    if kind == "absolute":
        lines = [f"{row.path_rgb} {row.path_depth} 518.8579" for row in rows]
    else:
        lines = bts_lines(rows, "/" if kind == "slash" else "", "../sync/" if kind == "up" else "")
    lines.insert(1, "kitchen_0028b/rgb_00099.jpg None 518.8579")
    file = tmp_path / "nyudepthv2_train_files_with_gt.txt"
    file.write_text("\n".join(lines))  # as published, without a newline at the end
    place = whole if kind == "whole root" else root
    out = tmp_path / "r.json"
    code, _, err = run("evaluate", "--data", "nyu", "--root", place, "--list", file, "--out", out, "--device", "cpu")
    assert code == 0, err
    assert f"{file}: 1 of 3 lines have no ground truth (None) and are left out" in err
    report = json.loads(out.read_text())
    assert (report["images"], report["split"]) == (2, file.name)
    with pytest.warns(UserWarning, match="None"):
        found = find_rows("nyu", place, list=file)
    assert [(row.key, row.path_rgb.resolve(), row.scene, row.scene_run, row.intrinsics) for row in found] == [
        (row.key, row.path_rgb.resolve(), row.scene, row.scene_run, row.intrinsics) for row in rows
    ]


def test_a_list_with_separate_roots_is_checked_shown_and_cached(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = miniatures.kitti_wordepth(tmp_path / "set", monkeypatch)
    rows = find_rows("kitti", root, "test")
    truth = "{}/proj_depth/groundtruth/image_02/{}"
    file = tmp_path / "list.txt"
    file.write_text("\n".join(f"{row.key} {truth.format(row.scene_run, row.path_depth.name)} 721.5" for row in rows))
    place = ("--root", root / "kitti_raw_data", "--truth-root", root / "kitti_ground_truth", "--list", file)
    code, out, err = run("data", "check", "kitti", *place)
    assert (code, err) == (0, ""), out
    assert "2 pairs checked, 0 problems" in out
    assert run("data", "show", "kitti", *place, "--out", tmp_path / "sheet.png")[0] == 0
    code, _, err = run("data", "cache", "kitti", *place, "--out", tmp_path / "cache")
    assert code == 0, err
    assert keys(find_rows("cache", tmp_path / "cache", "list.txt")) == keys(rows)


@pytest.mark.filterwarnings("ignore:.*have no ground truth")
def test_lists_of_kitti_have_two_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.kitti_wordepth(tmp_path / "set", monkeypatch)
    rows = find_rows("kitti", root, "test")
    truth = "{}/proj_depth/groundtruth/image_02/{}"
    lines = [f"{row.key} {truth.format(row.scene_run, row.path_depth.name)} 721.5377" for row in rows]
    file = tmp_path / "eigen_test_files_with_gt.txt"
    file.write_text("\n".join([*lines, "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000070.png None 1"]))
    images, depths = root / "kitti_raw_data", root / "kitti_ground_truth"
    apart = find_rows("kitti", images, truth_root=depths, list=file)
    whole = find_rows("kitti", root, list=file)
    for found in (apart, whole):
        assert keys(found) == keys(rows)
        assert [row.path_depth for row in found] == [row.path_depth for row in rows]
        assert [(row.intrinsics, row.size) for row in found] == [(row.intrinsics, row.size) for row in rows]
    relative = tmp_path / "elsewhere" / "list.txt"
    relative.parent.mkdir()
    relative.write_text("\n".join(f"../kitti_raw_data/{line}" for line in lines))
    assert keys(find_rows("kitti", images, truth_root=depths, list=relative)) == keys(rows)


def test_wrong_lists_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_sync(tmp_path / "set", monkeypatch)
    file = tmp_path / "list.txt"
    for content, message in (
        ("a.png\n", r"list\.txt line 1: a line names an image and its depth"),
        ("", "names no pair"),
        ("a/rgb_1.jpg a/sync_depth_1.png 5\n", r"list\.txt below .*: 1 of 1 pairs are missing"),
    ):
        file.write_text(content)
        with pytest.raises(LangdepthError, match=message) as caught:
            find_rows("nyu", root, list=file)
        assert "\n" not in str(caught.value)
    with pytest.raises(LangdepthError, match=r"none\.txt: not readable as a list of pairs"):
        find_rows("nyu", root, list=tmp_path / "none.txt")
    with pytest.raises(UsageError, match="leave the split 'test' out"):
        find_rows("nyu", root, "test", list=file)
    with pytest.raises(UsageError, match="takes no list file; those that do: kitti, nyu"):
        find_rows("ibims1", root, list=file)


# Parts


def test_a_part_of_kitti_is_evaluated_and_learned_from_with_a_warning(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = miniatures.kitti_raw(tmp_path / "kitti", monkeypatch)
    shutil.rmtree(root / "2011_10_03")
    next(root.glob("train/*_0028_*/*/*/*/*12.png")).unlink()
    code, _, err = run("evaluate", "--data", "kitti", "--root", root, "--out", tmp_path / "r.json", "--device", "cpu")
    assert code == 0, err
    assert "kitti: 1 of 2 pairs of split test are there (50.00%); figures of a part do not compare" in err
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 1
    monkeypatch.setitem(registry.REGISTRY, LEARNER.name, LEARNER)
    recipe = {
        "system": {"name": "learner"},
        "data": {"name": "kitti", "root": str(root), "val_split": "test", "batch_size": 1, "workers": 0},
        "train": {"out": str(tmp_path / "run"), "epochs": 1, "max_steps": 1, "accelerator": "cpu", "previews": 0},
    }
    with pytest.warns(UserWarning, match=r"1 of 2 pairs of split train are there \(50\.00%\)"):
        assert (train(read_recipe(recipe)) / "best.safetensors").is_file()


def test_a_part_of_what_a_list_names_is_read_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_sync(tmp_path / "set", monkeypatch)
    rows = find_rows("nyu", root, "sync")
    file = tmp_path / "list.txt"
    file.write_text("\n".join(bts_lines(rows)))
    rows[1].path_depth.unlink()
    with pytest.warns(UserWarning, match=r"1 of 2 pairs are missing: .*00111\.png; 50\.00% are there, and figures"):
        assert len(find_rows("nyu", root, list=file)) == 1


def test_a_missing_file_is_named_where_the_others_of_its_list_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = miniatures.nyu_exported(tmp_path / "set", monkeypatch)
    rows = find_rows("nyu", root, "test")
    file = tmp_path / "list.txt"
    file.write_text("\n".join(f"{row.key} {row.key.replace('rgb_', 'sync_depth_')[:-4]}.png" for row in reversed(rows)))
    rows[-1].path_rgb.unlink()
    with pytest.warns(UserWarning, match=rf"are missing: {re.escape(str(rows[-1].path_rgb))}"):
        assert len(find_rows("nyu", root, list=file)) == 1


# Holding back


def a_row(key: str, run: str = "", source: str = "") -> Row:
    return Row(key=key, path_rgb=Path(key), path_depth=Path(key), depth_scale=1, scene_run=run, source=source)


def test_whole_groups_are_held_out_whatever_the_order() -> None:
    rows = [a_row(f"{run}/{i}.png", run) for run in "abcdefgh" for i in range(5)]
    held = held_out(rows, 0.3)
    assert len(held) == 10
    groups = {group_name(rows[place]) for place in held}
    assert groups.isdisjoint(group_name(row) for place, row in enumerate(rows) if place not in held)
    turned = rows[::-1]
    assert {turned[place].key for place in held_out(turned, 0.3)} == {rows[place].key for place in held}
    needed = held[0]
    assert needed not in held_out(rows, 0.3, [needed])
    assert held_out(rows, 0.3, [needed])


def test_the_share_is_kept_unless_every_group_is_larger() -> None:
    rows = [a_row(f"{i}.png", f"run {min(i // 3, 4)}") for i in range(20)]
    assert 0 < len(held_out(rows, 0.25)) <= 5
    assert len(held_out(rows, 0.01)) == 3  # the smallest group


def test_what_cannot_be_divided_is_reported() -> None:
    with pytest.raises(UsageError, match=r"data\.hold_out: .*data\.val_split"):
        held_out([a_row("a/1.png")], 0.5)
    with pytest.raises(UsageError, match="needed for learning"):
        held_out([a_row("a/1.png"), a_row("b/1.png")], 0.5, [0, 1])


def test_of_one_folder_the_last_images_are_held_out() -> None:
    assert held_out([a_row(f"{i}.png") for i in range(10)], 0.2) == [8, 9]


def test_the_labelled_set_is_held_out_by_runs_without_a_test_image_between() -> None:
    test = {int(key[-9:-4]): key for key in shipped("nyu_test")}
    train_numbers = [number for number in range(1449) if number not in test]
    run_of = {number: nyu._run(f"kitchen/rgb_{number:05d}.jpg", "train") for number in train_numbers}
    assert len(train_numbers) == 795
    for one, other in pairwise(train_numbers):
        assert (run_of[one] == run_of[other]) == (other == one + 1)
    rows = [a_row(f"kitchen/rgb_{number:05d}.jpg", run_of[number]) for number in train_numbers]
    held = held_out(rows, 0.1)
    assert 60 <= len(held) <= 79
    numbers = {train_numbers[place] for place in held}
    assert not any(number + step in run_of and number + step not in numbers for number in numbers for step in (-1, 1))


def data_section(root: Path, **values: Any) -> Any:
    return read_recipe({"data": {"name": "folder", "root": str(root), **values}}).data


def test_a_folder_without_splits_is_divided(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "own", [{"scene": f"scene {i // 2}"} for i in range(12)])
    learned, validated = open_sets(data_section(root, hold_out=0.3))
    assert (len(learned), len(validated)) == (10, 2)
    assert {row.scene_run for row in learned.rows}.isdisjoint(row.scene_run for row in validated.rows)


def test_a_named_split_or_list_goes_before_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_sync(tmp_path, monkeypatch)
    section = read_recipe({"data": {"name": "nyu", "root": str(root), "train_split": "sync", "hold_out": 0.5}}).data
    assert section.validation == "0.5 of sync held out"
    assert [len(part) for part in open_sets(section)] == [1, 1]
    named = read_recipe(
        {"data": {"name": "nyu", "root": str(root), "train_split": "sync", "hold_out": 0.5, "val_split": "test"}}
    ).data
    assert [len(part) for part in open_sets(named)] == [2, 2]
    file = tmp_path / "list.txt"
    file.write_text("\n".join(bts_lines(find_rows("nyu", root, "sync"))))
    listed = read_recipe(
        {"data": {"name": "nyu", "root": str(root), "train_list": str(file), "val_list": str(file), "hold_out": 0.5}}
    ).data
    assert [len(part) for part in open_sets(listed)] == [2, 2]
    assert listed.validation == "list.txt"


def test_shots_are_drawn_before_scenes_are_held_out(tmp_path: Path) -> None:
    kinds = ("kitchen", "bedroom")
    rows = [{"split": "train", "scene": f"scene {i}", "scene_type": kinds[i % 2]} for i in range(8)]
    root = write_folder(tmp_path / "own", rows)
    learned, validated = open_sets(data_section(root, hold_out=0.25, shots=1))
    assert [row.scene for row in learned.rows] == [SCENES.index(kind) for kind in kinds]
    assert len(validated) == 2
    assert {row.key for row in learned.rows} == {"0.png", "1.png"}


def test_older_recipes_keep_their_hash() -> None:
    """The identity of a recipe from before these fields holds none of them."""
    plain = read_recipe({"data": {"root": "x", "more": [{"name": "kitti", "root": "y"}]}})
    assert not {"data.hold_out", "data.train_list", "data.val_list", "data.truth_root"} & plain.identity().keys()
    assert plain.identity()["data.val_split"] == "val"
    assert plain.identity()["data.more"] == [{"name": "kitti", "root": "y", "split": "train"}]
    held = read_recipe({"data": {"root": "x", "hold_out": 0.1}})
    assert held.hash != plain.hash
    assert held.identity()["data.hold_out"] == 0.1


def test_the_first_process_alone_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_sync(tmp_path / "set", monkeypatch)
    file = tmp_path / "list.txt"
    file.write_text("\n".join([*bts_lines(find_rows("nyu", root, "sync")), "x.jpg None 1"]))
    monkeypatch.setenv("RANK", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(find_rows("nyu", root, list=file)) == 2
