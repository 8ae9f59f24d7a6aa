"""langdepth: depth from one image, with the help of language.

>>> import langdepth
>>> result = langdepth.predict("photo.jpg")          # the embedded model `tiny`, offline
>>> result.depth.shape, result.unit                  # float32 metres at the image's own size
>>> langdepth.load("tiny").predict("photo.jpg", text="a kitchen with a sink")
"""

from __future__ import annotations

from langdepth._version import __version__

TYPE_CHECKING = False  # the module typing takes longer to import than all that is here
if TYPE_CHECKING:
    from typing import Any

    from langdepth.api import load, predict, predict_video
    from langdepth.camera import Camera
    from langdepth.errors import CheckpointError, ImageError, LangdepthError, UsageError
    from langdepth.prediction.results import DepthResult
    from langdepth.scaling.scale import scale
    from langdepth.systems.base import System
    from langdepth.systems.registry import list_systems

_LAZY = {
    "Camera": "langdepth.camera",
    "CheckpointError": "langdepth.errors",
    "DepthResult": "langdepth.prediction.results",
    "ImageError": "langdepth.errors",
    "LangdepthError": "langdepth.errors",
    "System": "langdepth.systems.base",
    "UsageError": "langdepth.errors",
    "list_systems": "langdepth.systems.registry",
    "load": "langdepth.api",
    "predict": "langdepth.api",
    "predict_video": "langdepth.api",
    "scale": "langdepth.scaling.scale",
}

__all__ = [
    "Camera",
    "CheckpointError",
    "DepthResult",
    "ImageError",
    "LangdepthError",
    "System",
    "UsageError",
    "__version__",
    "list_systems",
    "load",
    "predict",
    "predict_video",
    "scale",
]


def __getattr__(name: str) -> Any:  # heavy imports wait until a name is used
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'langdepth' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
