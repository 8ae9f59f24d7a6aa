"""Whether a server can be reached, asked once and quickly: nobody waits for the retries of a download client."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

_SECONDS = 5.0


def stated(variable: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(variable, "").lower() in {"1", "true", "yes", "on"}


def offline_stated() -> bool:
    """Whether the environment variable HF_HUB_OFFLINE, which all downloads follow, forbids them."""
    return stated("HF_HUB_OFFLINE")


def unreachable(url: str, seconds: float = _SECONDS) -> str | None:
    """Why the server of ``url`` cannot be reached within ``seconds``, or None where it answers, whatever it says.

    Proxies of the environment are used. Doubtful answers count as reachable: the download itself then says more.
    """
    try:
        urlopen(Request(url, method="HEAD"), timeout=seconds).close()
    except HTTPError:
        return None
    except OSError as error:
        reason = error.reason if isinstance(error, URLError) else error
        return None if isinstance(reason, ssl.SSLError) else " ".join(str(reason).split())
    except Exception:  # an odd address or an odd answer
        return None
    return None


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """While the hub cannot be reached, let its clients work from their cache at once.

    huggingface_hub otherwise asks six times for each missing file, with pauses; transformers, timm and open_clip stand
    on it.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not before and unreachable(constants.ENDPOINT) is not None:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
