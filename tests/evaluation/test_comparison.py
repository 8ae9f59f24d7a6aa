"""Intervals and paired tests of image means, against what statistics says of known distributions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from langdepth.evaluation import comparison
from langdepth.evaluation.comparison import COMPARED, Comparing, PerImage, comparisons, intervals, least_p, p_value
from langdepth.evaluation.metrics import METRICS
from langdepth.evaluation.tables import SHOWN, latex, markdown


def images(values: object, first: int = 0) -> dict[str, list[float]]:
    array = np.asarray(values, np.float64)
    return {"index": list(range(first, first + len(array))), COMPARED: array.tolist()}


def test_an_interval_is_that_of_the_normal_distribution_for_many_images() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 900)
    low, high = intervals(images(values))[COMPARED]
    half = 1.96 * values.std(ddof=1) / math.sqrt(900)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert intervals(images(values))[COMPARED] == [low, high]  # the same again
    assert intervals(images([1.0])) == {}


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    random = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        low, high = intervals(images(random.exponential(1.0, 60)))[COMPARED]
        held += low <= 1.0 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_equal_systems_and_different_ones() -> None:
    random = np.random.default_rng(3)
    one = random.exponential(1.0, 50)
    assert p_value(images(one), images(one)) == 1.0
    noise = random.normal(0, 0.1, 50)
    better = p_value(images(one), images(one + 0.1 + noise))
    assert better is not None
    assert better < 0.001  # the pairs differ by far less than the images do
    assert p_value(images(one), images(random.permutation(one))) > 0.05  # type: ignore[operator]


@pytest.mark.parametrize("count", [2, 5, 9, 40])
def test_p_is_no_smaller_than_is_stated(count: int) -> None:
    one = np.linspace(1, 2, count)
    assert p_value(images(one), images(one + 9)) == pytest.approx(least_p(count))


def test_p_values_of_equal_systems_are_uniform() -> None:
    random = np.random.default_rng(4)
    values = [p_value(images(random.normal(size=8)), images(random.normal(size=8))) for _ in range(100)]
    assert 0 <= sum(value < 0.1 for value in values if value is not None) <= 20
    assert 0.4 < float(np.mean([value for value in values if value is not None])) < 0.6


CELL: dict[str, Any] = {
    "data": "rooms_1 [50 % & more]",
    "split": "val",
    "protocol": "nyu_x",
    "hash": "0123456789ab",
    "paper": None,
    "source": None,
    "intervals": {"abs_rel": [0.1, 0.2]},
    "p": None,
    "file": "cells/x",
    "why": None,
}


@pytest.mark.parametrize(("count", "note"), [(5, "With 5 images p is at least 0.062."), (6, "")])
def test_tables_say_what_few_images_cannot_show(count: int, note: str) -> None:
    report = {"images": count, "skipped": 0, "image_mean": dict.fromkeys(METRICS, 0.1), "boundaries": None}
    systems = ("[mine]_v1", "*a|b ± $~^#{x}")
    cells = [{**CELL, "system": name, "ours": report, "p": p} for name, p in zip(systems, (None, 0.0625), strict=True)]
    for text in (markdown(cells), latex(cells)):
        assert "at least 2 / 2^n" in text
        assert (note in text) == (("With" in text) if note else ("With" not in text))
    tex = latex(cells)
    assert (
        rf"\caption{{rooms\_1 {{[}}50 \% \& more] (split val), protocol nyu\_x (0123456789ab).{note and ' '}{note}}}"
        in tex
    )
    assert r"    {[}mine]\_v1 & ours & " in tex
    assert r"    {*}a\textbar{}b ± \$\textasciitilde{}\textasciicircum{}\#\{x\} & ours & " in tex
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {len(SHOWN) + 3}
    for line in tex.splitlines():
        assert line.count("{") - line.count(r"\{") == line.count("}") - line.count(r"\}")


def test_only_images_that_both_have_are_compared() -> None:
    one = images([0.1] * 6)
    other = images([9.0, 0.1, 0.1, 0.1, 0.1, 0.1, 9.0], first=-1)
    assert p_value(one, other) == 1.0
    assert p_value(one, images([0.1] * 3, first=5)) is None  # one image


def test_a_pair_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []

    def counted(one: PerImage, other: PerImage) -> float:
        compared.append((one, other))
        return 0.5

    monkeypatch.setattr(comparison, "p_value", counted)
    p, best, other, third = Comparing(), images([0.1]), images([0.2]), images([0.3])
    assert comparisons([best, other], p) == [None, 0.5]
    assert comparisons([best, other, third], p) == [None, 0.5, 0.5]
    assert compared == [(other, best), (third, best)]


def test_each_system_is_compared_with_the_best() -> None:
    best, other = images([0.1, 0.2, 0.3]), images([0.2, 0.4, 0.5])
    assert comparisons([other, None, best]) == [p_value(other, best), None, None]
    assert comparisons([None]) == [None]
