"""Images with SAM's masks drawn over them, as the published data of the CLIP adapters has them (``data.overlays``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from langdepth.data.masks import color_seed, draw_masks
from langdepth.data.overlays import overlay_names, read_table, write_index
from langdepth.errors import (
    CheckpointError,
    ImageError,
    LangdepthError,
    MissingCheckpointError,
    UsageError,
    first_line,
)
from langdepth.utils.files import atomic_path, real_path, require_marked
from langdepth.utils.images import read_image

if TYPE_CHECKING:
    import torch

ENCODER_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}

# An image (H, W, 3) uint8 to its masks (N, H, W) bool.
MaskGenerator = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.bool_]]


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


def write_overlays(
    root: str | Path, out: str | Path, generate: MaskGenerator, photos: Sequence[Path], *, resume: bool = False
) -> Iterator[Path | LangdepthError]:
    """Draw the masks of ``photos``, paths below ``root``; yields the file, or what was wrong.

    ``overlays.csv`` beside them says which photo has which (data/overlays.py). ``resume`` leaves out photos whose
    overlay is there. Raises UsageError when ``out`` is ``root`` and photos would be overwritten, LangdepthError when
    other files would be.
    """
    root, out = Path(root), Path(out)
    if real_path(out) == real_path(root):
        raise UsageError(f"{out}: the overlays would lie among the photos; give another folder")
    names, known = overlay_names(photos), set(read_table(out).values())
    for name in names.values():
        if not resume and name.as_posix() not in known:
            require_marked(out / name)
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
        drawn = draw_masks(image, generate(image), color_seed(photo.stem.removeprefix("rgb_")))
        with atomic_path(target) as temporary:
            Image.fromarray(drawn).save(temporary, format="JPEG", quality=95)
        yield target
