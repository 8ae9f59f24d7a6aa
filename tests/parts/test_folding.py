"""Norms, activations and sums as part of convolutions and linear layers."""

from __future__ import annotations

import platform
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from langdepth.backbones.clip import ClipImageTower
from langdepth.backbones.efficientnet_lite import EfficientNetLite
from langdepth.parts import folding
from langdepth.parts.folding import InferenceLinear, conv_norm_relu, folded, tensor_versions


def disturbed(module: nn.Module) -> nn.Module:
    """BatchNorm as after training: no statistic or weight is 0 or 1."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.running_mean, part.running_var, part.weight, part.bias):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5)
    return module.eval()


def count(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@torch.no_grad()
def test_encoders_give_the_same_maps_without_any_batch_norm() -> None:
    image = torch.randn(1, 3, 64, 96)
    lite, clip = disturbed(EfficientNetLite(0)), disturbed(ClipImageTower("RN-small", quick_gelu=True))
    for encoder, run in ((lite, lambda net: net(image)), (clip, lambda net: net.pyramid(image))):
        assert count(encoder) > 5
        twin = folded(encoder)
        assert count(twin) == 0
        for found, expected in zip(run(twin), run(encoder), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=float(1e-5 * expected.abs().max()))
        assert count(encoder) > 5


def fusable() -> tuple[nn.Conv2d, nn.Module, Tensor, Tensor]:
    """A folded convolution, and its input and a shortcut."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, padding=1).requires_grad_(False)
    return conv, nn.Identity(), torch.randn(2, 4, 7, 5), torch.randn(2, 8, 7, 5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sum_and_relu_are_the_same_inside_and_outside_the_convolution(layout: torch.memory_format) -> None:
    conv, norm, x, shortcut = fusable()
    expected = [conv(x).relu(), (conv(x) + shortcut).relu()]
    x, shortcut = x.to(memory_format=layout), shortcut.to(memory_format=layout)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            found = [conv_norm_relu(conv, norm, x), conv_norm_relu(conv, norm, x, shortcut.clone())]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_autocast_and_export_take_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, norm, x, _ = fusable()
    fused: list[Tensor] = []
    monkeypatch.setattr(folding, "_onednn_fuses", lambda dtype: True)

    def fuse(conv: nn.Conv2d, x: Tensor, shortcut: Tensor | None) -> Tensor:
        fused.append(x)
        return x

    monkeypatch.setattr(folding, "_fused", fuse)

    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return conv_norm_relu(conv, norm, x)

    assert conv_norm_relu(conv, norm, x.requires_grad_()).requires_grad
    with torch.no_grad():
        conv_norm_relu(conv, nn.BatchNorm2d(8).eval(), x)
        conv_norm_relu(conv.double(), norm, x.double())
        conv.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert conv_norm_relu(conv, norm, x).dtype == torch.bfloat16
        torch.export.export(Block(), (x.detach(),))
        assert not fused
        conv_norm_relu(conv, norm, x)
    assert len(fused) == 1


FUSES = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()


@pytest.mark.skipif(not FUSES, reason="oneDNN fuses on x86 CPUs only")
def test_the_quick_way_is_taken_and_the_plain_way_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else "fused equals plain" would compare plain with plain."""
    calls: list[str] = []
    for name in ("_fused", "_fused_linear"):
        operator = getattr(folding, name)
        monkeypatch.setattr(
            folding, name, lambda *rest, name=name, operator=operator: (calls.append(name), operator(*rest))[1]
        )
    assert folding._onednn_fuses(torch.float32)
    calls.clear()
    conv, norm, x, shortcut = fusable()
    linear = folded(layers(nn.GELU()))
    inputs = torch.randn(2, 6)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            quick = [conv_norm_relu(conv, norm, x), conv_norm_relu(conv, norm, x, shortcut.clone()), linear(inputs)]
        assert calls == ["_fused", "_fused", "_fused_linear", "_fused_linear"]  # layers() has two linear ones
        calls.clear()
    with torch.enable_grad():
        plain = [conv_norm_relu(conv, norm, x), conv_norm_relu(conv, norm, x, shortcut.clone()), linear(inputs)]
    assert calls == []
    torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not FUSES, reason="oneDNN fuses on x86 CPUs only")
def test_encoders_take_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP's blocks end in a sum and a ReLU, which become part of their convolutions."""
    calls: list[bool] = []
    operator = folding._fused
    monkeypatch.setattr(folding, "_fused", lambda *rest: (calls.append(rest[2] is not None), operator(*rest))[1])
    twin = folded(disturbed(ClipImageTower("RN-small", quick_gelu=True)))
    with torch.inference_mode():
        twin.pyramid(torch.randn(1, 3, 64, 96))
    assert len(calls) > 5
    assert any(calls)


@pytest.mark.parametrize("operator", ["_fused", "_fused_linear"])
def test_a_torch_without_the_operators_is_noticed(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(folding, operator, missing)
    folding._onednn_fuses.cache_clear()
    assert not folding._onednn_fuses(torch.float32)
    folding._onednn_fuses.cache_clear()


def layers(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), activation, nn.Linear(12, 4, bias=False), nn.LayerNorm(4)).eval()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU()])
def test_an_activation_is_the_same_inside_and_outside_a_linear_layer(activation: nn.Module) -> None:
    net = layers(activation)
    twin = folded(net)
    assert isinstance(twin[1], type(activation) if isinstance(activation, nn.SiLU) else nn.Identity)
    assert twin[0].weight is net[0].weight
    assert twin.state_dict().keys() == net.state_dict().keys()
    x = torch.randn(2, 5, 3, 6)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            for inputs in (x, x.transpose(1, 2), x[:0]):
                torch.testing.assert_close(twin(inputs), net(inputs), rtol=1e-5, atol=1e-5)
            with torch.autocast("cpu", torch.bfloat16):
                torch.testing.assert_close(twin(x).float(), net(x).float(), rtol=0.05, atol=0.05)
    exported = torch.export.export(twin, (x,)).module()
    torch.testing.assert_close(exported(x), net(x), rtol=1e-5, atol=1e-5)


def test_an_activation_is_only_taken_from_modules_that_run_in_order() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.activation = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.activation(self.first(x)))
            return y

    block, x = Block().eval(), torch.randn(3, 6)
    with torch.no_grad():
        torch.testing.assert_close(folded(block)(x), block(x), rtol=1e-5, atol=1e-6)


def test_weights_are_converted_once_for_autocast() -> None:
    layer = InferenceLinear(nn.Linear(6, 12))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 6)).dtype == torch.bfloat16
        kept = layer._converted
        layer(torch.randn(2, 6))
    assert layer._converted is kept
    with torch.inference_mode():
        assert layer(torch.randn(2, 6)).dtype == torch.float32


def test_other_tensors_are_shared() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))
    twin = folded(net)
    assert twin[2].weight is net[2].weight
    assert twin[0].weight is not net[0].weight


def test_tensor_versions_follow_every_change() -> None:
    net: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    seen = {tensor_versions(net)}
    with torch.no_grad():
        net[0].weight.add_(1)
    seen.add(tensor_versions(net))
    net.train()(torch.randn(2, 3, 4, 4))  # running statistics
    seen.add(tensor_versions(net))
    net.load_state_dict(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).state_dict())
    seen.add(tensor_versions(net))
    assert len(seen) == 4
    assert tensor_versions(net) in seen
