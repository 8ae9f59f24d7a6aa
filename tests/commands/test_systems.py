"""``langdepth systems``: the table without importing a system, and the details of one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from langdepth.cli import main
from langdepth.commands.systems import describe
from langdepth.systems import card, registry
from langdepth.systems.base import System
from langdepth.weights import checkpoint


def test_list_has_a_line_per_system(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems"]) == 0
    first = capsys.readouterr().out
    assert main(["systems", "list"]) == 0
    assert capsys.readouterr().out == first
    head, *lines = first.splitlines()
    assert head.split() == ["name", "weights", "summary", "licence", "of", "the", "weights"]
    assert [line.split()[0] for line in lines] == registry.list_systems()
    tiny = next(line for line in lines if line.startswith("tiny "))
    assert registry.entry("tiny").summary in tiny
    assert "non-commercial" in tiny


def test_list_tells_embedded_from_missing_weights(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    entry = registry.entry("tiny")
    record = card.WeightRecord(file="there.safetensors", sha256="", licence="free", source="a test")
    bare = card.Entry(name="bare", target=entry.target, summary="without weights", paper="none")
    packed = card.Entry(name="packed", target=entry.target, summary="packed", paper="none", weights=record)
    monkeypatch.setattr(registry, "REGISTRY", {"bare": bare, "packed": packed})
    monkeypatch.setattr(card, "MODELS_FOLDER", tmp_path)

    def status() -> list[str]:
        assert main(["systems"]) == 0
        return [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]]

    assert status() == ["none", "missing"]
    (card.MODELS_FOLDER / "there.safetensors").touch()
    assert status() == ["none", "embedded"]


def test_list_does_not_import_torch() -> None:
    code = "import sys; from langdepth.cli import main; main(['systems']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=60).returncode == 0


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    from langdepth.config import to_mapping

    assert main(["systems", "show", "tiny"]) == 0
    facts = yaml.safe_load(capsys.readouterr().out)
    system = checkpoint.load("tiny")  # not what a new one would be
    config = to_mapping(system.config)
    assert facts["config"]["vocabulary"][:2] == config["vocabulary"][:2]
    assert {**facts["config"], "vocabulary": config["vocabulary"]} == config
    assert facts["input"] == to_mapping(system.input_spec)
    assert facts["weights"]["file"] == "tiny.safetensors"
    assert float(facts["parameters"].split()[0]) == pytest.approx(
        sum(p.numel() for p in system.parameters()) / 1e6, abs=0.01
    )


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["show"], "name the system"),
        (["show", "tinny"], "did you mean 'tiny'?"),
        (["list", "tiny"], "systems show tiny"),
        (["shwo", "tiny"], "show"),
    ],
)
def test_mistakes_cost_one_line(capsys: pytest.CaptureFixture[str], words: list[str], hint: str) -> None:
    assert main(["systems", *words]) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 1


def test_show_takes_no_memory_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[System] = []
    build = registry.build
    monkeypatch.setattr(registry, "build", lambda *given: made.append(build(*given)) or made[-1])
    for name in {entry.target: entry.name for entry in registry.REGISTRY.values()}.values():
        describe(name)
        assert all(tensor.is_meta for tensor in made[-1].parameters()), name
