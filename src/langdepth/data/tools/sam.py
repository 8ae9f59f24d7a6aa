"""Images with their SAM masks drawn over: what `msa-sam` sees besides the photo.

The layout is that of the adapter paper's data: the photo ``train/kitchen/rgb_00045.jpg`` has its overlay in
``sam_out/train/kitchen/00045.jpg`` (spec: clip_adapters.md, section 6).
"""

from __future__ import annotations

import csv
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from langdepth.errors import (
    CheckpointError,
    ImageError,
    LangdepthError,
    MissingCheckpointError,
    MissingImageError,
    UsageError,
    first_line,
    text_flaw,
)
from langdepth.utils.arrays import ArrayError, read_npz
from langdepth.utils.files import atomic_path, real_path
from langdepth.utils.images import read_image
from langdepth.utils.reading import open_regular, read_csv

if TYPE_CHECKING:
    import torch

FOLDER = "sam_out"
"""Where the published data has its overlays, beside the images."""
INDEX = "overlays.csv"
COLUMNS = ("image", "overlay")
MAX_MASK_BYTES = 1_000_000_000
OPACITY = 0.35  # as in SAM's demonstration notebook
ENCODER_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}

# An image (H, W, 3) uint8 to its masks (N, H, W) bool.
MaskGenerator = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.bool_]]


def draw_masks(image: npt.NDArray[np.uint8], masks: npt.NDArray[np.bool_], seed: int = 0) -> npt.NDArray[np.uint8]:
    """The image (H, W, 3) with ``masks`` (N, H, W) over it, translucent, each in a random colour; large ones first.

    Raises ImageError when sizes differ.
    """
    if masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        raise ImageError(f"masks of shape {masks.shape} do not fit an image of {image.shape[1]}x{image.shape[0]}")
    generator = np.random.default_rng(seed)
    colours = np.zeros((*image.shape[:2], 3), np.float32)
    covered = np.zeros(image.shape[:2], bool)
    for index in np.argsort(-masks.sum((1, 2)), kind="stable"):
        colours[masks[index]] = 255 * generator.random(3, np.float32)
        covered |= masks[index]
    blended = image * (1 - OPACITY) + colours * OPACITY
    return np.where(covered[..., None], blended.round(), image).astype(np.uint8)


