"""The reference protocols: the golden cases of the published metric code hold under each, and notice a changed rule.

A finished prediction has been through no network, so what is done around one (frame, windows, mirroring, resizing) is
compared with the specifications instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from langdepth.evaluation import protocols
from langdepth.evaluation.protocols import PROTOCOLS
from tests.parity.runner import DATA, references, run_case

REFERENCES = references()
CHANGES: dict[str, Any] = {"crop": "eigen-nyu-46", "max_depth": 5.0, "alignment": "median"}


def holds(case: str) -> bool:
    return run_case(case, DATA / f"{case}.npz").good


def test_every_reference_protocol_has_a_case() -> None:
    named = {name for name in PROTOCOLS if name.endswith("-reference")}
    named.remove("rsa-nyu-reference")  # of whose metrics no arrays are published
    assert named == set(REFERENCES)


def test_their_hashes_do_not_drift() -> None:
    assert {name: PROTOCOLS[name].hash for name in REFERENCES} == {name: r.hash for name, r in REFERENCES.items()}


@pytest.mark.parametrize("case", sorted({reference.case for reference in REFERENCES.values()}))
def test_the_published_metric_code_gives_the_same_numbers(case: str) -> None:
    assert holds(case)


@pytest.mark.parametrize("switch", CHANGES)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_changed_rule_gives_other_numbers(name: str, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "none" if PROTOCOLS[name].alignment == CHANGES[switch] else CHANGES[switch]
    changed = replace(PROTOCOLS[name], **{switch: value})
    assert changed != PROTOCOLS[name]
    monkeypatch.setitem(protocols.PROTOCOLS, name, changed)
    assert not holds(REFERENCES[name].case)


@pytest.mark.parametrize("name", REFERENCES)
def test_what_is_done_around_the_network(name: str) -> None:
    rules = PROTOCOLS[name].switches()
    evaluated = {switch: rules[switch] for switch in ("crop", "min_depth", "max_depth")}
    assert rules == protocols.Protocol(name=name, **evaluated, **REFERENCES[name].around).switches()
    assert evaluated["min_depth"] == 0.001
