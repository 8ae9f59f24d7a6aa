"""The service as its clients meet it: answers, batches, limits, refusals."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from langdepth.camera import Camera
from langdepth.errors import UsageError
from langdepth.prediction.pipeline import Predictor
from langdepth.prediction.results import DepthResult
from langdepth.records import DepthOutput
from tests.helpers import FakeSystem, grey

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from langdepth.serving.app import Service, make_app
from langdepth.serving.formats import FORMATS, format_asked_for
from langdepth.serving.limits import Limits


class Gated(FakeSystem):
    """It predicts while ``open`` is set, one batch at a time, and refuses the word "zorblax"."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()

    @contextmanager
    def side_by_side(self, most: int) -> Iterator[tuple[int, Any]]:
        yield 1, lambda: None

    def forward(self, image: Any, text: Any = None, scene: Any = None) -> DepthOutput:
        assert self.open.wait(60)
        if text is not None and "zorblax" in text:
            raise UsageError("the word 'zorblax' is not known")
        if text == ["break"]:
            raise RuntimeError("something\nelse")
        return super().forward(image, text, scene)


def service_of(system: FakeSystem, batch_size: int = 4, **limits: Any) -> Service:
    predictor = Predictor(system, {"batch_size": batch_size}, keep_image=False, each_its_words=True)
    return Service(predictor, Limits(**limits))


@pytest.fixture
def system() -> Gated:
    return Gated()


@pytest.fixture
def service(system: Gated) -> Service:
    return service_of(system, queue=8, max_mb=0.1, wait=1000)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service)) as client:
        yield client


def png(brightness: float = 0.6, width: int = 64, height: int = 48) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey(brightness, width, height)).save(file, "PNG")
    return file.getvalue()


def depth_of(answer: Any) -> float:
    """The mean of a 16-bit PNG in metres."""
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as image:
        return float(np.asarray(image).mean() * float(answer.headers["X-Depth-Scale"]))


def refused(answer: Any, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


# Answers


def test_png_npz_and_json_hold_the_same_depth(client: TestClient) -> None:
    answer = client.post("/predict", content=png())
    assert answer.headers["content-type"] == "image/png"
    assert (answer.headers["X-Depth-Unit"], answer.headers["X-Scale-Kind"]) == ("metre", "metric")
    assert depth_of(answer) == pytest.approx(6.4, abs=0.001)
    answer = client.post("/predict?format=npz&fov=60", content=png())
    with np.load(io.BytesIO(answer.content)) as content:
        assert content["depth"].shape == (48, 64)
        np.testing.assert_allclose(content["depth"], 6.4, atol=1e-3)
        assert content["intrinsics"][0, 2] == pytest.approx(31.5)
        assert json.loads(str(content["metadata"]))["scene_probs"]["kitchen"] == pytest.approx(0.6, abs=0.01)
    found = client.post("/predict", content=png(), headers={"Accept": "application/json"}).json()
    assert (found["width"], found["height"], found["unit"], found["system"]) == (64, 48, "metre", "fake")
    np.testing.assert_allclose(found["depth"], 6.4, atol=1e-3)


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        (None, "png"),
        ("*/*", "png"),
        ("image/*;q=0.2, application/json", "json"),
        ("text/html, application/x-npz;q=0.9, */*;q=0.1", "npz"),
        ("application/octet-stream", "npz"),
        ("IMAGE/PNG; q=1.0", "png"),
        ("text/html", None),
        ("image/png;q=0", None),
        ("image/png;q=best", None),
    ],
)
def test_the_header_accept_chooses(accept: str | None, format: str | None) -> None:
    assert format_asked_for(None, accept) == format


def test_a_large_image_has_no_json() -> None:
    depth = np.ones((2001, 2000), np.float32)
    with pytest.raises(UsageError, match="4,000,000 pixels at most"):
        FORMATS["json"](DepthResult(depth=depth, valid=depth > 0, system="fake"))


