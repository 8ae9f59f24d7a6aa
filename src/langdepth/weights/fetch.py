"""Published weights onto this machine: downloaded, checked, converted in another process, kept. Imports no torch."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from subprocess import DEVNULL, run

from langdepth.errors import CheckpointError, MissingCheckpointError, UsageError, missing_package
from langdepth.systems.card import PublishedRecord
from langdepth.systems.registry import PUBLISHED, REGISTRY
from langdepth.utils.downloads import DownloadError, download
from langdepth.utils.files import atomic_path, file_identity, not_the_file_itself
from langdepth.utils.locks import locked
from langdepth.utils.network import offline_stated, stated
from langdepth.utils.reading import file_sha256
from langdepth.weights import published
from langdepth.weights.published import Fetched, fetched, folder, record

MOST_BYTES = 8 << 30
_PICKLE = 1 << 22  # bytes at a checkpoint's beginning in which the names of its tensors lie
DRIVE = "https://drive.google.com/uc?export=download&id={}"

Agree = Callable[[str], None]
"""Gets the line that says what is fetched, how large, from where and under which licence; raises to refuse."""


def located(name: str, offline: bool | None = None) -> tuple[Path, str]:
    """The fetched weights of a system and their sha256; LANGDEPTH_DOWNLOAD=1 fetches them now.

    Raises:
        CheckpointError: They are not here, or cannot be fetched.
    """
    if not published.is_here(name):
        if not asked_by_environment():
            found = record(name)
            raise MissingCheckpointError(
                f"the weights of '{name}' are not on this machine: 'langdepth weights get {name}' fetches them from "
                f"{found.source} (licence: {found.licence}), --download or LANGDEPTH_DOWNLOAD=1 where they are needed; "
                "or give a .safetensors file instead"
            )
        get(name, logging.getLogger("langdepth").warning, offline=offline)
    known = fetched(name)
    assert known is not None
    return folder(name) / known.file, known.sha256


def asked_by_environment() -> bool:
    """Whether LANGDEPTH_DOWNLOAD asks for published weights to be fetched where they are needed."""
    return stated("LANGDEPTH_DOWNLOAD")


def get(
    name: str,
    agree: Agree,
    *,
    mirror: str | None = None,
    offline: bool | None = None,
    file: Path | None = None,
    clip_weights: str | None = None,
) -> Path:
    """The file of published weights, fetched and converted unless that was done before.

    Args:
        name: Of the weights, see ``langdepth weights list``.
        agree: Called before anything is downloaded.
        mirror: Fetch MIRROR/NAME/FILE instead; without it LANGDEPTH_MIRROR counts.
        offline: Use no network; the default follows HF_HUB_OFFLINE.
        file: The authors' file, which was fetched in another way.
        clip_weights: CLIP weights for a conversion that needs them, instead of open_clip's download.

    Raises:
        UsageError: For an unknown name, and where a package is missing that the conversion needs.
        LangdepthError: The file cannot be fetched, is not the one that was fetched before, or cannot be converted.
    """
    found = record(name)
    offline = offline_stated() if offline is None else offline
    if found.open_clip is not None:
        if file is not None or mirror is not None or clip_weights is not None:
            advice = "give a file of your own where CLIP is used, with --clip-weights"
            raise UsageError(f"{name}: is fetched by open_clip alone; {advice}")
        return _from_open_clip(name, found, agree, offline)
    if clip_weights is not None and found.clip_weights is None:
        raise UsageError(f"{name}: needs no CLIP weights; leave --clip-weights out")
    is_here = published.is_here(name) and published.verify(name) is None
    if file is not None:
        _checked(name, file, found, given=True)
    if is_here:  # and the file, if one is given, is the one that it was made of
        return published.file_of(name)
    if name in REGISTRY and find_spec("torch") is None:
        raise UsageError(f"{name}: is converted once, and {missing_package(ImportError(name='torch'))}")
    if file is None and offline:
        raise MissingCheckpointError(
            f"{name}: is not on this machine and no network may be used; fetch {found.file} from {found.source} on "
            f"another one and give it with 'langdepth weights get {name} --file FILE'"
        )
    with locked(folder(name)):
        source = _download(name, found, agree, mirror, clip_weights) if file is None else str(file)
        return _keep(name, found, source, file, clip_weights, offline)


def _keep(
    name: str, found: PublishedRecord, source: str, given: Path | None, clip_weights: str | None, offline: bool
) -> Path:
    """Check the authors' file, convert it where it is of a system, and record it; returns the file that is kept."""
    ours = folder(name) / found.file
    theirs = given or ours
    known, sha256 = fetched(name), _checked(name, theirs, found, given=given is not None)
    made = folder(name) / (f"{name}.safetensors" if name in REGISTRY else found.file)
    if name in REGISTRY:
        _convert(name, theirs, made, found, clip_weights, offline)
        if given is None or file_identity(given) != file_identity(ours):
            ours.unlink(missing_ok=True)
    elif theirs != made:
        with atomic_path(made) as temporary:
            shutil.copyfile(theirs, temporary)
    date = known.date if known else time.strftime("%Y-%m-%d")
    now = Fetched(file=made.name, sha256=file_sha256(made), published_sha256=sha256, source=source, date=date)
    published.remember(name, now)
    return made


