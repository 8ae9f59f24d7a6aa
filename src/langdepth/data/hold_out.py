"""A part of the training images that is held out to validate on, where a data set has no split for it.

Whole groups are held out, never neighbouring frames of a sequence: a group is what has one source and one scene or
drive (``Row.scene_run``), or else lies in one folder. Groups come in the order of the SHA-256 of their names, and each
that still fits into the share is held out; so the choice follows from the names alone, on every machine and in every
run. Where all images are of one group, its last ones are held out, in the order of the list.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from langdepth.data.rows import Row
from langdepth.errors import UsageError


def group_name(row: Row) -> str:
    """What is held out together with ``row``."""
    place = row.scene_run or f"folder {PurePosixPath(row.key).parent.as_posix()}"
    return f"{row.source}/{place}"


def held_out(rows: Sequence[Row], share: float, needed: Collection[int] = ()) -> list[int]:
    """The places in ``rows`` that are held out, rising: at most ``share`` of them, and at least one group.

    Args:
        rows: The training images.
        share: From 0 to 1.
        needed: Places that are learned from whatever happens; their groups are not held out.

    Raises:
        UsageError: Nothing would be left to learn from or to validate on.
    """
    groups = defaultdict(list)
    for place, row in enumerate(rows):
        groups[group_name(row)].append(place)
    room = share * len(rows)
    if len(groups) == 1 and not needed:
        chosen = range(len(rows) - max(1, int(room)), len(rows))
        if len(chosen) < len(rows):
            return list(chosen)
    kept = {group_name(rows[place]) for place in needed}
    names = sorted(set(groups) - kept, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if not names or len(groups) < 2:
        raise UsageError(
            f"data.hold_out: the {len(rows)} training images have {len(groups)} scene, drive or folder, or all are "
            "needed for learning, so that none can be held out; name a split to validate on with data.val_split"
        )
    held: list[int] = []
    for name in names:
        if len(held) + len(groups[name]) <= room and len(held) + len(groups[name]) < len(rows):
            held += groups[name]
    return sorted(held or groups[min(names, key=lambda name: len(groups[name]))])
