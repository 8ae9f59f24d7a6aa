"""Weights that papers' authors publish, by name: where they lie, and what was fetched of them. Imports no torch.

``langdepth.weights.fetch`` fetches them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from langdepth.config import from_mapping
from langdepth.errors import CheckpointError, MissingCheckpointError, UsageError, nearest
from langdepth.systems.card import PublishedRecord
from langdepth.systems.registry import PUBLISHED, REGISTRY
from langdepth.utils.cache import cache_folder
from langdepth.utils.files import write_json
from langdepth.utils.plugins import needs_packages
from langdepth.utils.reading import file_sha256, read_text

_RECORD = "fetched.json"
_MOST_BYTES = 1 << 16  # of a record


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What was fetched under a name.

    ``file``: its name in the folder, ``sha256`` its content. ``published_sha256``: of the authors' file, which it was
    made of. ``source``: the address. ``date``: of the first download, whose content every later one must have.
    """

    file: str
    sha256: str
    published_sha256: str
    source: str
    date: str


def record(name: str) -> PublishedRecord:
    """What is known of weights of that name. Raises UsageError naming the nearest known name."""
    if name not in PUBLISHED:
        raise UsageError(f"no published weights of the name '{name}': {nearest(name, PUBLISHED)}")
    return PUBLISHED[name]


def folder(name: str) -> Path:
    """Where they are kept."""
    return cache_folder() / "weights" / name


def fetched(name: str) -> Fetched | None:
    """What was fetched under a name, None where nothing was. Raises CheckpointError where the record is damaged."""
    path = folder(name) / _RECORD
    try:
        found = from_mapping(Fetched, json.loads(read_text(path, _MOST_BYTES)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: is damaged; remove it and fetch the weights again") from None
    if Path(found.file).name != found.file or not re.fullmatch("[0-9a-f]{64}", found.sha256):
        raise CheckpointError(f"{path}: is damaged; remove it and fetch the weights again")
    return found


def remember(name: str, what: Fetched) -> None:
    """Keep the record of a download."""
    write_json(vars(what), folder(name) / _RECORD)


def file_of(name: str) -> Path:
    """The file of weights that were fetched, or that are in the package. Raises LangdepthError where there is none."""
    packaged = REGISTRY[name].weights if name in REGISTRY else None
    if packaged is not None:
        return packaged.path
    path = _file(name)
    if path is None or not path.is_file():
        raise MissingCheckpointError(f"{name}: is not on this machine; fetch it with 'langdepth weights get {name}'")
    return path


def _file(name: str) -> Path | None:
    found = record(name)
    if found.open_clip is not None:
        return of_open_clip(found.open_clip)
    known = fetched(name)
    return None if known is None else folder(name) / known.file


def of_open_clip(what: str) -> Path | None:
    """The file that open_clip has downloaded of "ARCHITECTURE/TAG", None where it has not."""
    with needs_packages():
        from langdepth.backbones.clip_download import cached, published_record

        return cached(published_record(what))


def is_recorded(name: str) -> bool:
    """Whether weights of that name were fetched once, even where file or record is damaged now."""
    return (folder(name) / _RECORD).exists()


def is_here(name: str) -> bool:
    """Whether weights that langdepth keeps itself were fetched."""
    path = None if PUBLISHED[name].open_clip is not None else _file(name)
    return path is not None and path.is_file()


def verify(name: str) -> str | None:
    """What is wrong with the file of a name, None where nothing is. Raises LangdepthError where there is none."""
    path, expected = file_of(name), ""
    packaged = REGISTRY[name].weights if name in REGISTRY else None
    if packaged is not None:
        expected = packaged.sha256
    elif PUBLISHED[name].open_clip is not None:
        from langdepth.backbones.clip_download import published_record, published_sha256

        expected = published_sha256(path, published_record(str(PUBLISHED[name].open_clip)))
    elif (known := fetched(name)) is not None:
        expected = known.sha256
    try:
        found = file_sha256(path)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    if not found.startswith(expected):
        return f"{path}: has changed: its sha256 is {found[:12]}..., expected {expected[:12]}...; fetch it again"
    return None
