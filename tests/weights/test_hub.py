"""Folders and repositories as the hub has them: written, described for it, uploaded, opened again."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

import langdepth
from langdepth import System
from langdepth.errors import LangdepthError, UsageError
from langdepth.systems import registry
from langdepth.systems.clip_adapters.model import Eigen
from langdepth.systems.tiny.model import Tiny
from tests.helpers import ramp

REPORT = {
    "system": "tiny (weights.safetensors)",
    "dataset": "nyu",
    "split": "test",
    "images": 654,
    "protocol": {"name": "nyu-eigen", "hash": "a389146ad185"},
    "image_mean": {"delta1": 0.75, "abs_rel": 0.16},
}


@pytest.fixture(scope="module")
def built() -> System:
    """A small ``tiny`` with random weights."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"area": 48 * 64, "widths": (8, 8, 12, 16), "bins": 8, "text_features": 16}
    return registry.build("tiny", options).eval()


@pytest.fixture
def system(built: System) -> System:
    """The same with provenance."""
    made = copy.copy(built)
    made.provenance = {"licence": "research only (images of rooms)", "source": "a test", "training": {"seed": 7}}
    return made


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


def test_a_folder_and_back(system: System, tmp_path: Path) -> None:
    folder = system.save_pretrained(tmp_path / "rooms")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["system"], config["bins"]) == ("tiny", 8)
    assert f'langdepth.load("{folder}")' in (folder / "README.md").read_text()
    for again in (System.from_pretrained(folder), Tiny.from_pretrained(str(folder)), langdepth.load(folder)):
        assert again.provenance["weights"] == str(folder)
        expected = system.predict(ramp(64, 48)).depth  # type: ignore[union-attr]
        assert (again.predict(ramp(64, 48)).depth == expected).all()  # type: ignore[union-attr]
    assert sorted(again.save_pretrained(tmp_path / "again").iterdir()) == sorted((tmp_path / "again").iterdir())  # type: ignore[attr-defined]


def test_a_folder_without_a_name_is_refused(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="expected the path of a folder, got an empty text"):
        system.save_pretrained("")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_class(system: System, tmp_path: Path) -> None:
    system.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="holds a Tiny, no Eigen"):
        Eigen.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("licence", "options", "expected"),
    [
        ("research only (images of rooms)", {}, {"license": "other", "license_name": "research-only"}),
        ("MIT", {}, {"license": "mit"}),
        ("not stated", {}, {"license": "unknown"}),
        ("not stated with the file", {}, {"license": "unknown"}),
        ("MIT", {"license": "CC-BY-NC-4.0"}, {"license": "cc-by-nc-4.0"}),
        (
            "not stated",
            {"license": "My Terms 1.0", "license_link": "https://terms.test"},
            {"license": "other", "license_name": "my-terms-1.0", "license_link": "https://terms.test"},
        ),
    ],
)
def test_the_licence_in_the_hubs_words(
    system: System, tmp_path: Path, licence: str, options: dict[str, str], expected: dict[str, str]
) -> None:
    system.provenance["licence"] = licence
    system.save_pretrained(tmp_path, **options)
    data = card_of(tmp_path).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected
    stored = System.from_pretrained(tmp_path)
    assert stored.provenance["licence"] == options.get("license", licence)
    stored.save_pretrained(tmp_path / "again")  # the link is kept
    assert card_of(tmp_path / "again").data.to_dict().get("license_link") == expected.get("license_link")


def test_the_card_for_the_hub(system: System, tmp_path: Path) -> None:
    (tmp_path / "nyu.json").write_text(json.dumps(REPORT))
    system.save_pretrained(
        tmp_path / "card",
        datasets=["someone/nyu"],
        tags=["robotics"],
        reports=[tmp_path / "nyu.json"],
        load_from="me/rooms",
    )
    card = card_of(tmp_path / "card")
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.datasets) == ("langdepth", "depth-estimation", ["someone/nyu"])
    assert data.tags == ["monocular-depth-estimation", "tiny", "robotics"]
    assert data.model_name == "rooms"
    results = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == REPORT["image_mean"]
    one = results["delta1"]
    assert (one.dataset_name, one.dataset_type, one.dataset_split) == ("nyu", "nyu", "test")
    assert one.metric_config == "nyu-eigen (a389146ad185)"
    assert one.metric_args == {"protocol_hash": "a389146ad185", "images": 654}
    assert "Evaluated: nyu, split test, 654 images, protocol nyu-eigen (a389146ad185)" in card.text
    assert 'langdepth.load("me/rooms")' in card.text


def test_a_real_report_becomes_the_index(system: System, sample_folder: Path, command: Any, tmp_path: Path) -> None:
    folder = system.save_pretrained(tmp_path / "rooms")
    report = tmp_path / "report.json"
    arguments = ("--system", folder, "--root", sample_folder, "--split", "val", "--protocol", "full")
    assert command("evaluate", *arguments, "--out", report)[0] == 0
    System.from_pretrained(folder).save_pretrained(folder, reports=[report])
    stated = json.loads(report.read_text())
    results = {result.metric_type: result.metric_value for result in card_of(folder).data.eval_results}
    assert results == pytest.approx(stated["image_mean"])


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({**REPORT, "system": "depthclip"}, "is about 'depthclip', and these are weights of 'tiny'"),
        ({}, "the report: is no report of 'langdepth evaluate'"),
        ({**REPORT, "protocol": "nyu-eigen"}, "is no report"),
        ("none.json", "none.json: cannot be read (No such file"),
        ("text.json", "text.json: is no report"),
    ],
)
def test_reports_that_are_none(system: System, tmp_path: Path, report: Any, words: str) -> None:
    (tmp_path / "text.json").write_text("[1")
    given = tmp_path / report if isinstance(report, str) else report
    with pytest.raises(UsageError) as caught:
        system.save_pretrained(tmp_path / "card", reports=[given])
    assert words in str(caught.value)
    assert not (tmp_path / "card").exists()


