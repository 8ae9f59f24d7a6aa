"""ConvNeXt (arXiv 2201.03545) as an encoder: timm's blocks under timm's names."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from langdepth.errors import CheckpointError, UsageError, first_line
from langdepth.parts.folding import InferenceLinear
from langdepth.utils.network import hub_or_cache

STRIDES = (4, 8, 16, 32)


class ConvNeXt(nn.Module):
    """Maps of a normalised image (B, 3, H, W) after each of the four stages, not normalised; weights are random.

    ``name``: timm's, with or without tag ("convnext_large", "convnext_large.fb_in22k"). ``drop_path``: share of dropped
    branches in the last block, rising from 0 in the first. Raises UsageError for a name that is no ConvNeXt.
    """

    def __init__(self, name: str, drop_path: float = 0.0) -> None:
        super().__init__()
        if not (name.startswith(("convnext", "test_convnext")) and timm.is_model(name)):
            raise UsageError(f"unknown ConvNeXt '{name}'; take a name of timm's, such as convnext_large")
        model: Any = timm.create_model(name, num_classes=0, drop_path_rate=drop_path)
        self.name = name
        self.stem: nn.Module = model.stem
        self.stages: Any = model.stages  # nn.Sequential
        self.channels: tuple[int, ...] = tuple(info["num_chs"] for info in model.feature_info)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Four maps, finest first: (B, channels[i], H // 4, W // 4) and so on, each side rounded down."""
        x = self.stem(image)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Keep only the blocks' inputs for the backward pass."""
        for stage in self.stages:
            stage.grad_checkpointing = on

    def fold(self) -> None:
        """Make the blocks' layer scales and activations part of the linear layers before them; for prediction only."""
        for block in (block for stage in self.stages for block in stage.blocks):
            last, scale = block.mlp.fc2, block.gamma.detach()
            weight = last.weight.detach() * scale.view(-1, *[1] * (last.weight.ndim - 1))
            last.weight = nn.Parameter(weight, requires_grad=False)
            last.bias = nn.Parameter(last.bias.detach() * scale, requires_grad=False)
            block.gamma = None
            block.mlp.fc1, block.mlp.act = InferenceLinear(block.mlp.fc1, nn.GELU()), nn.Identity()

    def load_pretrained(self, source: str | None = None) -> str:
        """Weights that timm publishes under this name; returns a line naming the source.

        ``source``: a ``.safetensors`` file with timm's names, None for timm's own download. Raises CheckpointError for
        weights that are not there or do not fit.
        """
        options: dict[str, Any] = {}
        if source is not None:
            if Path(source).suffix != ".safetensors":
                raise CheckpointError(f"{source}: weights of a ConvNeXt are read from .safetensors; give such a file")
            options["pretrained_cfg_overlay"] = {"file": source}
        try:
            with hub_or_cache() if source is None else nullcontext():
                model: Any = timm.create_model(self.name, num_classes=0, pretrained=True, **options)
        except Exception as error:  # timm's, the hub's and safetensors' errors are of many kinds
            raise CheckpointError(f"{source or 'hub'}: no weights of {self.name} found ({first_line(error)})") from None
        self.stem.load_state_dict(model.stem.state_dict())
        self.stages.load_state_dict(model.stages.state_dict())
        return f"timm {self.name}" if source is None else source
