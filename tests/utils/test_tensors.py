"""Tensors from files of others: what is read, and what is refused in one line that names the file."""

from __future__ import annotations

import argparse
import collections
import pathlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from langdepth.errors import CheckpointError
from langdepth.utils.tensors import (
    nested_tensors,
    read_checkpoint,
    read_pickle,
    read_safetensors,
    require_finite,
    require_plain,
    without_prefixes,
)
from tests.helpers import grey, save_image

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}


class Unknown:
    """A class that no reader knows."""


class FunctionOf:
    """Saved as a function of a class is: as getattr(class, name)."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (str, "lower")


@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=1e-4),
        collections.defaultdict(list, {"loss": [1.0]}),
        pathlib.PurePosixPath("/x"),
        pathlib.Path("/x"),
        np.float64(0.9),
        np.zeros(9, np.int32),
        {1, 2},
        FunctionOf(),  # mmengine's log since 0.7.3
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_objects_beside_tensors(tmp_path: Path, beside: Any, zipped: bool) -> None:
    torch.save({"model": WEIGHTS, "beside": beside}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(tmp_path / "a.pth")
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("zipped", [True, False])
def test_another_class_is_named(tmp_path: Path, zipped: bool) -> None:
    torch.save({"model": WEIGHTS, "x": Unknown()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        read_pickle(tmp_path / "a.pth")
    assert f"{tmp_path}/a.pth: holds Python objects other than tensors ({__name__}.Unknown)" in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_no_attribute_is_looked_up(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "x": FunctionOf()}, tmp_path / "a.pth")
    assert read_pickle(tmp_path / "a.pth")["x"] is None


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers(prefix: str) -> None:
    assert without_prefixes({prefix + name: tensor for name, tensor in WEIGHTS.items()}).keys() == WEIGHTS.keys()


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("name", ["a.pth", "old.pth", "a.safetensors"])
def test_cut_files(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    if name == "a.safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=name == "a.pth")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=rf"{name}: is damaged, truncated or not a"):
        read_checkpoint(path)


OTHERS = {
    b"": r"empty \(0 bytes\)",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n": "a pointer of git-lfs",
    b"\n<!DOCTYPE html><html><head>": "a web page instead of the file",
    b"<HTML>": "a web page",
}


@pytest.mark.parametrize(("content", "words"), OTHERS.items())
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_what_lies_in_the_place_of_a_file(tmp_path: Path, content: bytes, words: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: {words}"):
        read_checkpoint(tmp_path / name)


def test_an_archive_that_unpacks_to_far_more(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("a/data/0", bytes(2**27))
    with pytest.raises(CheckpointError, match=r"a.pth: unpacks to 134 MB from 0.1, more than weights do"):
        read_pickle(tmp_path / "a.pth")


def test_memory_that_is_short_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(WEIGHTS, tmp_path / "a.pth")

    def short(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory: you tried to")

    monkeypatch.setattr(torch, "load", short)
    with pytest.raises(CheckpointError, match=r"a.pth: not enough memory to read it$"):
        read_pickle(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.eye(3).to_sparse(), "'b' is sparse"),
        (torch.eye(3).to_sparse_csr(), "'b' is sparse"),
        (torch.empty(3, device="meta"), "'b' has no content"),
        (torch.zeros(3, dtype=torch.complex64), "'b' is complex"),
        (torch.zeros(1).expand(2**16, 2**16), r"'b' of shape \(65536, 65536\) needs more than the 4 bytes stored"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_tensors_that_are_no_plain_ones(tmp_path: Path, tensor: Tensor, words: str) -> None:
    torch.save({"a": torch.ones(1), "b": tensor}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"a.pth: .*{words}"):
        read_checkpoint(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=words):
        require_plain({"a": torch.ones(1), "b": tensor}, "x")


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite(kind: torch.dtype, value: float) -> None:
    tensor = torch.ones(100)
    require_finite({"a": tensor.to(kind), "n": torch.arange(3)}, "x")
    tensor[50] = value
    with pytest.raises(CheckpointError, match=r"^x: tensor 'b' holds values that are not finite"):
        require_finite({"a": torch.ones(3), "b": tensor.to(kind)}, "x")


def test_large_numbers_are_finite() -> None:
    require_finite({"a": torch.full((100,), 3e38), "b": torch.full((100,), 65504.0, dtype=torch.float16)}, "x")


def test_nested_tensors_have_dotted_names() -> None:
    content = {"a": [torch.ones(1), {"b": (torch.ones(2),)}], "c": 3}
    assert [name for name, _ in nested_tensors(content)] == ["a.0", "a.1.b.0"]


def test_metadata_and_tensors(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors", {"k": "v"})
    metadata, tensors = read_safetensors(tmp_path / "a.safetensors")
    assert metadata == {"k": "v"}
    assert tensors.keys() == WEIGHTS.keys()


def test_an_image_is_no_pickle(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.png", grey(0.5))
    torch.save({"a": torch.ones(3)}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "b.pth").write_bytes(b"PK\3\0" + content[4:])
    with pytest.raises(CheckpointError, match=r"b\.pth: is damaged, truncated or not a checkpoint of torch\.save"):
        read_pickle(tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"a\.png: is damaged, truncated or not a checkpoint of torch\.save"):
        read_pickle(path)
