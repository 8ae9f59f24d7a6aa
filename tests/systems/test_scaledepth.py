"""`scaledepth-*`: the shared tests, scenes, losses, start weights, official checkpoints, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from langdepth import cli
from langdepth.backbones.clip_weights import find_clip_weights
from langdepth.errors import CheckpointError, UsageError
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.scaledepth.official import official_names
from langdepth.text.scene_table import encode_scenes, write_scene_table
from langdepth.text.scenes import CAPTION_SCENES, SCENES
from langdepth.weights import checkpoint
from langdepth.weights.convert import convert
from tests.systems.short_training import train_shortly
from tests.systems.tester import SystemTester

NARROW = {
    "channels": 32,
    "pixel_layers": 1,
    "pixel_hidden": 32,
    "decoder_layers": 3,
    "decoder_hidden": 32,
    "bins": 8,
    "area": 64 * 96,
}
SMALL = NARROW | {"encoder": "test_convnext", "start": "imagenet"}


@torch.no_grad()
def as_trained(system: Any) -> Any:
    """Layers that do something, rows of length 1, the usual depth of each scene rising with its label."""
    for layer in system.pixel_decoder.layers:
        for projection in (layer.attention.offsets, layer.attention.weights):
            nn.init.normal_(projection.weight, std=0.01)
    for name, parameter in system.encoder.named_parameters():
        if name.endswith("gamma"):  # would start at almost nothing
            nn.init.uniform_(parameter, 0.2, 0.6)
    if system.scenes:
        system.scene_table.copy_(nn.functional.normalize(torch.randn(system.scene_table.shape), dim=-1))
        system.scene_counts.fill_(3)
        system.scene_log_sums.copy_(3 * torch.linspace(0.5, 3, len(system.scenes)))
    return system


class ScaleDepthTester(SystemTester):
    graph_of_any_size = False
    image_size = (64, 96)

    @pytest.fixture(scope="class")
    def pristine(self) -> System:
        torch.manual_seed(0)
        return as_trained(registry.build(self.name, self.options)).eval()

    def test_every_trainable_parameter_is_in_one_group(self, system: System) -> None:
        """As published, vectors have decay, too; the golden case scaledepth_optim has the values."""
        encoder, rest, plain = system.parameter_groups(lr=0.1, weight_decay=0.01)
        found = [id(p) for group in (encoder, rest, plain) for p in group["params"]]
        assert len(found) == len(set(found))
        assert set(found) == {id(p) for p in system.parameters() if p.requires_grad}
        assert (encoder["lr"], rest["lr"], plain["lr"]) == (pytest.approx(0.01), 0.1, 0.1)
        assert (encoder["weight_decay"], rest["weight_decay"], plain["weight_decay"]) == (0.01, 0.01, 0)


class TestScaleDepth(ScaleDepthTester):
    name = "scaledepth-nk"
    options = SMALL

    # Losses; the numbers are the published ones

    @torch.no_grad()
    def test_earlier_layers_count_less_for_depth_and_as_much_for_scenes(self, system: Any) -> None:
        batch = self.batch(system)
        reading = system.decode(system.encode(batch.image), range(3))[-1]
        found = {name: float(value) for name, value in system.losses_of([reading] * 3, batch).items()}
        assert found["depth_0"] == pytest.approx(found["depth"] / 4)
        assert found["depth_1"] == pytest.approx(found["depth"] / 2)
        assert found["depth"] > 0
        twice = reading.similarity.softmax(-1).log_softmax(-1)  # the published loss takes the softmax twice
        scene = -0.01 * float(twice[torch.arange(4), batch.scene].mean())
        assert [found[name] for name in ("scene_0", "scene_1", "scene")] == pytest.approx([scene] * 3, rel=1e-4)
        assert found["total"] == pytest.approx(sum(value for name, value in found.items() if name != "total"))

    @torch.no_grad()
    def test_a_scene_that_the_table_lacks_is_an_unknown_one(self) -> None:
        torch.manual_seed(0)
        options = SMALL | {"scene_loss": "logits"}  # twice through the softmax, all labels but one cost the same
        system: Any = as_trained(registry.build("scaledepth-n", options)).eval()
        assert len(system.scenes) == 27  # without outdoor_scene
        batch = self.batch(system, scenes=(0, 6, 27, 27))
        unknown = replace(batch, scene=torch.tensor([0, 6, -1, -1]))
        found, wanted = (system.loss(one) for one in (batch, unknown))
        assert {n: v.item() for n, v in found.items()} == {n: v.item() for n, v in wanted.items()}
        assert found["scene"] > 0

    # Words

    @torch.no_grad()
    def test_a_named_scene_moves_the_scale_half_of_the_way(self, system: Any) -> None:
        image = self.images(system)
        plain = system(image)
        log_depths = system.scene_log_sums / 3
        read = plain.scene_probs @ log_depths
        for scene in ("printer_room", "outdoor scene"):
            named = system(image, scene=[scene] * 2)
            usual = log_depths[0 if scene == "printer_room" else 27]
            torch.testing.assert_close(named.scale.log(), plain.scale.log() + (usual - read) / 2)
            assert ((named.depth > plain.depth) == (usual > read)[:, None, None, None]).all()
            assert torch.equal(named.relative, plain.relative)
            assert torch.equal(named.scene_probs, plain.scene_probs)

    @torch.no_grad()
    def test_a_scene_that_training_never_saw_is_refused(self, system: Any) -> None:
        image = self.images(system)
        system.scene_counts[6:] = 0
        system.scene_log_sums[6:] = 1e9  # of scenes never seen nothing counts
        assert system(image, scene=["study", "bathroom"]).depth.max() < 1e3
        with pytest.raises(UsageError, match=r"without images of the scene 'kitchen'.*they know printer_room, bath"):
            system(image, scene=["study", "kitchen"])
        system.scene_counts.zero_()
        with pytest.raises(UsageError, match="they know that of no scene"):
            system(image, scene=["study", "kitchen"])

    @torch.no_grad()
    def test_a_matrix_takes_the_place_of_the_scene_table(self, system: Any) -> None:
        image = self.images(system)
        own, table = system(image), system.scene_table.clone()
        assert torch.equal(system(image, text=table).scene_probs, own.scene_probs)
        swapped = system(image, text=table.flip(0))
        torch.testing.assert_close(swapped.scene_probs, own.scene_probs.flip(1))
        assert torch.equal(swapped.depth, own.depth)
        for shape in ((27, 96), (28, 95), (28,)):
            with pytest.raises(UsageError, match=r"takes one row per scene, \(28, 96\)"):
                system(image, text=torch.zeros(shape))
        with pytest.raises(UsageError, match="takes no sentence about the image; name its scene"):
            system(image, text=["a kitchen", "a street"])

    def test_without_scenes_there_are_no_probabilities(self) -> None:
        system = registry.build("scaledepth-k", SMALL).eval()
        with torch.no_grad():
            output = system(self.images(system))
        assert (system.scenes, output.scene_probs) == ((), None)
        with pytest.raises(UsageError, match="takes no scene"):
            system(self.images(system), scene=["kitchen"] * 2)
        assert set(system.loss(self.batch(system))) == {"depth", "depth_0", "depth_1", "total"}

    # Images

    @torch.no_grad()
    def test_sizes(self, system: Any) -> None:
        wide = registry.build(self.name, SMALL | {"channels": 64}).eval()  # GroupNorm needs two numbers per group
        assert wide(torch.rand(1, 3, 32, 33)).depth.shape == (1, 1, 8, 8)
        with pytest.raises(UsageError, match="at least 32x32 pixels, not 40x31"):
            system(torch.rand(1, 3, 31, 40))
        free = registry.build(self.name, SMALL | {"area": None})
        assert free.input_spec.network_size(101, 150) == (101, 150)
        assert registry.entry("scaledepth-n").preset.get("area") is None  # the default
        assert system.input_spec.network_size(200, 300) == (64, 96)

    # Training

    def test_the_usual_depth_of_scenes_is_remembered_in_training(self, system: Any) -> None:
        system.scene_counts.zero_()
        system.scene_log_sums.zero_()
        batch = self.batch(system, known=0.5, scenes=(6, 6, -1, 27))
        batch.mask[3] = False
        system.eval().loss(batch)
        assert not system.scene_counts.any()
        for _ in range(2):
            system.train().loss(batch)
        medians = [d[m].median().log() for d, m in zip(batch.depth, batch.mask, strict=True) if m.any()]
        assert system.scene_counts.nonzero().tolist() == [[6]]
        assert system.scene_counts[6] == 4
        torch.testing.assert_close(system.scene_log_sums[6], 2 * (medians[0] + medians[1]))
        assert not system.scene_log_sums[27]

    def test_a_moving_average_keeps_the_usual_depth_of_scenes_that_come_late(self, system: Any) -> None:
        early, late = self.batch(system, scenes=(6,) * 4), self.batch(system, scenes=(9,) * 4)
        system.scene_counts.zero_()
        system.scene_log_sums.zero_()
        average: Any = AveragedModel(system, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        for batch in (early, early, late):
            system.train().loss(batch)
            average.update_parameters(system)
        means = [(s.scene_log_sums / s.scene_counts)[[6, 9]] for s in (system, average.module)]
        torch.testing.assert_close(means[1], means[0])

    def test_options_of_the_losses(self, system: Any) -> None:
        batch, config = self.batch(system, known=1.0), system.config
        plain = system.eval().loss(batch)
        assert set(plain) == {f"{kind}{layer}" for kind in ("depth", "scene") for layer in ("", "_0", "_1")} | {"total"}
        torch.testing.assert_close(plain["total"], sum(v for k, v in plain.items() if k != "total"))

        def changed(**options: Any) -> set[str]:
            system.config = replace(config, **options)
            found = system.loss(batch)
            return {
                name.split("_")[0] for name in found if name not in plain or not torch.equal(found[name], plain[name])
            }

        assert changed(loss_max_depth=3.0) == {"depth", "total"}
        assert changed(scene_loss="logits") == {"scene", "total"}
        assert changed(scene_similarity="cosine") == {"scene", "total"}
        assert changed(chamfer_weight=0.1) == {"chamfer", "total"}
        assert changed(scene_mean_over_all=True) == set()
        batch.scene[0] = -1
        system.config = config
        plain = system.loss(batch)
        assert changed(scene_mean_over_all=True) == {"scene", "total"}

    @pytest.mark.parametrize("encoder", ["test_convnext", "swin-mini"])
    def test_gradient_checkpointing_changes_no_gradient(self, encoder: str) -> None:
        options = self.options | {"encoder": encoder}
        system = as_trained(registry.build(self.name, options))
        kept = registry.build(self.name, options | {"gradient_checkpointing": True})
        kept.load_state_dict(system.state_dict())
        batch, gradients = self.batch(system), []
        for one in (system, kept):
            for module in one.modules():
                if type(module).__name__ == "DropPath":
                    module.drop_prob = 0.5  # what is dropped must be dropped again
            torch.manual_seed(4)
            one.train().loss(batch)["total"].backward()
            gradients.append({name: p.grad for name, p in one.named_parameters()})
        torch.testing.assert_close(*gradients)

    def test_the_scale_starts_open_but_for_the_published_start(self) -> None:
        scales = {}
        for exact in (False, True):
            torch.manual_seed(0)
            system = registry.build(self.name, SMALL | {"reference_exact": exact})
            scales[exact] = system.state_dict()["scale.bias"].item()
            assert system.config.scene_mean_over_all == exact
        assert scales == {False: 2, True: 0}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"decoder_layers": 4}, "decoder_layers must be a multiple of 3, got 4"),
            ({"channels": 48}, "channels must be a multiple of 32, got 48"),
            ({"scenes": 29}, "scenes must be between 0 and 28, got 29"),
            ({"encoder": "convnext_lage"}, "unknown ConvNeXt 'convnext_lage'"),
            ({"encoder": "swin-larg"}, "did you mean 'swin-large'"),
            ({"scene_loss": "logit"}, "did you mean 'logits'"),
        ],
    )
    def test_wrong_options_are_one_line(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message) as caught:
            registry.build(self.name, self.options | options)
        assert "\n" not in str(caught.value)


class TestScaleDepthSmall(ScaleDepthTester):
    variant = True
    name = "scaledepth-s"
    options = NARROW
    test_torch_export_gives_the_same_depth: Any = None  # slow, and differs only in what `tiny` exports


def test_swin_variant_predicts() -> None:
    system = registry.build("scaledepth-n-swin", NARROW | {"encoder": "swin-mini"}).eval()
    with torch.no_grad():
        assert system(torch.rand(1, 3, 64, 96)).depth.shape == (1, 1, 16, 24)


# Start weights


@pytest.fixture
def captions(tmp_path: Path) -> str:
    """Captions of every scene; the features of those of one scene are alike."""
    marks = [mark for words in CAPTION_SCENES.values() for mark in words[:1]]
    features = np.eye(len(marks), 96).repeat(2, axis=0).astype(np.float16)
    names = [f"a {mark} {count}" for mark in marks for count in ("one", "two")]
    path = tmp_path / "captions.npz"
    np.savez(path, caption=names, feature=features, train_count=np.ones(len(names), int))
    return str(path)


@pytest.mark.filterwarnings("ignore:.*RANDOM")
def test_scenes_from_captions(captions: str) -> None:
    system: Any = registry.build("scaledepth-nk", SMALL)
    system.prepare_training(text_features=captions, encoder_weights="random")
    table = system.scene_table
    assert torch.equal(table.norm(dim=1), torch.ones(28))
    assert torch.equal(table[SCENES.index("study")], table[SCENES.index("office")])
    assert table[SCENES.index("kitchen")] @ table[SCENES.index("outdoor_scene")] == 0
    narrow: Any = registry.build("scaledepth-nk", SMALL | {"scale_queries": 2})
    with pytest.raises(UsageError, match="the scale queries 64 "):
        narrow.prepare_training(text_features=captions)
    without: Any = registry.build("scaledepth-k", SMALL)
    with pytest.raises(UsageError, match="has no scenes"):
        without.prepare_training(text_features=captions)
    with pytest.raises(UsageError, match="not both"):
        system.prepare_training(text_features=captions, scene_table=captions)


@pytest.mark.filterwarnings("ignore:.*RANDOM")
def test_scenes_from_clip_and_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / "cache"))
    table = tmp_path / "scenes.safetensors"
    words = ["--clip-weights", "random", "--architecture", "RN-small", "--quick-gelu"]
    assert cli.main(["scenes", "encode", *words, "--out", str(table)]) == 0
    options = SMALL | {"clip": "RN-small", "quick_gelu": True, "scale_queries": 8}
    systems: list[Any] = [registry.build("scaledepth-n", options) for _ in range(2)]
    systems[0].prepare_training(clip_weights="random", encoder_weights="random")
    systems[1].prepare_training(scene_table=str(table), encoder_weights="random")
    assert systems[0].scene_table.shape == (27, 256)
    assert torch.equal(*(system.scene_table for system in systems))


@pytest.mark.filterwarnings("ignore:.*RANDOM")
def test_a_published_table_is_compared_with_the_clip_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authors' file, a plain tensor, beside CLIP's weights: taken if this CLIP made it, else refused."""
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / "cache"))
    clip = find_clip_weights("random", "RN-small", quick_gelu=True)
    save_file({name: tensor.contiguous() for name, tensor in clip.tensors.items()}, tmp_path / "clip.safetensors")
    weights, table = str(tmp_path / "clip.safetensors"), tmp_path / "class_embeddings.pth"
    options = SMALL | {"clip": "RN-small", "quick_gelu": True, "scale_queries": 8}
    rows = encode_scenes(clip, templates=["a photo of the {}"])
    torch.save(rows, table)

    def prepared(**files: str) -> Any:
        system: Any = registry.build("scaledepth-n", options)
        system.prepare_training(scene_table=str(table), encoder_weights="random", **files)
        return system

    said = "its 28 rows are taken for printer_room, bathroom ... outdoor_scene"
    with pytest.warns(UserWarning, match=f"{said}.*; they agree with those of CLIP RN-small"):
        system = prepared(clip_weights=weights)
    assert torch.equal(system.scene_table, rows[:27])
    assert system.provenance["scene_table"] == "class_embeddings.pth; they agree with those of CLIP RN-small"
    for files in ({}, {"clip_weights": "random"}):
        with pytest.warns(UserWarning, match=f"{said}.*; whether this CLIP made them could not be checked"):
            assert torch.equal(prepared(**files).scene_table, rows[:27])
    trained = checkpoint.load(system.save(tmp_path / "w.safetensors"))
    trained.prepare_training(scene_table=str(table))  # type: ignore[call-arg]
    torch.save(torch.randn(27, 256, generator=torch.Generator().manual_seed(0)), table)
    with pytest.raises(CheckpointError, match="is of another CLIP than CLIP RN-small, although as wide"):
        prepared(clip_weights=weights)
    with pytest.raises(CheckpointError, match="is of another CLIP than these weights"):
        trained.prepare_training(scene_table=str(table))  # type: ignore[call-arg]
    table.unlink()
    trained.prepare_training(scene_table=str(table))  # type: ignore[call-arg]
    assert torch.equal(trained.scene_table, rows[:27])  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:.*RANDOM")
