"""What systems share to follow their authors' programs: tensors under our names, and ``reference_exact``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def rename(
    state_dict: dict[str, Tensor], names: Mapping[str, str], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Tensors under our names by prefix (the first that fits), and the report.

    Its lists: "used" and "ignored", their names; "missing", ours.
    """
    tensors: dict[str, Tensor] = {}
    report: dict[str, list[str]] = {"used": [], "ignored": []}
    for key, value in state_dict.items():
        ours = next((new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)), None)
        if ours is None or ours not in own:
            report["ignored"].append(key)
        else:
            report["used"].append(key)
            tensors[ours] = value
    return tensors, {**report, "missing": [key for key in own if key not in tensors]}


def set_quirks(config: Any) -> None:
    """With ``reference_exact``, every option that the class lists in QUIRKS gets the value it has there."""
    if config.reference_exact:
        for name, value in config.QUIRKS.items():
            object.__setattr__(config, name, value)