def test_words_and_scene_reach_the_system(client: TestClient) -> None:
    for query in ("?text=no null 5", "?scene=kitchen"):
        assert depth_of(client.post(f"/predict{query}", content=png())) == pytest.approx(12.8, abs=0.001)
    form = {"text": "no null 5", "format": "png"}
    answer = client.post("/predict", data=form, files={"image": ("a.png", png(), "image/png")})
    assert depth_of(answer) == pytest.approx(12.8, abs=0.001)
    # As curl --data-binary names whatever it sends.
    typed = {"Content-Type": "application/x-www-form-urlencoded"}
    assert depth_of(client.post("/predict", content=png(), headers=typed)) == pytest.approx(6.4, abs=0.001)


def test_a_sentence_gives_metres_to_relative_depth(client: TestClient, system: Gated) -> None:
    system.scale_kind = "relative"
    ramp = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    answer = client.post("/predict", content=file.getvalue())
    assert answer.headers["X-Scale-Kind"] == "relative"
    answer = client.post("/predict?text=a bedroom with a bed", content=file.getvalue())
    assert (answer.headers["X-Scale-Kind"], answer.headers["X-Depth-Unit"]) == ("metric", "metre")
    refused(client.post("/predict?text=zorblaxq wuxq", content=file.getvalue()), 400, "none of its words is known")


def test_the_camera_of_the_service_is_that_of_images_without_one(system: Gated) -> None:
    service = service_of(system)
    service.camera = partial(Camera.from_fov, 90.0)
    with TestClient(make_app(service)) as client:
        for query, width in (("", 32), ("?fov=53.13", 64)):
            found = client.post(f"/predict?format=json{query.replace('?', '&')}", content=png())
            assert found.json()["camera"]["fx"] == pytest.approx(width, rel=1e-3)
            assert found.headers["X-Camera-Source"] == "user"


# Batches


def ask_together(client: TestClient, system: Gated, service: Service, *asked: tuple[str, bytes]) -> list[Any]:
    """The answers to requests that are all inside before the first of them is predicted."""
    system.open.clear()
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = [pool.submit(client.post, f"/predict{query}", content=body) for query, body in asked]
        wait_until(lambda: service.batcher.inside == len(asked) and service.batcher._decoding == 0)
        system.open.set()
        return [answer.result() for answer in answers]


def wait_until(reached: Any) -> None:
    until = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_waiting_images_of_one_size_share_a_batch(client: TestClient, system: Gated, service: Service) -> None:
    asked = [("", png(0.1 * number)) for number in range(6)] + [("", png(0.9, 200, 48))]
    answers = ask_together(client, system, service, *asked)
    values = [1 + 0.9 * number for number in range(6)]
    np.testing.assert_allclose([depth_of(answer) for answer in answers[:6]], values, atol=0.05)  # each its own
    assert depth_of(answers[6]) == pytest.approx(9.1, abs=0.05)
    counts: dict[Any, list[int]] = {}
    for count, *size in system.batches:
        counts.setdefault(tuple(size), []).append(count)
    assert sorted(sum(found) for found in counts.values()) == [1, 6]
    assert 1 < max(map(max, counts.values())) <= 4  # what came while the first one was in work


def test_words_of_one_kind_share_a_batch_and_a_bad_sentence_costs_itself(
    client: TestClient, system: Gated, service: Service
) -> None:
    asked = [(f"?text={word}", png()) for word in ("a", "zorblax", "b", "c")] + [("", png()), ("?scene=street", png())]
    answers = ask_together(client, system, service, *asked)
    refused(answers[1], 400, "the word 'zorblax' is not known")
    depths = [depth_of(answers[place]) for place in (0, 2, 3, 4, 5)]
    np.testing.assert_allclose(depths, [12.8, 12.8, 12.8, 6.4, 12.8], atol=0.001)


def test_words_for_all_images_of_a_batch_are_the_same(system: Gated) -> None:
    system.text_per_image = False
    batcher = service_of(system).batcher

    def group(text: str | None) -> Any:
        service = service_of(system)
        request, _ = service._request(png(), {} if text is None else {"text": text})
        return batcher._group(service.batcher.predictor.prepare(request))

    assert group("a") == group("a") != group("b")
    assert group(None) == group(None) != group("a")


