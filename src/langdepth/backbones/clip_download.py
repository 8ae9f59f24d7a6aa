"""open_clip's published CLIP weights: records, caches, download."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langdepth.backbones.clip import SMALL_ARCHITECTURES
from langdepth.errors import CheckpointError, first_line
from langdepth.utils.files import expanded, real_path
from langdepth.utils.network import hub_or_cache, offline_stated, unreachable


def published_records(architecture: str, quick_gelu: bool) -> dict[str, dict[str, Any]]:
    """open_clip's records of this architecture and activation, by tag."""
    from open_clip import pretrained

    if architecture in SMALL_ARCHITECTURES:
        return {}
    tags = pretrained.list_pretrained_tags_by_model(architecture)
    records = {tag: pretrained.get_pretrained_cfg(architecture, tag) for tag in tags}
    return {tag: record for tag, record in records.items() if bool(record.get("quick_gelu")) == quick_gelu}


def published_record(what: str) -> dict[str, Any]:
    """open_clip's record of "ARCHITECTURE/TAG"."""
    from open_clip import pretrained

    architecture, _, tag = what.partition("/")
    return dict(pretrained.get_pretrained_cfg(architecture, tag))


def fetch(architecture: str, tag: str, record: Mapping[str, Any]) -> tuple[Path, str]:
    """The file of a published record, from the caches or by open_clip's download; its published sha256 or ""."""
    from huggingface_hub import constants
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME
    from open_clip.pretrained import download_pretrained

    path = cached(record)
    if path is None:
        url_file = _url_cache(record)
        repository, _, name = str(record.get("hf_hub", "")).rpartition("/")
        places = [
            f"{name or HF_SAFE_WEIGHTS_NAME} of {repository} in {constants.HF_HUB_CACHE}" if repository else "",
            str(url_file or ""),
        ]
        wanted = (
            f"wanted is {' or '.join(filter(None, places))}; fetch it on a machine with network, or give any file of "
            "these weights with --clip-weights"
        )
        what = f"the weights of CLIP {architecture} ('{tag}') are not on this machine"
        if offline_stated():
            raise CheckpointError(f"{what} and HF_HUB_OFFLINE is set: {wanted}")
        for prefer_hub in (True, False):
            address = None if prefer_hub else record.get("url")
            problem = unreachable(str(address)) if address else None
            if problem is not None:
                break
            try:
                with hub_or_cache():
                    path = Path(download_pretrained(dict(record), prefer_hf_hub=prefer_hub))
                break
            except Exception as error:  # the hub's, urllib's and open_clip's own
                problem = first_line(error)[:200]
            finally:
                if path is None and url_file is not None:
                    url_file.unlink(missing_ok=True)  # open_clip leaves half a file behind
        if path is None:
            raise CheckpointError(f"{what} and cannot be downloaded ({problem}): {wanted}")
    return path, published_sha256(path, record)


def _url_cache(record: Mapping[str, Any]) -> Path | None:
    """Where open_clip stores a file downloaded from an address."""
    name = str(record.get("url", "")).rpartition("/")[2]
    return expanded("~/.cache/clip") / name if name else None


def cached(record: Mapping[str, Any]) -> Path | None:
    """The file of a published record, None where it was not downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, name = str(record.get("hf_hub", "")).rpartition("/")
    for file_name in (name,) if name else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME):
        found = try_to_load_from_cache(repository, file_name) if repository else None
        if isinstance(found, str):
            return Path(found)
    path = _url_cache(record)
    return path if path is not None and path.is_file() else None


def published_sha256(path: Path, record: Mapping[str, Any]) -> str:
    """The hub's cache names files by their sha256; addresses carry it whole (OpenAI) or its start (open_clip)."""
    stored = real_path(path).name
    if re.fullmatch(r"[0-9a-f]{64}", stored):
        return stored
    url = str(record.get("url", ""))
    if path == _url_cache(record):
        found = re.search(r"/([0-9a-f]{64})/[^/]*$|-([0-9a-f]{8})\.pth?$", url)
        return found[1] or found[2] if found else ""
    return ""