def _download(name: str, found: PublishedRecord, agree: Agree, mirror: str | None, clip_weights: str | None) -> str:
    """Download the authors' file into the folder; returns its address."""
    target = folder(name) / found.file
    mirror = mirror or os.environ.get("LANGDEPTH_MIRROR")
    at_drive = mirror is None and found.google_drive is not None
    source = f"{mirror.rstrip('/')}/{name}/{found.file}" if mirror else found.source
    address = DRIVE.format(found.google_drive) if at_drive else source

    def begin(size: int | None) -> None:
        amount = "of a size that the server does not state" if size is None else f"{size / 1e6:,.1f} MB"
        clip = (
            "; CLIP's weights by open_clip, where they are not here" if found.clip_weights and not clip_weights else ""
        )
        agree(f"{name}: {found.file}, {amount}, from {source}, licence: {found.licence}{clip}")

    try:
        if not target.is_file():  # left by a conversion that failed
            download(address, target, limit=MOST_BYTES, begin=begin, form=at_drive)
    except DownloadError as error:
        raise DownloadError(
            f"{error}; or fetch {found.file} in a browser from {found.source} and give it with 'langdepth weights get "
            f"{name} --file FILE'"
        ) from None
    return source


def _checked(name: str, path: Path, found: PublishedRecord, *, given: bool) -> str:
    """The sha256 of the authors' file. Raises CheckpointError where it is another file than is known.

    One that was downloaded, not ``given``, is then removed.
    """
    known = fetched(name)
    try:
        other, sha256 = not_the_file_itself(path), file_sha256(path)
    except FileNotFoundError:
        raise MissingCheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    other = f"is {other}" if other else _not_as_published(path, found.holds)
    expected = found.sha256 or (known.published_sha256 if known else sha256)
    if sha256 == expected and not other:
        return sha256
    if given:
        twin = next((n for n, one in PUBLISHED.items() if one.sha256 == sha256), None)
        what = f"is that of '{twin}'" if twin else other or f"has the sha256 {sha256[:12]}..., not {expected[:12]}..."
        replace = ""
        if known and not (twin or other or found.sha256):
            replace = f"; to put it in the place of the one of {known.date}, remove {folder(name)} first"
        raise CheckpointError(f"{path}: {what}; expected is {found.file} from {found.source}{replace}")
    path.unlink()
    if other:
        raise CheckpointError(f"{name}: {found.file} {other}")
    since = f"recorded on {known.date}" if known and not found.sha256 else "known"
    advice = f"; if the authors published other weights, remove {folder(name)}" if not found.sha256 else ""
    raise CheckpointError(
        f"{name}: {found.file} is another file than before: its sha256 is {sha256[:12]}..., {since} is "
        f"{expected[:12]}...{advice}"
    )


def _not_as_published(path: Path, holds: str | None) -> str | None:
    """What a file is that is no checkpoint of torch.save, or not the one with a tensor ``holds``. Unpickles nothing."""
    with path.open("rb") as file:
        head = file.read(_PICKLE)
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        with suppress(Exception), zipfile.ZipFile(path) as archive:  # each compression has errors of its own
            names = [member for member in archive.namelist() if member.endswith("/data.pkl")]
            head = b"\x80" + archive.open(names[0]).read(_PICKLE) if names else b"PK"
    if head.startswith(b"\x80"):
        return f"holds no tensor '{holds}'" if holds and holds.encode() not in head else None
    return "is text" if b"\0" not in head[:512] else "is no checkpoint of torch.save"


def _convert(
    name: str, source: Path, out: Path, found: PublishedRecord, clip_weights: str | None, offline: bool
) -> None:
    """``langdepth convert`` in a process of its own, so that a file of others never meets what this one holds."""
    clip = clip_weights or found.clip_weights
    clip = str(Path(clip).absolute()) if clip and Path(clip).exists() else clip
    command = [sys.executable, "-m", "langdepth", "convert", str(source.absolute()), "--system", name]
    command += ["--out", out.name, "--licence", found.licence, *(("--clip-weights", clip) if clip else ())]
    environment = {**os.environ, **({"HF_HUB_OFFLINE": "1"} if offline else {})}
    done = run(  # there, and not in a folder whose modules would be imported
        command, cwd=out.parent, env=environment, capture_output=True, text=True, errors="replace", stdin=DEVNULL
    )
    said = [line.removeprefix("langdepth convert: ") for line in done.stderr.splitlines()]
    if done.returncode:
        why = said[-1] if said else f"exit code {done.returncode}"
        kept = f"; the file is kept, remove {source} to fetch it again" if source.parent == out.parent else ""
        given = found.file if kept else f"{source}, which should be {found.file},"
        raise CheckpointError(f"{name}: {given} cannot be converted: {why}{kept}")
    for line in said:
        if line.startswith("warning: "):
            warnings.warn(line.removeprefix("warning: "), stacklevel=2)


def _from_open_clip(name: str, found: PublishedRecord, agree: Agree, offline: bool) -> Path:
    path = published.of_open_clip(str(found.open_clip))
    if path is not None:
        return path
    if offline:
        why = "--offline is given, or HF_HUB_OFFLINE is set"
        raise MissingCheckpointError(f"{name}: is not on this machine and no network may be used: {why}")
    from langdepth.backbones.clip_download import fetch, published_record

    architecture, _, tag = str(found.open_clip).partition("/")
    agree(f"{name}: of a size that the server states later, from {found.source}, licence: {found.licence}")
    return fetch(architecture, tag, published_record(str(found.open_clip)))[0]
