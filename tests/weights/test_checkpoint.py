"""Weights files: what is written can be loaded, and everything else is refused in one clear line."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from langdepth.errors import CheckpointError, LangdepthError, MissingCheckpointError, UsageError
from langdepth.records import DepthOutput, InputSpec
from langdepth.systems import card, registry
from langdepth.systems.base import System
from langdepth.systems.capabilities import Trainable
from langdepth.weights import checkpoint, files
from langdepth.weights.convert import convert
from langdepth.weights.stamps import weights_stamp


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    channels: int = 4
    bias: bool = True

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError("channels must be positive")


class Toy(System, Trainable):
    Config = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config, InputSpec(size=(32, 32)))
        self.first = nn.Conv2d(3, config.channels, 3, padding=1, bias=config.bias)
        self.norm = nn.BatchNorm2d(config.channels)
        self.last = nn.Conv2d(config.channels, 1, 1)
        self.tied = self.last  # two names, one tensor
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Any, text: Any = None, scene: Any = None) -> DepthOutput:
        return DepthOutput(depth=self.last(self.norm(self.first(self.normalise(image)))).exp())


def toy_entry(name: str, **values: Any) -> card.Entry:
    return card.Entry(name=name, target=f"{__name__}:Toy", summary="for tests", paper="none", **values)


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = card.WeightRecord(file="packed.safetensors", sha256="", licence="test licence", source="a test")
    entries = (toy_entry("toy"), toy_entry("packed-toy", weights=record))
    monkeypatch.setattr(registry, "REGISTRY", {entry.name: entry for entry in entries})
    monkeypatch.setattr(card, "MODELS_FOLDER", tmp_path / "weights")
    monkeypatch.setattr(card.Entry, "system_class", lambda self: Toy)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture
def toy() -> System:
    torch.manual_seed(0)
    system = registry.build("toy", {"channels": 6})
    system.provenance = {"licence": "research only", "source": "a test", "training": {"seed": 7, "data": {"rooms": 3}}}
    return system


@pytest.fixture
def saved(toy: System, tmp_path: Path) -> Path:
    return files.save(toy, tmp_path / "toy.safetensors")


def rewrite(path: Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor | None) -> Path:
    """The file with changed metadata (None: without any) and tensors (None: removed)."""
    with safe_open(path, framework="pt") as file:
        old = file.metadata()
    content = {k: v for k, v in {**load_file(path), **tensors}.items() if v is not None}
    save_file(content, path, None if metadata is None else {**old, **metadata})
    return path


def refused(name: Any, *words: str, error: type[LangdepthError] = CheckpointError, **options: Any) -> None:
    """Loading fails with exactly this error, in one line that has all the words."""
    with pytest.raises(error) as caught:
        checkpoint.load(name, **options)
    assert type(caught.value) in (error, MissingCheckpointError)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# Round trip


def test_round_trip_restores_everything(toy: System, saved: Path) -> None:
    loaded = checkpoint.load(saved)
    assert isinstance(loaded, Toy)
    assert not loaded.training
    assert loaded.name == "toy"
    assert loaded.config == ToyConfig(channels=6)
    image = torch.rand(2, 3, 32, 32)
    toy.eval()
    assert torch.equal(loaded(image).depth, toy(image).depth)
    assert loaded.provenance["licence"] == "research only"
    assert loaded.provenance["training"] == {"seed": 7, "data": {"rooms": 3}}
    assert loaded.provenance["weights"] == str(saved)


def test_metadata_describes_the_file(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["system"] == "toy"
    assert json.loads(metadata["config"]) == {"channels": 6, "bias": True}
    assert metadata["licence"] == "research only"
    assert metadata["format"] == "langdepth/1"


def test_saving_again_keeps_the_facts_and_forgets_the_old_place(saved: Path, tmp_path: Path) -> None:
    again = checkpoint.load(saved).save(tmp_path / "again.safetensors")
    provenance = checkpoint.load(again).provenance
    assert provenance["training"]["seed"] == 7
    assert provenance["weights"] == str(again)


def test_extra_facts_and_the_model_card(toy: System, tmp_path: Path) -> None:
    path = files.save(toy, tmp_path / "a.safetensors", extra={"numbers": {"delta1": 0.812345}, "recipe": "toy.yaml"})
    card = path.with_suffix(".md").read_text()
    for words in ("research only", "| data.rooms | 3 |", "| delta1 | 0.8123 |", "| recipe | toy.yaml |", "channels: 6"):
        assert words in card
    assert 'langdepth.load("a.safetensors")' in card
    assert checkpoint.load(path).provenance["numbers"] == {"delta1": 0.812345}


def test_float16_file_loads_into_float32(toy: System, tmp_path: Path) -> None:
    path = files.save(toy, tmp_path / "half.safetensors", dtype=torch.float16)
    assert load_file(path)["first.weight"].dtype == torch.float16
    assert load_file(path)["norm.num_batches_tracked"].dtype == torch.int64
    loaded = checkpoint.load(path)
    weight = loaded.get_parameter("first.weight")
    assert weight.dtype == torch.float32
    assert torch.equal(weight, toy.get_parameter("first.weight").half().float())


def test_values_too_large_for_the_dtype_are_refused(toy: System, tmp_path: Path) -> None:
    toy.get_parameter("last.bias").data.fill_(1e6)
    with pytest.raises(CheckpointError, match=r"last\.bias.*float16"):
        files.save(toy, tmp_path / "half.safetensors", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_old_file(toy: System, saved: Path) -> None:
    before = saved.read_bytes()
    toy.provenance["training"] = object()  # not JSON
    with pytest.raises(LangdepthError, match="JSON"):
        files.save(toy, saved)
    assert saved.read_bytes() == before


def test_unwritable_place(toy: System, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = tmp_path / "full.safetensors"

    def no_space(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(LangdepthError, match=r"full.safetensors: cannot be written \(No space left"):
        files.save(toy, full)
    assert list(tmp_path.iterdir()) == []


def test_further_names_share_the_weights_until_one_is_written_again(toy: System, tmp_path: Path) -> None:
    first, second = tmp_path / "last.safetensors", tmp_path / "best.safetensors"
    files.save(toy, first, also=[second])
    assert first.samefile(second)
    assert '"best.safetensors"' in second.with_suffix(".md").read_text()
    before = second.read_bytes()
    with torch.no_grad():
        next(toy.parameters()).add_(1)
    files.save(toy, first)
    assert second.read_bytes() == before != first.read_bytes()


def test_save_wants_the_right_ending_and_a_name(toy: System, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="safetensors"):
        files.save(toy, tmp_path / "toy.pt")
    with pytest.raises(LangdepthError, match="registry name"):
        files.save(Toy(ToyConfig()), tmp_path / "toy.safetensors")


# Names


def test_packaged_weights(toy: System, monkeypatch: pytest.MonkeyPatch) -> None:
    record = registry.entry("packed-toy").weights
    assert record is not None
    refused("packed-toy", "packed.safetensors", "missing")
    toy.name = "packed-toy"
    content = files.save(toy, record.path).read_bytes()
    assert checkpoint.load("packed-toy").provenance["weights"] == "packed-toy"  # nothing published yet to check against

    def publish(sha256: str) -> None:
        published = card.WeightRecord(file=record.file, sha256=sha256, licence="test", source="a test")
        monkeypatch.setitem(registry.REGISTRY, "packed-toy", toy_entry("packed-toy", weights=published))

    right = hashlib.sha256(content).hexdigest()
    publish(right)
    assert checkpoint.load("packed-toy").provenance["sha256"] == right
    assert weights_stamp("packed-toy") == ("packed-toy", right)
    publish("0" * 64)
    refused("packed-toy", "sha256", str(record.path))


def test_name_without_weights_says_what_to_do() -> None:
    refused("toy", "no trained weights", "langdepth train", "hub id")


def test_unknown_name_hints_at_the_nearest() -> None:
    refused("packed-toi", "'packed-toy'", "owner/name", error=UsageError)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b"])
def test_names_that_no_file_can_have_are_unknown(name: str) -> None:
    refused(name, "unknown system", error=UsageError)


@pytest.mark.parametrize("name", ["a" * 5000 + ".safetensors", "a\0b.safetensors", "a" * 5000 + ".onnx"])
def test_files_that_cannot_be_are_missing(name: str) -> None:
    refused(name, "no such file", error=MissingCheckpointError)
    weights_stamp(name)
    with pytest.raises(MissingCheckpointError):
        convert(name, "toy", "a.safetensors")


def test_unknown_device(saved: Path) -> None:
    refused(saved, "quantum", error=UsageError, device="quantum")


# Damaged and foreign files


def test_missing_file_and_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "no such file")
    refused(tmp_path, "folder")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_pickles_are_never_opened(tmp_path: Path, suffix: str) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (tmp_path.joinpath("exploded").mkdir, ())

    path = tmp_path / f"official{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    refused(path, "langdepth convert")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    refused(saved, "truncated")


def test_text_named_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "notes.safetensors"
    path.write_text("these are no weights at all, only some words\n" * 10)
    refused(path, "not a .safetensors file")


def test_foreign_and_future_formats(saved: Path) -> None:
    refused(rewrite(saved, {"format": "langdepth/2"}), "langdepth/2", "update")
    refused(rewrite(saved, None), "not written by langdepth")


def test_unknown_system_in_the_file(saved: Path) -> None:
    refused(rewrite(saved, {"system": "toi"}), "'toi'", "'toy'")


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ('{"chanels": 6}', "chanels"),
        ('{"channels": "six"}', "channels"),
        ('{"channels": 0}', "must be positive"),
        ("[1]", "config"),
        ("{", "config"),
    ],
)
def test_bad_configuration_in_the_file(saved: Path, config: str, word: str) -> None:
    refused(rewrite(saved, {"config": config}), word)


def test_damaged_provenance(saved: Path) -> None:
    refused(rewrite(saved, {"provenance": "?"}), "provenance")


def test_tensors_that_do_not_fit_are_named_with_both_shapes(saved: Path) -> None:
    wrong = {"first.weight": torch.zeros(5, 3, 3, 3)}
    refused(rewrite(saved, {}, **wrong), "first.weight", "(5, 3, 3, 3)", "(6, 3, 3, 3)")


def test_missing_and_unexpected_tensors(saved: Path) -> None:
    changed = {"norm.weight": None, "stranger": torch.zeros(2)}
    refused(rewrite(saved, {}, **changed), "'norm.weight' is missing", "(6,)", "'stranger'", "(2,)")


def test_integers_in_place_of_floats(saved: Path) -> None:
    refused(rewrite(saved, {}, **{"norm.weight": torch.ones(6, dtype=torch.int64)}), "norm.weight", "int64", "float32")


def test_at_most_three_tensors_are_named(saved: Path) -> None:
    names = ["first.weight", "first.bias", "norm.weight", "norm.bias", "last.bias"]
    path = rewrite(saved, {}, **dict.fromkeys(names))
    refused(path, "and 2 more")


# The hub


class FakeHub:
    """Answers ``hf_hub_download`` from a cache folder laid out as the client's own."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.commit = "abc"

    def publish(self, weights: Path, sha256: str | None = None) -> None:
        blob = self.cache / "blobs" / (sha256 or hashlib.sha256(weights.read_bytes()).hexdigest())
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(weights, blob)
        link = self.cache / "snapshots" / self.commit / "model.safetensors"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(blob)

    def download(self, repo_id: str, filename: str, **options: Any) -> str:
        self.calls.append({"repo_id": repo_id, "filename": filename, **options})
        if self.error is not None:
            raise self.error
        return str(self.cache / "snapshots" / self.commit / filename)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    fake = FakeHub(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    return fake


def hub_error(kind: type[Exception], message: str = "refused") -> Exception:
    """One of the hub's errors without the HTTP answer that its constructor wants."""
    error = kind.__new__(kind)
    error.args = (message,)
    return error


def test_hub_id_with_revision(hub: FakeHub, saved: Path) -> None:
    hub.publish(saved)
    loaded = checkpoint.load("someone/toy-depth@v1.0")
    assert loaded.provenance["weights"] == "someone/toy-depth@v1.0"
    assert loaded.provenance["sha256"] == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert hub.calls[0]["repo_id"] == "someone/toy-depth"
    assert hub.calls[0]["filename"] == "model.safetensors"
    assert hub.calls[0]["revision"] == "v1.0"
    assert hub.calls[0]["local_files_only"] is False


def test_results_of_another_commit_are_made_again(hub: FakeHub, saved: Path) -> None:
    names = ("someone/toy-depth", "someone/toy-depth@v1.0", "transformers:someone/dpt")
    before = [weights_stamp(name) for name in names]
    assert before == [weights_stamp(name) for name in names]
    hub.commit = "def"
    assert [old for name, old in zip(names, before, strict=True) if weights_stamp(name) == old] == []
    assert hub.calls[2]["filename"] == "config.json"
    hub.error = hub_errors.LocalEntryNotFoundError("not in cache")
    assert weights_stamp("tiny") == ("tiny",)
    with pytest.raises(CheckpointError, match=r"'config\.json' is not in the cache"):
        weights_stamp("transformers:someone/dpt")


def test_hub_file_that_is_not_what_the_hub_states(hub: FakeHub, saved: Path) -> None:
    hub.publish(saved, sha256="1" * 64)
    refused("someone/toy", "sha256", "damaged")


def test_offline_uses_the_cache_only(hub: FakeHub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish(saved)
    checkpoint.load("someone/toy", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checkpoint.load("someone/toy")
    checkpoint.load("someone/toy", offline=False)
    assert [call["local_files_only"] for call in hub.calls] == [True, True, False]


def test_offline_and_not_cached_says_which_file_and_where(hub: FakeHub) -> None:
    hub.error = hub_errors.LocalEntryNotFoundError("not in cache")
    refused("someone/toy", "someone/toy", "model.safetensors", "cache", "offline", offline=True)
    refused("someone/toy", "cannot be reached", offline=False)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (hub_errors.RepositoryNotFoundError, "neither a file here nor a repository"),
        (hub_errors.RevisionNotFoundError, "revision"),
        (hub_errors.EntryNotFoundError, "has no 'model.safetensors'"),
        (hub_errors.HfHubHTTPError, "download from the hub failed: refused"),
        (ConnectionError, "download from the hub failed: refused"),
    ],
)
def test_hub_errors_are_one_line(hub: FakeHub, kind: type[Exception], word: str) -> None:
    hub.error = hub_error(kind, "refused\nwith details")
    refused("someone/toy@main", "someone/toy@main", word)


@pytest.mark.parametrize("name", ["first.weight", "norm.running_mean"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite(toy: System, saved: Path, tmp_path: Path, name: str, value: float) -> None:
    tensor = toy.state_dict()[name].clone(memory_format=torch.contiguous_format)
    tensor.view(-1)[1] = value
    path = rewrite(saved, {}, **{name: tensor})
    refused(path, f"{path}: tensor '{name}' holds values that are not finite")
    toy.load_state_dict({**toy.state_dict(), name: tensor})
    with pytest.raises(CheckpointError, match=f"tensor '{name}' holds values that are not finite; nothing is written"):
        files.save(toy, tmp_path / "never.safetensors")
    assert not (tmp_path / "never.safetensors").exists()


def test_a_configuration_of_far_more_than_the_file_holds(saved: Path) -> None:
    refused(rewrite(saved, {"config": '{"channels": 100000000, "bias": true}'}), "asks for far more memory")


def test_a_network_that_takes_far_more_than_the_file_holds(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SPARE_MEMORY", 0)
    monkeypatch.setattr(checkpoint, "MEMORY_RATIO", 0)
    refused(saved, "asks for far more memory")


def test_short_memory_for_the_network_is_called_so(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(checkpoint.registry, "build", build)
    refused(saved, "toy.safetensors: not enough memory for its network")


def test_metadata_of_great_depth(saved: Path) -> None:
    refused(rewrite(saved, {"config": "[" * 90_000 + "]" * 90_000}), "metadata 'config'")


def test_convert_opens_the_checkpoint_before_it_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "damaged.pth").write_bytes(b"no checkpoint")
    monkeypatch.setattr(registry, "build", lambda *_: pytest.fail("the network was built"))
    with pytest.raises(CheckpointError, match=r"damaged.pth: is damaged"):
        convert(tmp_path / "damaged.pth", "toy", tmp_path / "ours.safetensors")


@pytest.mark.parametrize("name", ["transformers:", "transformers: "])
def test_transformers_without_a_name_says_what_to_name(name: str) -> None:
    with pytest.raises(UsageError, match="name a model after the colon, transformers:owner/name"):
        checkpoint.load(name)
