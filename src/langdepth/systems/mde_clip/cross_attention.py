"""Every pixel of a feature map attends to a few words (MDE-CLIP; Vaswani et al. 2017 with one head)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class CrossAttention(nn.Module):
    """Scaled-dot-product attention of pixels (queries) with the rows of a text matrix (keys and values), one head.

    With few words it is cheapest to move the layers of the pixels to the words: q(x) . k = x . W_q' k + b_q . k, and as
    the weights add up to 1, the output layer of the mixed values is the mix of the values' outputs. What is left at
    every pixel is a product with K rows; nothing of size (HW, C, C) or (HW, HW) is computed. The numbers are those of
    the usual order up to rounding. The keys have no bias: it would move all scores of a pixel alike.
    """

    def __init__(self, channels: int, text_channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(text_channels, channels, bias=False)
        self.value = nn.Linear(text_channels, channels)
        self.output = nn.Linear(channels, channels)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)
        for biased in (self.query, self.value, self.output):
            nn.init.zeros_(biased.bias)

    def words(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What pixels meet, of text (N, K, D): keys (N, K, C), offsets of the scores (N, 1, K), values (N, K, C)."""
        keys = self.key(text)
        scale = self.query.in_features**-0.5
        offsets = scale * (keys @ self.query.bias)
        return scale * (keys @ self.query.weight), offsets[:, None], self.output(self.value(text))

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        """features (B, C, h, w) and text (N, K, D), N = B or 1, to (B, C, h, w): at each pixel a mix of K values."""
        pixels = features.flatten(2).transpose(1, 2)
        keys, offsets, values = (part.expand(len(pixels), -1, -1).to(pixels.dtype) for part in self.words(text))
        mixed = F.scaled_dot_product_attention(pixels, keys, values, attn_mask=offsets, scale=1.0)
        return mixed.transpose(1, 2).unflatten(2, features.shape[2:])


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
