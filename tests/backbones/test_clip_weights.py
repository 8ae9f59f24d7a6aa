"""CLIP weights files: every layout gives the same model; what is damaged, foreign or dangerous costs one line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from langdepth.backbones import clip_weights
from langdepth.backbones.clip import ClipImageTower
from langdepth.backbones.clip_files import stated_activation
from langdepth.backbones.clip_weights import ClipWeights, find_clip_weights, read_clip_weights
from langdepth.errors import CheckpointError, LangdepthError, UsageError
from tests.stand_ins import write_openai


@pytest.fixture(scope="module")
def models() -> dict[str, ClipWeights]:
    """Small models with random weights that survive half precision unchanged."""
    made = {}
    for architecture in ("RN-small", "ViT-small"):
        with pytest.warns(UserWarning, match="RANDOM"):
            weights = find_clip_weights("random", architecture, True)
        tensors = {k: v.half().float() if v.is_floating_point() else v for k, v in weights.tensors.items()}
        made[architecture] = ClipWeights(architecture, True, tensors, "test", "")
    return made


# --- the layouts


def write_state_dict(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(tensors, path)


def write_old_state_dict(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def write_training_checkpoint(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in tensors.items()}}, path)


def write_nested(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save({"model": tensors, "optimizer": {}}, path)


def write_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}, path)


HUGGING_FACE = [
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.ln_1\.", ".layer_norm1."),
    (r"\.ln_2\.", ".layer_norm2."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
]


def hugging_face(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    result = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    for name, value in tensors.items():
        renamed = name
        for pattern, replacement in HUGGING_FACE:
            renamed = re.sub(pattern, replacement, renamed)
        if ".attn.in_proj_" in renamed:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                result[renamed.replace(".attn.in_proj_", f".self_attn.{part}_proj.")] = piece.clone()
        elif renamed.endswith("_projection.weight"):
            result[renamed] = value.T.contiguous()
        else:
            result[renamed] = value
    return result


def write_hugging_face(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(hugging_face(tensors), path)


def write_hugging_face_bin(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(hugging_face(tensors), path)


LAYOUTS: list[tuple[str, str, Callable[[dict[str, Tensor], Path], None]]] = [
    *((a, "RN50.pt", write_openai) for a in ("RN-small", "ViT-small")),
    *((a, "open_clip_pytorch_model.bin", write_state_dict) for a in ("RN-small", "ViT-small")),
    ("RN-small", "old.pt", write_old_state_dict),
    ("ViT-small", "epoch_3.pt", write_training_checkpoint),
    ("RN-small", "model.pth", write_nested),
    ("RN-small", "open_clip_model.safetensors", write_safetensors),
    ("ViT-small", "no_ending", write_safetensors),
    ("ViT-small", "model.safetensors", write_hugging_face),
    ("ViT-small", "pytorch_model.bin", write_hugging_face_bin),
]


@pytest.mark.parametrize(("architecture", "name", "write"), LAYOUTS)
def test_every_layout_gives_the_same_model(
    architecture: str,
    name: str,
    write: Callable[[dict[str, Tensor], Path], None],
    models: dict[str, ClipWeights],
    tmp_path: Path,
) -> None:
    write(models[architecture].tensors, tmp_path / name)
    weights = find_clip_weights(tmp_path / name, architecture, True)
    assert list(weights.tensors) == list(models[architecture].tensors)
    for key, value in models[architecture].tensors.items():
        assert weights.tensors[key].dtype == value.dtype
        assert torch.equal(weights.tensors[key], value), key
    assert weights.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert weights.source == str(tmp_path / name)
    ClipImageTower(architecture, quick_gelu=True).load_state_dict(weights.visual())
    assert "token_embedding.weight" in weights.text()


@torch.no_grad()
def test_a_model_of_transformers_gives_the_same_features(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from langdepth.text.clip_text import ClipTextTower

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
    config = transformers.CLIPConfig(
        text_config={"hidden_size": 64, "intermediate_size": 256, "vocab_size": 49408, "eos_token_id": 49407, **sizes},
        vision_config={"hidden_size": 128, "intermediate_size": 512, "patch_size": 16, "image_size": 224, **sizes},
        projection_dim=64,
    )
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    weights = read_clip_weights(tmp_path / "model.safetensors", "ViT-small")
    assert weights.quick_gelu is False  # stated by the config.json beside it
    ours = ClipImageTower("ViT-small", quick_gelu=False).eval()
    ours.load_state_dict(weights.visual())
    image = torch.randn(1, 3, 224, 224)
    tokens = torch.tensor([[49406, 589, 14115, 49407, *[0] * 73]])
    expected = theirs(pixel_values=image, input_ids=tokens)
    embedding = nn.functional.normalize(ours.dense_and_embedding(image)[1], dim=-1)
    features = nn.functional.normalize(ClipTextTower.from_weights(weights)(tokens), dim=-1)
    torch.testing.assert_close(embedding, expected.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, expected.text_embeds, rtol=1e-4, atol=1e-5)


# --- the activation


def test_openai_archives_say_which_activation(models: dict[str, ClipWeights], tmp_path: Path) -> None:
    write_openai(models["RN-small"].tensors, tmp_path / "a.pt")
    assert read_clip_weights(tmp_path / "a.pt", "RN-small").quick_gelu is True
    with pytest.raises(CheckpointError, match="trained with QuickGELU, but GELU is wanted; set quick_gelu to true"):
        read_clip_weights(tmp_path / "a.pt", "RN-small", quick_gelu=False)


@pytest.mark.parametrize(
    ("write", "beside", "config"),
    [
        (write_hugging_face, "config.json", {"vision_config": {"hidden_act": "gelu"}}),
        (write_safetensors, "open_clip_config.json", {"model_cfg": {"embed_dim": 64}}),
    ],
)
def test_the_configuration_beside_a_file_says_which_activation(
    write: Any, beside: str, config: Any, models: dict[str, ClipWeights], tmp_path: Path
) -> None:
    write(models["ViT-small"].tensors, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="does not say whether"):
        read_clip_weights(tmp_path / "a.safetensors", "ViT-small")
    (tmp_path / beside).write_text(json.dumps(config))
    assert read_clip_weights(tmp_path / "a.safetensors", "ViT-small").quick_gelu is False
    with pytest.raises(CheckpointError, match="trained with GELU, but QuickGELU is wanted; set quick_gelu to false"):
        read_clip_weights(tmp_path / "a.safetensors", "ViT-small", quick_gelu=True)
    (tmp_path / beside).write_text("{")  # damaged: says nothing
    assert read_clip_weights(tmp_path / "a.safetensors", "ViT-small", quick_gelu=True).quick_gelu is True


# --- what is refused


def refusal(path: Path, architecture: str = "RN-small", kind: type[LangdepthError] = CheckpointError) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing else may appear beside the one line
        with pytest.raises(kind) as refused:
            read_clip_weights(path, architecture, True)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("write", [write_openai, write_state_dict, write_old_state_dict, write_safetensors])
@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_a_truncated_file(write: Any, kept: float, models: dict[str, ClipWeights], tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    write(models["RN-small"].tensors, path)
    os.truncate(path, int(path.stat().st_size * kept))
    assert "is damaged, truncated or" in refusal(path)


def test_a_flipped_bit_in_an_archive(models: dict[str, ClipWeights], tmp_path: Path) -> None:
    path = tmp_path / "flipped.pt"
    write_openai(models["RN-small"].tensors, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "is damaged, truncated or" in refusal(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("These are no weights.\n" * 20)
    assert "is no weights file; known are OpenAI's archives" in refusal(tmp_path / "text.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    assert "empty (0 bytes)" in refusal(tmp_path / "empty.pt")
    assert "no such file" in refusal(tmp_path / "missing.pt")
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    assert "is not a regular file" in refusal(tmp_path / "pipe.pt")
    os.mkfifo(tmp_path / "config.json")
    assert stated_activation(tmp_path / "x.pt", {"vision_model.x": torch.zeros(1)}) is None  # without waiting
    (tmp_path / "secret.pt").write_bytes(b"x")
    (tmp_path / "secret.pt").chmod(0)
    if not os.access(tmp_path / "secret.pt", os.R_OK):  # root reads everything
        assert "cannot be read (Permission denied)" in refusal(tmp_path / "secret.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    assert "expected tensors by name" in refusal(tmp_path / "list.pt")
    torch.save({"weight": 3}, tmp_path / "numbers.pt")
    assert "expected tensors by name" in refusal(tmp_path / "numbers.pt")
    save_file({"encoder.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert "holds no CLIP model (its tensors are called encoder.weight ...)" in refusal(tmp_path / "other.safetensors")


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def write_evil_pickle(trap: Evil, path: Path) -> None:
    path.write_bytes(pickle.dumps({"visual.conv1.weight": trap}))


def write_evil_state_dict(trap: Evil, path: Path) -> None:
    torch.save({"visual.conv1.weight": trap}, path)


def write_evil_archive(trap: Evil, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(trap, protocol=2))
        archive.writestr("a/constants.pkl", pickle.dumps((), protocol=2))


@pytest.mark.parametrize("write", [write_evil_pickle, write_evil_state_dict, write_evil_archive])
def test_code_in_a_file_does_not_run(write: Any, tmp_path: Path) -> None:
    write(Evil(tmp_path / "trap"), tmp_path / "evil.pt")
    pickle.loads(pickle.dumps(Evil(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    assert "which could run code" in refusal(tmp_path / "evil.pt")
    assert not (tmp_path / "trap").exists()


def test_a_tensor_larger_than_what_is_stored_for_it(tmp_path: Path) -> None:
    content = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", 1) if obj is self else None

    class Huge:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (pickler, 0, (10**12,), (0,), False, None)

    pickler = Pickler(content, protocol=2)
    pickler.dump(Huge())
    with zipfile.ZipFile(tmp_path / "huge.pt", "w") as archive:
        archive.writestr("a/data.pkl", content.getvalue())
        archive.writestr("a/constants.pkl", b"")
        archive.writestr("a/data/0", b"\0" * 4)
    assert "is damaged, truncated or" in refusal(tmp_path / "huge.pt")


def test_files_that_are_too_large(tmp_path: Path) -> None:
    with (tmp_path / "large.pt").open("wb") as file:
        file.truncate(10**9)  # takes no room on the disk
    assert "has 1000 MB, far more than RN-small needs (19 MB)" in refusal(tmp_path / "large.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/0", b"\0" * (2**28))
    assert "unpacks to far more" in refusal(tmp_path / "bomb.pt")


def test_another_architecture_is_described(models: dict[str, ClipWeights], tmp_path: Path) -> None:
    write_safetensors(models["ViT-small"].tensors, tmp_path / "vit.safetensors")
    message = refusal(tmp_path / "vit.safetensors", "RN-small")
    assert "holds a ViT (patch 16, width 128, 2 layers, 197 positions, 64 features, text width 64)" in message
    assert "wanted is RN-small: a ResNet (layers 1-1-1-1, width 16, 50 positions, 256 features, text" in message
    assert "wanted is ViT-B-32: a ViT (patch 32, width 768" in refusal(tmp_path / "vit.safetensors", "ViT-B-32")
    assert "wanted is convnext_tiny: a ConvNeXt (blocks 3-3-9-3," in refusal(
        tmp_path / "vit.safetensors", "convnext_tiny"
    )
    assert "unknown CLIP architecture 'RN5'" in refusal(tmp_path / "vit.safetensors", "RN5", UsageError)


def test_single_tensors_that_do_not_fit(models: dict[str, ClipWeights], tmp_path: Path) -> None:
    path, good = tmp_path / "a.safetensors", models["RN-small"].tensors
    save_file({k: v for k, v in good.items() if k != "visual.bn2.bias"}, path)
    assert "does not fit RN-small: lacks 'visual.bn2.bias' (1 tensors differ)" in refusal(path)
    save_file({**good, "visual.layer1.0.conv9.weight": torch.zeros(1)}, path)
    assert "has an unknown tensor 'visual.layer1.0.conv9.weight'" in refusal(path)
    save_file({**good, "visual.bn2.bias": torch.zeros(5)}, path)
    assert "'visual.bn2.bias' has shape (5,), not (8,)" in refusal(path)
    save_file({**good, "visual.bn2.bias": torch.full((8,), torch.nan)}, path)
    assert "'visual.bn2.bias' holds values that are not finite" in refusal(path)


def test_counters_may_be_missing_and_the_scale_may_have_an_axis(models: dict[str, ClipWeights], tmp_path: Path) -> None:
    tensors = {k: v for k, v in models["RN-small"].tensors.items() if not k.endswith("num_batches_tracked")}
    save_file({**tensors, "logit_scale": torch.ones(1)}, tmp_path / "a.safetensors")
    weights = read_clip_weights(tmp_path / "a.safetensors", "RN-small", True)
    assert weights.tensors["logit_scale"].shape == ()
    ClipImageTower("RN-small", quick_gelu=True).load_state_dict(weights.visual())


# --- random, download


def test_random_weights_warn_and_repeat() -> None:
    with pytest.warns(UserWarning, match="CLIP ViT-small has RANDOM weights"):
        first = find_clip_weights("random", "ViT-small", True)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="RANDOM"):
        again = find_clip_weights("random", "ViT-small", True)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.sha256 == again.sha256
    assert all(torch.equal(value, again.tensors[key]) for key, value in first.tensors.items())


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of open_clip and the hub, and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    return tmp_path


def publish(monkeypatch: pytest.MonkeyPatch, **record: Any) -> None:
    """Pretend that open_clip knows published weights of RN-small."""
    monkeypatch.setattr(clip_weights, "published_records", lambda *_: {"openai": record})


def test_offline_and_missing_names_the_file_and_the_place(caches: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        find_clip_weights(None, "RN50", True)
    message = str(refused.value)
    assert "the weights of CLIP RN50 ('openai') are not on this machine and HF_HUB_OFFLINE is set" in message
    assert f"open_clip_model.safetensors of timm/resnet50_clip.openai in {caches / 'hub'}" in message
    assert str(caches / ".cache" / "clip" / "RN50.pt") in message
    assert "--clip-weights" in message
    assert "\n" not in message


def test_what_was_never_published(caches: Path) -> None:
    with pytest.raises(UsageError, match="no published weights of CLIP RN50 with GELU"):
        find_clip_weights(None, "RN50", False)
    with pytest.raises(UsageError, match="no published weights of CLIP RN-small with QuickGELU"):
        find_clip_weights(None, "RN-small", True)
    with pytest.raises(UsageError, match="unknown CLIP architecture"):
        find_clip_weights(None, "RN5", True)


def test_a_tag_names_other_published_weights(caches: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ViT-B-16 \('laion2b_s34b_b88k'\).*laion/CLIP-ViT-B-16-laion2B-s34B"):
        find_clip_weights("laion2b_s34b_b88k", "ViT-B-16", False)
    with pytest.raises(CheckpointError, match="laion2b_s34b_b88k: no such file"):
        find_clip_weights("laion2b_s34b_b88k", "ViT-B-16", True)  # was not trained with QuickGELU


def test_a_downloaded_archive_is_checked(
    caches: Path, models: dict[str, ClipWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = caches / ".cache" / "clip" / "RN-small.pt"
    write_openai(models["RN-small"].tensors, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    publish(monkeypatch, url=f"https://example.org/{sha256}/RN-small.pt")
    weights = find_clip_weights(None, "RN-small", True)
    assert (weights.source, weights.sha256) == ("open_clip:openai", sha256)
    publish(monkeypatch, url=f"https://example.org/rn-{sha256[:8]}.pt")
    path.rename(path.with_name(f"rn-{sha256[:8]}.pt"))
    assert find_clip_weights(None, "RN-small", True).sha256 == sha256
    publish(monkeypatch, url="https://example.org/rn-00000000.pt")
    path.with_name(f"rn-{sha256[:8]}.pt").rename(path.with_name("rn-00000000.pt"))
    with pytest.raises(CheckpointError, match=r"the published one is 00000000.*delete the file and fetch it again"):
        find_clip_weights(None, "RN-small", True)


def test_a_file_of_the_hub_is_checked(
    caches: Path, models: dict[str, ClipWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = caches / "hub" / "models--somebody--rn-small"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    blob = repository / "blobs" / "new"
    write_safetensors(models["RN-small"].tensors, blob)
    blob = blob.rename(blob.with_name(hashlib.sha256(blob.read_bytes()).hexdigest()))
    (repository / "snapshots" / "abc" / "open_clip_model.safetensors").symlink_to(blob)
    publish(monkeypatch, hf_hub="somebody/rn-small/")
    assert find_clip_weights(None, "RN-small", True).sha256 == blob.name
    write_safetensors(models["RN-small"].tensors | {"logit_scale": torch.tensor(1.0)}, blob)
    with pytest.raises(CheckpointError, match="its sha256 is"):
        find_clip_weights(None, "RN-small", True)


def test_a_failed_download_is_one_line_and_leaves_no_half_file(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = caches / ".cache" / "clip" / "RN50.pt"

    def fails(record: dict[str, Any], prefer_hf_hub: bool) -> str:
        if not prefer_hf_hub:
            half.write_bytes(b"half")
        raise OSError("no route to host\nand more")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("langdepth.backbones.clip_download.unreachable", lambda url: None)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", fails)
    with pytest.raises(CheckpointError) as refused:
        find_clip_weights(None, "RN50", True)
    assert "cannot be downloaded (no route to host): wanted is open_clip_model.safetensors" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not half.exists()


def test_a_download_is_used(caches: Path, models: dict[str, ClipWeights], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    publish(monkeypatch, hf_hub="somebody/rn-small/")

    def download(record: dict[str, Any], prefer_hf_hub: bool) -> str:
        write_safetensors(models["RN-small"].tensors, caches / "fetched.safetensors")
        return str(caches / "fetched.safetensors")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", download)
    assert find_clip_weights(None, "RN-small", True).source == "open_clip:openai"


def test_an_address_that_cannot_be_reached_is_not_tried(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """urllib would wait for minutes where packets are dropped."""
    tried: list[bool] = []

    def fails(record: dict[str, Any], prefer_hf_hub: bool) -> str:
        tried.append(prefer_hf_hub)
        raise OSError("not in the cache")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("langdepth.backbones.clip_download.unreachable", lambda url: "timed out")
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", fails)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded \(timed out\): wanted is"):
        find_clip_weights(None, "RN50", True)
    assert tried == [True]
