"""``langdepth demo``: a form in the browser."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from functools import partial

from langdepth.commands._parse import run
from langdepth.errors import UsageError, say
from langdepth.records import Runtime
from langdepth.utils.plugins import needs_packages

EXAMPLE = """
langdepth demo
langdepth demo --port 9000 --system wordepth-tiny
"""


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
    from langdepth.utils.files import temporary_folder
    from langdepth.utils.network import is_local, listen

    with listen(host, port) as listening:  # before all that takes time; gradio opens it anew
        port = int(listening.getsockname()[1])
    with temporary_folder() as folder:
        # Read when gradio is imported: nobody is told of its use, and uploads lie in the folder.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder)}
        with needs_packages():
            from langdepth.demo import make_demo, start
        from langdepth.runtimes.opening import load

        loaded = load(system, runtime=runtime, device="auto")
        if loaded.scale_kind != "metric" or loaded.takes_overlay:
            raise UsageError(f"the system '{system}' does not give metres from a photo alone; name one that does")
        blocks = make_demo(loaded, partial(load, "wordepth-tiny", runtime=runtime, device="auto"), folder)
        address = start(blocks, host, port)
        if not is_local(host):
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