def read_overlay(source: Any, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The overlay of the photo ``image`` (H, W, 3): an image, brought to the photo's size, or masks to be drawn.

    ``source``: anything ``read_image`` takes, or an ``.npz`` file with the array ``masks`` (N, H, W).
    Raises ImageError.
    """
    if not isinstance(source, str | Path) or Path(source).suffix != ".npz":
        from PIL import Image

        overlay = Image.fromarray(read_image(source).pixels)
        return np.asarray(overlay.resize((image.shape[1], image.shape[0])))  # Pillow's default, as published
    path = Path(source)
    try:
        with open_regular(path) as stream:
            check = partial(_require_fit, image.shape[:2])
            masks = read_npz(stream, lambda names: "masks", check).astype(bool, copy=False)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise MissingImageError(f"{path}: no such file") from None
    except Exception as error:  # a damaged archive raises OSError, ValueError, KeyError, BadZipFile, zlib.error ...
        reason = error if isinstance(error, ArrayError) else "it is damaged, truncated or of another kind"
        raise ImageError(f"{path}: not a file of masks ({reason}); needed is the array masks (N, H, W)") from None
    try:
        return draw_masks(image, masks, _seed(path.stem))
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def _require_fit(size: tuple[int, ...], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise ImageError, before they are unpacked, for masks of another size than the photo and for too many."""
    if len(shape) != 3 or shape[1:] != size:
        raise ImageError(f"masks of shape {shape} do not fit an image of {size[1]}x{size[0]}")
    if math.prod(shape) * dtype.itemsize > MAX_MASK_BYTES:
        raise ImageError(f"{shape[0]} masks of {size[1]}x{size[0]} are more than {MAX_MASK_BYTES // 10**6} MB")


def load_sam(weights: str | Path, device: str | torch.device | None = None, **options: Any) -> MaskGenerator:
    """SAM's automatic mask generator (package ``segment-anything``) with the published weights ``weights``.

    The model's size follows from the weights. ``options``: those of ``SamAutomaticMaskGenerator``. Raises UsageError
    when the package is missing, CheckpointError for a file that is not SAM's.
    """
    from langdepth.utils.devices import move
    from langdepth.utils.tensors import read_pickle, require_finite

    try:
        from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
    except ImportError:
        raise UsageError("SAM needs the package segment-anything: pip install 'langdepth[sam]'") from None
    if not Path(weights).is_file():
        raise MissingCheckpointError(f"{weights}: no such file; SAM's weights are published as sam_vit_b, _l and _h")
    try:
        tensors = read_pickle(Path(weights))
        require_finite(tensors, weights)
        model = sam_model_registry[ENCODER_WIDTHS[tensors["image_encoder.pos_embed"].shape[-1]]]()
        model.load_state_dict(tensors)
    except CheckpointError:
        raise
    except Exception as error:  # other content, other names or shapes
        raise CheckpointError(f"{weights}: not SAM's weights ({first_line(error)})") from None
    return masks_of(SamAutomaticMaskGenerator(move(model, device), **options))


def masks_of(generator: Any) -> MaskGenerator:
    """A ``SamAutomaticMaskGenerator`` as a function from image to masks."""

    def masks(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        found = [record["segmentation"] for record in generator.generate(image)]
        return np.stack(found) if found else np.zeros((0, *image.shape[:2]), bool)

    return masks


def overlay_names(images: Sequence[Path]) -> dict[Path, Path]:
    """Each image -> its overlay, both relative: the image's name as .jpg without ``rgb_``, as published.

    Images of one folder that would share an overlay have their ending in its name, too: ``1_png.jpg``.
    """
    published = {image: image.parent / f"{image.stem.removeprefix('rgb_')}.jpg" for image in images}
    taken: dict[Path, int] = {}
    for overlay in published.values():
        taken[overlay] = taken.get(overlay, 0) + 1
    return {
        image: overlay if taken[overlay] == 1 else image.parent / f"{image.name.replace('.', '_')}.jpg"
        for image, overlay in published.items()
    }


def write_index(folder: Path, overlays: dict[Path, Path]) -> None:
    """Write which image has which overlay, beside what the index in ``folder`` says of others."""
    known = read_index(folder) | {image.as_posix(): overlay.as_posix() for image, overlay in overlays.items()}
    with atomic_path(folder / INDEX) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(sorted(known.items()))


def read_index(folder: Path) -> dict[str, str]:
    """Image -> overlay, both relative, of the folder's index; empty without one.

    Raises LangdepthError naming the line of a mistake, also of a path that leads out of the folder.
    """
    index, found = folder / INDEX, dict[str, str]()
    if not index.exists():
        return found
    try:
        reader = read_csv(index)
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise LangdepthError(f"{index}: needs the columns {', '.join(COLUMNS)}")
        for line in reader:
            image, overlay = line["image"] or "", PurePosixPath(line["overlay"] or "")
            if not image or not overlay.parts or overlay.is_absolute() or ".." in overlay.parts:
                where = f"{index} line {reader.line_num}"
                raise LangdepthError(f"{where}: overlay '{overlay}' of '{image}' does not lie inside the folder")
            found[image] = overlay.as_posix()
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise LangdepthError(f"{index}: not readable as CSV ({text_flaw(error)})") from None
    return found


def write_overlays(
    root: str | Path, out: str | Path, generate: MaskGenerator, photos: Sequence[Path], *, resume: bool = False
) -> Iterator[Path | LangdepthError]:
    """Draw the masks of ``photos``, paths below ``root``; yields the file, or what was wrong.

    ``overlays.csv`` beside them says which photo has which (data/overlays.py). ``resume`` leaves out photos whose
    overlay is there. Raises UsageError when ``out`` is ``root`` and photos would be overwritten.
    """
    from PIL import Image

    root, out = Path(root), Path(out)
    if real_path(out) == real_path(root):
        raise UsageError(f"{out}: the overlays would lie among the photos; give another folder")
    names = overlay_names(photos)
    write_index(out, names)
    for photo, name in names.items():
        target = out / name
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
    """The colours of one image are the same in every run."""
    return zlib.crc32(name.encode())
