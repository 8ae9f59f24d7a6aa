"""What the commands wrote and read again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from .cases import Case, Outcome, Random, pool, state
from .changes import twice
from .recipes import yaml_changed
from .sets import report_right
from .texts import text_changed
from .weights import weights_changed, zip_changed


def json_changed(rng: Random, content: bytes) -> tuple[bytes, str]:
    """JSON with another value, or without one, at some place of one of its lines; or with changed bytes."""
    if rng.random() < 0.3:
        return text_changed(rng, content)
    whole = b"\n{" not in content.lstrip(b"{")
    lines = [content] if whole else content.splitlines()
    at = rng.randrange(len(lines))
    fields = json.loads(lines[at])
    place, path = fields, ""
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        path += f".{key}"
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
            break
        place = place[key]
    if rng.random() < 0.2:
        del place[key]
        path += " gone"
    else:
        place[key] = rng.choice(
            (None, True, -1, 0, 2**70, 1e308, float("nan"), [], {}, "x", "../../up", "\0", 0.5, [[1]])
        )
        path += f" = {place[key]!r}"
    lines[at] = json.dumps(fields).encode()
    return b"\n".join(lines), path


def own_files(rng: Random, folder: Path) -> Case:
    """A file that a command wrote, changed before the next one reads it."""
    import yaml

    shutil.copytree(state["own"], folder, dirs_exist_ok=True)
    small = ["--system", state["small"]]
    commands = {
        "cache": rng.choice(
            (
                ["evaluate", "--data", "cache", "--root", "out/cache", "--out", "out/r.json", *small],
                [*pool("data check cache --root out/cache")],
            )
        ),
        "matrix": [*pool("benchmark matrix.yaml --out out/matrix")],
        "run": [*pool("train --config out/run/recipe.yaml --resume --train.max_steps=-1")],
        "packed": [*pool("predict set/good.png --captions out/packed --out out/depth --save npy"), *small],
    }
    kind = rng.choice(("cache", "cache", "matrix", "matrix", "run", "packed"))
    seldom = (".png", ".jpg", ".md", ".html", ".csv", ".u8", ".u16")
    files = [path for path in sorted((folder / "out" / kind).rglob("*")) if path.is_file() and path.stat().st_size]
    files = [path for path in files if path.name != "matrix.json" and "tensorboard" not in path.parts]
    path = rng.choice([path for path in files if path.suffix not in seldom or kind == "packed" or rng.random() < 0.1])
    content = path.read_bytes()
    if rng.random() < 0.04:
        path.unlink()
        change = "gone"
    elif path.suffix in (".json", ".jsonl"):
        changed, change = json_changed(rng, content)
        path.write_bytes(changed)
    elif path.suffix == ".yaml":
        changed, change = yaml_changed(rng, yaml.safe_load(content))
        path.write_bytes(changed.replace(b"epochs: 1", b"epochs: 2"))
    elif path.suffix == ".safetensors":
        changed, change = weights_changed(rng, content)
        path.write_bytes(changed)
    elif path.suffix == ".ckpt" and rng.random() < 0.5:
        changed, change = zip_changed(rng, content)
        path.write_bytes(changed)
    else:
        changed, change = twice(rng, content)
        path.write_bytes(changed)

    def right(outcome: Outcome) -> str | None:
        import numpy as np

        from langdepth.errors import LangdepthError
        from langdepth.utils.tensors import read_safetensors, require_finite

        if (folder / "out/r.json").exists():
            return report_right(folder / "out/r.json")
        if kind == "run":
            try:
                for weights_file in sorted((folder / "out/run").rglob("*.safetensors")):
                    require_finite(read_safetensors(weights_file)[1], weights_file)
            except LangdepthError as error:
                return str(error) if weights_file != path else None
        if kind == "matrix" and re.search("nan|inf", (folder / "out/matrix/matrix.md").read_text().split("## ")[-1]):
            return "a table with numbers that are not finite"
        if kind == "packed" and not np.isfinite(np.load(folder / "out/depth/good.npy")).all():
            return "depth that is not finite"
        return None

    return Case(commands[kind], f"{path.relative_to(folder)}: {change}", right)
