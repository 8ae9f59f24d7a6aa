"""`langdepth serve` under load on loopback: the figures of docs/serve.md. Linux; stops by itself.

    OMP_NUM_THREADS=2 python benchmarks/serve_load.py --out serve.json
    python benchmarks/serve_load.py --images 40 --requests 1000 --turns 1

Parts, one server each:

* throughput: the same 640x480 JPEG photos through `langdepth predict FOLDER --save depth16` and through a service that
  several clients ask at a time for PNGs, in turns. Images per second on the clock, the start of the program left out,
  and processor seconds of the predicting process per image, which change less when others work on the machine.
* memory: requests with a 64x64 image (in windows of that size, so that the network takes little of the time), in all
  three formats, with and without words; resident memory after a tenth of them and at the end.
* bad: bodies that are no image, too large, cut off, of other kinds; broken forms, odd options, words, headers. Each is
  answered with a status of 4xx, and the service goes on.
* full: more clients than the queue holds; all are answered, with 200 or 429.
* stop: SIGTERM with requests inside: these are answered, the process ends with 0.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common import ROOT, parser, write

LANGDEPTH = (sys.executable, "-m", "langdepth")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Server:
    """A service of its own process on a free port."""

    def __init__(self, *options: str) -> None:
        command = [*LANGDEPTH, "serve", "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.port = int(line.partition("127.0.0.1:")[2].partition("/")[0])

    def ask(self, body: bytes, query: str = "", **headers: str) -> tuple[int, bytes]:
        """Status and content, over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", f"/predict{query}", body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ask_many(self, bodies: Sequence[tuple[bytes, str]], clients: int) -> Counter[int]:
        """How often each status was the answer, asked by ``clients`` at a time over connections that stay."""
        waiting: queue.SimpleQueue[tuple[bytes, str]] = queue.SimpleQueue()
        for one in bodies:
            waiting.put(one)
        found: Counter[int] = Counter()
        lock = threading.Lock()

        def client() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            with suppress(queue.Empty):
                while True:
                    body, request = waiting.get_nowait()
                    connection.request("POST", f"/predict{request}", body)
                    answer = connection.getresponse()
                    answer.read()
                    with lock:
                        found[answer.status] += 1
            connection.close()

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def cpu_seconds(self) -> float:
        """Of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def megabytes(self) -> float:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    server = Server(*options)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(60)


def photos(folder: Path, count: int) -> list[bytes]:
    """JPEG photos of 640x480, cut from the examples at different places."""
    folder.mkdir()
    contents = []
    sources = [
        Image.open(ROOT / "examples" / name).convert("RGB").resize((720, 540)) for name in ("desk.jpg", "room.jpg")
    ]
    for number in range(count):
        left, top = number * 7 % 80, number * 5 % 60
        path = folder / f"{number:04}.jpg"
        sources[number % 2].crop((left, top, left + 640, top + 480)).save(path, quality=92)
        contents.append(path.read_bytes())
    return contents


def folder_run(folder: Path, images: list[Path]) -> tuple[float, float]:
    """Seconds on the clock and of the processor that the command takes for some images."""
    before, start = os.times(), time.perf_counter()
    command = [*LANGDEPTH, "predict", *map(str, images), "--save", "depth16", "--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, cpu


def throughput(images: int, clients: int, turns: int) -> dict[str, Any]:
    rows: dict[str, list[float]] = {"folder": [], "folder CPU": [], "service": [], "service CPU": []}
    with tempfile.TemporaryDirectory() as place, serving() as server:
        contents = photos(Path(place, "photos"), images)
        paths = sorted(Path(place, "photos").iterdir())
        server.ask_many([(body, "") for body in contents[:8]], clients)  # a first round is not counted
        for _ in range(turns):
            one, all_of_them = (folder_run(Path(place, "depth"), some) for some in (paths[:1], paths))
            rows["folder"].append((images - 1) / (all_of_them[0] - one[0]))
            rows["folder CPU"].append((all_of_them[1] - one[1]) / (images - 1))
            start, before = time.perf_counter(), server.cpu_seconds()
            found = server.ask_many([(body, "") for body in contents], clients)
            assert found == {200: images}, found
            rows["service"].append(images / (time.perf_counter() - start))
            rows["service CPU"].append((server.cpu_seconds() - before) / images)
    middle = {name: statistics.median(values) for name, values in rows.items()}
    ratios = [after / before for before, after in zip(rows["folder"], rows["service"], strict=True)]
    cpu_ratios = [after / before for before, after in zip(rows["folder CPU"], rows["service CPU"], strict=True)]
    middle |= {"speed ratio": statistics.median(ratios), "CPU ratio": statistics.median(cpu_ratios)}
    return middle


def memory(requests: int, clients: int) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")
    queries = ("", "?format=npz", "?format=json", "?text=a%20desk%20in%20an%20office", "?scene=kitchen&fov=60")
    bodies = [(file.getvalue(), queries[number % len(queries)]) for number in range(requests)]
    sizes = {}
    with serving("--window", "64x64") as server:
        start, step = time.perf_counter(), max(1, requests // 10)
        for first in range(0, requests, step):
            found = server.ask_many(bodies[first : first + step], clients)
            assert set(found) == {200}, found
            sizes[first + len(bodies[first : first + step])] = round(server.megabytes(), 1)
    return {"MB after": sizes, "seconds": time.perf_counter() - start}


def form(name: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n\r\n'.encode()
    return head + content + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def bomb() -> bytes:
    """A PNG that states 30,000 x 30,000 pixels."""
    head = (30_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    chunk = len(head).to_bytes(4, "big") + b"IHDR" + head + zlib.crc32(b"IHDR" + head).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")


def bad_requests() -> dict[str, tuple[bytes, str, dict[str, str]]]:
    """Name -> body, query, headers."""
    photo = (ROOT / "examples" / "desk.jpg").read_bytes()
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    bodies = {
        "empty": b"",
        "text": b"/etc/passwd",
        "html": b"<!doctype html><html>",
        "zeros": bytes(1000),
        "half a photo": photo[: len(photo) // 2],
        "a few bytes of it": photo[:100],
        "photo without its beginning": photo[100:],
        "too small": small.getvalue(),
        "too many pixels": bomb(),
        "too large": bytes(33_000_000),
        "pickle": b"\x80\x04\x95" + bytes(50),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    }
    found: dict[str, tuple[bytes, str, dict[str, str]]] = {name: (body, "", {}) for name, body in bodies.items()}
    queries = {
        "format": "?format=exe",
        "scene": "?scene=moon%0Abase",
        "empty words": "?text=",
        "long words": f"?text={'a' * 5000}",
        "camera": "?intrinsics=1,2,3",
        "camera of NaN": "?intrinsics=nan,nan,nan,nan",
        "two cameras": "?fov=60&intrinsics=500,500,320,240",
        "field of view": "?fov=1e9",
        "camera of another image": "?intrinsics=500,500,5000,5000",
    }
    found |= {name: (photo, query, {}) for name, query in queries.items()}
    found["accept"] = (photo, "", {"Accept": "text/html"})
    found["form without boundary"] = (photo, "", {"Content-Type": "multipart/form-data"})
    found["form that is none"] = (photo, "", {"Content-Type": "multipart/form-data; boundary=x"})
    body, headers = form("image", b"no image")
    found["form with text"] = (body, "", headers)
    found["form without file"] = (
        b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\na\r\n--x--\r\n',
        "",
        headers,
    )
    found["form with two files"] = (form("image", photo)[0][:-7] + body, "", headers)
    return found


def bad() -> dict[str, Any]:
    statuses = {}
    with serving() as server:
        for name, (body, query, headers) in bad_requests().items():
            statuses[name], content = server.ask(body, query, **headers)
            assert set(json.loads(content)) == {"error"}, content
        after, _ = server.ask((ROOT / "examples" / "desk.jpg").read_bytes())
        assert after == 200, after
    wrong = {name: status for name, status in statuses.items() if not 400 <= status < 500}
    assert not wrong, wrong
    return {"statuses": statuses}


def full(clients: int) -> dict[str, Any]:
    photo = (ROOT / "examples" / "room.jpg").read_bytes()
    with serving("--queue", str(clients // 4)) as server:
        found = server.ask_many([(photo, "")] * 2 * clients, clients)
    assert set(found) == {200, 429}, found
    return {"asked": 2 * clients, "queue": clients // 4, "statuses": dict(found)}


def stop(clients: int) -> dict[str, Any]:
    photo = (ROOT / "examples" / "room.jpg").read_bytes()
    with serving() as server:
        server.ask(photo)
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(server.ask(photo)[0])) for _ in range(clients)]
        for thread in threads:
            thread.start()
        while (server_inside(server)) < clients:
            time.sleep(0.005)
        start = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        code = server.process.wait(60)
    assert (Counter(found), code) == ({200: clients}, 0), (found, code)
    return {"inside": clients, "answered": len(found), "seconds": time.perf_counter() - start}


def server_inside(server: Server) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return next(int(line.split()[1]) for line in lines if line.startswith("langdepth_requests_inside "))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=100, help="of the part throughput")
    options.add_argument("--turns", type=int, default=3, help="of the part throughput")
    options.add_argument("--clients", type=int, default=8, help="that ask at a time")
    options.add_argument("--requests", type=int, default=5000, help="of the part memory")
    options.add_argument("--only", default="throughput,memory,bad,full,stop", help="parts, with commas")
    given = options.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: throughput(given.images, given.clients, given.turns),
        "memory": lambda: memory(given.requests, given.clients),
        "bad": bad,
        "full": lambda: full(4 * given.clients),
        "stop": lambda: stop(given.clients),
    }
    numbers = {}
    for name in given.only.split(","):
        numbers[name] = parts[name]()
        print(name)
        for key, value in numbers[name].items():
            print(f"  {key:<14} {value if not isinstance(value, float) else round(value, 3)}", flush=True)
    write(numbers, given.out)


if __name__ == "__main__":
    main()
