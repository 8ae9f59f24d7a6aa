"""cabins*: the network part by part, losses and evaluation, a training step, training images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from langdepth import losses
from langdepth.backbones.clip import SMALL_ARCHITECTURES
from langdepth.data.bts import BtsAugmentation, evaluation_sample, training_sample
from langdepth.evaluation import protocols
from langdepth.parts.upsample import resize_aligned
from langdepth.records import Batch, Sample
from langdepth.systems import registry
from langdepth.systems.cabins.official import OFFICIAL_NAMES
from langdepth.systems.cabins.pipeline import RULES
from langdepth.systems.cabins.prompts import representatives
from langdepth.text.clip_text import byte_pairs
from langdepth.training.module import scheduler
from langdepth.training.recipe import load_recipe
from langdepth.training.sections import OptimSection
from tests.parity.cases_functions import OFFICIAL_METRICS, StandIn, image_means, normalised
from tests.parity.cases_mde_clip import part
from tests.parity.runner import Case, Compared, Tolerance, outputs_of

CLOSE, SHARP = Tolerance(rtol_of_max=1e-5), Tolerance(rtol_of_max=5e-5)
SCORES, EXACT, RELATIVE = Tolerance(atol=1e-6), Tolerance(), Tolerance(rtol=1e-5)
SHARPENED = {"head.weight": 60.0, "gamma": 25.0}


@contextmanager
def _architecture(weights: dict[str, Tensor]) -> Iterator[str]:
    """The name of an architecture with the sizes of a checkpoint."""

    def count(pattern: str) -> int:
        return len({found[1] for name in weights if (found := re.match(pattern, name))})

    layers = [count(rf"clip_model\.visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    width, embed = (len(weights[f"clip_model.{name}"]) for name in ("visual.bn3.weight", "visual.attnpool.c_proj.bias"))
    side = round((len(weights["clip_model.visual.attnpool.positional_embedding"]) - 1) ** 0.5)
    vocabulary, text = weights["clip_model.token_embedding.weight"].shape
    config = {
        "embed_dim": embed,
        "vision_cfg": {"image_size": 32 * side, "layers": layers, "width": width, "patch_size": None},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": vocabulary,
            "width": text,
            "heads": text // 64,
            "layers": count(r"clip_model\.transformer\.resblocks\.(\d+)\."),
        },
    }
    with mock.patch.dict(SMALL_ARCHITECTURES, {"RN-golden": config}):
        yield "RN-golden"


def _official(weights: dict[str, Tensor] | None, max_depth: Any, **options: Any) -> Any:
    """The system with a checkpoint."""
    assert weights is not None
    with _architecture(weights) as architecture:
        system: Any = registry.build("cabins", {"architecture": architecture, "max_depth": float(max_depth), **options})
    tensors, report = system.convert_official(weights)
    assert report["missing"] == []
    assert report["ignored"] == ["clip_model.logit_scale"]
    system.load_state_dict(tensors)
    return system.eval()


def _image(arrays: dict[str, np.ndarray]) -> Tensor:
    return torch.from_numpy(arrays["image_u8"]).float() / 255


def _texts(tokens: Tensor) -> np.ndarray:
    """What prompts say: (B, G) strings."""
    decoder = byte_pairs().decoder
    rows = [[[decoder[i] for i in ids if 0 < i < 49406] for ids in prompts] for prompts in tokens.tolist()]
    return np.array([["".join(row).replace("</w>", "") for row in prompts] for prompts in rows])


def _as_stored(arrays: dict[str, np.ndarray], name: str, value: Tensor, whole: Tensor) -> Tensor:
    """``whole`` where the file holds all of it, else the part ``value``."""
    return whole if name in arrays and arrays[name].shape == whole.shape else value


@torch.no_grad()
def cabins(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The network part by part, then as a whole with weights that make the text branch count."""
    system, image = _official(weights, arrays["max_depth"]), _image(arrays)
    maps = system.tower.pyramid(system.normalise(image))[-4:]
    for level, features in enumerate(maps, start=1):
        yield f"feature_map{level}", part(features), CLOSE
    visual = system.tower.pool(maps[-1], align_corners=False)
    dense = visual[:, 1:].mT.unflatten(2, maps[-1].shape[-2:])
    yield "global_embedding", visual[:, 0], CLOSE
    yield "dense_embedding", _as_stored(arrays, "dense_embedding", dense[:, ::8], dense), CLOSE
    yield "regressor_out", system.regressor(visual[:, 0]), CLOSE
    edges, centers = system.bins_of(visual[:, 0])
    yield "bin_edges", edges, CLOSE
    yield "bin_centres", centers, CLOSE
    yield "representatives", representatives(centers, system.config.groups), CLOSE
    own = system.prompts(centers)
    yield "token_ids", own, EXACT
    yield "prompts", _texts(own), EXACT
    # A depth on the edge of rounding makes another prompt: the rest has those of the file.
    tokens = torch.from_numpy(arrays["token_ids"]).long()
    words = system.encode(tokens)
    yield "text_features", words, CLOSE
    decoder = system.context_decoder
    layers = {"decoder_layer0": decoder.decoder[0], f"decoder_layer{len(decoder.decoder) - 1}": decoder.decoder[-1]}
    found = outputs_of({"memory": decoder.memory_proj, "text_query": decoder.text_proj, "text_diff": decoder, **layers})
    yield from _decoded(arrays, system, image, tokens)
    found["memory"] = found["memory"][:, :: max(1, visual.shape[1] // 40)]
    for name, value in found.items():
        yield name, value, CLOSE
    with_image = words + system.gamma * found["text_diff"]
    yield "text_features_refined", with_image, CLOSE
    _sharpen(system)
    yield from _decoded(arrays, system, image, tokens, "sharp_")
    yield "sharp_text_features_refined", words + system.gamma * found["text_diff"], CLOSE


def _sharpen(system: Any) -> None:
    for name, factor in SHARPENED.items():
        system.get_parameter(name).mul_(factor)
    start = system.decoder.start.weight
    start[:, -system.config.groups :].mul_(100)


def _decoded(
    arrays: dict[str, np.ndarray], system: Any, image: Tensor, tokens: Tensor, prefix: str = ""
) -> Iterator[tuple[str, Tensor, Tolerance]]:
    """Score map, decoder and depth."""
    found: dict[str, Tensor] = {}

    def note(name: str, of_input: bool = False) -> Any:
        return lambda module, inputs, output: found.update({name: inputs[-1] if of_input else output})

    ups = dict(zip(("decoder16", "decoder8", "decoder4"), system.decoder.up, strict=True))
    modules: dict[str, nn.Module] = {"decoder32": system.decoder.start, **ups, "decoder_out": system.decoder}
    hooks = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    hooks += [system.decoder.register_forward_hook(note("score_map", True))]
    hooks += [system.decoder.end.register_forward_hook(note("decoder2", True))]
    output = system(image, tokens)
    for hook in hooks:
        hook.remove()
    yield f"{prefix}score_map", found.pop("score_map"), SCORES
    for name, value in found.items():
        yield prefix + name, part(value), CLOSE
    tolerance = SHARP if prefix else CLOSE
    yield f"{prefix}bin_probs", part(output.bin_probs), tolerance
    half = output.depth[..., ::2, ::2]
    yield f"{prefix}depth", _as_stored(arrays, f"{prefix}depth", half, output.depth), tolerance


def cabins_losses(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Losses with their gradients, and the published loops of validation and evaluation."""
    target = torch.from_numpy(arrays["gt"])
    prediction, edges = (torch.from_numpy(arrays[name]).requires_grad_() for name in ("pred", "bin_edges"))
    upsampled = resize_aligned(prediction, target.shape[-2:])
    silog = losses.silog(upsampled, target, target > 1e-3, unbiased=True)
    chamfer = losses.bin_chamfer((edges[:, 1:] + edges[:, :-1]) / 2, target, target >= 1e-3)
    total = silog + 0.1 * chamfer
    total.backward()
    for name, value in {"silog": silog, "chamfer": chamfer, "total": total}.items():
        yield name, value, RELATIVE
    yield "grad_pred", prediction.grad, Tolerance(rtol_of_max=2e-5)
    yield "grad_bin_edges", edges.grad, Tolerance(rtol_of_max=2e-5)
    with torch.no_grad():
        yield "silog_no_mask", losses.silog(upsampled, target.clamp(min=0.5), None, unbiased=True), RELATIVE
        yield from _evaluated(prediction.detach(), target, float(arrays["max_depth"]))


def _evaluated(prediction: Tensor, target: Tensor, max_depth: float) -> Compared:
    far = max_depth > 20
    size = (352, 1216) if far else (480, 640)
    target = nn.functional.interpolate(target, size, mode="nearest")
    published = protocols.get(f"prompt-clip-{'kitti' if far else 'nyu'}-reference").override(max_depth=max_depth)
    crops = {"garg": "garg", "eigen": "eigen-kitti"} if far else {"eigen": "eigen-nyu"}
    for tag, crop in crops.items():
        rules = published.override(crop=crop)
        once = rules.override(flip=False).without("clamp_views")
        for loop, protocol in (("validate", once), ("evaluate", rules)):
            means = image_means(StandIn(prediction, 1.1 * prediction), target, protocol)
            for official, name in OFFICIAL_METRICS.items():
                tolerance = Tolerance(atol=1e-5) if name.startswith("delta") else RELATIVE
                yield f"{loop}_{tag}_{official}", means[name], tolerance
        each = [
            losses.silog(resize_aligned(p[None], size), t[None], t[None] > 1e-3, unbiased=True)
            for p, t in zip(prediction, target, strict=True)
        ]
        yield f"validate_{tag}_silog_loss", torch.stack(each).mean(), RELATIVE


GRADIENT = Tolerance(rtol_of_max=2e-5)
NUMBERS = [49406, 49407, 269, *range(271, 281)]
UNTOUCHED = 1000  # a row of the token embedding that no number uses


def cabins_train(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """A step of the official program, without dropout, at a rate that shows."""
    assert weights is not None
    system = _official(weights, 10, reference_exact=True).train()
    for module in system.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    theirs = _names(system, weights)
    target = torch.from_numpy(arrays["gt"])
    found: dict[str, Any] = {}
    hooks = [
        system.register_forward_hook(lambda module, inputs, output: found.update(output=output)),
        system.regressor.register_forward_hook(lambda module, inputs, output: found.update(embedding=inputs[0])),
    ]
    batch = Batch(
        image=_image(arrays),
        depth=target,
        mask=target > 0,
        scene=torch.full((len(target),), -1),
        text=[None] * len(target),
        path=[""] * len(target),
    )
    before = {name: value.clone() for name, value in system.state_dict().items()}
    terms = system.loss(batch)
    for hook in hooks:
        hook.remove()
    yield "prompts", _texts(system.prompts(found["output"].bin_centers)), EXACT
    yield "bin_edges", system.bins_of(found["embedding"])[0], CLOSE
    yield "depth", found["output"].depth, CLOSE
    for name, value in terms.items():
        yield name, value, RELATIVE
    terms["total"].backward()
    parameters = {theirs[name]: p for name, p in system.named_parameters()}
    grads = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    for name, gradient in grads.items():
        yield f"grad:{name}", _entries(name, gradient), GRADIENT
    order = [str(name) for name in arrays["grad_norm_names"]]
    yield "grad_norm_names", np.array([name for name in weights if name in grads]), EXACT
    norms = torch.stack([grads[name].double().norm() for name in order])
    yield "grad_norms", norms, Tolerance(rtol=1e-4, atol=1e-6)
    yield "grad_norm", norms.norm(), Tolerance(rtol=1e-4)
    yield "no_grad_names", np.array([name for name in weights if name not in grads and _is_parameter(name)]), EXACT
    optim = OptimSection(lr=3.57e-2, end_lr=3.57e-2 / 2500, schedule="torch_one_cycle", warm_up=0.3)
    optimiser = torch.optim.AdamW(system.parameter_groups(optim.lr, 0.1), betas=optim.betas)
    scheduler(optimiser, optim, 100, 25)
    yield "grad_norm_official", torch.nn.utils.clip_grad_norm_(system.parameters(), 0.1), Tolerance(rtol=1e-3)
    optimiser.step()
    after = {theirs[name]: value for name, value in system.state_dict().items()}
    for name, value in after.items():
        yield f"after:{name}", _entries(name, value), Tolerance(atol=2e-5)
    embedding = after["clip_model.token_embedding.weight"]
    yield "after:untouched_token_row", embedding[UNTOUCHED, ::8], Tolerance(atol=2e-5)
    still = {theirs[name] for name, value in system.state_dict().items() if torch.equal(value, before[name])}
    still.add("clip_model.logit_scale")
    yield "unchanged_names", np.array([name for name in weights if name in still]), EXACT
    yield from _schedule()


def _names(system: Any, weights: dict[str, Tensor]) -> dict[str, str]:
    """Our names -> the authors'."""
    return {
        new + name.removeprefix(old): name
        for name in weights
        for old, new in [next((old, new) for old, new in OFFICIAL_NAMES.items() if name.startswith(old))]
    }


def _is_parameter(name: str) -> bool:
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def _entries(name: str, value: Tensor) -> Tensor:
    """What the file keeps of a tensor."""
    if name == "clip_model.token_embedding.weight":
        return value[NUMBERS, ::8]
    if name.endswith(("running_mean", "running_var")):
        return value
    return value.flatten()[:: max(1, value.numel() // 256)][:256]


def _schedule() -> Compared:
    """Rates and beta1 of 100 steps under the recipe, for five groups."""
    recipe = load_recipe("cabins-nyu")["optim"]
    optim = OptimSection(**{key: recipe[key] for key in ("lr", "end_lr", "schedule", "warm_up")})
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": optim.lr} for _ in range(5)]
    optimiser = torch.optim.AdamW(groups)
    schedule, rates, betas = scheduler(optimiser, optim, 100, 25), [], []
    for _ in range(100):
        rates.append([group["lr"] for group in optimiser.param_groups])
        betas.append(optimiser.param_groups[0]["betas"][0])
        optimiser.step()
        schedule.step()
    yield "schedule_lr", np.array(rates), Tolerance(rtol=1e-5)
    yield "schedule_beta1", np.array(betas), Tolerance(rtol=1e-6)


def cabins_data(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """What the published loader returns, evaluated and for training with the recorded draws."""
    kitti = arrays["rgb"].shape[1] > 640
    rules, size, scale = RULES[f"cabins-{'kitti' if kitti else 'nyu'}"], (416, 544), 0.001
    if kitti:
        size, scale = (352, 704), 1 / 256
    depth = torch.from_numpy(arrays["depth_png"].astype(np.float32) * np.float32(scale))[None]
    stored = Sample(image=torch.from_numpy(arrays["rgb"]).permute(2, 0, 1).float() / 255, depth=depth, mask=depth > 0)
    evaluated = evaluation_sample(stored, rules)
    yield "test_image_s8", normalised(evaluated.image)[:, ::8, ::8], Tolerance(atol=1e-5)
    yield "test_depth_s4", evaluated.depth[0, ::4, ::4], Tolerance(atol=1e-5)
    yield "test_shape", np.array(evaluated.image.shape), EXACT
    frame = (427, 565) if rules.frame == "nyu" else tuple(evaluated.image.shape[-2:])
    for name in arrays:
        run = name.removesuffix("_draws")
        if run == name:
            continue
        angle, x, y, mirror, colored, gamma, brightness, *colors = arrays[name].tolist()
        moved = {"x": (x + 0.5) / (frame[1] - size[1] + 1), "y": (y + 0.5) / (frame[0] - size[0] + 1)}
        changed = {"gamma": gamma, "brightness": brightness, "colors": tuple(colors)} if colored else {}
        made = training_sample(
            stored, size, rules, BtsAugmentation(angle=angle, mirror=mirror > 0.5, **moved, **changed)
        )
        # Along turned edges another Pillow may differ by single pixels.
        turned = Tolerance(atol=1e-5, outliers=1e-3 if angle else 0)
        yield f"{run}_image_s4", normalised(made.image)[:, ::4, ::4], turned
        yield f"{run}_depth_s4", made.depth[:, ::4, ::4], turned


CASES = (
    Case("cabins_losses*", cabins_losses),
    Case("cabins_train*", cabins_train, "cabins_train", slow=True),
    Case("cabins_data*", cabins_data),
    Case("cabins*", cabins, "cabins", slow=True),
)
