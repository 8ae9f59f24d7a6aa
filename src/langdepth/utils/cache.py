"""Where langdepth keeps what can be computed or fetched again."""

from __future__ import annotations

import os
from pathlib import Path

from langdepth.errors import UsageError
from langdepth.utils.files import expanded


def cache_folder() -> Path:
    """``$LANGDEPTH_CACHE``, else ``$XDG_CACHE_HOME/langdepth``, else ``~/.cache/langdepth``.

    Raises UsageError where nobody knows that home.
    """
    own = os.environ.get("LANGDEPTH_CACHE")
    folder = expanded(own or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "langdepth"))
    if str(folder).startswith("~"):
        raise UsageError(f"{folder}: no such home folder is known; name a folder with LANGDEPTH_CACHE")
    return folder
