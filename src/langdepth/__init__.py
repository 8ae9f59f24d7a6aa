"""langdepth: depth from one image, with the help of language.

>>> import langdepth
>>> result = langdepth.predict("photo.jpg")          # the embedded model `tiny`, offline
>>> result.depth.shape, result.unit                  # float32 metres at the image's own size
>>> langdepth.load("tiny").predict("photo.jpg", text="a kitchen with a sink")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Camera", "DepthResult", "__version__", "list_systems", "load", "predict"]

if TYPE_CHECKING:
    from langdepth.camera import Camera
    from langdepth.prediction.predictor import predict
    from langdepth.records import DepthResult
    from langdepth.systems.registry import list_systems
    from langdepth.weights.checkpoint import load

_LAZY = {
    "Camera": "langdepth.camera",
    "DepthResult": "langdepth.records",
    "list_systems": "langdepth.systems.registry",
    "load": "langdepth.weights.checkpoint",
    "predict": "langdepth.prediction.predictor",
}


def __getattr__(name: str) -> Any:  # heavy imports wait until a name is used
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'langdepth' has no attribute '{name}'")
