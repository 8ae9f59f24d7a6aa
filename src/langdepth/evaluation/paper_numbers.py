"""What papers print, for the column beside ours. Facts, each with its place; looked up by system and protocol name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PaperNumbers:
    """One printed row: ``metrics`` by our names, ``source`` says where it stands."""

    system: str
    protocol: str
    source: str
    metrics: dict[str, float]


_SHORT = ("delta1", "delta2", "delta3", "abs_rel", "log10", "rmse")
_PROMPT = ("abs_rel", "rmse", "msle", "log10", "delta1", "delta2", "delta3")
_KITTI = ("delta1", "delta2", "delta3", "abs_rel", "rmse_log", "rmse")
_LOG = (
    "delta0.5", "delta1", "delta2", "delta3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog",
)  # fmt: skip
_ADAPTERS = "course project of the CLIP adapters, main table"
_MSA = "course project of the CLIP adapters, MSA ablation, L1"
_CLIP_DEPTH = "README of DME_CLIP"
_AUTY = "Auty & Mikolajczyk (2023), results table"


def _row(system: str, protocol: str, source: str, names: tuple[str, ...], *values: float) -> PaperNumbers:
    return PaperNumbers(system=system, protocol=protocol, source=source, metrics=dict(zip(names, values, strict=True)))


# The column that the adapters' tables call rmse_log holds log10 in the zero-shot rows and is left out everywhere.
_NO_LOG = ("delta1", "delta2", "delta3", "abs_rel", "rmse")
_NYU, _KB = "prompt-clip-nyu-reference", "prompt-clip-kitti-reference"

PAPER_NUMBERS: tuple[PaperNumbers, ...] = (
    _row("depthclip", "depthclip-reference", "DepthCLIP (arXiv 2207.01077), main table", _SHORT,
         0.394, 0.683, 0.851, 0.388, 0.156, 1.167),
    _row("clip-adapter", "clip-adapters-reference", f"{_ADAPTERS}, supervised", _NO_LOG,
         0.411, 0.704, 0.869, 0.376, 1.109),
    _row("clip-coarse-refined", "clip-adapters-reference", _ADAPTERS, _NO_LOG, 0.394, 0.695, 0.873, 0.354, 1.121),
    _row("msa", "clip-adapters-reference", f"{_ADAPTERS}, supervised", _NO_LOG, 0.573, 0.856, 0.956, 0.255, 0.804),
    _row("msa-sam", "clip-adapters-reference", _MSA, _NO_LOG, 0.576, 0.856, 0.955, 0.254, 0.808),
    _row("few-shot-clip", "depthclip-reference", f"Hu et al. (2024), from the {_CLIP_DEPTH}", _NO_LOG,
         0.428, 0.732, 0.898, 0.347, 1.049),
    _row("mde-clip", "mde-clip-reference", f"{_CLIP_DEPTH}, first release", _NO_LOG, 0.517, 0.815, 0.938, 0.304, 0.865),
    _row("prompt-clip", _NYU, _AUTY, _PROMPT, 0.319, 0.970, 0.139, 0.128, 0.465, 0.776, 0.922),
    _row("prompt-clip-log", _NYU, _AUTY, _PROMPT, 0.312, 0.991, 0.142, 0.130, 0.449, 0.767, 0.922),
    _row("prompt-clip-20", _NYU, _AUTY, _PROMPT, 0.314, 0.949, 0.134, 0.125, 0.475, 0.785, 0.926),
    _row("prompt-clip-20-log", _NYU, _AUTY, _PROMPT, 0.308, 0.968, 0.136, 0.127, 0.466, 0.780, 0.926),
    _row("prompt-clip-256", _NYU, _AUTY, _PROMPT, 0.298, 0.933, 0.127, 0.122, 0.485, 0.796, 0.934),
    _row("prompt-clip-1o1d", _NYU, _AUTY, _PROMPT, 0.323, 0.975, 0.142, 0.129, 0.461, 0.772, 0.920),
    _row("prompt-clip-1o2d", _NYU, _AUTY, _PROMPT, 0.323, 0.974, 0.141, 0.129, 0.462, 0.773, 0.920),
    _row("prompt-clip-4o4d", _NYU, _AUTY, _PROMPT, 0.318, 0.965, 0.138, 0.127, 0.466, 0.778, 0.923),
    _row("prompt-clip-4o4d-7", _NYU, _AUTY, _PROMPT, 0.317, 0.955, 0.136, 0.126, 0.474, 0.782, 0.925),
    _row("prompt-clip-depth", _NYU, _AUTY, _PROMPT, 1.014, 2.413, 0.566, 0.265, 0.227, 0.431, 0.606),
    _row("prompt-clip-size", _NYU, _AUTY, _PROMPT, 2.130, 4.431, 1.281, 0.446, 0.048, 0.119, 0.235),
    _row("prompt-clip-colour", _NYU, _AUTY, _PROMPT, 1.381, 3.010, 0.786, 0.331, 0.131, 0.277, 0.449),
    _row("prompt-clip-kitti", _KB, _AUTY, _PROMPT, 0.303, 6.322, 0.119, 0.112, 0.550, 0.830, 0.938),
    _row("prompt-clip-kitti-20", _KB, _AUTY, _PROMPT, 0.292, 6.159, 0.113, 0.108, 0.573, 0.841, 0.941),
    _row("prompt-clip-kitti-20-log", _KB, _AUTY, _PROMPT, 0.265, 6.153, 0.103, 0.102, 0.606, 0.853, 0.948),
    _row("prompt-clip-kitti-256", _KB, _AUTY, _PROMPT, 0.238, 5.756, 0.088, 0.092, 0.652, 0.877, 0.957),
    _row("prompt-clip-kitti-4o4d", _KB, _AUTY, _PROMPT, 0.309, 6.334, 0.122, 0.114, 0.541, 0.826, 0.936),
    _row("prompt-clip-kitti-4o4d-7", _KB, _AUTY, _PROMPT, 0.307, 6.209, 0.119, 0.113, 0.546, 0.830, 0.938),
    _row("prompt-clip-kitti-depth", _KB, _AUTY, _PROMPT, 2.353, 25.518, 1.433, 0.454, 0.094, 0.193, 0.297),
    _row("wordepth-nyu", "wordepth-nyu-reference", "WorDepth (arXiv v4), NYU table", _SHORT,
         0.932, 0.992, 0.998, 0.088, 0.038, 0.317),
    _row("wordepth-kitti", "wordepth-kitti-reference", "WorDepth (arXiv v4), KITTI table", _KITTI,
         0.979, 0.998, 0.999, 0.049, 0.074, 2.039),
    _row("scaledepth-nk", "scaledepth-nk-nyu-reference", "official log of the released NK weights", _LOG,
         0.75427, 0.93978, 0.99319, 0.99877, 0.08341, 0.03489, 0.29278, 0.10629, 0.03596, 8.15519),
    _row("scaledepth-nk", "scaledepth-nk-kitti-reference", "official log of the released NK weights", _LOG,
         0.90064, 0.97824, 0.9977, 0.99948, 0.04884, 0.13733, 2.00875, 0.07411, 0.02126, 6.76623),
)  # fmt: skip


def find(system: str, protocol: str) -> PaperNumbers | None:
    """The row of a registry name under a protocol, or None."""
    return next((row for row in PAPER_NUMBERS if (row.system, row.protocol) == (system, protocol)), None)
