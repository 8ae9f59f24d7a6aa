"""``langdepth serve``: a process that answers, ends when it is told to, and what it refuses before it begins."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import langdepth
from tests.helpers import FakeSystem, Run

PHOTO = Path(__file__).parents[2] / "examples" / "desk.jpg"
pytest.importorskip("fastapi")


def get(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    return connection.getresponse().read().decode()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the process in /proc, and signals it")
def test_a_process_that_answers_and_ends_when_it_is_told_to() -> None:
    command = [sys.executable, "-m", "langdepth", "serve", "--port", "0"]
    content = PHOTO.read_bytes()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("tiny (onnx) answers at http://127.0.0.1:"), line
            port = int(line.split(":")[2].split("/")[0])
            assert json.loads(get(port, "/health"))["status"] == "ok"
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/predict?format=npz", content)
            with np.load(io.BytesIO(connection.getresponse().read())) as answer:
                np.testing.assert_allclose(answer["depth"], langdepth.predict(PHOTO).depth, rtol=1e-4)
            assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()

            connection.putrequest("POST", "/predict")  # over the same connection
            connection.putheader("Content-Length", str(len(content)))
            connection.endheaders(content[:1000])
            until = time.monotonic() + 60
            while "langdepth_requests_inside 1" not in get(port, "/metrics"):
                assert time.monotonic() < until
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(OSError, match="refused"):
                get(port, "/health")  # nobody else comes in
            connection.send(content[1000:])
            answer = connection.getresponse()
            with Image.open(io.BytesIO(answer.read())) as image:
                assert (answer.status, image.size, image.mode) == (200, (640, 480), "I;16")
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out, err) == (0, "stopped; 2 requests were answered\n", "")
        finally:
            process.kill()


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda *_, **__: pytest.fail("loaded"))


def test_a_port_in_use_is_one_line_before_the_model_is_loaded(command: Run, unloaded: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = command("serve", "--port", port)
    assert (code, out) == (1, "")
    line = f"127.0.0.1:{port}: cannot be listened at (Address already in use); give another --host or --port"
    assert err == f"langdepth serve: {line}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--port", "70000"], 2, "--port must lie between 0 and 65535, got 70000"),
        (["--host", "no host"], 1, "no host:8000: cannot be listened at"),
        (["--host", "a" * 70], 1, "cannot be listened at"),
        (["--queue", "0"], 2, "--queue must lie between 1 and 10000"),
        (["--stride", "8x8"], 2, "a stride is given without a window"),
        (["--system", "vgld", "--base", "."], 2, "--base: the service gets images alone"),
        (["photo.jpg"], 2, "'photo.jpg': too much"),
    ],
)
def test_what_is_refused_costs_one_line(
    command: Run, unloaded: None, arguments: list[str], code: int, message: str
) -> None:
    found, out, err = command("serve", *arguments)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert message in err


def test_a_system_that_needs_more_than_an_image_is_refused(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Overlaid(FakeSystem):
        takes_overlay = True

    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda *_, **__: Overlaid())
    code, _, err = command("serve", "--port", "0")
    assert (code, err.count("\n")) == (2, 1)
    assert "beside every image; use predict" in err
