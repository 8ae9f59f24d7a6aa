"""BatchNorm folded into convolutions."""

from __future__ import annotations

import torch
from torch import nn

from langdepth.backbones.clip import ClipImageTower
from langdepth.backbones.efficientnet_lite import EfficientNetLite
from langdepth.parts.folding import fingerprint, folded


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
    for encoder, run in ((lite, lambda net: net(image)[-1]), (clip, lambda net: net(image, "stage"))):
        assert count(encoder) > 5
        twin = folded(encoder)
        assert count(twin) == 0
        expected = run(encoder)
        torch.testing.assert_close(run(twin), expected, rtol=1e-4, atol=float(1e-5 * expected.abs().max()))
        assert count(encoder) > 5


def test_other_tensors_are_shared() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))
    twin = folded(net)
    assert twin[2].weight is net[2].weight
    assert twin[0].weight is not net[0].weight


def test_the_fingerprint_tells_every_change() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    seen = {fingerprint(net)}
    with torch.no_grad():
        net[0].weight.add_(1)
    seen.add(fingerprint(net))
    net.train()(torch.randn(2, 3, 4, 4))  # running statistics
    seen.add(fingerprint(net))
    net.load_state_dict(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).state_dict())
    seen.add(fingerprint(net))
    assert len(seen) == 4
    assert fingerprint(net) in seen
