"""The authors' checkpoints of MDE-CLIP: their tensor names and ours."""

from __future__ import annotations

from torch import Tensor

POSITIONS = "adaptive_bins_layer.patch_transformer.positional_encodings"
BINS_HEAD = {
    POSITIONS: "head.transformer.positions",
    "adaptive_bins_layer.patch_transformer.transformer_encoder.": "head.transformer.encoder.",
    "adaptive_bins_layer.patch_transformer.embedding_convPxP.": "head.transformer.patch_embedding.",
    "adaptive_bins_layer.conv3x3.": "head.transformer.conv.",
    "adaptive_bins_layer.regressor.": "head.transformer.regressor.",
    "conv_out.0.": "head.logits.",
}
UNET_HEAD = {"last_layer_depth.": "head."}
DECODER = {
    "model.": "tower.",
    "up_layer.": "decoder.up.",
    **{f"conv_block.{level}.layer.": f"decoder.fuse.{level}." for level in range(3)},
}
ATTENTION = {f"cross_att_list.{level}.layer.": f"decoder.attention.{level}." for level in range(4)}


def split_multihead(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """``CrossAttention``'s tensors, without prefix, from those of ``torch.nn.MultiheadAttention`` under ``prefix``.

    PyTorch keeps the three projections in one tensor where pixels and words have equally many channels, else apart.
    Raises KeyError for tensors that are not there.
    """
    if f"{prefix}in_proj_weight" in state_dict:
        query, key, value = state_dict[f"{prefix}in_proj_weight"].tensor_split(3)
    else:
        query, key, value = (state_dict[f"{prefix}{name}_proj_weight"] for name in "qkv")
    query_bias, _, value_bias = state_dict[f"{prefix}in_proj_bias"].tensor_split(3)
    return {
        "query.weight": query,
        "query.bias": query_bias,
        "key.weight": key,
        "value.weight": value,
        "value.bias": value_bias,
        "output.weight": state_dict[f"{prefix}out_proj.weight"],
        "output.bias": state_dict[f"{prefix}out_proj.bias"],
    }
