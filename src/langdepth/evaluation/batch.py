"""One batch under a protocol: frame, evaluated pixels, prediction, alignment on these pixels, clamp."""

from __future__ import annotations

import torch
from torch import Tensor

from langdepth.camera import Camera
from langdepth.errors import LangdepthError, ShortMemoryError, UsageError, is_memory_error
from langdepth.evaluation.metrics import align
from langdepth.evaluation.predictions import Predictions
from langdepth.evaluation.protocols import Protocol
from langdepth.evaluation.records import EvaluatedBatch
from langdepth.parts.upsample import nearest_pixel
from langdepth.prediction.arrays import not_finite, resized_image, resized_map
from langdepth.prediction.network import infer, relative_focals, usual_focal
from langdepth.records import Sample
from langdepth.systems.capabilities import DepthSystem


def require_comparable(system: DepthSystem | Predictions, protocol: Protocol) -> None:
    """Raise UsageError when the protocol compares metres but the system's depth has no unit, or is no depth."""
    if system.scale_kind == "relative" and protocol.alignment == "none":
        raise UsageError(f"'{system.name}' gives depth up to a factor; add an alignment: median or least_squares")
    if system.scale_kind == "disparity" and protocol.alignment != "disparity":
        raise UsageError(f"'{system.name}' gives disparity, which is not depth; add the alignment disparity")


@torch.inference_mode()
def evaluate_batch(
    system: DepthSystem | Predictions, samples: list[Sample], protocol: Protocol, dtype: str = "float32"
) -> EvaluatedBatch:
    """Depth of samples of one size under a protocol.

    Raises:
        LangdepthError: Naming the image, for depth that is not finite, cannot be aligned or, where the protocol does
            not clamp, is not above 0; and when the device's memory does not suffice.
    """
    window = (..., *protocol.frame_slices(*samples[0].image.shape[-2:]))
    image, target, known = (
        _stack([getattr(sample, name) for sample in samples])[window] for name in ("image", "depth", "mask")
    )
    image, target, known = at_frame_size(image, target, known, protocol.frame_size)
    valid = _enough(protocol.valid_mask(target, known), protocol)
    stated = [sample.edges for sample in samples if sample.edges is not None]
    edges = _stack(stated)[window] if len(stated) == len(samples) else None
    if edges is not None and edges.shape != target.shape:  # thin lines, which a resized frame would lose
        edges = None
    if isinstance(system, Predictions):
        prediction = system.depth(samples, protocol)
        has_depth = prediction.isfinite()
        if protocol.mask_prediction:
            valid = _enough(valid & has_depth, protocol)
        _require_depth(system, samples, has_depth, valid if edges is None else torch.ones_like(valid))
        prediction = prediction.nan_to_num(0)
    else:
        prediction = _predict(system, samples, image, protocol, dtype)
        if not prediction.sum().isfinite():  # NaN and infinity show in the sum, which takes no time
            _require(prediction.isfinite(), samples, f"'{system.name}' {not_finite(dtype)}")
    if protocol.training_focal is not None:
        factor = _focal_lengths(samples) / protocol.training_focal
        considered = not isinstance(system, Predictions) and usual_focal(system) is not None  # by the system itself
        prediction = prediction if considered else prediction * factor
    raw = prediction
    prediction = align(prediction, target, valid, protocol.alignment, disparity=system.scale_kind == "disparity")
    if protocol.alignment == "median":
        reason = "no alignment by median, since the median of the predicted depth is not above 0"
        _require(prediction.isfinite(), samples, f"'{system.name}': {reason}")
    if protocol.mask_prediction:
        valid = _enough(valid & (prediction > protocol.min_depth), protocol)
    if protocol.clamp_prediction:
        prediction = prediction.clamp(protocol.min_depth, protocol.max_depth)
    else:
        reason = "depth is not above 0 everywhere; use a protocol with clamp_prediction"
        _require((prediction > 0) | ~valid, samples, reason)
    return EvaluatedBatch(image=image, prediction=prediction, target=target, valid=valid, raw=raw, edges=edges)


