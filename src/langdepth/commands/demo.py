"""``langdepth demo``: a form in the browser."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from langdepth.commands._parse import run
from langdepth.errors import LangdepthError, UsageError, say
from langdepth.records import Runtime
from langdepth.utils.plugins import needs_packages

EXAMPLE = """
langdepth demo
langdepth demo --port 9000 --system wordepth-tiny
"""
_LOCAL = ("127.0.0.1", "localhost", "::1")


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(demo, arguments, "langdepth demo", EXAMPLE)


def demo(*, host: str = "127.0.0.1", port: int = 7860, system: str = "tiny", runtime: Runtime = "auto") -> None:
    """A form in the browser: a photo, an image of the webcam, or a sentence alone.

    It shows the page of "predict --save html", and gives the files. It needs no network and counts nobody.
    Ctrl-C ends it, and what was uploaded is deleted.

    Args:
        host: The address to listen at; without it only browsers on this machine reach it.
        port: The port to listen at; 0 takes a free one.
        system: What predicts: registry name (see "langdepth systems"), .safetensors or .onnx file, or hub id
            owner/name.
        runtime: What computes it: torch, onnx or openvino; auto takes the fastest of those that are installed and can.
    """
    port = _free_port(host, port)  # before all that takes time
    with tempfile.TemporaryDirectory(prefix="langdepth-") as folder:
        # Read when gradio is imported: nobody is told of its use, and uploads lie in the folder.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        with needs_packages():
            from langdepth.demo import make_demo, start
        from langdepth.runtimes.opening import load

        loaded = load(system, runtime=runtime, device="auto")
        if loaded.scale_kind != "metric" or loaded.takes_overlay:
            raise UsageError(f"the system '{system}' does not give metres from a photo alone; name one that does")
        blocks = make_demo(loaded, partial(load, "wordepth-tiny", runtime=runtime, device="auto"), Path(folder))
        address = start(blocks, host, port)
        if host not in _LOCAL:
            line = "other machines may reach this address, and nobody is asked for a password"
            say(f"langdepth demo: warning: {line}", file=sys.stderr)
        say(f"{system} in the browser: {address}; Ctrl-C ends it")
        try:
            wait()
        finally:
            blocks.close(verbose=False)


def wait() -> None:
    """Until the command is interrupted."""
    threading.Event().wait()


def _free_port(host: str, port: int) -> int:
    """The port itself, or a free one for 0. Raises UsageError, LangdepthError where nothing can listen there."""
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port must lie between 0 and 65535, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family) as listening:
            return int(listening.getsockname()[1])
    except OSError as error:
        reason = os.strerror(error.errno or 0) if not isinstance(error, socket.gaierror) else error.strerror
        raise LangdepthError(
            f"{host}:{port}: cannot be listened at ({reason}); give another --host or --port"
        ) from None
