"""What every system must do, whatever its paper: one small class per system inherits all of these tests.

    class TestMySystem(SystemTester):
        name = "my-system"
        options = {"width": 8}

The options make the system small and need no weights: parameters are as the constructor leaves them.
"""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from langdepth.config import from_mapping, to_mapping
from langdepth.errors import UsageError
from langdepth.evaluation import protocols
from langdepth.evaluation.batch import evaluate_batch
from langdepth.prediction.network import infer, to_network_size
from langdepth.prediction.results import DepthResult
from langdepth.records import Batch, DepthOutput, Enlarge, Sample
from langdepth.runtimes.trace import network_graph
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.capabilities import HasFrozenTrunk
from langdepth.text.scenes import SCENES
from langdepth.utils.onnx_files import require_sound
from langdepth.weights import checkpoint
from tests.runtimes.helpers import compare, session

Words = dict[str, Any]
TRAINING = {
    "test_gradients_reach_every_trainable_parameter",
    "test_every_trainable_parameter_is_in_one_group",
    "test_the_loss_is_finite_whatever_is_unknown",
    "test_depth_behind_the_mask_never_matters",
    "test_a_few_steps_lower_the_loss",
    "test_known_features_take_the_place_of_the_trunk",
}

# What follows from the class alone, or from the framework: classes of other options inherit the rest.
OF_THE_CLASS = {
    "test_any_image_size_comes_back_at_its_own_size",
    "test_bfloat16_is_close_to_float32_and_leaves_no_trace",
    "test_it_can_be_pickled",
    "test_flip_averaging_is_the_mean_with_the_mirrored_image",
    "test_prediction_is_forward_and_the_authors_enlargement",
    "test_torch_export_gives_the_same_depth",
}


def totals_of_steps(system: System, batch: Batch, lr: float, weight_decay: float, steps: int) -> list[float]:
    """Train on one batch; the total loss before each step. What is random is the same in all of them."""
    optimiser = torch.optim.AdamW(system.parameter_groups(lr=lr, weight_decay=weight_decay))
    totals = []
    for _ in range(steps):
        torch.manual_seed(3)
        total = system.train().loss(batch)["total"]
        totals.append(total.item())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return totals


