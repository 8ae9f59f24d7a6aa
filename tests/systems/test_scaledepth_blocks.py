"""Positions, deformable attention, pixel decoder and query decoder, against plain loops and by what they promise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from langdepth.systems.scaledepth.blocks import (
    DeformableAttention,
    PixelDecoder,
    QueryDecoder,
    cell_centers,
    sine_positions,
)

SIZES = [(2, 3), (4, 5)]


def test_positions_are_sines_of_rows_then_of_columns() -> None:
    height, width, channels = 3, 5, 16
    found = sine_positions(height, width, channels).view(height, width, channels)
    for row in range(height):
        for column in range(width):
            for axis, place in enumerate(((row + 1) / height, (column + 1) / width)):
                for i in range(8):
                    angle = 2 * math.pi * place / 10000 ** (2 * (i // 2) / 8)
                    wave = math.cos(angle) if i % 2 else math.sin(angle)
                    assert math.isclose(found[row, column, axis * 8 + i], wave, abs_tol=1e-4)


def sample(level: Tensor, x: float, y: float) -> Tensor:
    """Bilinear value of a map (C, h, w) at pixel coordinates, centres at 0, 1, 2 ...; 0 outside."""
    total = torch.zeros(len(level))
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < level.shape[1] and 0 <= column < level.shape[2]:
                total = total + level[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


@torch.no_grad()
def test_deformable_attention_is_its_definition() -> None:
    torch.manual_seed(0)
    channels, heads, points = 8, 2, 3
    attention = DeformableAttention(channels, levels=2, heads=heads, points=points)
    for parameter in attention.parameters():
        parameter.copy_(torch.randn_like(parameter))
    tokens = torch.randn(1, 6 + 20, channels)
    queries = tokens + torch.randn_like(tokens)
    found = attention(queries, tokens, cell_centers(SIZES), SIZES)

    parts = attention.value(tokens)[0].split([6, 20])
    maps = [part.T.reshape(heads, -1, *size) for part, size in zip(parts, SIZES, strict=True)]
    places = [((c + 0.5) / w, (r + 0.5) / h) for h, w in SIZES for r in range(h) for c in range(w)]
    for index, (x, y) in enumerate(places):
        offsets = attention.offsets(queries[0, index]).view(heads, 2, points, 2)
        weights = attention.weights(queries[0, index]).view(heads, -1).softmax(-1).view(heads, 2, points)
        mixed = []
        for head in range(heads):
            total = torch.zeros(channels // heads)
            for level, (height, width) in enumerate(SIZES):
                for point in range(points):
                    dx, dy = offsets[head, level, point].tolist()
                    value = sample(maps[level][head], x * width + dx - 0.5, y * height + dy - 0.5)
                    total = total + weights[head, level, point] * value
            mixed.append(total)
        torch.testing.assert_close(found[0, index], attention.output(torch.cat(mixed)), rtol=1e-4, atol=1e-5)


def test_heads_start_in_directions_of_their_own() -> None:
    attention = DeformableAttention(32, levels=3, heads=8, points=4)
    offsets = attention.offsets(torch.randn(32)).view(8, 3, 4, 2)
    assert torch.equal(offsets[:, 0], offsets[:, 2])
    steps = offsets.abs().amax(-1)
    torch.testing.assert_close(steps, torch.tensor([1.0, 2, 3, 4]).expand(8, 3, 4))
    assert len({tuple(direction) for direction in offsets[:, 0, 0].round(decimals=3).tolist()}) == 8


@torch.no_grad()
def test_bfloat16_samples_where_float32_does() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(32, levels=1)
    size = [(64, 256)]  # wider than bfloat16 can count in halves
    ramp = torch.linspace(0, 1, 256).expand(64, 256).reshape(1, -1, 1).expand(1, -1, 32)
    full = attention(ramp, ramp, cell_centers(size), size)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(ramp, ramp, cell_centers(size), size)
    assert (mixed - full).abs().mean() < 0.01 * full.abs().mean()


def test_pixel_decoder_keeps_the_sizes_of_its_maps() -> None:
    decoder = PixelDecoder([4, 8, 12, 16], channels=64, layers=2, hidden=16)
    sizes = [(25, 37), (12, 18), (6, 9), (3, 4)]
    maps = [torch.randn(2, width, *size) for width, size in zip((4, 8, 12, 16), sizes, strict=True)]
    found = decoder(maps)
    assert found.masks.shape == (2, 64, 25, 37)
    assert [tuple(memory.shape) for memory in found.memories] == [(2, 64, *size) for size in reversed(sizes[1:])]


@torch.no_grad()
def test_queries_attend_inside_their_masks() -> None:
    torch.manual_seed(0)
    decoder = QueryDecoder(masked=3, free=2, channels=16, layers=3, hidden=16)
    memories = [torch.randn(1, 16, *size) for size in ((2, 3), (4, 6), (8, 12))]
    features = torch.randn(1, 16, 16, 24)
    seen: list[Tensor] = []
    for layer in decoder.layers:
        layer.cross_attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[-1]))  # type: ignore[union-attr]
    outputs = decoder(memories, features)
    before = [decoder.contents[None], *outputs[:-1]]
    for contents, memory, allowed in zip(before, memories, seen, strict=True):
        logits = decoder.mask_logits(contents, features)
        small = torch.nn.functional.interpolate(logits, memory.shape[-2:], mode="bilinear", align_corners=False)
        expected = small.flatten(2) >= 0
        expected[~expected.any(-1)] = True
        assert torch.equal(allowed[:, 0, :3], expected)
        assert allowed[:, 0, 3:].all()
    # What a query may not see changes nothing for it.
    blocked = ~seen[0][0, 0, 0]
    assert blocked.any()
    other = memories[0].flatten(2).clone()
    other[..., blocked] += 5
    changed = decoder([other.view_as(memories[0]), *memories[1:]], features)[0]
    contents = outputs[0]
    assert torch.equal(seen[0], seen[3])
    attended = _cross_attended(decoder, memories, seen[0])
    torch.testing.assert_close(attended[:, 0], _cross_attended(decoder, [other.view_as(memories[0])], seen[0])[:, 0])
    assert not torch.equal(changed[:, 3], contents[:, 3])


def _cross_attended(decoder: QueryDecoder, memories: list[Tensor], allowed: Tensor) -> Tensor:
    """What the first layer's queries take from the first memory."""
    value = memories[0].flatten(2).transpose(1, 2) + decoder.levels[0]
    query = decoder.contents[None] + decoder.positions
    attended: Tensor = decoder.layers[0].cross_attention(query, value, value, allowed)  # type: ignore[operator]
    return attended


@torch.no_grad()
def test_a_query_with_an_empty_mask_attends_everywhere() -> None:
    decoder = QueryDecoder(masked=2, free=1, channels=16, layers=3, hidden=16)
    contents = decoder.contents[None]
    embedding = decoder.mask_embedding(decoder.norm(contents[:, :2]))
    features = -embedding[0, 0].view(1, 16, 1, 1).expand(1, 16, 4, 4)
    assert (decoder.mask_logits(contents, features)[0, 0] < 0).all()
    assert decoder._allowed(contents, features)[0, 0, 0].all()
