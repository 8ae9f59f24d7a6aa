"""The authors' checkpoints of ScaleDepth: their tensor names and ours."""

from __future__ import annotations

HEAD, PIXELS, QUERIES = "decode_head.", "pixel_decoder.", "query_decoder."
QUERY_FEATURES = f"{HEAD}query_feat.weight"  # by which a checkpoint of ScaleDepth is recognised
SCENE_TABLE = f"{HEAD}class_embeddings"

_NAMES = {
    "backbone.clip_model.visual.trunk.": "encoder.",
    SCENE_TABLE: "scene_table",
    f"{HEAD}scale_predictor.fc.": "scale.",
    QUERY_FEATURES: f"{QUERIES}contents",
    f"{HEAD}query_embed.weight": f"{QUERIES}positions",
    f"{HEAD}level_embed.weight": f"{QUERIES}levels",
    f"{HEAD}cls_embed.": f"{QUERIES}logit.",
    f"{HEAD}mask_embed.": f"{QUERIES}mask_embedding.",
    f"{HEAD}transformer_decoder.post_norm.": f"{QUERIES}norm.",
    f"{HEAD}pixel_decoder.level_encoding.weight": f"{PIXELS}levels",
    f"{HEAD}pixel_decoder.mask_feature.": f"{PIXELS}masks.",
}
_CONVOLUTIONS = {  # each with its GroupNorm
    **{f"input_convs.{level}": f"inputs.{level}" for level in range(3)},
    "lateral_convs.0": "lateral",
    "output_convs.0": "output",
}
_LAYER = {
    "ffn.layers.0.0.": "feed_forward.0.",
    "ffn.layers.1.": "feed_forward.2.",
    "norms.0.": "norm1.",
    "norms.1.": "norm2.",
    "norms.2.": "norm3.",
}
_PIXEL_LAYER = _LAYER | {
    "self_attn.sampling_offsets.": "attention.offsets.",
    "self_attn.attention_weights.": "attention.weights.",
    "self_attn.value_proj.": "attention.value.",
    "self_attn.output_proj.": "attention.output.",
}
_QUERY_LAYER = _LAYER | {
    "cross_attn.attn.in_proj_": "cross_attention.inputs.",
    "cross_attn.attn.out_proj.": "cross_attention.output.",
    "self_attn.attn.in_proj_": "self_attention.inputs.",
    "self_attn.attn.out_proj.": "self_attention.output.",
}


def official_names(pixel_layers: int, decoder_layers: int) -> dict[str, str]:
    """Prefixes of the authors' tensors -> ours."""
    names = dict(_NAMES)
    for theirs, ours in _CONVOLUTIONS.items():
        names[f"{HEAD}pixel_decoder.{theirs}.conv."] = f"{PIXELS}{ours}.0."
        names[f"{HEAD}pixel_decoder.{theirs}.gn."] = f"{PIXELS}{ours}.1."
    for old, new, count, parts in (
        (f"{HEAD}pixel_decoder.encoder.layers.", f"{PIXELS}layers.", pixel_layers, _PIXEL_LAYER),
        (f"{HEAD}transformer_decoder.layers.", f"{QUERIES}layers.", decoder_layers, _QUERY_LAYER),
    ):
        for layer in range(count):
            names |= {f"{old}{layer}.{theirs}": f"{new}{layer}.{ours}" for theirs, ours in parts.items()}
    return names
