"""The committed golden cases, and the runner itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from langdepth.errors import UsageError
from tests.parity import keyed_weights, runner
from tests.parity.__main__ import main
from tests.parity.runner import DATA, Tolerance, compare, find_case, run_case, subsampled

COMMITTED = sorted(path.stem for path in DATA.glob("*.npz"))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if find_case(case).slow else ()) for case in COMMITTED]
)
def test_case(case: str) -> None:
    report = run_case(case, DATA / f"{case}.npz")
    assert [str(row) for row in report.rows if not row.good] == []
    assert report.rows
    assert set(report.unused) <= set(find_case(case).uncompared)


def test_a_changed_array_is_a_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = dict(np.load(DATA / "losses_depthclip.npz"))
    arrays["berhu_loss"] = arrays["berhu_loss"] * np.float32(1.001)
    arrays["nobody_knows"] = np.zeros(3)
    np.savez(tmp_path / "changed.npz", **arrays)
    assert main(["losses_depthclip", str(tmp_path / "changed.npz")]) == 1
    printed = capsys.readouterr().out
    missed = [line.split()[0] for line in printed.splitlines() if line.endswith(("MISS", "beyond"))]
    assert missed == ["berhu_loss"]
    assert "neither input nor compared: nobody_knows" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["losses_deptclip", "missing.npz"], "did you mean 'losses_depthclip'?"),
        (["losses_depthclip", "missing.npz"], "missing.npz: no such file"),
        (["losses_depthclip", __file__], "is no readable .npz file"),
        (["losses_depthclip", str(DATA / "metrics_depthclip.npz")], "has no array"),
        (["depthclip_x", str(DATA / "metrics_depthclip.npz"), "--keys", __file__], "is no list of tensor names"),
    ],
)
def test_wrong_use_costs_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_compare_counts_what_is_beyond() -> None:
    wanted = np.array([1.0, 100.0, np.nan])
    assert compare("x", np.array([1.0, 100.05, np.nan]), wanted, Tolerance(rtol=1e-3)).good
    assert not compare("x", np.array([1.05, 100.0, np.nan]), wanted, Tolerance(rtol=1e-3)).good
    assert compare("x", np.array([1.05, 100.0, np.nan]), wanted, Tolerance(rtol_of_max=1e-3)).good
    assert compare("x", np.array([7.0, 100.0, np.nan]), wanted, Tolerance(outliers=0.4)).good
    assert not compare("x", np.array([np.nan, 100.0, np.nan]), wanted, Tolerance(atol=1e9)).good
    assert not compare("x", np.zeros((1, 3)), wanted, Tolerance(atol=1e9)).good


def test_suffixes_name_parts() -> None:
    value = torch.arange(2 * 8 * 6 * 4).view(2, 8, 6, 4)
    names = ["depth", "depth_s2", "depth_every4th", "depth_every4th_s2", "depth_even_channels", "depth_avg", "dept"]
    parts = dict(subsampled(dict.fromkeys(names, np.zeros(0)), "depth", value))
    assert list(parts) == names[:5]
    assert torch.equal(parts["depth_s2"], value[..., ::2, ::2])
    assert torch.equal(parts["depth_every4th_s2"], value[:, ::4, ::2, ::2])
    assert torch.equal(parts["depth_even_channels"], value[:, ::2])
    cells = torch.arange(24).view(3, 2, 4)
    assert torch.equal(dict(subsampled({"x_every2nd": np.zeros(0)}, "x", cells))["x_every2nd"], cells[..., ::2])


def test_keys_come_from_beside_the_arrays_then_from_the_committed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "DATA", tmp_path / "committed")
    np.savez(tmp_path / "x.npz", a=np.zeros(1))
    with pytest.raises(UsageError, match=r"no keys file for case 'clip_rn50_full': looked for .*clip_rn50_full"):
        run_case("clip_rn50_full", tmp_path / "x.npz")
    (tmp_path / "committed").mkdir()
    for folder in ("committed", "."):
        (tmp_path / folder / "clip_rn50.keys.json").write_text(folder)
        with pytest.raises(UsageError, match=re.escape(str(tmp_path / folder / "clip_rn50.keys.json"))):
            run_case("clip_rn50_full", tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("name", "shape", "first"),
    [
        ("logit_scale", (), 1.0061179399490356),
        ("visual.conv1.weight", (32, 3, 3, 3), -0.06608555465936661),
        ("visual.bn1.weight", (32,), 1.074514627456665),
        ("visual.bn1.bias", (32,), 0.002052496885880828),
        ("visual.bn1.running_mean", (32,), -0.027916617691516876),
        ("visual.bn1.running_var", (32,), 1.0885385274887085),
    ],
)
def test_drawn_weights_are_those_of_the_golden_cases(name: str, shape: tuple[int, ...], first: float) -> None:
    drawn = keyed_weights.draw(name, shape)
    assert drawn.dtype == np.float32
    assert drawn.shape == shape
    assert float(drawn.flat[0]) == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize(
    ("case", "function", "keys"),
    [("clip_adapter_trainstep", "clip_adapter_trainstep", "clip_adapter"), ("clip_adapter_x", "clip_adapter", None)],
)
def test_the_longest_pattern_that_fits_holds(case: str, function: str, keys: str | None) -> None:
    found = runner.find_case(case)
    assert found.function.__name__ == function  # type: ignore[attr-defined]
    assert keys is None or found.keys == keys


@pytest.mark.parametrize("name", ["y_twin_new.keys.json", "y_new_twin.keys.json", "x_twin_new.keys.json"])
def test_keys_of_a_twin_and_its_variants_carry_its_ending(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def function(arrays: object, weights: dict[str, torch.Tensor] | None, case: str) -> runner.Compared:
        yield "a", (weights or {})["a"], Tolerance()
        yield "b", (weights or {})["new/a"], Tolerance()

    one = runner.Case("x*", function, "y", ("", "new"))
    monkeypatch.setattr(runner, "cases", lambda: (one,))
    monkeypatch.setattr(runner, "DATA", tmp_path / "committed")
    listed = {"name": "a", "shape": [1], "dtype": "float32"}
    (tmp_path / "y_twin.keys.json").write_text(json.dumps([listed | {"value": [1.0]}]))
    (tmp_path / "y.keys.json").write_text(
        json.dumps([listed | {"value": [2.0]}])
    )  # of the case itself, not of its twin
    (tmp_path / name).write_text(json.dumps([listed | {"value": [3.0]}]))
    np.savez(tmp_path / "x_twin.npz", a=np.ones(1), b=np.full(1, 3.0))
    for asked in ("x", "x_twin"):
        assert run_case(asked, tmp_path / "x_twin.npz").good
