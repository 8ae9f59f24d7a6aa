"""``langdepth weights``: the weights that papers' authors publish, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from langdepth.commands._parse import require_use, run
from langdepth.errors import LangdepthError, UsageError, say
from langdepth.systems.registry import PUBLISHED, REGISTRY
from langdepth.utils.tables import columns
from langdepth.weights import fetch, published

EXAMPLE = """
langdepth weights list
langdepth weights get vgld-t --file vgld_midas-1_nk_t.pth
langdepth weights path vgld-t
langdepth weights verify
"""


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(weights, arguments, "langdepth weights", EXAMPLE)


def weights(
    action: Literal["list", "get", "verify", "path"] = "list",
    name: str | None = None,
    *,
    mirror: str | None = None,
    offline: bool = False,
    file: Path | None = None,
    clip_weights: str | None = None,
) -> int:
    """The weights that papers' authors publish: list them, fetch them once, check them, say where they are.

    What is named like a system is converted to it, in a process of its own, and "--system NAME" then finds it.

    Args:
        action: List all, get one, verify one or all that are here, or print the path of one.
        name: Of the weights, see the list.
        mirror: Fetch MIRROR/NAME/FILE instead of the authors' address (also LANGDEPTH_MIRROR).
        offline: Use no network (also HF_HUB_OFFLINE=1).
        file: The authors' file, fetched in another way, instead of a download.
        clip_weights: CLIP weights for a conversion that needs them (mde-clip); without it open_clip downloads them.
    """
    stated = {"mirror": mirror, "offline": offline or None, "file": file, "clip_weights": clip_weights}
    require_use(action == "get", "is for 'get'", **stated)
    if action == "list":
        if name is not None:
            raise UsageError("list takes no name; to see where weights are: langdepth weights path NAME")
        say(*table().split("\n"))
        return 0
    if action == "verify":
        return _verify(name)
    if name is None:
        raise UsageError(f"{action}: name the weights, for example: langdepth weights {action} {next(iter(PUBLISHED))}")
    if action == "path":
        say(published.file_of(name))
        return 0
    require_use(file is None, "and --file both say where the file is; give one of them", mirror=mirror)
    say(fetch.get(name, say, mirror=mirror, offline=offline or None, file=file, clip_weights=clip_weights))
    return 0


def table() -> str:
    """All published weights, one line each. Imports no torch."""
    rows = [("name", "here", "what it is", "licence", "source")]
    for name, record in sorted(PUBLISHED.items()):
        here = "-" if record.open_clip else "yes" if published.is_recorded(name) else "no"
        rows.append((name, here, record.summary, record.licence, record.source))
    return "\n".join(columns(rows))


def _verify(name: str | None) -> int:
    """A line for each; 1 where one has changed."""
    packaged = [system for system, entry in REGISTRY.items() if entry.weights is not None]
    names = [name] if name is not None else [*packaged, *filter(published.is_recorded, PUBLISHED)]
    failed = False
    for one in names:
        try:
            problem = published.verify(one)
        except LangdepthError as error:
            if name is not None:
                raise
            problem = str(error)
        failed |= problem is not None
        say(f"{one}: {problem or 'unchanged'}")
    return int(failed)