def test_a_single_image_does_not_wait_for_others(client: TestClient) -> None:
    client.post("/predict", content=png())
    start = time.perf_counter()
    client.post("/predict", content=png())
    assert time.perf_counter() - start < 0.9  # of the second that images may wait


def test_an_answer_that_comes_too_late_is_dropped(system: Gated) -> None:
    service = service_of(system, timeout=0.3, wait=0)
    with TestClient(make_app(service)) as client:
        system.open.clear()
        refused(client.post("/predict", content=png()), 504, "not there within 0.3 seconds")  # in work
        refused(client.post("/predict", content=png()), 504, "not there within 0.3 seconds")  # waits for it
        system.open.set()
        wait_until(lambda: service.batcher.batches == 1 and len(system.batches) == 1)
        assert depth_of(client.post("/predict", content=png())) == pytest.approx(6.4, abs=0.001)
        assert len(system.batches) == 2  # nobody waits for the second one
        assert service.batcher.inside == 0


# Limits


def test_a_full_queue_is_answered_at_once(system: Gated) -> None:
    service = service_of(system, queue=2)
    with TestClient(make_app(service)) as client, ThreadPoolExecutor(2) as pool:
        system.open.clear()
        inside = [pool.submit(client.post, "/predict", content=png()) for _ in range(2)]
        wait_until(lambda: service.batcher.inside == 2)
        answer = client.post("/predict", content=png())
        refused(answer, 429, "2 requests are waiting already")
        assert answer.headers["Retry-After"] == "1"
        assert client.get("/health").status_code == 200
        assert "langdepth_requests_inside 2" in client.get("/metrics").text
        system.open.set()
        assert [answer.result().status_code for answer in inside] == [200, 200]
        assert depth_of(client.post("/predict", content=png())) == pytest.approx(6.4, abs=0.001)


def call(service: Service, messages: list[dict[str, Any]], **headers: str) -> tuple[int, int, dict[str, Any]]:
    """Status, how many messages of the body were taken, and the answer, to a request as a server passes it on.

    After the last message nothing comes any more.
    """
    sent: list[Any] = []
    taken = 0

    async def receive() -> Any:
        nonlocal taken
        if taken == len(messages):
            await asyncio.sleep(60)
        taken += 1
        return messages[taken - 1]

    async def send(message: Any) -> None:
        sent.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": named,
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(make_app(service)(scope, receive, send))
    return sent[0]["status"], taken, json.loads(b"".join(message.get("body", b"") for message in sent))


def part(size: int, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": bytes(size), "more_body": more}


def test_a_body_that_is_too_large_is_not_read(service: Service) -> None:
    status, taken, answer = call(service, [part(10_000)] * 50, content_length="500000")
    assert (status, taken) == (413, 0)
    assert answer == {"error": "the request has more than 0.1 MB; send a smaller file"}
    for content_type in ("image/png", "multipart/form-data; boundary=x"):
        status, taken, _ = call(service, [part(10_000)] * 50, content_type=content_type)
        assert status == (413 if content_type == "image/png" else 400)  # zeros are no form
        assert taken <= 11
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    messages = [{"type": "http.request", "body": head, "more_body": True}] + [part(10_000)] * 50
    status, taken, _ = call(service, messages, content_type="multipart/form-data; boundary=x")
    assert (status, taken) == (413, 11)


def test_a_body_that_does_not_arrive_is_not_waited_for(system: Gated) -> None:
    service = service_of(system, timeout=0.2)
    status, _, answer = call(service, [part(100)])
    assert (status, "did not arrive within 0.2 seconds" in answer["error"]) == (408, True)
    assert service.batcher.inside == 0
    status, _, _ = call(service, [part(100), {"type": "http.disconnect"}])
    assert (status, service.batcher.inside) == (400, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"queue": 0}, "--queue must lie between 1 and 10000"),
        ({"max_mb": float("nan")}, "--max-mb must lie between 0.001 and 1000"),
        ({"timeout": 0.0}, "--timeout must lie between 0.1 and 3600"),
        ({"wait": -1.0}, "--wait must lie between 0 and 1000"),
    ],
)
def test_limits_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Limits(**values)


# Refusals


