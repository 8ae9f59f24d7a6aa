"""``langdepth serve``: depth for programs that send images to an address."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from langdepth.camera import CameraFile
from langdepth.commands._parse import run
from langdepth.commands.predict import PredictSystem
from langdepth.errors import UsageError, say
from langdepth.prediction.options import PredictOptions
from langdepth.serving.limits import Limits
from langdepth.utils.plugins import needs_packages

EXAMPLE = """
langdepth serve
langdepth serve --port 9000 --system wordepth-tiny --queue 16 --max-mb 10
"""


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(serve, arguments, "langdepth serve", EXAMPLE)


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    by: PredictSystem,
    options: PredictOptions,
    camera: Path | None = None,
    limits: Limits,
) -> int:
    """Depth for programs that send images to an address.

    POST an image to /predict, as the body or as the file of a form, and get a 16-bit PNG, npz or JSON; GET
    /health and /metrics. Images of several clients share a batch. Ctrl-C and SIGTERM end it once the
    requests that are inside are answered.

    Args:
        host: The address to listen at; without it only programs on this machine reach the service.
        port: The port to listen at; 0 takes a free one.
        by: What predicts.
        options: How depth is predicted.
        camera: A file with the camera of images whose request states none, as predict takes it.
        limits: What the service does at most.
    """
    lens = None if camera is None else CameraFile(camera)
    if by.maps is not None:
        raise UsageError("--base: the service gets images alone; name a system that makes their relative maps")
    with needs_packages():
        from langdepth.serving import server
        from langdepth.serving.app import Service
    from langdepth.prediction.pipeline import Predictor
    from langdepth.utils.network import is_local, listen

    with listen(host, port) as listening:  # before the model is loaded, so that a port in use costs no time
        by.fetch_weights()
        options = replace(options, device=options.device or "auto")
        system = by.load(options.device, options.dtype)
        if system.takes_overlay:
            raise UsageError(
                f"the system '{system.name}' needs {system.overlay_kind.one} beside every image; use predict"
            )
        service = Service(Predictor(system, vars(options), keep_image=False, each_its_words=True), limits, lens)
        if not is_local(host):
            line = "other machines may reach this address, and nobody is asked for a password"
            say(f"langdepth serve: warning: {line}", file=sys.stderr)
        place = server.place(listening)
        say(f"{system.name} ({system.runtime}) answers at {place}/predict; Ctrl-C ends it")
        server.Server(service).run(sockets=[listening])
    say(f"stopped; {service.metrics.answers.total()} requests were answered")
    return 0
