"""BatchNorm folded into convolutions: the same numbers in eval mode, with less work."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Module = TypeVar("Module", bound=nn.Module)


def folded(module: Module) -> Module:
    """A copy in eval mode in which every BatchNorm directly after a convolution is part of that convolution.

    "After" means the next child of the same parent, which is how networks are written that run their children in order;
    the systems' shared tests compare both. All other tensors are shared with ``module``, not copied.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, shared).eval()
    for parent in list(twin.modules()):
        _fold_children(parent)
    return twin


def _fold_children(parent: nn.Module) -> None:
    before: tuple[str, nn.Module] | None = None
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None and isinstance(before[1], nn.Conv2d):
            fused = fuse_conv_bn_eval(before[1], child).requires_grad_(False)
            setattr(parent, before[0], fused.to(memory_format=torch.channels_last))
            setattr(parent, name, getattr(child, "act", nn.Identity()))  # timm's BatchNorm has its activation inside
        before = name, child


def fingerprint(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes whenever a tensor of the module is replaced, moved or written to."""
    tensors = (*module.parameters(), *module.buffers())
    return tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)
