"""`depthclip`, `depthclip-vit`: depth without any training from CLIP and seven words (DepthCLIP, arXiv 2207.01077).

Data flow (published size; RN50)

    image (B, 3, 416, 544) -> last stage of CLIP's ResNet, no attention pool -> (B, 2048, 13, 17)
    each cell to length 1, every second channel kept -> (B, 1024, 13, 17)
    "This object is giant", "... extremely close", ... -> text matrix (7, 1024)
    1000 x similarity -> softmax over the words -> probs (B, 7, 13, 17)
    sum of probs x (1, 1.5, 2, 2.25, 2.5, 2.75, 3 m) -> bilinear, corners aligned -> depth (B, 1, 416, 544)

`depthclip-vit` is the same with ViT-B/16: all patch tokens through the last norm and the projection, 26 x 34 cells.
The method is in systems/clip_system.py (words, features, their matrix) and parts/word_bins.py (words to depth).
Published: average with the mirrored image (``flip``). Specification and numbers: docs/systems/depthclip.md.
"""

from __future__ import annotations

from torch import Tensor

from langdepth.parts.word_bins import words_output
from langdepth.records import DepthOutput
from langdepth.systems.capabilities import ConvertsOfficial, Scene, Text
from langdepth.systems.clip_system import ClipSystem


class DepthClip(ClipSystem, ConvertsOfficial):
    """Zero-shot: CLIP weights are all it needs. ``text``: a (K, D) matrix instead of the words' features."""

    zero_shot = True

    def forward(self, image: Tensor, text: Text = None, scene: Scene = None) -> DepthOutput:
        matrix, centers = self.words(image.shape[0], text, scene)
        found = self.word_bins(self.dense(image), matrix, centers)
        return words_output(found.probs, centers, image.shape[-2:])
