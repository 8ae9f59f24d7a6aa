"""The worst small files under a ceiling that the system sets for a whole process: what libraries in C take counts, too.

``test_limits.py`` measures what Python and NumPy take. Here one child process may take no more than ``MARGIN`` beyond
what it has after its imports; where a limit is missing, it says that memory is short instead of what is wrong.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import langdepth
from langdepth.utils.tensors import read_safetensors
from tests.helpers import save_image

MARGIN = 160_000_000  # bytes; every file here asks for more
LARGE = 220_000_000

CHILD = """
import json, resource, sys
from pathlib import Path
import numpy as np
import langdepth
from langdepth.config import load_yaml
from langdepth.data.tools.prepare import prepare
from langdepth.data.hdf5 import read_hdf5
from langdepth.data.masks import read_overlay
from langdepth.utils.depth_files import read_depth
from langdepth.utils.images import read_image
from langdepth.text.caption_features import open_captions
from langdepth.utils.tensors import read_pickle

folder, margin = Path(sys.argv[1]), int(sys.argv[2])
langdepth.load("tiny", runtime="torch")
read_image(folder / "good.jpg")  # loads what is loaded at the first image
unpack = lambda path: prepare("folder", path, folder / "out")
photo = np.zeros((400, 600, 3), np.uint8)
readers = {
    ".ppm": read_image, ".jpg": read_image, ".h5": lambda path: read_hdf5(path, ("depth",)), ".yaml": load_yaml,
    ".npz": lambda path: read_overlay(path, photo), ".npy": lambda path: read_depth(path, 1),
    ".gz": unpack, ".xz": unpack,
    ".safetensors": langdepth.load, ".captions": open_captions, ".pth": read_pickle,
}
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + margin
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
messages = {}
for path in sorted(folder.iterdir()):
    try:
        readers[path.suffix](path)
        messages[path.name] = "read"
    except Exception as error:
        messages[path.name] = f"{type(error).__name__} {error}"
grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(json.dumps({"messages": messages, "grown": grown}))
"""

EXPECTED = {
    "good.jpg": "read",
    "comments.ppm": "read",
    "digits.ppm": "100.0 megapixels is more than the limit of 80",
    "scans.jpg": "a progressive JPEG of 201 scans is refused, 100 at most",
    "chunks.h5": "'depth' is stored in pieces of 3,600 MB, more than 256",
    "masks.npz": "do not fit an image of 600x400",
    "depth.npy": "100.0 megapixels is more than the limit of 80",
    "aliases.yaml": "more than 200000 values",
    "header.tar.gz": "a member's header of 220 MB",
    "dictionary.tar.xz": "wants a dictionary of more than 256 MB",
    "network.safetensors": "asks for far more memory",
    "area.safetensors": "pixels inside the network are more than the limit",
    "features.captions": "unpacks to 220 MB",
    "tensors.pth": "unpacks to 220 MB",
}


def npy_header(shape: tuple[int, ...], kind: str) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
    return header.getvalue()


def zip_of_zeros(path: Path, member: str, start: bytes = b"") -> None:
    zipped = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with zipped as archive, archive.open(member, "w") as file:
        file.write(start)
        for _ in range(LARGE // 1_000_000):
            file.write(bytes(1_000_000))


def write_worst_files(folder: Path) -> None:
    folder.mkdir()
    save_image(folder / "good.jpg", np.zeros((64, 64, 3), np.uint8))
    (folder / "comments.ppm").write_bytes(b"P3\n40 40\n255\n" + b"#x\n" * 5_000_000 + b"#x\n7 " * (3 * 40 * 40))
    (folder / "digits.ppm").write_bytes(b"P3\n10000 10000\n255\n" + b"7 " * 100)
    progressive = io.BytesIO()
    Image.new("RGB", (1024, 1024)).save(progressive, "JPEG", progressive=True)
    content = progressive.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    (folder / "scans.jpg").write_bytes(content[:-2] + (201 - content.count(b"\xff\xda")) * scan + content[-2:])
    with h5py.File(folder / "chunks.h5", "w") as file:
        file.create_dataset("depth", (10, 10), "<f4", maxshape=(None, None), chunks=(30000, 30000), compression=9)
    zip_of_zeros(folder / "masks.npz", "masks.npy", npy_header((1, 20000, 20000), "|b1"))
    zip_of_zeros(folder / "features.captions", "feature.npy", npy_header((LARGE // 4096, 1024), "<f4"))
    zip_of_zeros(folder / "tensors.pth", "archive/data/0")
    with (folder / "depth.npy").open("wb") as file:
        file.write(npy_header((20000, 5000), "<f8"))
        file.truncate(8 * 20000 * 5000 + 128)
    anchors = zip("abcdefgh", "bcdefghi", strict=True)
    lists = "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in anchors)
    (folder / "aliases.yaml").write_text("a: &a [x, x]\n" + lists)
    with tarfile.open(folder / "header.tar.gz", "w:gz", compresslevel=1) as archive:
        info = tarfile.TarInfo("a.txt")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, LARGE
        archive.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))  # type: ignore[union-attr]
        for _ in range(LARGE // 1_000_000):
            archive.fileobj.write(bytes(1_000_000))  # type: ignore[union-attr]
    packed = lzma.compress(bytes(10240), lzma.FORMAT_ALONE)
    (folder / "dictionary.tar.xz").write_bytes(packed[:1] + (1 << 30).to_bytes(4, "little") + packed[5:])
    tiny = Path(langdepth.__file__).parent / "models" / "tiny.safetensors"
    metadata, tensors = read_safetensors(tiny)
    for name, change in {"network": {"widths": [100_000_000] * 4}, "area": {"area": 10**10}}.items():
        config = json.dumps(json.loads(metadata["config"]) | change)
        save_file(tensors, folder / f"{name}.safetensors", metadata | {"config": config})


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_worst_files_under_a_ceiling(tmp_path: Path) -> None:
    write_worst_files(tmp_path / "files")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "HDF5_USE_FILE_LOCKING": "FALSE"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "files"), str(MARGIN)],
        env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert found["messages"].keys() == EXPECTED.keys()
    assert {name: text for name, text in found["messages"].items() if EXPECTED[name] not in text} == {}
    assert found["grown"] < MARGIN
    assert not (tmp_path / "files" / "out").exists()
