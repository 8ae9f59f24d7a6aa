"""The routes of the service: POST /predict, GET /health and /metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from langdepth._version import __version__
from langdepth.camera import Camera, parse_intrinsics
from langdepth.errors import ImageError, ShortMemoryError, UsageError, explained
from langdepth.prediction import pipeline
from langdepth.prediction.pipeline import CameraOption, Predictor
from langdepth.prediction.predictor import known_scene
from langdepth.prediction.results import DepthResult
from langdepth.prediction.words import words_per_image
from langdepth.serving.batching import Batcher, FullError
from langdepth.serving.formats import FORMATS, Answer, format_asked_for
from langdepth.serving.limits import Limits
from langdepth.serving.metrics import Metrics
from langdepth.utils.numbers import plain_number

_MAX_TEXT = 2000  # characters
_FIELDS = ("text", "scene", "intrinsics", "fov", "format")
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (FullError, 429),
    (ImageError, 422),
    (UsageError, 400),
    (ShortMemoryError, 503),
    (ClientDisconnect, 400),
)


class _TooLarge(Exception):
    """A request has more bytes than it may have."""


class Service:
    """A system, its requests, and what is counted of them."""

    def __init__(self, predictor: Predictor, limits: Limits, camera: CameraOption = None) -> None:
        """``camera``: of images whose request states none."""
        self.limits, self.system, self.camera = limits, predictor.system, camera
        self.batcher = Batcher(predictor, limits.wait / 1000, limits.queue)
        self.metrics = Metrics()
        self.stopping = False
        logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # clients are told what is wrong

    async def predict(self, request: Request, query: Mapping[str, str | None]) -> Response:
        """The answer to a request, whatever it is."""
        start = time.perf_counter()
        try:
            response = await self._answer(request, query)
        except asyncio.TimeoutError:
            response = _refusal(504, f"the answer was not there within {self.limits.timeout:g} seconds")
        except _TooLarge:
            limit = f"{self.limits.max_mb:g} MB"
            response = _refusal(413, f"the request has more than {limit}; send a smaller file")
        except HTTPException as error:  # of a form that is none
            response = _refusal(error.status_code, str(error.detail))
        except Exception as error:
            status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
            response = _refusal(status, explained(error))
        self.metrics.add(response.status_code, time.perf_counter() - start)
        return response

    async def _answer(self, request: Request, query: Mapping[str, str | None]) -> Response:
        if self.stopping:
            return _refusal(503, "the service is stopping")
        with self.batcher.admitted():
            try:
                image, form = await asyncio.wait_for(self._read(request), self.limits.timeout)
            except asyncio.TimeoutError:
                return _refusal(408, f"the request did not arrive within {self.limits.timeout:g} seconds")
            fields = {name: value for name, value in (*query.items(), *form.items()) if value is not None}
            format = format_asked_for(fields.get("format"), request.headers.get("accept"))
            if format is None:
                return _refusal(406, "the answer is image/png, application/x-npz or application/json")
            wanted, sentence = self._request(image, fields)
            use = partial(_use, FORMATS[format], sentence)
            answer = await asyncio.wait_for(self.batcher.predict(wanted, use), self.limits.timeout)
        return Response(answer.content, media_type=answer.media_type, headers=answer.headers)

    async def _read(self, request: Request) -> tuple[bytes, dict[str, str]]:
        """The image and the fields of a form, or the body as the image. Raises _TooLarge, UsageError."""
        most = int(self.limits.max_mb * 1e6)
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > most:
            raise _TooLarge
        request = Request(request.scope, _counted(request.receive, most))
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            image = await request.body()
            form: dict[str, str] = {}
        else:
            async with request.form(max_files=1, max_fields=len(_FIELDS), max_part_size=4 * _MAX_TEXT) as sent:
                file = next((value for value in sent.values() if not isinstance(value, str)), None)
                if file is None:
                    raise UsageError("the form has no file; send the image as one")
                image = await file.read()
                form = {name: value for name, value in sent.items() if isinstance(value, str)}
        names = [*form, *(name for name, _ in request.query_params.multi_items())]
        for name in names:
            if name not in _FIELDS:
                raise UsageError(f"unknown field '{name}'; known: {', '.join(_FIELDS)}")
            if names.count(name) > 1:
                raise UsageError(f"{name} is given twice")
        if not image:
            raise UsageError("the request is empty; send the bytes of an image")
        return image, form

    def _request(self, image: bytes, fields: Mapping[str, str]) -> tuple[pipeline.Request, str | None]:
        """What is to be predicted, and the sentence that gives metres to relative depth. Raises UsageError."""
        text = fields.get("text")
        if text is not None and (len(text) > _MAX_TEXT or not text.strip()):
            raise UsageError(f"text: give a sentence of at most {_MAX_TEXT} characters")
        in_metres = text is not None and self.system.scale_kind != "metric"
        if in_metres and text is not None:
            from langdepth.scaling.words import require_known

            require_known(text)
        wanted = pipeline.Request(
            source=image,
            text=words_per_image(self.system, None if in_metres else text, 1)[0],
            scene=known_scene(self.system, fields.get("scene")),
            camera=_camera(fields) or self.camera,
            overlay=None,
        )
        return wanted, text if in_metres else None


def make_app(service: Service) -> FastAPI:
    """The application, for any server of that kind; leaving its lifespan ends the threads."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.batcher.running():
            yield

    app = FastAPI(title="langdepth", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.post("/predict", responses={200: {"content": {"image/png": {}, "application/x-npz": {}}}})
    async def predict(
        request: Request,
        text: str | None = None,
        scene: str | None = None,
        intrinsics: str | None = None,
        fov: str | None = None,
        format: str | None = None,
    ) -> Response:
        """Depth of the image in the body, or in the one file of a form."""
        known = {"text": text, "scene": scene, "intrinsics": intrinsics, "fov": fov, "format": format}
        return await service.predict(request, known)

    @app.get("/health")
    async def health() -> JSONResponse:
        """What computes, and whether it takes requests."""
        system = service.system
        facts = {"system": system.name, "runtime": system.runtime, "version": __version__}
        status = "stopping" if service.stopping else "ok"
        return JSONResponse({"status": status} | facts, 503 if service.stopping else 200)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        """Counters for Prometheus."""
        batcher = service.batcher
        counters = {"batches_total": batcher.batches, "images_total": batcher.images}
        text = service.metrics.text({"requests_inside": batcher.inside}, counters)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return _refusal(error.status_code, f"{error.detail}; there are POST /predict, GET /health and GET /metrics")

    @app.exception_handler(RequestValidationError)
    async def misunderstood(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _refusal(400, f"{first['loc'][-1]}: {first['msg']}")

    return app


def _refusal(status: int, line: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse({"error": line}, status, headers)


def _counted(receive: Receive, most: int) -> Receive:
    """``receive`` that raises _TooLarge once there are more bytes than may be."""
    total = 0

    async def counted() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > most:
            raise _TooLarge
        return message

    return counted


def _camera(fields: Mapping[str, str]) -> CameraOption:
    """What makes the camera that a request states. Raises UsageError."""
    intrinsics, fov = fields.get("intrinsics"), fields.get("fov")
    if intrinsics is not None and fov is not None:
        raise UsageError("intrinsics and fov both describe the camera; give one of them")
    if intrinsics is not None:
        parse_intrinsics(intrinsics)
        return partial(Camera.from_intrinsics_text, intrinsics)
    if fov is None:
        return None
    try:
        angle = plain_number(fov)
    except ValueError:
        raise UsageError(f"fov: expected a number of degrees, got '{fov}'") from None
    Camera.from_fov(angle, 640, 480)
    return partial(Camera.from_fov, angle)


def _use(encode: Callable[[DepthResult], Answer], sentence: str | None, result: DepthResult) -> Answer:
    """The answer with a result, in metres where a sentence gives them."""
    if sentence is not None:
        from langdepth.scaling.scale import scaled

        result = scaled(result, sentence)
    answer = encode(result)
    facts: dict[str, Any] = {"X-Depth-Unit": result.unit, "X-Scale-Kind": result.scale_kind}
    if result.camera is not None:
        facts["X-Camera-Source"] = result.camera.source
    return answer._replace(headers=answer.headers | facts)