@pytest.mark.parametrize("options", [{"licence": "mit"}, {"license": 3}, {"datasets": "nyu"}, {"tags": [1]}])
def test_options_that_cannot_be(system: System, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        system.save_pretrained(tmp_path / "card", **options)
    assert not (tmp_path / "card").exists()


@pytest.mark.parametrize(("weights", "base"), [("someone/rooms@v1", "someone/rooms"), ("tiny", None)])
def test_the_card_of_a_fine_tuned_model_says_what_it_continued_from(
    system: System, tmp_path: Path, weights: str, base: str | None
) -> None:
    before = {"weights": "first.safetensors", "licence": "MIT"}
    origin = {"weights": weights, "sha256": "ab" * 32, "licence": "research only", "continued_from": before}
    system.provenance["continued_from"] = origin
    system.save_pretrained(tmp_path)
    card = card_of(tmp_path)
    line = f"`{weights}` (licence: research only, sha256 abababababab...), from `first.safetensors` (licence: MIT)"
    assert f"| continued from | {line} |" in card.text
    assert card.data.base_model == base


# The hub


@dataclass
class FakeHub:
    """What ``huggingface_hub`` is asked for, and repositories by name and branch."""

    place: Path
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    token: str | None = None
    refuses: Exception | None = None

    def __call__(self, token: str | None = None) -> FakeHub:
        self.token = token
        return self

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("create_repo", options))
        if self.refuses is not None:
            raise self.refuses
        return f"https://hub.test/{repo_id}"

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_branch", options))

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str | None, **options: Any) -> Any:
        self.calls.append(("upload_folder", {"revision": revision, **options}))
        shutil.copytree(folder_path, self.place / repo_id / (revision or "main"))
        return SimpleNamespace(pr_url=f"https://hub.test/{repo_id}/discussions/1" if options["create_pr"] else None)

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str | None = None, **_: Any) -> str:
        return str(self.place / repo_id / (revision or "main") / filename)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    monkeypatch.setattr("langdepth.utils.network.unreachable", lambda url: None)
    return fake


def test_to_the_hub_and_back(system: System, hub: FakeHub) -> None:
    assert system.push_to_hub("someone/rooms", token="t", license="mit") == "https://hub.test/someone/rooms"
    assert hub.token == "t"
    options = {"revision": None, "commit_message": "Upload weights", "create_pr": False}
    assert hub.calls == [("create_repo", {"private": True, "exist_ok": True}), ("upload_folder", options)]
    folder = hub.place / "someone" / "rooms" / "main"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert card_of(folder).data.license == "mit"
    assert 'langdepth.load("someone/rooms")' in card_of(folder).text
    again = System.from_pretrained("someone/rooms")
    assert again.config == system.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in system.state_dict().items())


def test_a_branch(system: System, hub: FakeHub) -> None:
    system.push_to_hub("someone/rooms", revision="small", private=False, commit_message="Small rooms")
    assert [name for name, _ in hub.calls] == ["create_repo", "create_branch", "upload_folder"]
    assert hub.calls[0][1]["private"] is False
    assert hub.calls[1][1] == {"branch": "small", "exist_ok": True}
    assert hub.calls[2][1]["commit_message"] == "Small rooms"
    assert 'langdepth.load("someone/rooms@small")' in card_of(hub.place / "someone/rooms/small").text
    assert System.from_pretrained("someone/rooms", revision="small").provenance["weights"] == "someone/rooms@small"


def test_a_pull_request(system: System, hub: FakeHub) -> None:
    address = system.push_to_hub("someone/rooms", create_pr=True)
    assert address == "https://hub.test/someone/rooms/discussions/1"
    assert hub.calls[-1][1]["create_pr"] is True


def test_what_the_hub_refuses_is_one_line(system: System, hub: FakeHub) -> None:
    hub.refuses = ValueError("403: not yours\nwith details")
    with pytest.raises(LangdepthError, match=r"someone/forbidden: upload to the hub failed: 403: not yours$"):
        system.push_to_hub("someone/forbidden")


def test_a_hub_that_says_nothing_is_not_waited_for(
    system: System, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langdepth.utils.network.unreachable", lambda url: "timed out")
    with pytest.raises(LangdepthError, match=r"^someone/rooms: the hub https?://\S+ cannot be reached \(timed out\)$"):
        system.push_to_hub("someone/rooms")
    assert hub.calls == []


@pytest.mark.parametrize(
    "options", [{"license_link": "x\n---\ny: z"}, {"license": "a\nb"}, {"tags": ["a", "\x1b[31m"]}]
)
def test_what_would_break_the_head_of_a_card(system: System, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(options))}: holds a line break"):
        system.save_pretrained(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["rooms", "a/b/c", "", "a b/c", "/c"])
def test_names_that_no_repository_has(system: System, hub: FakeHub, name: str) -> None:
    with pytest.raises(UsageError, match=f"^'{name}' is no repository of the hub; name it owner/name$"):
        system.push_to_hub(name)
    assert hub.calls == []


def test_a_folder_has_no_revision(system: System, tmp_path: Path) -> None:
    system.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is here, and a revision is one of a repository on the hub"):
        System.from_pretrained(tmp_path, revision="v1")


@pytest.mark.parametrize("options", [{"message": "old name"}, {"private": "yes"}, {"create_pr": 1}])
def test_uploads_that_cannot_be(system: System, hub: FakeHub, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        system.push_to_hub("someone/rooms", **options)
    assert hub.calls == []
