"""BatchNorm, ReLU and sum as part of convolutions: the same numbers in eval mode, with less work."""

from __future__ import annotations

import copy
import platform
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init
from torch.nn.utils.fusion import fuse_conv_bn_eval

Module = TypeVar("Module", bound=nn.Module)


def folded(module: Module) -> Module:
    """A copy in eval mode in which every BatchNorm directly after a convolution is part of that convolution.

    "After" means the next child of the same parent, which is how networks are written that run their children in order;
    the systems' shared tests compare both. A module's method ``fold`` does what else it can, without writing to its
    tensors. All other tensors are shared with ``module``, not copied.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, shared).eval()
    for parent in list(twin.modules()):
        _fold_children(parent)
        fold = getattr(parent, "fold", None)
        if fold is not None:
            fold()
    return twin


def _fold_children(parent: nn.Module) -> None:
    before: tuple[str, nn.Module] | None = None
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None and isinstance(before[1], nn.Conv2d):
            fused = fuse_conv_bn_eval(before[1], child).requires_grad_(False)
            setattr(parent, before[0], fused.to(memory_format=torch.channels_last))
            setattr(parent, name, getattr(child, "act", nn.Identity()))  # timm's BatchNorm has its activation inside
        before = name, child


def conv_norm_relu(conv: nn.Conv2d, norm: nn.Module, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """ReLU(norm(conv(x)) + shortcut), (B, C, H, W); ``shortcut`` may be overwritten.

    A folded ``conv`` does it in one pass over memory where oneDNN can: on x86 CPUs in float32, without gradients.
    """
    if isinstance(norm, nn.Identity) and _is_plain_float32(x) and _onednn_fuses():
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


@lru_cache(maxsize=1)
@torch.no_grad()
def _onednn_fuses() -> bool:
    """Found out by trying: the operators are those of torch.compile, which torch does not promise to keep."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    conv = skip_init(nn.Conv2d, 8, 8, 3, padding=1)
    for tensor in conv.parameters():
        tensor.copy_(torch.linspace(-1, 1, tensor.numel()).view_as(tensor))
    x = torch.linspace(-1, 1, 240).view(1, 8, 5, 6)
    try:
        found = _fused(conv, _fused(conv, x, None), x.clone())
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(found, (conv(conv(x).relu()) + x).relu(), rtol=1e-4, atol=1e-4)


def fingerprint(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes whenever a tensor of the module is replaced, moved or written to."""
    tensors = (*module.parameters(), *module.buffers())
    return tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)
