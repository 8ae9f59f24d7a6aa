"""``python -m langdepth`` is the same as ``langdepth``."""

from langdepth.cli import entry_point

entry_point()
