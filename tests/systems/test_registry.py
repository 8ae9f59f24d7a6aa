"""Cards are read strictly, and what clashes or is wrong costs itself alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from langdepth.config import parse_yaml
from langdepth.errors import LangdepthError, UsageError
from langdepth.systems import registry
from langdepth.systems.card import Entry, PublishedRecord, read_card
from langdepth.utils.plugins import load_target

CARD = """
paper: a paper
target: model:Net
systems:
  net:
    summary: a network
    preset: {channels: 4}
    weights: {file: net.safetensors, sha256: "", licence: none, source: a test}
    numbers: {full: {source: table 1, data: nyu, metrics: {delta1: 0.5}}}
  other: {summary: another, target: "blocks:Other", paper: another paper}
pipelines: {net-images: "images:make"}
published: {net: {summary: trained, file: net.pth, url: "https://host.test/net.pth", licence: MIT}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "card.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_card_says_all_about_its_systems(tmp_path: Path) -> None:
    (net, other), pipelines, published = read_card(write(tmp_path, CARD), "somewhere", "some-package")
    assert (net.target, other.target) == ("somewhere.model:Net", "somewhere.blocks:Other")
    assert (net.paper, other.paper) == ("a paper", "another paper")
    assert net.preset == {"channels": 4}
    assert net.numbers["full"].metrics == {"delta1": 0.5}
    assert net.weights is not None
    assert net.weights.path == tmp_path / "net.safetensors"  # of a package: beside its card
    assert net.package == "some-package"
    assert pipelines == {"net-images": "somewhere.images:make"}
    assert published["net"].source == "https://host.test/net.pth"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("summary: a network", "sumary: a network", "card.systems.net.sumary': did you mean 'summary'"),
        ("summary: a network", "summary: 3", r"card\.systems\.net\.summary: expected str, got 3"),
        ("target: model:Net", "target: model", "'net' needs a target, for example model:MySystem"),
        ("paper: a paper", "", "key 'card.paper' is required"),
        ("paper: a paper", "paper: [", "cannot be read as a card"),
        (CARD, "a text", "expected a mapping"),
    ],
)
def test_a_wrong_card_is_one_line_that_names_it(tmp_path: Path, before: str, after: str, message: str) -> None:
    path = write(tmp_path, CARD.replace(before, after))
    with pytest.raises(UsageError, match=message) as caught:
        read_card(path, "somewhere")
    assert str(caught.value).startswith(f"{path}: ")


def test_our_own_cards_have_no_key_twice() -> None:
    """Which the quick reader would not notice."""
    paths = sorted(Path(registry.__file__).parent.glob("*/card.yaml"))
    assert len(paths) >= 9
    for path in paths:
        assert parse_yaml(path.read_text(encoding="utf-8"), str(path))


def test_a_name_that_is_taken_stays_with_its_first_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(target: str, package: str | None = None) -> tuple[list[Entry], dict[str, str], dict[str, PublishedRecord]]:
        entry = Entry(name="net", target=target, summary="a network", paper="none", package=package)
        return [entry], {"images": target}, {}

    monkeypatch.setattr(registry, "_cards", lambda _: iter([one("ours:Net"), one("theirs:Net", "their-package")]))
    with pytest.warns(UserWarning, match="their-package: the system name 'net' is taken; it is left out"):
        entries, pipelines, _ = registry._read.__wrapped__()
    assert (entries["net"].target, pipelines) == ("ours:Net", {"images": "ours:Net"})


def test_one_name_takes_only_the_card_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = registry._read()
    for part, names in enumerate((registry.REGISTRY, registry.PIPELINES, registry.PUBLISHED)):
        assert dict(names) == whole[part]
        for name, value in whole[part].items():
            assert registry._read.__wrapped__(name)[part][name] == value
    read: list[Path] = []
    monkeypatch.setattr(registry, "_card", lambda path, *_: read.append(path) or ([], {}, {}))
    monkeypatch.setattr(registry, "plugins", lambda _: {})
    registry._read.__wrapped__("tiny")
    assert [path.parent.name for path in read] == ["tiny"]


def test_a_pipeline_by_name() -> None:
    assert registry.pipeline("wordepth-nyu")([(480, 640)])
    with pytest.raises(UsageError, match="unknown pipeline 'wordepth-nyv': did you mean 'wordepth-nyu'"):
        registry.pipeline("wordepth-nyv")


def test_a_class_that_cannot_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry(name="net", target="nothing_like_this:Net", summary="a network", paper="none")
    monkeypatch.setitem(registry.REGISTRY, "net", entry)
    with pytest.raises(LangdepthError, match="the system 'net' cannot be imported: No module named"):
        registry.build("net")


def test_sizes_that_no_layer_takes_are_one_line() -> None:
    with pytest.raises(UsageError, match="no network of 'mirror-prompt' has such sizes") as caught:
        registry.build("mirror-prompt", {"architecture": "RN-small", "widths": [4 * 10**12]})
    assert "\n" not in str(caught.value)


def test_a_module_that_ends_the_process_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_that_exits.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LangdepthError, match="the system cannot be imported: 3"):
        load_target("module_that_exits:Net", "the system")
