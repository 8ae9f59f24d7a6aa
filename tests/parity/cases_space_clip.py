"""space_clip*: the published network and its variants, losses, three training steps, metrics, images."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from langdepth.data.bts import BtsAugmentation
from langdepth.evaluation import protocols
from langdepth.evaluation.batch import evaluate_batch
from langdepth.evaluation.metrics import depth_metrics
from langdepth.parts.upsample import resize_aligned
from langdepth.prediction.arrays import resized_image, resized_map
from langdepth.prediction.network import infer
from langdepth.records import Batch, Sample
from langdepth.systems import registry
from langdepth.systems.space_clip import losses, official, pipeline
from langdepth.training.module import MovingAverage, rate
from langdepth.training.sections import OptimSection
from tests.parity.cases_functions import StandIn, samples_of
from tests.parity.runner import Case, Compared, Reference, Tolerance, outputs_of

FEATURES, DECODER, DEPTH = Tolerance(rtol_of_max=1e-5), Tolerance(rtol_of_max=2e-5), Tolerance(atol=1e-4)
GATES, EXACT, LOSS = Tolerance(atol=1e-5), Tolerance(), Tolerance(rtol=1e-5)
GRADIENT, NORM = Tolerance(rtol_of_max=1e-4), Tolerance(rtol=1e-4)
OPTIONS = {
    "use_film": "film",
    "use_multiscale_supervision": "auxiliary",
    "clip_interpolate_pos_encoding": "interpolate_positions",
    "main_path_indices": "semantic_layers",
    "structural_path_indices": "structural_layers",
    "film_param_hidden_dim": "film_width",
    "decoder_channels": "channels",
    "decoder_dropout": "dropout",
}
TOWER = {
    "hidden_size": "width",
    "intermediate_size": "mlp",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "image_size": "image_size",
    "patch_size": "patch",
}
METRICS = {"a1": "delta1", "a2": "delta2", "a3": "delta3", "log_10": "log10"}
SIGLIP = [0.5, 0.5, 0.5]


def _options(decoder: Mapping[str, Any], tower: Mapping[str, Any], kind: str = "clip") -> dict[str, Any]:
    """Our options of a network that is stated in the official ones."""
    options = {OPTIONS[name]: value for name, value in decoder.items() if name in OPTIONS}
    if not decoder.get("use_structural_pathway", True):
        options["structural_layers"] = []
    options["tower"] = {"kind": kind} | {TOWER[name]: value for name, value in tower.items() if name in TOWER}
    side = options["tower"]["image_size"]
    return (
        {"size": [side, side], "reference_exact": True}
        | options
        | ({"mean": SIGLIP, "std": SIGLIP} if kind == "siglip" else {})
    )


def _system(options: dict[str, Any], weights: Mapping[str, Tensor] | None) -> Any:
    """The system with an official checkpoint."""
    system: Any = registry.build("space-clip", options)
    tensors, report = system.convert_official(dict(weights or {}))
    assert not report["missing"]
    assert not report["ignored"]
    system.load_state_dict(tensors)
    return system.eval()


def _image(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


def _parts(
    arrays: Mapping[str, np.ndarray], values: Mapping[str, tuple[Tensor, Tolerance]], prefix: str = ""
) -> Compared:
    """The arrays that hold a value, or every Nth channel (``_cN``; of tokens the last axis) and pixel (``_sN``)."""
    for name in arrays:
        found = re.fullmatch(r"(.+?)(?:_c(\d+))?(?:_s(\d+))?", name.removeprefix(prefix))
        if not name.startswith(prefix) or found is None or found[1] not in values:
            continue
        part, tolerance = values[found[1]]
        if found[2]:
            part = part[:, :: int(found[2])] if part.ndim != 3 else part[..., :: int(found[2])]
        if found[3]:
            part = part[..., :: int(found[3]), :: int(found[3])]
        yield name, part, tolerance


def _values(system: Any, image: Tensor, size: tuple[int, int] | None) -> dict[str, tuple[Tensor, Tolerance]]:
    """Everything that the golden arrays show of a pass of (B, 3, H, W) images in [0, 1]; ``size``: of the output."""
    semantic, structural = system.semantic_blocks, system.structural_blocks
    found = outputs_of(
        {f"film{i}": module for i, module in enumerate(system.film)}
        | {f"semantic_projected{i}": module for i, module in enumerate(system.semantic_projections)}
        | {f"structural_projected{i}": module for i, module in enumerate(system.structural_projections)}
        | {f"semantic_decoder{i}": module for i, module in enumerate(semantic)}
        | {f"structural_decoder{i}": module for i, module in enumerate(structural)}
        | {f"semantic_gate{i}": block.semantic_gate for i, block in enumerate(semantic)}
        | {f"structural_gate{i}": block.structural_gate for i, block in enumerate(semantic) if block.structural_gate}
    )
    normalised = system.normalise(image)
    states, embedding = system.tower(normalised, range(system.config.tower.layers + 1))
    stages = system.decode(system.frozen_features(image))
    depth = system(image).depth
    values = {"pixel_values": (normalised, Tolerance(atol=1e-5)), "pooler_output": (embedding, FEATURES)}
    values |= {f"hidden{layer}": (tokens, FEATURES) for layer, tokens in states.items()}
    for name, value in found.items():
        if "gate" in name:
            values[name] = value.sigmoid(), GATES
        else:
            values[name] = value, DECODER if "decoder" in name else FEATURES
        if name.startswith("film"):
            gamma, beta = value.chunk(2, 1)
            values |= {f"film_gamma{name[4:]}": (gamma, FEATURES), f"film_beta{name[4:]}": (beta, FEATURES)}
    output = size or tuple(image.shape[-2:])
    for i, head in enumerate(system.auxiliary_heads):
        values[f"aux{i}"] = resized_map(head(stages[i]).relu(), output, "bilinear"), DECODER
    flipped = infer(system, image, flip=True).depth
    values |= {
        "depth_native": (depth, DEPTH),
        "depth": (resized_map(depth, output, "bilinear"), DEPTH),
        "depth_no_output_size": (resized_map(depth, image.shape[-2:], "bilinear"), DEPTH),
        "depth_mean": (resized_map(depth, output, "bilinear").mean((1, 2, 3)), DEPTH),
    }
    mirrored = system(image.flip(-1)).depth.flip(-1)
    averaged = (depth + mirrored) / 2
    torch.testing.assert_close(resized_map(averaged, image.shape[-2:], "bilinear"), flipped, rtol=1e-5, atol=1e-5)
    values["depth_flip_average"] = resized_map(averaged, output, "bilinear"), DEPTH
    return values


@torch.no_grad()
def space_clip(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """ViT-B/16 with the default decoder, part by part and as a whole."""
    size = tuple(arrays["output_size"].tolist())
    system = _system({"reference_exact": True}, weights)
    yield from _parts(arrays, _values(system, _image(arrays["image"]), size))


@torch.no_grad()
def space_clip_small(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Another network, and variants of it: each has the tensors of its own keys file."""
    options = json.loads(str(arrays["options_json"]))
    size = tuple(arrays["output_size"].tolist())
    for variant, changes in options["variants"].items():
        prefix = "" if variant == "main" else f"{variant}."
        if not any(name.startswith(prefix) and name.count(".") == prefix.count(".") for name in arrays):
            continue
        kind = changes.get("vision_backbone_type", "clip")
        tower = options["tower_siglip" if kind == "siglip" else "tower"]
        tensors = {k.removeprefix(f"{variant}/"): v for k, v in (weights or {}).items() if k.startswith(f"{variant}/")}
        tensors = tensors or {name: value for name, value in (weights or {}).items() if "/" not in name}
        system_options = _options(options["decoder"] | changes, tower, kind)
        image = _image(arrays["image_interpolate" if variant == "interpolate" else "image"])
        if system_options["interpolate_positions"]:
            system_options["size"] = list(image.shape[-2:])
        yield from _parts(arrays, _values(_system(system_options, tensors), image, size), prefix)


