"""``langdepth protocols``: the list and every rule in words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from langdepth import cli
from langdepth.evaluation.protocols import PROTOCOLS


def test_list_has_every_protocol_with_its_hash(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["protocols"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [tuple(line.split()[:2]) for line in lines] == [(p.name, p.hash) for p in PROTOCOLS.values()]


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_switch_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    protocol = PROTOCOLS[name]
    assert set(protocol.explain()) == set(protocol.switches())
    assert cli.main(["protocols", "show", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{name} ({protocol.hash})"
    assert {line.split()[0] for line in lines[2 : 2 + len(protocol.switches())]} == set(protocol.switches())


def test_mistakes_cost_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["show", "nyu-eigne"], "did you mean 'nyu-eigen'?"),
        (["show"], "name the protocol"),
        (["list", "full"], "list takes no name"),
    ):
        assert cli.main(["protocols", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_it_does_without_torch() -> None:
    code = "import sys; from langdepth import cli; cli.main(['protocols']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
