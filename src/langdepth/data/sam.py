"""Pictures with their SAM masks drawn over: what `msa-sam` sees besides the photo.

The layout is that of the adapter paper's data: the photo ``train/kitchen/rgb_00045.jpg`` has its overlay in
``sam_out/train/kitchen/00045.jpg`` (spec: clip_adapters.md, section 6).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from langdepth.errors import CheckpointError, ImageError, LangdepthError, UsageError, first_line
from langdepth.io import read_image, visible
from langdepth.utils.files import atomic_path

if TYPE_CHECKING:
    import torch

OPACITY = 0.35  # as in SAM's demonstration notebook
ENCODER_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}

# A picture (H, W, 3) uint8 to its masks (N, H, W) bool.
MaskGenerator = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.bool_]]


def draw_masks(image: npt.NDArray[np.uint8], masks: npt.NDArray[np.bool_], seed: int = 0) -> npt.NDArray[np.uint8]:
    """The picture (H, W, 3) with ``masks`` (N, H, W) over it, translucent, each in a random colour; large ones first.

    Raises ImageError when sizes differ.
    """
    if masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        raise ImageError(f"masks of shape {masks.shape} do not fit a picture of {image.shape[1]}x{image.shape[0]}")
    generator = np.random.default_rng(seed)
    colours = np.zeros((*image.shape[:2], 3), np.float32)
    covered = np.zeros(image.shape[:2], bool)
    for index in np.argsort(-masks.sum((1, 2)), kind="stable"):
        colours[masks[index]] = 255 * generator.random(3, np.float32)
        covered |= masks[index]
    blended = image * (1 - OPACITY) + colours * OPACITY
    return np.where(covered[..., None], blended.round(), image).astype(np.uint8)


def read_overlay(source: Any, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The overlay of the photo ``image`` (H, W, 3): a picture, brought to the photo's size, or masks to be drawn.

    ``source``: anything ``langdepth.io.read_image`` takes, or an ``.npz`` file with the array ``masks`` (N, H, W).
    Raises ImageError.
    """
    if not isinstance(source, str | Path) or Path(source).suffix != ".npz":
        from PIL import Image

        overlay = Image.fromarray(read_image(source).pixels)
        return np.asarray(overlay.resize((image.shape[1], image.shape[0])))  # Pillow's default, as published
    path = Path(source)
    try:
        with np.load(path, allow_pickle=False) as file:
            masks = file["masks"].astype(bool)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Exception as error:  # a damaged archive raises OSError, ValueError, KeyError, BadZipFile, zlib.error ...
        raise ImageError(f"{path}: not a file of masks ({error}); needed is the array masks (N, H, W)") from None
    try:
        return draw_masks(image, masks, _seed(path.stem))
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def load_sam(weights: str | Path, device: str | torch.device | None = None, **options: Any) -> MaskGenerator:
    """SAM's automatic mask generator (package ``segment-anything``) with the published weights ``weights``.

    The model's size follows from the weights. ``options``: those of ``SamAutomaticMaskGenerator``. Raises UsageError
    when the package is missing, CheckpointError for a file that is not SAM's.
    """
    import torch

    from langdepth.devices import move

    try:
        from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
    except ImportError:
        raise UsageError("SAM needs the package segment-anything: pip install 'langdepth[sam]'") from None
    if not Path(weights).is_file():
        raise CheckpointError(f"{weights}: no such file; SAM's weights are published as sam_vit_b, _l and _h")
    try:
        tensors = torch.load(weights, map_location="cpu", weights_only=True)
        model = sam_model_registry[ENCODER_WIDTHS[tensors["image_encoder.pos_embed"].shape[-1]]]()
        model.load_state_dict(tensors)
    except Exception as error:  # unpicklers raise almost anything for a damaged file
        raise CheckpointError(f"{weights}: not SAM's weights ({first_line(error)})") from None
    return masks_of(SamAutomaticMaskGenerator(move(model, device), **options))


def masks_of(generator: Any) -> MaskGenerator:
    """A ``SamAutomaticMaskGenerator`` as a function from picture to masks."""

    def masks(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        found = [record["segmentation"] for record in generator.generate(image)]
        return np.stack(found) if found else np.zeros((0, *image.shape[:2]), bool)

    return masks


def overlay_path(photo: Path, out: Path) -> Path:
    """Where the overlay of ``photo`` (relative to the data's root) lies below ``out``."""
    return out / photo.parent / f"{photo.stem.removeprefix('rgb_')}.jpg"


def find_overlay(photo: Path, folder: Path) -> Path:
    """The overlay of ``photo`` (relative to its own folder) below ``folder``, as a picture or masks.

    It has the published name (see ``overlay_path``) or the photo's own; if none exists, the published one comes back.
    """
    published = overlay_path(photo, folder)
    names = (path.with_suffix(suffix) for path in (published, folder / photo) for suffix in (".jpg", ".png", ".npz"))
    return next((name for name in (*names, folder / photo) if name.is_file()), published)


def write_overlays(
    root: str | Path, out: str | Path, generate: MaskGenerator, *, pattern: str = "**/*.jpg", resume: bool = False
) -> Iterator[Path | LangdepthError]:
    """Draw the masks of every photo below ``root`` that fits ``pattern``; yields the file, or what was wrong.

    ``resume`` leaves out photos whose overlay is there. Raises LangdepthError when there is no photo, UsageError when
    ``out`` is ``root`` and photos would be overwritten.
    """
    from PIL import Image

    root, out = Path(root), Path(out)
    own = out.resolve()
    if own == root.resolve():
        raise UsageError(f"{out}: the overlays would lie among the photos; give another folder")
    photos = [f.relative_to(root) for f in visible(root, pattern) if f.is_file() and own not in f.resolve().parents]
    if not photos:
        raise LangdepthError(f"{root}: no picture fits the pattern '{pattern}'")
    for photo in photos:
        target = overlay_path(photo, out)
        if resume and target.exists():
            continue
        try:
            image = read_image(root / photo).pixels
        except ImageError as error:
            yield error
            continue
        drawn = draw_masks(image, generate(image), _seed(photo.stem.removeprefix("rgb_")))
        with atomic_path(target) as temporary:
            Image.fromarray(drawn).save(temporary, format="JPEG", quality=95)
        yield target


def _seed(name: str) -> int:
    """The colours of one picture are the same in every run."""
    return zlib.crc32(name.encode())
