"""scaledepth_backbone, _decode, _full, _optim: the published network part by part and as a whole, its optimiser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.backbones.clip import CLIP_MEAN, CLIP_STD
from langdepth.backbones.encoders import make_encoder
from langdepth.prediction.network import infer
from langdepth.records import Batch
from langdepth.systems import registry
from langdepth.systems.official import rename
from langdepth.systems.scaledepth.model import LayerPrediction, ScaleDepth
from langdepth.systems.scaledepth.official import official_names
from langdepth.training.module import rate
from langdepth.training.sections import OptimSection
from tests.parity.runner import Case, Compared, Tolerance

TRUNK = "backbone.clip_model.visual.trunk."
CLOSE = Tolerance(rtol_of_max=1e-5)
MAPS, PIXELS, QUERIES = Tolerance(atol=5e-5), Tolerance(atol=3e-5), Tolerance(atol=3e-5)
EDGES, RELATIVE, DEPTH = Tolerance(atol=5e-5), Tolerance(atol=2e-4), Tolerance(atol=2e-4)
SCALE, PROBS, SIMILARITY = Tolerance(atol=2e-5), Tolerance(atol=1e-5), Tolerance(atol=3e-5)
LOSS = Tolerance(rtol=1e-5)
EXACT, FEW_BITS = Tolerance(), Tolerance(outliers=1e-4)
# A few samples lie on the border of two cells, where the gradient of bilinear sampling jumps.
GRADIENTS = {"res2": Tolerance(rtol_of_max=2e-4), "others": Tolerance(rtol_of_max=3e-2)}
# Of an image of this size: window and stride, which the files do not hold.
WINDOWS = {(96, 170): ((64, 96), (32, 32)), (110, 130): ((64, 64), (48, 40))}


def _tensors(weights: dict[str, Tensor], system: ScaleDepth) -> dict[str, Tensor]:
    tensors, report = system.convert_official(weights)
    assert [name for name in report["missing"] if not name.startswith("encoder.")] == []
    return tensors


@torch.no_grad()
def scaledepth_backbone(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The encoder alone."""
    assert weights is not None
    image = torch.from_numpy(arrays["image_rgb"]) / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    encoder: Any = make_encoder("convnext_large").eval()
    tensors, report = rename(weights, {TRUNK: ""}, encoder.state_dict())
    assert report["missing"] == []
    encoder.load_state_dict(tensors)
    normalised = (image - mean) / std
    yield "normalized_s4", normalised[..., ::4, ::4], Tolerance(atol=1e-5)
    yield "stem_c8", encoder.stem(normalised)[:, ::8], MAPS
    for level, value in enumerate(encoder(normalised), start=2):
        yield f"res{level}", value, MAPS


def _without_encoder(weights: dict[str, Tensor]) -> ScaleDepth:
    """`scaledepth-nk` with the decoders' weights; the encoder, of which no more is needed than its channels, empty."""
    with torch.device("meta"):
        system: Any = registry.build("scaledepth-nk")
    system.load_state_dict(_tensors(weights, system), strict=False, assign=True)
    return system.eval()


def scaledepth_decode(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """From the encoder's maps to depth, with losses and gradients."""
    assert weights is not None
    system = _without_encoder(weights)
    maps = [torch.from_numpy(arrays[f"feat_res{level}"]).requires_grad_() for level in (2, 3, 4, 5)]
    found: dict[str, list[Tensor]] = {"encoder": [], "allowed": [], "contents": []}
    for module in system.pixel_decoder.layers:
        module.register_forward_hook(lambda module, inputs, output: found["encoder"].append(output))
    layer: Any
    for layer in system.query_decoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: found["contents"].append(output))
        layer.cross_attention.register_forward_pre_hook(lambda module, inputs: found["allowed"].append(inputs[-1]))
    layers = system.decode(maps, range(9))
    pixels = system.pixel_decoder(maps)
    yield "pixel.encoder_layers_c16", torch.stack(found["encoder"][:6])[..., ::16], PIXELS
    for level, memory in enumerate(pixels.memories):
        yield f"pixel.memory{level}", memory, PIXELS
    yield "pixel.mask_features_c8", pixels.masks[:, ::8], PIXELS
    for index, allowed in enumerate(found["allowed"]):
        yield f"attn_mask.layer{index}", ~allowed[:, 0], FEW_BITS
    contents = torch.stack(found["contents"])
    yield "query.after_layer_c4", contents[..., ::4], QUERIES
    yield "scale_queries", contents[:, :, 64:], QUERIES
    yield "bin_logits", torch.stack([layer.bin_logits for layer in layers]), CLOSE
    yield "mask_logits_s4", torch.stack([layer.mask_logits[..., ::4, ::4] for layer in layers]), CLOSE
    yield "mask_logits.last_s2", layers[-1].mask_logits[..., ::2, ::2], CLOSE
    yield from _layers("", layers)
    yield "similarity_logits", torch.stack([_similarity(layer) for layer in layers]), SIMILARITY
    for name, layer in zip(("layer2", "layer5", "last"), layers[2::3], strict=True):
        yield f"relative_depth.{name}", layer.relative, RELATIVE
    last, size = layers[-1], arrays["size"].tolist()
    depth = last.relative * last.scale[:, None, None, None]
    yield "depth", F.interpolate(depth, size=size, mode="bilinear", align_corners=False), DEPTH
    yield from _losses(arrays, system, layers[2::3], maps)


def _similarity(layer: LayerPrediction) -> Tensor:
    assert layer.similarity is not None
    return layer.similarity


def _layers(prefix: str, layers: list[LayerPrediction]) -> Compared:
    """Predictions of all nine layers."""
    yield f"{prefix}bin_edges", torch.stack([layer.edges for layer in layers]), EDGES
    yield f"{prefix}scale", torch.stack([layer.scale[:, None] for layer in layers]), SCALE
    yield f"{prefix}scene_probs", torch.stack([_similarity(layer).softmax(-1) for layer in layers]), PROBS


