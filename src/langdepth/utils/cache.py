"""Where langdepth keeps what can be computed or fetched again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$LANGDEPTH_CACHE``, else ``$XDG_CACHE_HOME/langdepth``, else ``~/.cache/langdepth``."""
    own = os.environ.get("LANGDEPTH_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "langdepth"
