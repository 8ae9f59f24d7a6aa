"""Where networks run."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from langdepth.errors import UsageError, first_line

Module = TypeVar("Module", bound=nn.Module)


def move(module: Module, device: str | torch.device | None) -> Module:
    """The module on ``device``; None leaves it where it is, "auto" takes an accelerator if there is one.

    Raises UsageError for a device that cannot be used here.
    """
    if device is None:
        return module
    if device == "auto":
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        return module.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # no such device, torch built without it
        raise UsageError(f"device '{device}' cannot be used here: {first_line(error)}") from None
