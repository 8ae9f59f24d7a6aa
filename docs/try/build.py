"""Builds the page that runs `tiny` in a browser: `python docs/try/build.py [--out docs/try/build]`.

ONNX Runtime's WebAssembly comes from npm (`npm pack`, checked by its hash), all else from this repository. Needs npm
and the extra "export". Serve the folder, as a page opened from a disk may not load its model:
`python -m http.server --directory docs/try/build --bind 127.0.0.1`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from base64 import b64encode
from hashlib import sha512
from pathlib import Path
from string import Template

import onnx

import langdepth
from langdepth._version import __version__
from langdepth.prediction.options import COLORMAP
from langdepth.prediction.page import TEMPLATES
from langdepth.prediction.viz import palette
from langdepth.runtimes.facts import GraphFacts
from langdepth.runtimes.whole import whole_graph
from langdepth.text.vocabulary import FUNCTION_WORDS

HERE = Path(__file__).parent
MODELS = Path(langdepth.__file__).parent / "models"
PHOTO = HERE.parents[1] / "examples" / "desk.jpg"
SHARED = ("page.css", "view.js", "space.js", "files.js")
RUNTIME = "onnxruntime-web@1.30.0"
HASH = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
PARTS = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def build(out: Path) -> None:
    """Write the folder; the runtime only where it is not there already."""
    runtime = out / RUNTIME.replace("@", "-")
    out.mkdir(parents=True, exist_ok=True)
    if not all((runtime / name).is_file() for name in PARTS):
        fetch_runtime(runtime)
    for name in SHARED:
        shutil.copy(TEMPLATES / name, out)
    for path in (HERE / "try.css", HERE / "try.js", PHOTO):
        shutil.copy(path, out)
    model, words = (opened(name) for name in ("tiny", "tiny-words"))
    facts, known = map(facts_of, (model, words))
    text = next(one for one in model.graph.input if one.name == "text")
    write(whole_graph(model, facts), out / "tiny.onnx")
    write(words, out / "tiny-words.onnx")
    about = {
        "runtime": runtime.name,
        "scenes": facts.scenes,
        "focal": facts.input_spec.focal,
        "features": text.type.tensor_type.shape.dim[1].dim_value,
        "vocabulary": known.vocabulary,
        "max_words": known.max_words,
        "function_words": sorted(FUNCTION_WORDS),
        "version": __version__,
        "licence": facts.provenance["licence"],
        "palette": palette(COLORMAP).ravel().tolist(),
    }
    (out / "tiny.json").write_text(json.dumps(about), encoding="utf-8")
    view = (TEMPLATES / "view.html").read_text(encoding="utf-8")
    page = Template((HERE / "index.html").read_text(encoding="utf-8")).substitute(view=view)
    (out / "index.html").write_text(page, encoding="utf-8")


def facts_of(model: onnx.ModelProto) -> GraphFacts:
    """What a graph of the package states."""
    return GraphFacts.from_metadata({one.key: one.value for one in model.metadata_props}, "the package")


def opened(name: str) -> onnx.ModelProto:
    """A graph of the package with its tensors inside; inputs with a default are plain ones, as the runtime wants."""
    model = onnx.load(MODELS / f"{name}.onnx")
    inputs = {one.name for one in model.graph.input}
    kept = [one for one in model.graph.initializer if one.name not in inputs]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write it; its metadata are for Python."""
    del model.metadata_props[:]
    onnx.save(model, path)


def fetch_runtime(folder: Path) -> None:
    """The parts of ONNX Runtime that run on a CPU, from npm."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm is not installed; apt-get install npm, or https://nodejs.org")
    with tempfile.TemporaryDirectory() as place:
        command = [npm, "pack", RUNTIME, "--prefer-offline", "--silent"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"npm pack {RUNTIME} failed: {' '.join(done.stderr.split())[-300:]}")
        archive = next(Path(place).glob("*.tgz"))
        found = f"sha512-{b64encode(sha512(archive.read_bytes()).digest()).decode()}"
        if found != HASH:
            sys.exit(f"{RUNTIME} has the hash {found}, not {HASH}; nothing is written")
        folder.mkdir(exist_ok=True)
        with tarfile.open(archive) as content:
            for name in PARTS:
                source = content.extractfile(f"package/dist/{name}")
                assert source is not None
                (folder / name).write_bytes(source.read())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "build", help="the folder (default: docs/try/build)")
    target = parser.parse_args().out
    build(target)
    print(f"written: {target}; python -m http.server --directory {target} --bind 127.0.0.1")
