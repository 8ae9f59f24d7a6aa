"""What works without torch: run by CI in an environment that has the core's packages alone, and by tests/test_slim.py.

    python tests/slim.py EXAMPLES [--pretend]

EXAMPLES is a folder of photos; --pretend makes every import of another package fail.
"""

from __future__ import annotations

import importlib.abc
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

# fmt: off
OTHERS = (
    "torch", "torchvision", "timm", "open_clip", "safetensors", "huggingface_hub", "scipy", "matplotlib", "jinja2",
    "lightning", "torchmetrics", "h5py", "onnx", "onnxscript", "openvino", "transformers", "tensorboard", "av",
    "fastapi", "starlette", "uvicorn", "python_multipart",
    "gradio",
)
# fmt: on


class _Refuses(importlib.abc.MetaPathFinder):
    """A finder that does not find the other packages."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in OTHERS else self.finder.find_spec(name, path, target)

    def find_distributions(self, *arguments: Any, **options: Any) -> Any:
        return getattr(self.finder, "find_distributions", lambda *_, **__: [])(*arguments, **options)


def command(*arguments: str) -> tuple[int, str, str]:
    from langdepth.cli import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as ended:  # of --help
            code = int(ended.code or 0)
    return code, out.getvalue(), err.getvalue()


@contextmanager
def raises(kind: type[Exception], words: str) -> Iterator[None]:
    """As pytest's, which the core does not have."""
    raised = ""
    try:
        yield
    except kind as error:
        raised = str(error)
    assert words in raised, raised


def check(examples: Path) -> None:
    import numpy as np

    import langdepth

    photo = str(examples / "desk.jpg")
    for line in (
        ["--help"],
        ["systems"],
        ["systems", "show", "tiny"],
        ["protocols"],
        ["weights"],
        ["weights", "verify"],
        ["weights", "path", "tiny"],
        ["predict", "--help"],
        ["serve", "--help"],
    ):
        code, out, err = command(*line)
        assert code == 0, (line, err)
        assert out, line

    formats = "depth16,kitti16,npy,npz,color,ply,html"
    code, out, err = command("predict", photo, "--save", formats, "--text", "a desk in an office", "--out", "one")
    assert code == 0, err
    assert len(os.listdir("one")) >= 7, os.listdir("one")
    folder = ["predict", str(examples), "--recursive", "--scene", "office", "--flip", "--out", "all", "--resume"]
    code, out, err = command(*folder)
    assert code == 0, err
    code, out, err = command(*folder)
    assert "already done" in out, (out, err)
    code, out, err = command("imagine", "a bedroom with a bed", "--samples", "2", "--out", "words")
    assert code == 0, err
    assert Path("words/sheet.png").is_file()

    code, out, err = command("predict", photo, "--system", "wordepth-tiny", "--samples", "3", "--out", "samples")
    assert code == 0, err

    np.save("map.npy", langdepth.predict(photo).depth / 7)
    code, out, err = command("scale", "map.npy", "--text", "a desk in an office", "--image", photo, "--out", "metres")
    assert "m with 67 %" in out, (out, err)

    code, out, err = command("bench", "--seconds", "0")
    assert "*  onnx     float32" in out, (out, err)

    result = langdepth.predict(photo)
    model = langdepth.load("tiny")
    again = model.predict([photo, photo], scene="office", window=(240, 320))
    assert result.depth.dtype == again[0].depth.dtype == np.float32
    assert 0.3 < float(np.median(result.depth)) < 10
    assert set(result.scene_probs) == set(model.scenes)

    Path("clip.mp4").write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 64)
    for line in (
        ["predict", "clip.mp4"],
        ["demo", "--port", "0"],
        ["predict", photo, "--system", "depthclip"],
        ["serve"],
        ["train", "--config", "tiny"],
        ["evaluate", "--data", "folder", "--root", "x", "--out", "y.json"],
    ):
        code, out, err = command(*line)
        assert code in (1, 2), line
        assert err.count("\n") == 1, err
        assert "pip install 'langdepth[" in err, err
    code, out, err = command("weights", "get", "scaledepth-nk", "--offline")
    assert code == 2, err
    assert "pip install 'langdepth[torch]'" in err, err
    with raises(langdepth.UsageError, "pip install 'langdepth[torch]'"):
        langdepth.load("depthclip")
    for name, problem in (("tinny", "did you mean 'tiny'"), ("none.safetensors", "no such file")):
        with raises(langdepth.LangdepthError, problem):  # torch would not help
            langdepth.load(name)
    heavy = sorted(name for name in OTHERS if name in sys.modules)
    assert not heavy, f"imported: {heavy}"


if __name__ == "__main__":
    photos = Path(sys.argv[1]).resolve()
    if "--pretend" in sys.argv:
        sys.meta_path = [_Refuses(find) for find in sys.meta_path]
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        check(photos)
        os.chdir("/")
    print("all of it works without torch", flush=True)