def space_clip_losses(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Each loss with its gradient, and their sum."""
    tensors = {name: torch.from_numpy(arrays[name]) for name in ("gt", "gt_sparse", "pred", "pred_lowres")}
    least, most = arrays["limits"].tolist()
    target = tensors["gt"]

    def known(depth: Tensor) -> Tensor:
        return (depth > least) & (depth < most)

    filled, empty_first = torch.where(target == 0, 1.0, target), target.clone()
    empty_first[0] = 0
    cases = {
        "masked": (tensors["pred"], target, known(target)),
        "sparse": (tensors["pred"], tensors["gt_sparse"], known(tensors["gt_sparse"])),
        "unmasked": (tensors["pred"], filled, torch.ones_like(target, dtype=torch.bool)),
        "lowres": (tensors["pred_lowres"], target, known(target)),
        "first_image_empty": (tensors["pred"], empty_first, known(empty_first)),
        "all_invalid": (tensors["pred"], torch.zeros_like(target), torch.zeros_like(target, dtype=torch.bool)),
        "exact": (target, target, known(target)),
    }
    functions = {
        "silog": losses.silog,
        "ssim": lambda p, t, m: losses.ssim(p, t, m, masked=False),
        "gradient": losses.gradient,
        "silog_variance_focus_0.5": lambda p, t, m: losses.silog(p, t, m, 0.5),
    }
    for name, (prediction, truth, mask) in cases.items():
        for loss, function in functions.items():
            leaf = prediction.clone().requires_grad_()
            value = function(resize_aligned(leaf, truth.shape[-2:]), truth, mask)
            (slope,) = torch.autograd.grad(value, leaf)
            yield f"{name}.{loss}", value, Tolerance(rtol=1e-5, atol=1e-6 if name == "exact" else 0)
            yield f"{name}.{loss}_grad", slope, GRADIENT
            yield f"{name}.{loss}_grad_norm", slope.norm(), Tolerance(rtol=1e-4, atol=1e-8)
    yield "ssim_window", losses.window(), Tolerance(atol=1e-7)
    mask = known(target)
    auxiliary = sum(
        weight * losses.silog(torch.from_numpy(arrays[f"aux{i}"]), target, mask)
        for i, weight in enumerate((0.1, 0.05, 0.0))
    )
    yield "aux_loss", auxiliary, LOSS
    main = 0.5 * (
        losses.silog(tensors["pred"], target, mask) + losses.ssim(tensors["pred"], target, mask, masked=False)
    )
    for name in arrays:
        if name.startswith("total_w_grad_"):
            weight = float(name.removeprefix("total_w_grad_"))
            total = main + auxiliary + weight * losses.gradient(tensors["pred"], target, mask)
            yield name, total, LOSS


def space_clip_train(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Three steps with the official recipe, and the schedules."""
    yield from _schedules(arrays)
    stated = json.loads(str(arrays["options_json"]))
    target = torch.from_numpy(arrays["gt"])
    least, most = stated["limits"]
    options = _options(stated["decoder"], stated["tower"]) | {"min_depth": least, "max_depth": most}
    shares = {"ssim": stated["w_ssim"], "gradient": stated["w_grad"], "auxiliary": stated["aux_loss_weights"]}
    system = _system(options | {"losses": shares}, weights)
    own = dict(system.named_parameters())
    unknown = torch.full((len(target),), -1)
    batch = Batch(
        image=_image(arrays["image"]), depth=target, mask=target > 0, scene=unknown, text=[None] * len(target),
        path=[""] * len(target),
    )  # fmt: skip
    optim = OptimSection(
        lr=stated["lr"], end_lr=stated["min_lr"], weight_decay=stated["weight_decay"], schedule="cosine",
        warm_up=stated["warmup_steps"] / stated["total_steps"], betas=tuple(stated["betas"]),
    )  # fmt: skip
    groups = system.parameter_groups(optim.lr, optim.weight_decay)
    optimiser = torch.optim.AdamW(groups, betas=optim.betas, eps=stated["eps"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate(optim, stated["total_steps"]))
    average = MovingAverage(system, stated["ema_decay"], warm_up=False)
    steps: dict[str, list[float]] = {name: [] for name in ("lr", "silog", "ssim", "aux", "total", "grad_norm")}

    for number in range(1, stated["steps"] + 1):
        system.train()
        found = outputs_of({"head": system.head})
        terms = system.loss(batch)
        optimiser.zero_grad()
        terms["total"].backward()
        if number == 1:
            prediction = nn.functional.interpolate(found["head"].relu(), target.shape[-2:], mode="bilinear")
            yield "pred_s2", prediction[..., ::2, ::2], DEPTH
            yield from _gradients(arrays, own)
        norm = nn.utils.clip_grad_norm_([p for p in own.values() if p.grad is not None], stated["clip_grad_norm"])
        values = {**terms, "aux": terms.get("auxiliary", torch.zeros(())), "grad_norm": norm}
        for name, seen in steps.items():
            seen.append(schedule.get_last_lr()[0] if name == "lr" else values[name].item())
        optimiser.step()
        schedule.step()
        average.update_parameters(system)
        if number in (1, stated["steps"]):
            tolerance = Tolerance(atol=1e-5) if number == 1 else Tolerance(atol=1e-3)
            yield from _tensors(arrays, f"after_step{number}.", system.state_dict(), tolerance)
    yield from _tensors(arrays, f"ema_step{stated['steps']}.", average.module.state_dict(), Tolerance(atol=1e-3))
    for name, seen in steps.items():
        tolerance = Tolerance(rtol=1e-9) if name == "lr" else Tolerance(rtol=1e-3)
        yield f"steps.{name}", np.array(seen), tolerance
    yield "num_batches_tracked", system.head[1].num_batches_tracked, EXACT
    with torch.no_grad():
        depth = resized_map(system.eval()(batch.image).depth, target.shape[-2:], "bilinear")
    yield f"depth_after_step{stated['steps']}_s2", depth[..., ::2, ::2], Tolerance(atol=1e-2)


def _gradients(arrays: Mapping[str, np.ndarray], own: Mapping[str, nn.Parameter]) -> Compared:
    names = [str(name) for name in arrays["grad_names"]]
    norms = [own[official.decoder_name(name)].grad.double().norm().item() for name in names]  # type: ignore[union-attr]
    yield "grad_norms", np.array(norms), Tolerance(rtol=1e-3, atol=1e-7)
    listed = [*names, *(str(name) for name in arrays["no_grad_names"])]
    yield "no_grad_names", np.array([n for n in listed if own[official.decoder_name(n)].grad is None]), EXACT
    for name in arrays:
        if name.startswith("grad."):
            gradient = own[official.decoder_name(name.removeprefix("grad."))].grad
            yield name, gradient, Tolerance(rtol_of_max=1e-3)  # type: ignore[misc]


def _tensors(
    arrays: Mapping[str, np.ndarray], prefix: str, state: Mapping[str, Tensor], tolerance: Tolerance
) -> Compared:
    for name in arrays:
        if name.startswith(prefix):
            yield name, state[official.decoder_name(name.removeprefix(prefix))].clone(), tolerance


def _schedules(arrays: Mapping[str, np.ndarray]) -> Compared:
    """The rates of the official configurations; the tiny one has other rates than theirs, which its arrays show."""
    for name in arrays:
        found = re.fullmatch(r"(schedule_\w+)\.lr", name)
        if found is None:
            continue
        total, rising = arrays[f"{found[1]}.total_warmup"].tolist()
        highest = 1e-3 if found[1] == "schedule_tiny" else 1e-4
        optim = OptimSection(lr=highest, end_lr=highest / 100, schedule="cosine", warm_up=rising / total)
        factor = rate(optim, total)
        rates = [highest * factor(int(step)) for step in arrays[f"{found[1]}.step"]]
        yield name, np.array(rates), Tolerance(rtol=1e-9)


@torch.no_grad()
def space_clip_metrics(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The published evaluation, by what ``langdepth evaluate`` does; frames have their size already."""
    stated = json.loads(str(arrays["options_json"]))
    names = [METRICS.get(str(name), str(name)) for name in arrays["names"]]
    validated: dict[Any, Tensor] = {}  # by what the training loss of validation depends on
    for rules, options in stated.items():
        data = options["dataset"]
        if f"{data}.gt_code" not in arrays:
            continue
        codes = [arrays[f"{data}.{name}_code"].astype(np.float32) for name in ("gt", "pred", "pred_of_mirrored")]
        unit = np.float32(arrays[f"{data}.code_per_metre"])
        target, prediction, mirrored = (torch.from_numpy(code / unit)[:, None] for code in codes)
        protocol = _protocol(options)
        evaluated = evaluate_batch(StandIn(prediction, mirrored), samples_of(target), protocol)
        count = evaluated.valid.flatten(1).sum(1)
        each = depth_metrics(evaluated.prediction, evaluated.target, evaluated.valid)
        table = torch.stack([each[name] for name in names], 1)[count > 0]
        yield f"{rules}.n_valid", count[count > 0], EXACT
        yield f"{rules}.per_image", table, Tolerance(rtol=1e-6)
        yield f"{rules}.mean", table.mean(0), Tolerance(rtol=1e-6)
        if f"{rules}.val_loss" not in arrays:
            continue
        trained = data, options["eval_flip_tta"], options["max_depth_eval"]
        if trained not in validated:
            depth = (prediction + mirrored.flip(-1)) / 2 if options["eval_flip_tta"] else prediction
            mask = (target > options["min_depth_eval"]) & (target < options["max_depth_eval"])
            totals = [
                0.5 * (losses.silog(d, t, m) + losses.ssim(d, t, m, masked=False))
                for d, t, m in zip(depth.split(1), target.split(1), mask.split(1), strict=True)
                if m.any()
            ]
            validated[trained] = torch.stack(totals).mean()
        yield f"{rules}.val_loss", validated[trained], LOSS


def _protocol(options: Mapping[str, Any]) -> protocols.Protocol:
    """Our protocol of official options; published ones come from their names, so that a changed rule shows."""
    data, median = options["dataset"], options["median_scaling_eval"]
    protocol = protocols.get(f"space-clip-{data}{'-median' * median}-reference").without("frame_size")
    windows = {"none": "none", "garg": "none" if data == "nyu" else "garg", "eigen": f"eigen-{data}"}
    published = {"nyu": "none", "kitti": "none" if median else "eigen"}[data]
    changes: dict[str, Any] = {"flip": options["eval_flip_tta"]}
    if options["eval_crop"] != published:
        changes["crop"] = windows[options["eval_crop"]]
    if options["max_depth_eval"] != {"nyu": 10.0, "kitti": 80.0}[data]:
        changes["max_depth"] = options["max_depth_eval"]
    return protocol.override(**changes)


def space_clip_data(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Images as they are evaluated and, with the recorded draws, learned from."""
    levels = torch.arange(256, dtype=torch.uint8)
    yield "requantise_table", (levels / 255 * 255).byte(), EXACT
    names = [str(name) for name in arrays["draw_names"]]
    for data, options in json.loads(str(arrays["options_json"])).items():
        if f"{data}.image_raw" not in arrays:
            continue
        size, side = (options["input_height"], options["input_width"]), options["clip_input_size"]
        stored = _stored(arrays, data, 256 if options["dataset"] == "kitti" else 1000)
        protocol = replace(protocols.get("full"), frame_size=size, frame="kb" if options["do_kb_crop"] else "stored")
        frames = [evaluate_batch(_still(sample), [sample], protocol) for sample in stored]
        made = {
            "eval": ([(frame.image, frame.target) for frame in frames]),
            "train": [
                _learned(stored[int(draw["picture"])], size, draw)
                for row in arrays[f"{data}.train.draws"].tolist()
                for draw in [dict(zip(names, row, strict=True))]
            ],
        }
        for part, pairs in made.items():
            images, depths = (torch.cat(list(tensors)) for tensors in zip(*pairs, strict=True))
            levels = images.mul(255).byte() if images.is_floating_point() else images
            square = resized_image(levels, (side, side), "bicubic")
            statistics = registry.build("space-clip-s", {}).config
            mean, std = (torch.tensor(getattr(statistics, name)).view(3, 1, 1) for name in ("mean", "std"))
            yield (
                f"{data}.{part}.image_orig",
                images if images.is_floating_point() else images / 255,
                Tolerance(atol=1e-6),
            )
            yield f"{data}.{part}.depth", depths, Tolerance(atol=1e-6)
            yield f"{data}.{part}.image_clip", (square / 255 - mean) / std, Tolerance(atol=1e-5)
        without = replace(stored[0], depth=torch.zeros_like(stored[0].depth), mask=torch.zeros_like(stored[0].mask))
        unknown = evaluate_batch(_still(without), [without], protocol)
        yield f"{data}.eval_none.has_valid_depth", unknown.valid.any(), EXACT
        yield f"{data}.eval_none.depth_max", unknown.target.max(), EXACT


def _stored(arrays: Mapping[str, np.ndarray], data: str, unit: int) -> list[Sample]:
    samples = []
    for image, code in zip(arrays[f"{data}.image_raw"], arrays[f"{data}.depth_raw"], strict=True):
        depth = torch.from_numpy(code.astype(np.float32) / np.float32(unit))[None]
        samples.append(Sample(image=torch.from_numpy(image).permute(2, 0, 1), depth=depth, mask=depth > 0))
    return samples


def _still(sample: Sample) -> StandIn:
    """Depth of one metre, for a frame of any size."""
    one = torch.ones(256, 1, 2, 2)
    return StandIn(one, one)


def _learned(sample: Sample, size: tuple[int, int], draws: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """Image and depth of a draw; a start of -1 was not drawn."""
    free = [side - cut for side, cut in zip(sample.image.shape[-2:], size, strict=True)]
    y, x = ((draws[name] + 0.5) / max(side + 1, 1) for name, side in zip(("start_y", "start_x"), free, strict=True))
    colors = {name: draws[name] for name in ("gamma", "brightness")} if draws["augment"] else {}
    if draws["augment"]:
        colors["colors"] = tuple(draws[name] for name in ("red", "green", "blue"))
    augmentation = BtsAugmentation(angle=draws["angle_degrees"], x=x, y=y, mirror=bool(draws["flip"]), **colors)
    made = pipeline.training_sample(sample, size, augmentation)
    return made.image[None], made.depth[None]


CASES = (
    Case("space_clip*", space_clip, "space_clip", slow=True),
    Case(
        "space_clip_small*",
        space_clip_small,
        "space_clip_small",
        ("", "no_film", "no_structural", "no_aux", "layers", "siglip"),
    ),
    Case("space_clip_losses*", space_clip_losses),
    Case("space_clip_train*", space_clip_train, "space_clip_small"),
    Case("space_clip_metrics*", space_clip_metrics),
    Case("space_clip_data*", space_clip_data),
)
SQUEEZED = {"flip": True, "frame_size": (352, 704)}
MEDIAN = {"alignment": "median", "min_pixels": 1}
REFERENCES = {
    "space-clip-nyu-reference": Reference("a401cb0eceb7", "space_clip_metrics", {"flip": True}),
    "space-clip-nyu-median-reference": Reference("80779c51ee97", "space_clip_metrics", {"flip": True} | MEDIAN),
    "space-clip-kitti-reference": Reference("994c86e8d65a", "space_clip_metrics", SQUEEZED),
    "space-clip-kitti-median-reference": Reference("5ce9851c8986", "space_clip_metrics", SQUEEZED | MEDIAN),
}