def _losses(
    arrays: dict[str, np.ndarray], system: ScaleDepth, layers: list[LayerPrediction], maps: list[Tensor]
) -> Compared:
    """Losses of the three variants, gradients of that with scenes and without a limit of depth."""
    depth = torch.from_numpy(arrays["gt_depth"])
    batch = Batch(
        image=torch.zeros(0),
        depth=depth,
        mask=depth > 0,
        scene=torch.from_numpy(arrays["category_id"]),
        text=[None] * len(depth),
        path=[""] * len(depth),
    )
    names = {"depth": "loss_depth", "scene": "loss_ce", "total": "total"}
    names |= {
        f"{ours}_{i}": f"aux_loss_{their}_{i}" for i in (2, 5) for ours, their in (("depth", "depth"), ("scene", "ce"))
    }
    without = [layer._replace(similarity=None) for layer in layers]
    config = system.config
    for variant, limit, said in (("n", 10.0, layers), ("k", None, without), ("nk", None, layers)):
        system.config = replace(config, loss_max_depth=limit)
        terms = system.losses_of(said, batch)
        for name, value in terms.items():
            yield f"loss_{variant}.{names[name]}", value, LOSS
    terms["total"].backward()
    for level, features in enumerate(maps, start=2):
        tolerance = GRADIENTS["res2" if level == 2 else "others"]
        assert features.grad is not None
        yield f"grad_nk.res{level}_c16", features.grad[:, ::16], tolerance
    parameters, official = dict(system.named_parameters()), arrays["grad_nk.param_names"].tolist()
    ours = _our_names(official, system)
    assert set(ours) == {name for name in parameters if not name.startswith("encoder.")}
    norms = [torch.zeros(()) if (grad := parameters[name].grad) is None else grad.norm() for name in ours]
    yield "grad_nk.param_norms", torch.stack(norms), Tolerance(rtol_of_max=1e-3)


def _names(system: ScaleDepth) -> dict[str, str]:
    return official_names(system.config.pixel_layers, system.config.decoder_layers)


def _our_names(official: list[str], system: ScaleDepth) -> list[str]:
    """Our names of the authors' tensors."""
    markers = {name: torch.tensor(float(index)) for index, name in enumerate(official)}
    tensors, _ = rename(markers, _names(system), system.state_dict())
    ours = {int(marker): name for name, marker in tensors.items()}
    return [ours[index] for index in range(len(official))]


@torch.no_grad()
def scaledepth_full(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """From image to depth: whole, by windows with mirrored images, by way of other sizes."""
    assert weights is not None
    system: Any = registry.build("scaledepth-nk", {"area": None})
    system.load_state_dict(_tensors(weights, system))
    system.eval()
    for run in dict.fromkeys(name.split(".")[0] for name in arrays):
        pixels = torch.from_numpy(arrays[f"{run}.image_bgr"]).flip(-1).permute(0, 3, 1, 2)
        image, size = pixels / 255, (pixels.shape[-2], pixels.shape[-1])
        network, wanted = (tuple(arrays[f"{run}.{name}"].tolist()) for name in ("img_shape", "ori_shape"))
        if f"{run}.res5_c16" in arrays:
            maps = system.encode(image)
            yield f"{run}.res5_c16", maps[-1][:, ::16], MAPS
            yield f"{run}.res2_c48_s4", maps[0][:, ::48, ::4, ::4], MAPS
            layers = system.decode(maps, range(9))
            yield from _layers(f"{run}.", layers)
            yield f"{run}.relative_depth_s2", layers[-1].relative[..., ::2, ::2], RELATIVE
        if run == "slide_flip":
            window, stride = WINDOWS[size]
            depth = infer(system, image, flip=True, window=window, stride=stride).depth
        elif wanted == size:
            depth = infer(system, image, via=network).depth
        else:
            depth = F.interpolate(infer(system, image).depth, size=wanted, mode="bilinear", align_corners=False)
        yield f"{run}.depth", depth, DEPTH


def scaledepth_optim(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Rate and decay of all parameters; of those that nothing uses and we do not have, the encoder's hold."""
    with torch.device("meta"):
        system: Any = registry.build("scaledepth-nk")
    names, parameters = arrays["name"].tolist(), dict(system.named_parameters())
    groups = system.parameter_groups(1e-4, 0.05)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    tensors, report = rename(
        {name: torch.tensor(float(index)) for index, name in enumerate(names)}, _names(system), parameters
    )
    assert set(tensors) == set(parameters)
    assert all(name.startswith("backbone.") for name in report["ignored"])
    found = [groups[0]] * len(names)
    for ours, index in tensors.items():
        found[int(index)] = of[id(parameters[ours])]
    yield "lr", np.array([group["lr"] for group in found]), Tolerance(rtol=1e-12)
    yield "weight_decay", np.array([group["weight_decay"] for group in found]), EXACT
    share = rate(OptimSection(lr=1e-4, schedule="poly", power=0.9, warm_up=0), 39999)
    rates = [[base * share(step) for base in (1e-4, 1e-5)] for step in arrays["schedule.iteration"].tolist()]
    yield "schedule.lr_base_1e-4_1e-5", np.array(rates), Tolerance(rtol=1e-10)


CASES = (
    Case("scaledepth_backbone*", scaledepth_backbone, "scaledepth_backbone"),
    Case("scaledepth_decode*", scaledepth_decode, "scaledepth_decode"),
    Case("scaledepth_full*", scaledepth_full, "scaledepth_full", slow=True),
    Case("scaledepth_optim*", scaledepth_optim),
)
