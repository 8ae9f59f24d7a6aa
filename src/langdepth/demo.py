"""A form in the browser around the page of ``--save html``: a photo, an image of the webcam, or a sentence alone."""

from __future__ import annotations

import html
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio

from langdepth.camera import Camera
from langdepth.errors import LangdepthError, one_line
from langdepth.prediction.imagination import imagine
from langdepth.prediction.network import usual_focal
from langdepth.prediction.predictor import predict_images
from langdepth.prediction.results import WRITERS, DepthResult, write_result
from langdepth.prediction.viz import colorize
from langdepth.systems.contract import Predicts
from langdepth.utils.files import real_path

FORMATS = ("html", "depth16", "npz", "color", "ply")  # of the files that it gives
READ = "read from the photo"
LARGEST = "80mb"  # of an upload
_KEPT = 3600  # seconds until what was uploaded and made for it is deleted
_STYLE = """
footer { display: none !important; }
iframe.depth { width: 100%; height: 1320px; border: 0; border-radius: 10px; }
@media (max-width: 820px) { iframe.depth { height: 90vh; } }
"""
_FRAME = """<iframe class="depth" sandbox="allow-scripts allow-downloads" title="Photo, depth map, ruler and 3D view"
 srcdoc="{}"></iframe>"""
_EMPTY = "<p>Give a photo, or a sentence alone, and press Predict.</p>"


def make_demo(system: Predicts, load_imagining: Callable[[], Predicts], folder: Path) -> gradio.Blocks:
    """The form.

    Args:
        system: Predicts photos.
        load_imagining: Gives the system that draws depth of a sentence alone, when it is first needed.
        folder: For what is made; the caller deletes it.
    """
    imagining: list[Predicts] = []

    def answer(photo: str | None, text: str, scene: str, fov: float | None) -> tuple[str, list[str], str]:
        text = (text or "").strip()
        if photo is None and not text:
            return _EMPTY, [], ""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                if photo is not None:
                    result = _of_photo(system, photo, text or None, None if scene == READ else scene, fov)
                else:
                    imagining[:] = imagining or [load_imagining()]
                    result = _of_words(imagining[0], text, fov)
                files = _written(result, Path(tempfile.mkdtemp(dir=folder)))
        except LangdepthError as error:
            problem = str(error).replace(f"{Path(photo).parent}{os.sep}", "") if photo else str(error)
            raise gradio.Error(html.escape(problem), print_exception=False) from None
        notes = dict.fromkeys(one_line(str(one.message)) for one in caught if issubclass(one.category, UserWarning))
        page = html.escape(files["html"].read_text(encoding="utf-8"))
        # Without allow-same-origin, the page reaches neither the form nor this address.
        return _FRAME.format(page), [str(path) for path in files.values()], "  \n".join(map(html.escape, notes))

    unknown = Camera.guess(4, 3, usual_focal(system)).fov
    with gradio.Blocks(title="langdepth", analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as blocks:
        gradio.Markdown("# Depth from a photo, with words\nComputed on the machine that serves this page.")
        with gradio.Row():
            photo = gradio.Image(
                label="Photo", type="filepath", image_mode=None, sources=["upload", "webcam", "clipboard"], height=260
            )
            with gradio.Column():
                text = gradio.Textbox(
                    label="What it shows",
                    placeholder="an office with a desk",
                    info="Without a photo, depth is drawn from the sentence.",
                )
                with gradio.Row():
                    scene = gradio.Dropdown([READ, *system.scenes], value=READ, label="or the kind of place")
                    fov = gradio.Number(
                        label="Field of view, degrees across the width",
                        value=0,
                        info=f"0: by EXIF; of unknown cameras {unknown:.0f} in a 4:3 image.",
                    )
                button = gradio.Button("Predict", variant="primary")
        notes = gradio.Markdown()
        view = gradio.HTML(_EMPTY)
        files = gradio.File(label="Files", file_count="multiple", interactive=False)
        photo.preprocess = partial(_uploaded, folder)
        for trigger in (button.click, text.submit):
            trigger(answer, [photo, text, scene, fov], [view, files, notes], api_name=False)
    return blocks


def start(blocks: gradio.Blocks, host: str, port: int) -> str:
    """Serve the form in the background; returns its address. Nothing comes from another one: fonts are the system's."""
    # gradio asks its own address whether it answers, and waits for ever where that is asked of a proxy.
    around = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = ",".join(filter(None, [around, host, "localhost"]))
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = blocks.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        theme=theme,
        css=_STYLE,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        pwa=False,
        show_error=True,
        max_file_size=LARGEST,
        footer_links=[],
    )
    return str(address)


def _uploaded(folder: Path, photo: Any) -> str | None:
    """Its file, which lies in the folder. Raises gradio.Error for another file of this machine that a request names.

    Pillow, with which gradio opens it otherwise, reads fewer kinds, and has words of its own for what is none.
    """
    if photo is None or photo.path is None:
        return None
    if not real_path(photo.path).is_relative_to(real_path(folder)):
        raise gradio.Error("the photo was not uploaded here", print_exception=False)
    return str(photo.path)


def _of_photo(system: Predicts, photo: str, text: str | None, scene: str | None, fov: float | None) -> DepthResult:
    def camera(width: int, height: int) -> Camera:
        return Camera.from_fov(float(fov or 0), width, height)

    result = predict_images(system, photo, text=text, scene=scene, camera=camera if fov else None)
    assert isinstance(result, DepthResult)
    return result


def _of_words(system: Predicts, text: str, fov: float | None) -> DepthResult:
    """The first of what ``langdepth imagine`` draws; its points have the colors of their depth."""
    result = imagine(system, text, samples=1)[0]
    height, width = result.depth.shape
    camera = Camera.from_fov(float(fov), width, height) if fov else Camera.guess(width, height)
    return replace(result, camera=camera, image=colorize(result.depth, result.valid))


def _written(result: DepthResult, folder: Path) -> dict[str, Path]:
    stem = Path(result.provenance.get("path") or "imagined").stem.lstrip(".") or "photo"  # gradio gives no hidden files
    return {name: write_result(result, folder / (stem + WRITERS[name].suffix), format=name) for name in FORMATS}