@pytest.mark.parametrize(
    ("query", "body", "status", "words"),
    [
        ("", b"", 400, "the request is empty"),
        ("", b"/etc/hostname", 422, "image in memory"),
        ("", b"\x80\x04\x95" + bytes(50), 422, "image in memory"),
        ("", png()[:60], 422, "image in memory"),
        ("", png(0.5, 8, 8), 422, "32"),
        ("?format=gif", png(), 400, "unknown format 'gif'"),
        ("?scene=kitchn", png(), 400, "did you mean 'kitchen'"),
        ("?text=", png(), 400, "give a sentence"),
        (f"?text={'a' * 2001}", png(), 400, "at most 2000 characters"),
        ("?fov=60&intrinsics=50,50,32,24", png(), 400, "give one of them"),
        ("?fov=200", png(), 400, "between 2 and 150"),
        ("?fov=wide", png(), 400, "fov: expected a number"),
        ("?intrinsics=1,2", png(), 400, "expected fx,fy,cx,cy"),
        ("?intrinsics=50,50,500,500", png(), 400, "image in memory"),
    ],
)
def test_what_cannot_be_used(client: TestClient, query: str, body: bytes, status: int, words: str) -> None:
    refused(client.post(f"/predict{query}", content=body), status, words)
    assert depth_of(client.post("/predict", content=png())) == pytest.approx(6.4, abs=0.001)


def test_forms_that_cannot_be_used(client: TestClient) -> None:
    image = ("a.png", png(), "image/png")
    refused(
        client.post("/predict", data={"tex": "a"}, files={"image": image}), 400, "unknown field 'tex'; known: text,"
    )
    refused(client.post("/predict?sceen=a", content=png()), 400, "unknown field 'sceen'; known: text,")
    for query, data in (("?fov=60&fov=70", {}), ("?fov=60", {"fov": "70"})):
        sent = client.post(f"/predict{query}", data=data, files={"image": image})
        refused(sent, 400, "fov is given twice")
    refused(client.post("/predict", files=[("image", image), ("image", image)]), 400, "Too many files")
    typed = {"Content-Type": "multipart/form-data"}
    refused(client.post("/predict", content=png(), headers=typed), 400, "boundary")
    typed = {"Content-Type": "multipart/form-data; boundary=x"}
    refused(client.post("/predict", content=png(), headers=typed), 400, "multipart")
    body = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\na\r\n--x--\r\n'
    refused(client.post("/predict", content=body, headers=typed), 400, "the form has no file")
    refused(client.post("/predict", content=png(), headers={"Accept": "text/html"}), 406, "image/png")


def test_other_places_and_ways(client: TestClient) -> None:
    refused(client.get("/predict"), 405, "there are POST /predict")
    refused(client.get("/predict/../../etc/hostname"), 404, "Not Found")
    assert client.get("/openapi.json").json()["paths"].keys() == {"/predict", "/health", "/metrics"}
    assert client.get("/docs").status_code == 404  # it would load a program from elsewhere


def test_what_nobody_foresaw_costs_one_answer(client: TestClient) -> None:
    refused(client.post("/predict?text=break", content=png()), 500, "RuntimeError: something")
    assert depth_of(client.post("/predict", content=png())) == pytest.approx(6.4, abs=0.001)


# What is stated


def test_health_and_metrics(client: TestClient, service: Service) -> None:
    assert client.get("/health").json() | {"version": ""} == {
        "status": "ok",
        "system": "fake",
        "runtime": "torch",
        "version": "",
    }
    for body in (png(), png(), b"x"):
        client.post("/predict", content=body)
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert values['langdepth_requests_total{status="200"}'] == "2"
    assert values['langdepth_requests_total{status="422"}'] == "1"
    assert values["langdepth_images_total"] == values["langdepth_batches_total"] == "2"
    assert values['langdepth_request_seconds_bucket{le="+Inf"}'] == values["langdepth_request_seconds_count"] == "3"
    assert float(values["langdepth_request_seconds_sum"]) > 0
    assert values["langdepth_requests_inside"] == "0"
    service.stopping = True
    assert client.get("/health").status_code == 503
    refused(client.post("/predict", content=png()), 503, "the service is stopping")
