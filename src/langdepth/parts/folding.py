"""Norms, activations and sums as part of convolutions and linear layers: the same numbers in eval mode, less work."""

from __future__ import annotations

import copy
import platform
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init
from torch.nn.utils.fusion import fuse_conv_bn_eval

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def folded(module: AnyModule) -> AnyModule:
    """A copy in eval mode in which every BatchNorm directly after a convolution is part of that convolution.

    "After" means the next child of the same parent, as in networks that run their children in order;
    the systems' shared tests compare both. Linear layers become ``InferenceLinear``, with the activation that follows
    them in an ``nn.Sequential``. A module's method ``fold`` does what else it can, without writing to its tensors. All
    other tensors are shared with ``module``, not copied.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, shared).eval()
    for parent in list(twin.modules()):
        _fold_norms(parent)
        _replace_linear(parent)
        fold = getattr(parent, "fold", None)
        if fold is not None:
            fold()
    return twin


def _fold_norms(parent: nn.Module) -> None:
    before: tuple[str, nn.Module] | None = None
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None and isinstance(before[1], nn.Conv2d):
            fused = fuse_conv_bn_eval(before[1], child).requires_grad_(False)
            setattr(parent, before[0], fused.to(memory_format=torch.channels_last))
            setattr(parent, name, getattr(child, "act", nn.Identity()))  # timm's BatchNorm has its activation inside
        before = name, child


def _replace_linear(parent: nn.Module) -> None:
    names = [*parent._modules, ""]
    for name, after in pairwise(names):
        child, activation = parent._modules[name], parent._modules.get(after)
        if type(child) is not nn.Linear:
            continue
        if isinstance(parent, nn.Sequential) and isinstance(activation, nn.ReLU | nn.GELU):
            setattr(parent, name, InferenceLinear(child, activation))
            setattr(parent, after, nn.Identity())
        else:
            setattr(parent, name, InferenceLinear(child))


class InferenceLinear(nn.Linear):
    """``activation`` (nothing, ReLU or GELU) of ``linear``, whose tensors are shared; for prediction.

    oneDNN does both in one pass over memory where it can, on x86 CPUs without gradients. Under autocast, weights are
    converted once, not in every call, and kept.
    """

    def __init__(self, linear: nn.Linear, activation: nn.ReLU | nn.GELU | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.activation = activation or nn.Identity()
        self._converted: tuple[Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._plain(x, self.weight, self.bias)
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if torch.is_autocast_enabled(x.device.type):
            weight, bias = self._in(torch.get_autocast_dtype(x.device.type))
            x = x.to(weight.dtype)
        if x.device.type == "cpu" and x.dtype == weight.dtype and _onednn_fuses(x.dtype):
            return _fused_linear(x, weight, bias, self.activation)
        return self._plain(x, weight, bias)

    def _plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = self.activation(F.linear(x, weight, bias))
        return y

    def _in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        kept = self._converted
        if kept is None or (kept[0].dtype, kept[0].device) != (dtype, self.weight.device):
            kept = self.weight.detach().to(dtype), None if self.bias is None else self.bias.detach().to(dtype)
            self._converted = kept
        return kept


def conv_norm_relu(conv: nn.Conv2d, norm: nn.Module, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """ReLU(norm(conv(x)) + shortcut), (B, C, H, W); ``shortcut`` may be overwritten.

    A folded ``conv`` does it in one pass over memory where oneDNN can: on x86 CPUs in float32, without gradients.
    """
    if isinstance(norm, nn.Identity) and _is_plain_float32(x) and _onednn_fuses(x.dtype):
        return _fused(conv, x, shortcut)
    x = norm(conv(x))
    if shortcut is not None:
        x += shortcut
    return F.relu(x, inplace=True)


def _is_plain_float32(x: Tensor) -> bool:
    watched = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and x.dtype == torch.float32 and not watched


def _fused(conv: nn.Conv2d, x: Tensor, shortcut: Tensor | None) -> Tensor:
    arguments = (x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups)
    y: Tensor
    if shortcut is None:
        y = torch.ops.mkldnn._convolution_pointwise(*arguments, "relu", [], "")
    else:
        y = torch.ops.mkldnn._convolution_pointwise_.binary(shortcut, *arguments, "add", 1.0, "relu", [], "")
    return y


def _fused_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: nn.Module) -> Tensor:
    name, algorithm = "none", ""
    if isinstance(activation, nn.ReLU):
        name = "relu"
    elif isinstance(activation, nn.GELU):
        name, algorithm = "gelu", activation.approximate
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)
    return y


@lru_cache(maxsize=2)
@torch.no_grad()
@torch.autocast("cpu", enabled=False)
def _onednn_fuses(dtype: torch.dtype) -> bool:
    """Whether oneDNN has them, by trying: they are operators of torch.compile, which torch does not promise to keep."""
    if platform.machine() not in ("x86_64", "AMD64") or dtype not in (torch.float32, torch.bfloat16):
        return False
    conv, linear = skip_init(nn.Conv2d, 8, 8, 3, padding=1), skip_init(nn.Linear, 6, 8)
    for tensor in (*conv.parameters(), *linear.parameters()):
        tensor.copy_(torch.linspace(-1, 1, tensor.numel()).view_as(tensor))
    x = torch.linspace(-1, 1, 240).view(1, 8, 5, 6)
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        found = [_fused(conv, _fused(conv, x, None), x.clone())]
        inputs, weight, bias = x.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype)
        found += [_fused_linear(inputs, weight, bias, nn.GELU()).float()]
    except (AttributeError, RuntimeError, TypeError):
        return False
    expected = [(conv(conv(x).relu()) + x).relu(), F.gelu(linear(x))]
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(found, expected, strict=True))


def tensor_versions(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes whenever a tensor of the module is replaced, moved or written to."""
    tensors = (*module.parameters(), *module.buffers())
    return tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)