class SystemTester:
    """Set the class attributes; the rest is inherited."""

    name: ClassVar[str]
    """Registry name."""
    options: ClassVar[dict[str, Any]] = {}
    """Config values that make the system small."""
    sentences: ClassVar[tuple[str, str] | None] = None
    """Two sentences that mean different things and of which the system knows every word; None: it takes no text."""
    text_columns: ClassVar[int | None] = None
    """Columns of a precomputed text matrix with one row per image; None: it takes none."""
    image_size: ClassVar[tuple[int, int]] = (48, 64)
    """Height and width of the images that the tests make."""
    trainable: ClassVar[bool] = True
    """Whether it has anything to train; the tests of training are skipped if not."""
    variant: ClassVar[bool] = False
    """Whether another class here tests the same class of systems, with other options, in full."""
    enlarge: ClassVar[Enlarge] = "bilinear"
    """How its authors bring depth maps to image size."""
    graph_of_any_size: ClassVar[bool] = True
    """Whether one exported graph is right for all network sizes."""
    bf16_tolerance: ClassVar[float] = 0.05
    """Largest relative difference of depth, on average, between bfloat16 and float32."""

    @pytest.fixture(autouse=True)
    def _skip(self, request: pytest.FixtureRequest) -> None:
        name = request.function.__name__
        if not self.trainable and name in TRAINING:
            pytest.skip("has nothing to train")
        if self.variant and name in OF_THE_CLASS:
            pytest.skip("is tested with other options")

    # The system and what goes in

    @pytest.fixture(scope="class")
    def pristine(self) -> System:
        torch.manual_seed(0)
        return registry.build(self.name, self.options).eval()

    @pytest.fixture
    def system(self, pristine: System) -> System:
        """A system of the test's own, in eval mode, with the same parameters every time; what follows is seeded."""
        torch.manual_seed(1)
        return copy.deepcopy(pristine)

    def images(self, system: System, count: int = 2, size: tuple[int, int] | None = None) -> Tensor:
        """(count, 3, h, w) random images at network size; ``size``: of the images before that."""
        return torch.rand(count, 3, *system.input_spec.network_size(*(size or self.image_size)))

    def text_matrix(self, count: int = 2) -> Tensor:
        assert self.text_columns is not None
        return nn.functional.normalize(torch.randn(count, self.text_columns), dim=-1)

    def every_kind_of_words(self, system: System) -> Iterator[Words]:
        """Arguments for two images: none, and all that the system takes."""
        yield {}
        if self.sentences is not None:
            yield {"text": list(self.sentences)}
        if self.text_columns is not None:
            yield {"text": self.text_matrix()}
        if system.scenes:
            yield {"scene": [system.scenes[0], system.scenes[-1]]}

    def batch(self, system: System, known: float = 0.9, scenes: Sequence[int] = (0, 6, 8, 27)) -> Batch:
        """Four images of which a share ``known`` of the pixels has depth; ``scenes`` are labels, -1 unknown."""
        image = self.images(system, 4)
        mask = torch.rand(4, 1, *image.shape[-2:]) < known
        depth = torch.where(mask, 1 + 5 * torch.rand(mask.shape), 0.0)
        text = [self.sentences[i % 2] if self.sentences else None for i in range(4)]
        return Batch(image=image, depth=depth, mask=mask, scene=torch.tensor(scenes), text=text, path=list("abcd"))

    # What comes out

    def check(self, system: System, output: DepthOutput, count: int) -> None:
        """The contract of DepthOutput."""
        depth = output.depth
        assert depth.shape[:2] == (count, 1)
        assert depth.dtype == torch.float32
        assert torch.isfinite(depth).all()
        assert (depth > 0).all()
        height, width = depth.shape[-2:]
        if output.relative is not None:
            assert output.relative.shape == depth.shape
            assert (output.relative >= 0).all()
            assert (output.relative <= 1).all()
        if output.scale is not None:
            assert output.scale.shape == (count,)
            assert (output.scale > 0).all()
        if output.relative is not None and output.scale is not None:
            torch.testing.assert_close(depth, output.relative * output.scale[:, None, None, None])
        if output.bin_centers is not None:
            assert output.bin_centers.ndim == 2
            assert len(output.bin_centers) == count
            assert (output.bin_centers.diff(dim=1) > 0).all()
        if output.bin_probs is not None:
            assert output.bin_centers is not None
            assert output.bin_probs.shape == (count, output.bin_centers.shape[1], height, width)
            torch.testing.assert_close(output.bin_probs.sum(1), torch.ones(count, height, width))
        if output.scene_probs is not None:
            assert output.scene_probs.shape == (count, len(system.scenes))
            torch.testing.assert_close(output.scene_probs.sum(1), torch.ones(count))
        if output.std is not None:
            assert output.std.shape == depth.shape
            assert (output.std >= 0).all()
        if output.sigma is not None:
            assert output.sigma.shape == depth.shape
            assert output.sigma.isfinite().all()
            assert (output.sigma > 0).all()

    def test_the_registry_knows_it(self, system: System) -> None:
        entry = registry.entry(self.name)
        assert entry.system_class() is type(system)
        assert entry.summary
        assert entry.paper
        assert system.name == self.name
        assert system.scale_kind in ("metric", "relative")

    @pytest.mark.parametrize("shape", [1.0, 0.5, 3.0])
    @torch.no_grad()
    def test_outputs_keep_the_contract(self, system: System, shape: float) -> None:
        size = (self.image_size[0], round(self.image_size[1] * shape))
        for words in self.every_kind_of_words(system):
            self.check(system, system(self.images(system, size=size), **words), 2)

    @pytest.mark.parametrize("size", [(33, 47), (32, 160), (101, 32)])
    def test_any_image_size_comes_back_at_its_own_size(self, system: System, size: tuple[int, int]) -> None:
        with torch.inference_mode():
            output = infer(system, torch.rand(2, 3, *size), flip=True)
        assert output.depth.shape == (2, 1, *size)
        assert torch.isfinite(output.depth).all()
        assert (output.depth > 0).all()

    @torch.no_grad()
    def test_bytes_are_refused(self, system: System) -> None:
        """They would be taken for a picture 255 times as bright."""
        with pytest.raises(UsageError, match="divide bytes by 255"):
            system((255 * self.images(system)).to(torch.uint8))

    def test_a_batch_is_its_images_one_by_one(self, system: System) -> None:
        image = self.images(system)
        for words in self.every_kind_of_words(system):
            together = system(image, **words)
            for i in range(2):
                alone = system(image[i : i + 1], **{key: value[i : i + 1] for key, value in words.items()})
                for field in fields(DepthOutput):
                    one, other = getattr(together, field.name), getattr(alone, field.name)
                    if one is not None:
                        torch.testing.assert_close(one[i : i + 1], other, rtol=1e-4, atol=1e-5)

    @torch.no_grad()
    def test_prediction_is_not_random_and_leaves_its_input_alone(self, system: System) -> None:
        image = self.images(system)
        before = image.clone()
        for words in self.every_kind_of_words(system):
            first = system(image, **words).depth
            state = torch.manual_seed(99).get_state()
            assert torch.equal(first, system(image, **words).depth)
            assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(image, before)

    def test_bfloat16_is_close_to_float32_and_leaves_no_trace(self, system: System) -> None:
        image = self.images(system)
        for words in self.every_kind_of_words(system):
            with torch.inference_mode():
                full = copy.deepcopy(system)(image, **words)
                with torch.autocast("cpu", torch.bfloat16):
                    mixed = system(image, **words)
                self.check(system, mixed, 2)
                assert ((mixed.depth - full.depth).abs() / full.depth).mean() < self.bf16_tolerance
                assert torch.equal(system(image, **words).depth, full.depth)

    def test_the_inference_copy_gives_the_same_and_follows_every_change(self, system: System) -> None:
        image = self.images(system)
        torch.manual_seed(1)
        for _ in range(2):
            with torch.no_grad():
                for module in system.modules():
                    if isinstance(module, nn.BatchNorm2d):  # as after training
                        for name in ("running_mean", "running_var", "weight", "bias"):
                            getattr(module, name).add_(0.2 * torch.rand(module.num_features))
            twin = system.inference_copy()
            assert twin is system.inference_copy()
            assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
            with torch.no_grad():
                torch.testing.assert_close(twin(image).depth, system(image).depth, rtol=1e-3, atol=1e-4)
            system.load_state_dict({key: value.clone() for key, value in system.state_dict().items()})
            assert system.inference_copy() is not twin

    def test_it_can_be_pickled(self, system: System) -> None:
        """As for other processes, which get systems so."""
        image = self.images(system)
        system.inference_copy()
        again = pickle.loads(pickle.dumps(system))
        with torch.no_grad():
            assert torch.equal(again(image).depth, system(image).depth)

    def test_flip_averaging_is_the_mean_with_the_mirrored_image(self, system: System) -> None:
        image = self.images(system)
        for words in self.every_kind_of_words(system):
            averaged = infer(system, image, **words, flip=True).depth
            with torch.no_grad():
                mirrored = system(image.flip(-1), **words).depth.flip(-1)
                expected = (system(image, **words).depth + mirrored) / 2
            torch.testing.assert_close(averaged, self.enlarged(expected, image.shape[-2:]), rtol=1e-4, atol=1e-5)

    def enlarged(self, depth: Tensor, size: Sequence[int]) -> Tensor:
        """As the authors enlarge it."""
        aligned = self.enlarge == "bilinear-aligned"
        return nn.functional.interpolate(depth, size=tuple(size), mode="bilinear", align_corners=aligned)

    @pytest.mark.parametrize("larger", [1, 2])
    def test_prediction_is_forward_and_the_authors_enlargement(self, system: System, larger: int) -> None:
        """Also in evaluation, under a protocol that leaves it to the system."""
        height, width = (larger * side for side in system.input_spec.network_size(*self.image_size))
        image = (255 * torch.rand(1, 3, height, width)).byte()
        with torch.no_grad():
            inside = to_network_size(system, image)
            inside = inside if inside.is_floating_point() else inside / 255
            expected = self.enlarged(system(inside).depth, (height, width))[0, 0]
        result = system.predict(image[0].permute(1, 2, 0).numpy())
        assert isinstance(result, DepthResult)
        torch.testing.assert_close(torch.from_numpy(result.depth), expected, rtol=1e-4, atol=1e-5)
        known = torch.ones(1, height, width)
        sample = Sample(image=image[0], depth=known, mask=known > 0)
        evaluated = evaluate_batch(system, [sample], protocols.get("full")).prediction[0, 0]
        torch.testing.assert_close(evaluated, expected.clamp(min=0.001), rtol=1e-4, atol=1e-5)

    # Words

    def test_words_change_the_depth_of_their_own_image_only(self, system: System) -> None:
        image = self.images(system, 1).expand(2, -1, -1, -1)
        for words in self.every_kind_of_words(system):
            swapped = {key: value[[1, 0]] if isinstance(value, Tensor) else value[::-1] for key, value in words.items()}
            with torch.no_grad():
                depth, depth_swapped = system(image, **words).depth, system(image, **swapped).depth
            different = bool((depth[0] - depth[1]).abs().max() > 1e-5)
            assert different == bool(words)
            torch.testing.assert_close(depth.flip(0), depth_swapped)

    def test_a_text_matrix_of_the_wrong_shape_is_refused(self, system: System) -> None:
        if self.text_columns is None:
            pytest.skip("takes no text matrix")
        for shape in ((2, self.text_columns + 1), (3, self.text_columns), (self.text_columns,)):
            with pytest.raises(UsageError):
                system(self.images(system), text=torch.zeros(shape))

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_words_for_another_number_of_images_are_refused(self, system: System, count: int) -> None:
        if self.sentences is None and not system.scenes:
            pytest.skip("takes no words")
        if self.sentences is not None:
            with pytest.raises(UsageError):
                system(self.images(system), text=[self.sentences[0]] * count)
        if system.scenes:
            with pytest.raises(UsageError):
                system(self.images(system), scene=[system.scenes[0]] * count)

    def test_unknown_scenes_name_the_nearest(self, system: System) -> None:
        known = system.scenes[0] if system.scenes else SCENES[0]
        with pytest.raises(UsageError, match=f"did you mean '{known}'" if system.scenes else "scene"):
            system(self.images(system), scene=[known, known + "x"])

    def test_text_and_scene_together_are_refused(self, system: System) -> None:
        if self.sentences is None or not system.scenes:
            pytest.skip("takes at most one of them")
        with pytest.raises(UsageError, match="not both"):
            system(self.images(system), text=list(self.sentences), scene=list(system.scenes[:2]))

    # Files

    def test_saving_and_loading_changes_nothing(self, system: System, tmp_path: Path) -> None:
        path = system.save(tmp_path / "weights.safetensors")
        loaded = checkpoint.load(path)
        assert type(loaded) is type(system)
        assert loaded.name == self.name
        assert loaded.config == system.config
        assert not any(module.training for module in loaded.modules())
        image = self.images(system)
        for words in self.every_kind_of_words(system):
            with torch.inference_mode():
                before, after = system(image, **words), loaded(image, **words)
            for field in fields(DepthOutput):
                one, other = getattr(before, field.name), getattr(after, field.name)
                assert (one is None) == (other is None)
                assert one is None or torch.equal(one, other)

    def test_the_config_survives_plain_data(self, system: System) -> None:
        assert from_mapping(type(system).Config, to_mapping(system.config)) == system.config
        option = next(iter(to_mapping(system.config)))
        with pytest.raises(UsageError, match=rf"^unknown key 'system\.options\.{option}x': did you mean '{option}'\?$"):
            registry.build(self.name, {option + "x": 1})

    @pytest.fixture
    def attention_without_shortcut(self) -> Iterator[None]:
        """PyTorch's inference path through attention rounds in another way, and is not what is exported."""
        torch.backends.mha.set_fastpath_enabled(False)
        yield
        torch.backends.mha.set_fastpath_enabled(True)

    @pytest.mark.usefixtures("attention_without_shortcut")
    def test_torch_export_gives_the_same_depth(self, system: System) -> None:
        class DepthOnly(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.system = system

            def forward(self, image: Tensor, text: Tensor | None = None) -> Tensor:
                depth: Tensor = self.system(image, text).depth
                return depth

        text: tuple[Tensor, ...] = () if self.text_columns is None else (self.text_matrix(),)
        with torch.no_grad():
            program = torch.export.export(DepthOnly().eval(), (self.images(system), *text))
            image = self.images(system)
            text = tuple(t.flip(0) for t in text)
            torch.testing.assert_close(program.module()(image, *text), system(image, *text).depth)

    @torch.no_grad()
    def test_an_onnx_graph_gives_the_same_depth(self, system: System, tmp_path: Path) -> None:
        """For all kinds of words; where one graph is for all sizes, for shapes that it was not traced with."""
        if not system.exports:
            with pytest.raises(UsageError, match="cannot be exported"):
                network_graph(system)
            return
        size = None if self.graph_of_any_size else system.input_spec.network_size(*self.image_size)
        graph = network_graph(system, size)
        (tmp_path / "graph.onnx").write_bytes(graph.SerializeToString())
        require_sound(tmp_path / "graph.onnx")  # as loading it asks
        run = session(graph)
        shapes = (self.image_size, (2 * self.image_size[1], self.image_size[0])) if size is None else (self.image_size,)
        for count, shape in itertools.product((1, 3), shapes):
            image = self.images(system, count, shape)
            overlay = {"overlay": torch.rand_like(image)} if system.takes_overlay else {}
            known: list[Words] = [{}]
            if "scene" in system.graph_inputs():
                known.append({"scene": torch.full((count,), len(system.scenes) - 1)})
            if "text" in system.graph_inputs() and self.text_columns is not None:
                known.append({"text": self.text_matrix(count)})
            for words in known:
                assert compare(run, system, image, **words, **overlay)[0] < 1e-4

    # Training

    def test_gradients_reach_every_trainable_parameter(self, system: System) -> None:
        system.train()
        losses = system.loss(self.batch(system))
        assert all(value.ndim == 0 for value in losses.values())
        losses["total"].backward()
        trainable = {name: p for name, p in system.named_parameters() if p.requires_grad}
        assert trainable
        without = [name for name, p in trainable.items() if p.grad is None or not (p.grad != 0).any()]
        assert without == []
        assert [name for name, p in trainable.items() if not torch.isfinite(p.grad).all()] == []  # type: ignore[arg-type]

    def test_every_trainable_parameter_is_in_one_group(self, system: System) -> None:
        groups = list(system.parameter_groups(lr=0.1, weight_decay=0.01))
        found = [id(p) for group in groups for p in group["params"]]
        assert len(found) == len(set(found))
        assert set(found) == {id(p) for p in system.parameters() if p.requires_grad}
        assert all(0 < group["lr"] <= 0.1 for group in groups)
        decayed = [p for group in groups if group["weight_decay"] > 0 for p in group["params"]]
        assert all(p.ndim > 1 for p in decayed)

    @pytest.mark.parametrize(
        ("known", "scenes"),
        [(1.0, (-1, -1, -1, -1)), (0.02, (-1, 6, -1, -1)), (0.0, (0, 6, 8, 27)), (0.0, (-1, -1, -1, -1))],
    )
    def test_the_loss_is_finite_whatever_is_unknown(
        self, system: System, known: float, scenes: tuple[int, ...]
    ) -> None:
        system.train()
        losses = system.loss(self.batch(system, known, scenes))
        assert all(torch.isfinite(value) for value in losses.values())
        if losses["total"].requires_grad:
            losses["total"].backward()
        gradients = [p.grad for p in system.parameters() if p.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)

    def test_depth_behind_the_mask_never_matters(self, system: System) -> None:
        batch = self.batch(system, known=0.5)
        spoilt = replace(batch, depth=torch.where(batch.mask, batch.depth, 77.0))
        totals = []
        for b in (batch, spoilt):
            torch.manual_seed(2)
            totals.append(system.loss(b)["total"].item())
        assert totals[0] == totals[1]

    def test_a_few_steps_lower_the_loss(self, system: System) -> None:
        batch = self.batch(system)
        totals = totals_of_steps(system, batch, lr=1e-3, weight_decay=0.0, steps=6)
        assert totals[-1] < totals[0]

    # A trunk that does not learn

    def test_known_features_take_the_place_of_the_trunk(self, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
        frozen = system.frozen_trunk() if isinstance(system, HasFrozenTrunk) else None
        if frozen is None:
            pytest.skip("has no frozen trunk")
        trunk, _ = frozen
        assert not any(p.requires_grad for p in trunk.parameters())
        batch = self.batch(system)
        with torch.no_grad():
            known = replace(batch, features=system.frozen_features(batch.image))
            if system.learns_from_mirror:
                known = replace(known, mirror_features=system.frozen_features(batch.image.flip(-1)))
        system.train()
        torch.manual_seed(2)
        expected = copy.deepcopy(system).loss(batch)
        for module in trunk.modules():  # nothing of it runs
            for name in ("forward", "pyramid", "dense_and_embedding"):
                monkeypatch.setattr(module, name, None, raising=False)
        torch.manual_seed(2)
        found = system.loss(known)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        found["total"].backward()
        assert all(p.grad is not None for p in system.parameters() if p.requires_grad)
