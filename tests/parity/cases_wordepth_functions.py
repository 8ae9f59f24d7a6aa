"""Evaluation and data pipeline of WorDepth."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from langdepth.data.bts import BtsAugmentation, evaluation_sample, training_sample
from langdepth.evaluation import protocols
from langdepth.records import Sample
from langdepth.systems.wordepth.pipeline import RULES
from tests.parity.cases_functions import CLOSE, EXACT, StandIn, image_means, normalised
from tests.parity.runner import Case, Compared, Reference, Tolerance

ORDER = ("silog", "abs_rel", "log10", "rmse", "sq_rel", "rmse_log", "delta1", "delta2", "delta3")
PIXELS = Tolerance(atol=1e-5)


def wordepth_metrics(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The published evaluation loop, which makes NaN and infinite predictions finite; ours refuses such systems."""
    for dataset in ("nyu", "kitti"):
        if f"{dataset}_pred" not in arrays:
            continue
        protocol = protocols.get(f"wordepth-{dataset}-reference")
        prediction = torch.from_numpy(arrays[f"{dataset}_pred"])[:, None].nan_to_num(nan=0, posinf=protocol.max_depth)
        target = torch.from_numpy(arrays[f"{dataset}_gt"])[:, None]
        options = {"none": {"crop": "none"}, "eigen": {"crop": f"eigen-{dataset}"}, "garg": {"crop": "garg"}}
        options["eigen" if dataset == "nyu" else "garg"] = {}  # the published one
        for crop, changes in options.items():
            rules = protocol.override(**changes)
            means = image_means(StandIn(prediction, prediction), target, rules)
            yield f"{dataset}_{crop}", torch.stack([means[name] for name in ORDER]), CLOSE
    for name in arrays:
        box = re.fullmatch(r"box_(eigen|garg)_(?:nyu|(\d+)x(\d+))", name)
        if box is not None:
            size = (int(box[2]), int(box[3])) if box[2] else (480, 640)
            dataset = "kitti" if box[2] else "nyu"
            crop = f"eigen-{dataset}" if box[1] == "eigen" else "garg"
            rows, columns = protocols.get(f"wordepth-{dataset}-reference").override(crop=crop).crop_slices(*size)
            yield name, np.array([rows.start, rows.stop, columns.start, columns.stop]), EXACT


def wordepth_data(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """What the published loader returns, evaluated and for training with the recorded draws."""
    scales = {"nyu": 0.001, "kitti": 1 / 256}
    stored = {
        f"{dataset}{item}": _stored(arrays, f"{dataset}{item}", scale)
        for dataset, scale in scales.items()
        for item in (0, 1)
        if f"{dataset}{item}_image" in arrays
    }
    for name, sample in stored.items():
        dataset = name.rstrip("01")
        stride = int(arrays[f"{dataset}_stride"][0])
        evaluated = evaluation_sample(sample, RULES[f"wordepth-{dataset}"])
        height, width = evaluated.image.shape[-2:]
        yield f"{name}_eval_image", normalised(evaluated.image)[:, ::stride, ::stride], PIXELS
        yield f"{name}_eval_depth", evaluated.depth[0, ::stride, ::stride], PIXELS
        yield f"{name}_eval_shape", np.array([3, height, width, height, width, 1]), EXACT
    for name in arrays:
        train = re.fullmatch(r"((nyu|kitti)_train\d+)_size", name)
        if train is None:
            continue
        prefix, dataset = train.groups()
        stride = int(arrays[f"{dataset}_stride"][0])
        height, width = arrays[f"{prefix}_size"].tolist()
        draws = _draws(dataset, (height, width), arrays[f"{prefix}_draw_kind"], arrays[f"{prefix}_draw"])
        sample = stored[f"{dataset}{int(arrays[f'{prefix}_item'][0])}"]
        made = training_sample(sample, (height, width), RULES[f"wordepth-{dataset}"], draws)
        # Where an image was turned, another Pillow may differ by a grey level here and there.
        turned = Tolerance(atol=1e-5, outliers=1e-3 if draws.angle else 0)
        yield f"{prefix}_image", normalised(made.image)[:, ::stride, ::stride], turned
        yield f"{prefix}_depth", made.depth[:, ::stride, ::stride], turned


def _stored(arrays: dict[str, np.ndarray], name: str, scale: float) -> Sample:
    depth = torch.from_numpy(arrays[f"{name}_depth"].astype(np.float32) * np.float32(scale))[None]
    return Sample(
        image=torch.from_numpy(arrays[f"{name}_image"]).permute(2, 0, 1).float() / 255, depth=depth, mask=depth > 0
    )


def _draws(dataset: str, size: tuple[int, int], kinds: np.ndarray, values: np.ndarray) -> BtsAugmentation:
    """The recorded values in the order of their drawing."""
    rest, found = values.tolist(), dict[str, Any]()
    if dataset == "nyu":
        found["angle"] = (rest.pop(0) - 0.5) * 2 * 2.5
    if "randint" in kinds:  # whole pixels of the free space in the inner frame of 427 x 565
        x, y = rest.pop(0), rest.pop(0)
        found |= {"x": (x + 0.5) / (565 - size[1] + 1), "y": (y + 0.5) / (427 - size[0] + 1)}
    found["mirror"] = rest.pop(0) > 0.5
    if rest.pop(0) > 0.5:
        found |= {"gamma": rest[0], "brightness": rest[1], "colors": tuple(rest[2:])}
    return BtsAugmentation(**found)


CASES = (
    # Names of columns, and a check that the texts were read
    Case("wordepth_metrics*", wordepth_metrics, uncompared=("metric_names", "seen_text_shape")),
    Case("wordepth_data*", wordepth_data),
)
REFERENCES = {
    "wordepth-nyu-reference": Reference("b8046d5d9f87", "wordepth_metrics", {}),
    "wordepth-kitti-reference": Reference("a4288617fd04", "wordepth_metrics", {"frame": "kb"}),
}
