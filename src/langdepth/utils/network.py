"""Whether a server can be reached, asked once and quickly, as no download client does; addresses of one's own."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from langdepth.errors import LangdepthError, UsageError

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


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; 0 is any free port. Raises UsageError, LangdepthError."""
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port must lie between 0 and 65535, got {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no name of a host"
        if isinstance(error, OSError) and not isinstance(error, socket.gaierror):
            reason = os.strerror(error.errno or 0)  # without the address, which is named already
        raise LangdepthError(
            f"{host}:{port}: cannot be listened at ({reason}); give another --host or --port"
        ) from None


def is_local(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
