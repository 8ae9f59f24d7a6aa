"""Where networks run."""

from __future__ import annotations

import os
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from langdepth.errors import ShortMemoryError, UsageError, is_memory_error

Module = TypeVar("Module", bound=nn.Module)

# Whoever forks after torch has used its threads has a child without them, which would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def move(module: Module, device: str | torch.device | None) -> Module:
    """The module on ``device``; None leaves it where it is, "auto" takes an accelerator if there is one.

    Raises UsageError for a device that cannot be used here; the module then stays where it was.
    """
    if device is None:
        return module
    if device == "auto":
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()  # a device without content, such as "meta", would take the tensors away
        if device.type == "cpu" and device.index:  # torch takes any number for its only one
            raise RuntimeError
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ImportError):
        known = torch.accelerator.current_accelerator(check_available=True)
        usable = "cpu" if known is None else f"cpu and {known}"
        raise UsageError(f"device '{device}' cannot be used here; there is {usable}") from None
    before = next((tensor.device for tensor in module.state_dict(keep_vars=True).values()), None)
    try:
        return module.to(device)
    except RuntimeError as error:  # not enough memory, and a part of the tensors has moved
        module.to(before)
        if is_memory_error(error):
            raise ShortMemoryError(f"device '{device}': not enough memory for the network") from None
        raise
