"""Every reference protocol has a golden case of the published metric code behind it, which takes its rules from it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from langdepth import protocols
from langdepth.protocols import PROTOCOLS, Protocol
from tests.parity.runner import DATA, run_case

CASES = (
    "metrics_depthclip",
    "metrics_clip_adapters",
    "prompt_losses_metrics",
    "mde_clip_losses",
    "wordepth_metrics",
    "scaledepth_metrics_small",
)


@pytest.fixture(scope="module")
def asked() -> Iterator[set[str]]:
    """Names of the protocols that the cases asked for."""
    names: set[str] = set()
    get = protocols.get

    def remember(name: str) -> Protocol:
        names.add(name)
        return get(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "get", remember)
        for case in CASES:
            assert run_case(case, DATA / f"{case}.npz").good
        yield names


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name.endswith("-reference")])
def test_its_golden_case_holds(name: str, asked: set[str]) -> None:
    assert name in asked
