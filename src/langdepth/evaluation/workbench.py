"""The prompt workbench: what a prompt set gives on an image, word by word.

Data flow: image -> cells of the CLIP tower -> similarity to every word -> probabilities -> depth; then the same with
one word swapped for another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from langdepth.errors import UsageError, nearest
from langdepth.prediction import viz
from langdepth.prediction.network import to_network_size
from langdepth.prediction.options import COLORMAP, ColorScale
from langdepth.systems.base import System
from langdepth.systems.clip_system import ClipSystem
from langdepth.text.scenes import scene_index
from langdepth.utils.files import atomic_path, require_marked
from langdepth.utils.images import read_image
from langdepth.utils.png import PNG_TAG, write_own_png

CELL_WIDTH = 320
LINE = 22
COLUMNS = 4


@dataclass(frozen=True, kw_only=True)
class WordMaps:
    """What the words give on one image, at the size of the feature map (h, w).

    similarity: (K, h, w), the logits divided by their scale: cosines where cells and words have length 1.
    probability: (K, h, w), sum 1 over the words. depth: (h, w) metres. image: (H, W, 3) uint8, the whole image.
    """

    words: tuple[str, ...]
    bin_centers: tuple[float, ...]
    similarity: npt.NDArray[np.float32]
    probability: npt.NDArray[np.float32]
    depth: npt.NDArray[np.float32]
    image: npt.NDArray[np.uint8]

    def table(self) -> list[str]:
        """Lines: every word with its distance, mean similarity, mean probability and the share of cells it wins."""
        winner = self.probability.argmax(0)
        width = max(map(len, self.words))
        lines = [f"{'word':<{width}}  {'bin':>7}  similarity  probability  wins"]
        for index, (word, center) in enumerate(zip(self.words, self.bin_centers, strict=True)):
            lines.append(
                f"{word:<{width}}  {center:5.2f} m  {self.similarity[index].mean():10.4f}  "
                f"{self.probability[index].mean():11.3f}  {(winner == index).mean():4.0%}"
            )
        return lines


def with_words(system: System) -> ClipSystem:
    """The system, if it compares images with distance words. Raises UsageError for others."""
    if not isinstance(system, ClipSystem):
        raise UsageError(f"the system '{system.name}' does not compare with distance words; take one such as depthclip")
    return system


class EncodedImage(NamedTuple):
    """An image (H, W, 3) uint8 and its cell features (1, C, h, w), which do not depend on the words."""

    image: npt.NDArray[np.uint8]
    features: Tensor


@torch.inference_mode()
def encode_image(system: ClipSystem, source: Any) -> EncodedImage:
    """Decode one image (anything ``langdepth.utils.images.read_image`` takes) and run the image tower on it."""
    image = read_image(source).pixels
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(system.device) / 255
    return EncodedImage(image, system.dense(to_network_size(system, pixels)))


@torch.inference_mode()
def word_maps(system: ClipSystem, encoded: EncodedImage, scene: str | None = None) -> WordMaps:
    """The present words of ``system`` on an image that it has encoded."""
    found = system.compare(encoded.features, scene=None if scene is None else [scene])
    row = 0 if scene is None else 1 + scene_index(scene, system.scenes)
    words, centers = system.config.prompts.variants()[row]
    return WordMaps(
        words=words,
        bin_centers=centers,
        similarity=(found.logits[0] / system.config.logit_scale).float().cpu().numpy(),
        probability=found.probs[0].float().cpu().numpy(),
        depth=found.depth[0, 0].float().cpu().numpy(),
        image=encoded.image,
    )


def swapped(words: Sequence[str], swap: str) -> dict[str, Any]:
    """The change of a prompt set that "old=new" asks for. Raises UsageError when there is no such word."""
    old, equals, new = (part.strip() for part in swap.partition("="))
    if not equals or not new:
        raise UsageError(f"--swap: expected a word and its replacement, for example far=distant; got '{swap}'")
    if old not in words:
        raise UsageError(f"--swap: no word '{old}': {nearest(old, words)}")
    return {"words": [new if word == old else word for word in words]}


def difference(before: WordMaps, after: WordMaps) -> str:
    """One line: how the depth changes from one set of words to another."""
    change = after.depth - before.depth
    return (
        f"mean {before.depth.mean():.3f} -> {after.depth.mean():.3f} m, changed by {np.abs(change).mean():.3f} m on "
        f"average, {change.min():+.3f} to {change.max():+.3f} m"
    )


def similarity_sheet(maps: WordMaps, swaps: Mapping[str, WordMaps]) -> npt.NDArray[np.uint8]:
    """Image, depth, one similarity map per word, and the depth after each swap, as one RGB image.

    All similarities share one range of colors, and so do all depths; bright is high similarity, and near.
    """
    height = round(CELL_WIDTH * maps.image.shape[0] / maps.image.shape[1])
    size = (height, CELL_WIDTH)
    photo = np.asarray(Image.fromarray(maps.image).resize(size[::-1], Image.Resampling.BOX))
    depths = [maps.depth, *(other.depth for other in swaps.values())]
    near, far = viz.robust_range(np.concatenate([depth.ravel() for depth in depths])[None])
    low, high = float(maps.similarity.min()), float(maps.similarity.max())

    def shown(values: npt.NDArray[np.float32], start: float, end: float, colormap: str) -> npt.NDArray[np.uint8]:
        # colorize takes distances above 0; similarities are moved there
        grid = np.asarray(Image.fromarray(values - start + 1).resize(size[::-1], Image.Resampling.NEAREST))
        colors = ColorScale(minimum=1.0, maximum=1.0 + max(end - start, 1e-6), colormap=colormap)
        return viz.colorize(grid, None, colors)

    cells = [("image", photo), (f"depth {near:.2f} to {far:.2f} m", shown(maps.depth, near, far, COLORMAP))]
    cells += [
        (f"{word} ({center:g} m)", shown(similarity, low, high, "viridis"))
        for word, center, similarity in zip(maps.words, maps.bin_centers, maps.similarity, strict=True)
    ]
    cells += [(f"depth, {swap}", shown(other.depth, near, far, COLORMAP)) for swap, other in swaps.items()]
    titled = [np.concatenate([viz.text_strip(CELL_WIDTH, {0: name}, LINE), cell]) for name, cell in cells]
    blank = np.full_like(titled[0], 255)
    titled += [blank] * (-len(titled) % COLUMNS)
    rows = [np.concatenate(titled[start : start + COLUMNS], 1) for start in range(0, len(titled), COLUMNS)]
    return np.concatenate(rows)


def files_of(folder: str | Path, stem: str) -> tuple[Path, Path]:
    """Where ``write_workbench`` writes. Raises LangdepthError where it would replace a file of somebody else."""
    sheet, arrays = Path(folder, f"{stem}_words.png"), Path(folder, f"{stem}_words.npz")
    require_marked(sheet, PNG_TAG.encode())
    require_marked(arrays, b"bin_centers.npy")
    return sheet, arrays


def write_workbench(maps: WordMaps, swaps: Mapping[str, WordMaps], folder: str | Path, stem: str) -> list[Path]:
    """``<stem>_words.png`` (the sheet) and ``<stem>_words.npz`` (the arrays of ``WordMaps``); returns both paths."""
    sheet, arrays = files_of(folder, stem)
    with atomic_path(sheet) as temporary, open(temporary, "wb") as file:
        write_own_png(file, similarity_sheet(maps, swaps), kind="sheet")
    with atomic_path(arrays) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            words=maps.words,
            bin_centers=maps.bin_centers,
            similarity=maps.similarity,
            probability=maps.probability,
            depth=maps.depth,
        )
    return [sheet, arrays]
