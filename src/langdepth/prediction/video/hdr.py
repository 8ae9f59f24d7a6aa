"""Frames of high dynamic range (PQ of HDR10, HLG of phones) as 8-bit RGB of a common photo."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

_PQ, _HLG = 16, 18  # transfer characteristics of ITU-T H.273
_BT2020_COLORS, _BT2020_MATRIX = 9, (9, 10)
_WHITE_NITS = 203.0  # of paper, ITU-R BT.2408
_BRIGHTEST = 1000 / _WHITE_NITS  # what becomes the brightest white
_GAMUT = np.array(  # BT.2020 to BT.709, linear light (ITU-R BT.2087)
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def is_hdr(frame: Any) -> bool:
    """Whether its brightness is coded as PQ or HLG."""
    return frame.color_trc in (_PQ, _HLG)


def standard_range(frame: Any) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8: linear light, colors of BT.709, highlights compressed up to 1000 nits, then sRGB's curve."""
    colors = {} if frame.colorspace in _BT2020_MATRIX else {"src_colorspace": _BT2020_MATRIX[0]}
    coded = frame.to_ndarray(format="rgb48le", **colors)
    light = _linear(frame.color_trc)[coded >> 4]
    if frame.color_primaries in (_BT2020_COLORS, 2):
        light = light @ _GAMUT.T
    return _curve()[np.rint(np.sqrt(light.clip(0, _BRIGHTEST) / _BRIGHTEST) * 4095).astype(np.uint16)]


@lru_cache(maxsize=2)
def _linear(transfer: int) -> npt.NDArray[np.float32]:
    """Light of each of 4096 coded values, 1 for white paper."""
    coded = np.linspace(0, 1, 4096)
    if transfer == _PQ:  # SMPTE ST 2084
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = coded ** (1 / m2)
        return (10000 / _WHITE_NITS * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073  # ITU-R BT.2100
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    return (scene**1.2 * _BRIGHTEST).astype(np.float32)  # seen on a screen of 1000 nits


@lru_cache(maxsize=1)
def _curve() -> npt.NDArray[np.uint8]:
    """8-bit values of light from 0 to ``_BRIGHTEST``, by 4096 steps of its square root."""
    light = np.linspace(0, 1, 4096) ** 2 * _BRIGHTEST
    light = light * (1 + light / _BRIGHTEST**2) / (1 + light)  # Reinhard's curve, which keeps the darks
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * coded.clip(0, 1)).astype(np.uint8)
