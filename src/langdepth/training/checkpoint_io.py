"""How Lightning's checkpoints reach the disk."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class PlainCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to the path it is given and nowhere else.

    Lightning's own first fills a file in the system's folder for temporary files: a second disk, which may be smaller
    and full, and where a killed run leaves a whole checkpoint that nobody finds. Whoever needs the file complete or not
    at all gives a temporary path (``utils.files.atomic_path``).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint``. Raises OSError where the disk refuses."""
        with open(path, "wb") as file:  # torch names no reason when it opens the file itself
            torch.save(checkpoint, file)