def test_a_table_that_names_another_clip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / "cache"))
    clip = find_clip_weights("random", "RN-small", quick_gelu=True)
    write_scene_table(tmp_path / "t.safetensors", torch.rand(28, 256), clip, SCENES, ["{}"])
    system: Any = registry.build("scaledepth-n", SMALL | {"scale_queries": 8})
    with pytest.raises(CheckpointError, match="is of CLIP RN-small, the system takes that of convnext_large_d_320"):
        system.prepare_training(scene_table=str(tmp_path / "t.safetensors"), encoder_weights="random")


def test_no_weights_of_the_encoder_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    system: Any = registry.build("scaledepth-k", SMALL)
    for name, message in (("weights.safetensors", "no weights of test_convnext"), ("w.pt", "give such a file")):
        with pytest.raises(CheckpointError, match=message) as caught:
            system.prepare_training(encoder_weights=str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*RANDOM")
def test_a_short_training_lowers_the_loss_and_its_file_predicts_the_same(
    captions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = {"text_features": captions, "encoder_weights": "random"}
    section = {"name": "scaledepth-nk", "options": SMALL, "prepare": prepare}
    _, loaded = train_shortly(section, "scaledepth-nk-nyu-reference", 2e-3, tmp_path, monkeypatch)
    loaded.prepare_training()  # has its weights: nothing is fetched


# Official checkpoints


def official(system: Any) -> dict[str, Tensor]:
    """The system's tensors as the authors' program names them, with two that it does not use."""
    names = {
        ours: theirs
        for theirs, ours in official_names(system.config.pixel_layers, system.config.decoder_layers).items()
    }
    found = {
        "backbone.clip_model.visual.head.mlp.fc1.weight": torch.zeros(2, 2),
        "backbone.clip_model.token_embedding.weight": torch.zeros(2, 2),
    }
    for key, value in system.state_dict().items():
        prefix = max((ours for ours in names if key.startswith(ours)), key=len, default=None)
        if prefix is not None:
            found[names[prefix] + key.removeprefix(prefix)] = value
    return found if system.scenes else {k: v for k, v in found.items() if "class_embeddings" not in k}


def trained(name: str) -> Any:
    torch.manual_seed(5)
    system = as_trained(registry.build(name, SMALL))
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return system.eval()


@pytest.mark.parametrize("name", ["scaledepth-n", "scaledepth-k"])
def test_an_official_checkpoint_predicts_the_same(name: str, tmp_path: Path) -> None:
    system = trained(name)
    theirs = official(system)
    torch.save({"meta": {}, "state_dict": theirs}, tmp_path / "iter_40000.pth")
    done = convert(tmp_path / "iter_40000.pth", name, tmp_path / "ours.safetensors", SMALL)
    assert set(done.ignored) == {key for key in theirs if ".head." in key or ".token_" in key}
    assert set(done.used) | set(done.ignored) == set(theirs)
    loaded = checkpoint.load(done.path)
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(image).depth, system(image).depth)
        if system.scenes:
            with pytest.raises(UsageError, match="they know that of no scene"):
                loaded(image, scene=["kitchen", "study"])


def test_checkpoints_that_do_not_fit_cost_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = official(trained("scaledepth-n"))
    first = "decode_head.transformer_decoder.layers.0.cross_attn.attn.in_proj_weight"
    without = {key: value for key, value in good.items() if key != first}
    cases: list[tuple[str, str, dict[str, Tensor]]] = [
        ("scaledepth-nk", "the checkpoint knows 27 scenes, 'scaledepth-nk' 28; choose another variant", good),
        ("scaledepth-k", "the checkpoint knows 27 scenes, 'scaledepth-k' none; choose another variant", good),
        ("scaledepth-n", "the checkpoint knows no scenes, 'scaledepth-n' 27", official(trained("scaledepth-k"))),
        (
            "scaledepth-n",
            "not one of 'scaledepth-n' (no tensor 'decode_head.query_feat.weight')",
            {"a": torch.zeros(1)},
        ),
        ("scaledepth-n", "'query_decoder.layers.0.cross_attention.inputs.weight' is missing", without),
        (
            "scaledepth-n",
            "'query_decoder.layers.0.cross_attention.inputs.weight' is (2, 2) float32, expected (96, 32)",
            without | {first: torch.zeros(2, 2)},
        ),
    ]
    options = [part for key, value in SMALL.items() for part in (f"--options.{key}", str(value))]
    for name, message, tensors in cases:
        torch.save(tensors, tmp_path / "model.pth")
        target = tmp_path / "ours.safetensors"
        code = cli.main(["convert", str(tmp_path / "model.pth"), "--system", name, "--out", str(target), *options])
        printed = capsys.readouterr().err
        assert (code, printed.count("\n")) == (1, 1), printed
        assert message in printed
        assert not target.exists()


def test_by_name_they_ask_for_trained_weights() -> None:
    with pytest.raises(CheckpointError, match="weights get scaledepth-nk"):
        checkpoint.load("scaledepth-nk")