def at_frame_size(
    image: Tensor, target: Tensor, known: Tensor, size: tuple[int, int] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Frames (B, ., H, W) as the protocol's ``frame_size`` wants them: depth and mask take the nearest pixel."""
    if size is None or tuple(image.shape[-2:]) == size:
        return image, target, known
    return resized_image(image, size, "bicubic"), nearest_pixel(target, size), nearest_pixel(known, size)


def too_few_pixels(protocol: Protocol) -> str:
    """Why an image is skipped that can be read."""
    known = "no known depth" if protocol.needed_pixels == 1 else f"fewer than {protocol.needed_pixels} known depths"
    return f"{known} inside the window and range of {protocol.name}"


def _enough(valid: Tensor, protocol: Protocol) -> Tensor:
    """``valid`` (B, 1, H, W), emptied for images with fewer pixels than the protocol needs."""
    return valid & (valid.flatten(1).sum(1) >= protocol.needed_pixels).view(-1, 1, 1, 1)


def _predict(system: DepthSystem, samples: list[Sample], image: Tensor, protocol: Protocol, dtype: str) -> Tensor:
    """Depth of the frames ``image`` (B, 3, H, W), at their size and on the CPU; 0 outside the network's view."""
    height, width = samples[0].image.shape[-2:]
    window = (..., *protocol.frame_slices(height, width))
    view = (..., *protocol.view_slices(*image.shape[-2:]))
    overlay = None
    if system.takes_overlay:
        without = [sample.path for sample in samples if sample.overlay is None]
        if without:
            raise UsageError(f"{without[0]}: '{system.name}' needs {system.overlay_kind.one}, and this sample has none")
        overlays = torch.stack([sample.overlay for sample in samples if sample.overlay is not None])
        overlay = resized_map(overlays[window][view].to(system.device), image[view].shape[-2:], "bilinear")
    stored = samples[0].image
    seen = (stored[window].numel() / stored.numel()) * (image[view].numel() / image.numel())  # share of the image
    guess = Camera.guess(width, height, usual_focal(system))  # as prediction does, whatever part the network sees
    focal = torch.from_numpy(relative_focals([sample.camera or guess for sample in samples])) / seen**0.5
    words = [sample.text_features for sample in samples if sample.text_features is not None]
    sentences = [sample.text or "" for sample in samples] if system.reads_sentences else None
    if words and not system.text_per_image:
        raise UsageError(f"'{system.name}' takes no captions of images; leave them out")
    try:
        with torch.autocast(system.device.type, dtype=getattr(torch, dtype), enabled=dtype != "float32"):
            output = infer(
                system,
                image[view].to(system.device),
                torch.stack(words).to(system.device) if words and sentences is None else sentences,
                overlay=overlay,
                focal=focal.to(system.device),
                flip=protocol.flip,
                resize=protocol.resize,
                limit=protocol.max_depth if protocol.clamp_views else None,
                window=protocol.window,
                stride=protocol.stride,
                via=(height, width) if protocol.resize == "bilinear-twice" else None,
            )
        depth = torch.zeros(len(image), 1, *image.shape[-2:])
        depth[view] = output.depth.cpu()
        return depth
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        raise ShortMemoryError(
            f"{system.device}: not enough memory for {len(samples)} images of {image.shape[-1]}x{image.shape[-2]}; "
            "use a smaller batch size or another device"
        ) from None


def _stack(tensors: list[Tensor]) -> Tensor:
    """``torch.stack`` that leaves channels last where they are so, and does not copy a single tensor."""
    parts = [tensor.movedim(0, -1) for tensor in tensors]
    return (parts[0][None] if len(parts) == 1 else torch.stack(parts)).movedim(-1, 1)


def _focal_lengths(samples: list[Sample]) -> Tensor:
    """(B, 1, 1, 1) pixels. Raises UsageError for an image without camera."""
    without = [sample.path for sample in samples if sample.camera is None]
    if without:
        raise UsageError(f"{without[0]}: the protocol needs its focal length; name it in the column fx (fy, cx, cy)")
    return torch.tensor([sample.camera.fx for sample in samples if sample.camera is not None]).view(-1, 1, 1, 1)


def _require_depth(system: Predictions, samples: list[Sample], has_depth: Tensor, needed: Tensor) -> None:
    """Raise LangdepthError, naming the file, where a finished map has no depth but needs it."""
    lacking, wanted = (pixels.flatten(1).sum(1).tolist() for pixels in (needed & ~has_depth, needed))
    for sample, holes, pixels in zip(samples, lacking, wanted, strict=True):
        if holes:
            raise LangdepthError(
                f"{system.find(sample)}: no depth at {holes} of the {pixels} pixels that need it "
                "(0, negative or not finite); fill them or, unless true edges are evaluated, mask them "
                "(mask_prediction)"
            )


def _require(good: Tensor, samples: list[Sample], message: str) -> None:
    for sample, fine in zip(samples, good.flatten(1).all(1).tolist(), strict=True):
        if not fine:
            raise LangdepthError(f"{sample.path}: {message}")
