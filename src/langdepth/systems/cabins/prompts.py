"""Bins as prompts: depths that stand for groups of bins, and their decimal numbers as CLIP's tokens.

    centers (B, 256) -> 8 groups of 32 neighbours -> one depth for each (B, 8) -> "4.27" -> token ids (B, 8, 22)

CLIP's tokenizer takes a number character by character, so tokens follow from digits without any text, on the depths'
own device. No gradient passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

LENGTH = 22
"""Tokens of a prompt, padding included."""
START, END = 49406, 49407
_POINT, _ZERO = 269, 271  # the tokens of "." and "0"; those of "1" to "9" follow
_WHOLE, _DECIMALS = 6, 4  # digits before and behind the point


def representatives(centers: Tensor, groups: int) -> Tensor:
    """Centres (B, N) metres to one depth for each group of N / ``groups`` neighbours, (B, groups).

    A mean of the group's centres with the weights softmax(1 / distance to the plain mean). How sharp they are depends
    on the unit: of bins up to 10 m nearly all weight is on the centre next to the mean; up to 80 m it is a mixture.
    """
    grouped = centers.detach().float().unflatten(-1, (groups, -1))
    distance = (grouped - grouped.mean(-1, keepdim=True)).abs()
    weights = (1 / (distance + 1e-4)).softmax(-1)
    return (weights * grouped).sum(-1) / weights.sum(-1)


def number_tokens(depths: Tensor) -> Tensor:
    """Depths (B, G) below a million metres as numbers of at most four decimals: token ids (B, G, LENGTH) int64.

    The digits are those of Python's ``str(round(depth, 4))``: 0.6777, 4.27, 7.0. In float64 the product with 10 000 is
    exact, so halves are rounded as there. Start, digits, end, zeros.
    """
    count = (depths.double() * 10**_DECIMALS).round().long().unsqueeze(-1)  # of tenths of a millimetre
    places = 10 ** torch.arange(_WHOLE + _DECIMALS - 1, -1, -1, device=depths.device)
    digits = count // places % 10
    whole, unit = places[:_WHOLE], 10**_DECIMALS
    leading = (count >= whole) | (whole == unit)  # no zeros in front, but 0.5 has its 0
    trailing = (count % (10 * places[_WHOLE:]) > 0) | (places[_WHOLE:] == unit // 10)  # none behind, but 7.0 has its 0
    always = count >= 0  # not ones_like, which a trace would keep at its own batch
    written = torch.cat([always, leading, always, trailing, always], -1)
    mark = 0 * count
    parts = [mark + START, digits[..., :_WHOLE] + _ZERO, mark + _POINT, digits[..., _WHOLE:] + _ZERO, mark + END]
    place = written.long().cumsum(-1) - 1
    here = written.unsqueeze(-1) & (place.unsqueeze(-1) == torch.arange(LENGTH, device=depths.device))
    return (torch.cat(parts, -1).unsqueeze(-1) * here).sum(-2)
