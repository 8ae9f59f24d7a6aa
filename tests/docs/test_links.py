"""Papers and their authors' programs are linked wherever a reader looks for them."""

from __future__ import annotations

import re

import pytest
import yaml

from langdepth.commands.systems import describe
from langdepth.systems import card, registry
from tests.docs.things import ROOT

PAGES = {page.name: page.read_text(encoding="utf-8") for page in ROOT.glob("docs/systems/*.md")}
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMING = (ROOT / "docs" / "coming-from-the-papers.md").read_text(encoding="utf-8")
ENTRIES = {(entry.paper_url, entry.repository): entry for entry in registry.REGISTRY.values()}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda entry: entry.name)
def test_paper_and_repository_are_linked(entry: card.Entry) -> None:
    addresses = [address for address in (entry.paper_url, entry.repository) if address]
    assert addresses
    for address in addresses:
        assert f"({address})" in README
        assert any(f"({address})" in text for text in PAGES.values())
    if entry.repository:
        assert f"({entry.repository})" in COMING


def test_an_arxiv_number_is_the_paper_that_is_named() -> None:
    for entry in registry.REGISTRY.values():
        number = re.search(r"arXiv (\d{4}\.\d{5})", entry.paper)
        assert entry.paper_url == (f"https://arxiv.org/abs/{number[1]}" if number else None)


def test_show_states_both() -> None:
    entry = registry.entry("depthclip")
    facts = yaml.safe_load(describe("depthclip"))
    assert (facts["paper_url"], facts["repository"]) == (entry.paper_url, entry.repository)
    assert "repository" not in yaml.safe_load(describe("wordepth-tiny"))


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: object) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):  # type: ignore[attr-defined]
        if "://" not in target:
            assert (page.parent / target).exists(), target  # type: ignore[attr-defined]


def test_the_architecture_page_names_files_that_are_there() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    there = [f"/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("**/*") if path.is_file()]
    named = set(re.findall(r"[\w/]+\.py\b", page))
    assert len(named) > 60
    assert [name for name in sorted(named) if not any(path.endswith(f"/{name}") for path in there)] == []
    for folder in (ROOT / "src/langdepth").iterdir():
        assert not (folder / "__init__.py").exists() or f"{folder.name}/" in page, folder


def test_ci_names_test_files_that_are_there() -> None:
    named = re.findall(r"tests/[\w/]+\.py", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []
