"""How fast `langdepth predict clip.mp4` is, and that its memory does not grow with the clip: docs/video.md.

    python benchmarks/clips.py --frames 100 400

Clips of 640x480 pixels, H.264, 30 frames a second: examples/desk.jpg seen by a camera that pans. Each is predicted by a
process of its own with the default files (depth-video, color-video). The processor time of one thread of the network
(OMP_NUM_THREADS=1), and the most memory that the process had at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

from common import ROOT, parser, write

SIZE = (640, 480)


def main() -> None:
    """Write the clips, predict, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--frames", type=int, nargs="+", default=[100, 400], help="of each clip (default: 100 400)")
    options = arguments.parse_args()
    found = {}
    print(" frames   seconds   frames/s   processor, ms per frame   memory, MB")
    with tempfile.TemporaryDirectory() as folder:
        for count in options.frames:
            found[count] = measured(pan(Path(folder, f"{count}.mp4"), count), count)
            numbers = "{seconds:9.1f} {rate:10.2f} {ms:25.0f} {memory:12.0f}".format(**found[count])
            print(f"{count:7} {numbers}", flush=True)
    write(found, options.out)


def pan(path: Path, count: int) -> Path:
    """A clip of a pan over the photo, forth and back."""
    photo = Image.open(ROOT / "examples" / "desk.jpg").convert("RGB").resize((960, 720))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(count):
            left, top = 160 + 150 * np.sin(number / 40), 120 + 30 * np.sin(number / 23)
            image = photo.transform(SIZE, Image.Transform.AFFINE, (1, 0, left, 0, 1, top), Image.Resampling.BILINEAR)
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path


def measured(clip: Path, count: int) -> dict[str, float]:
    """The numbers of one run."""
    words = [sys.executable, "-m", "langdepth", "predict", str(clip), "--out", str(clip.with_suffix(""))]
    start = time.perf_counter()
    process = subprocess.Popen(
        words, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(words)}: failed")
    cpu = used.ru_utime + used.ru_stime
    return {"seconds": seconds, "rate": count / seconds, "ms": 1000 * cpu / count, "memory": used.ru_maxrss / 1024}


if __name__ == "__main__":
    main()
