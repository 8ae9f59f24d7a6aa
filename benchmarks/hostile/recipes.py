"""Recipes, matrices and prompt sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cases import Case, Random, pool, state
from .changes import NUMBERS, TEXTS
from .sets import SET, plain_set, write_index
from .texts import text_changed


def nested(kind: str, depth: int) -> str:
    """YAML that is deep, or stands for far more than it holds."""
    if kind == "aliases":
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
        return "\n".join(lines)
    if kind == "merge":
        return "a: &a {b: 1}\n" + "\n".join(f"c{i}: &c{i} {{<<: [*a, *a]}}" for i in range(depth))
    if kind == "self":
        return "a: &a [*a]"
    opening, closing = {"list": ("[", "]"), "map": ("{a: ", "}"), "open": ("[", ""), "dash": ("- ", "")}[kind]
    return "a: " + opening * depth * 200 + "1" + closing * depth * 200


TAGS = pool(
    "!!python/object/apply:os.system ['true']|!!timestamp 2020-01-01|!!binary aGk=|!!set {a, b}|!x 1|&a *a", "|"
)
TAGS += pool("!!int x¦!!float .¦2020-01-01¦0o7¦0b2¦.inf¦.nan¦!!null x¦? [1]¦|\n   x¦*missing¦%YAML", "¦")


def yaml_changed(rng: Random, fields: Mapping[str, Any]) -> tuple[bytes, str]:
    """YAML or JSON of the fields, one of them with another value, or another text altogether."""
    import yaml

    kind = rng.choice(("value",) * 6 + ("key", "section", "bytes", "nested", "tag", "twice", "top", "json"))
    fields = json.loads(json.dumps(fields))
    section = rng.choice(list(fields))
    place = fields[section] if isinstance(fields[section], dict) and fields[section] else fields
    key = rng.choice(list(place))
    text = yaml.safe_dump(fields)
    if kind in ("value", "json"):
        pool: list[Any] = [
            *TEXTS[:17],
            None,
            True,
            False,
            -1,
            0,
            1,
            2**63,
            10**400,
            -0.5,
            1e308,
            float("nan"),
            float("inf"),
        ]
        pool += [[], {}, [[]], {"a": 1}, [1, 2, 3], "1e-3", "9" * 500, 0.5, 7, ["a"], {"": None}, 10**30]
        place[key] = rng.choice(pool)
        text = json.dumps(fields) if kind == "json" else yaml.safe_dump(fields)
        return text.encode("utf-8", "surrogatepass"), f"{section}.{key} = {str(place[key])[:30]!r}"
    if kind == "key":
        place[rng.choice((*TEXTS[:20], key + "x", key.upper()))] = place.pop(key)
        return yaml.safe_dump(fields).encode("utf-8", "surrogatepass"), f"key {section}.{key} renamed"
    if kind == "section":
        fields[section] = rng.choice((None, [], "x", 5, [{}], {}))
        return yaml.safe_dump(fields).encode(), f"section {section} = {fields[section]}"
    if kind == "bytes":
        return text_changed(rng, text.encode())
    if kind == "nested":
        form = rng.choice(("aliases", "merge", "self", "list", "map", "open", "dash"))
        return f"{text}\n{nested(form, rng.choice((3, 9, 30)))}\n".encode(), form
    if kind == "tag":
        place[key] = "HERE"
        tag = rng.choice(TAGS)
        return yaml.safe_dump(fields).replace("HERE", tag).encode(), f"{section}.{key}: {tag}"
    if kind == "twice":
        return (text + text).encode(), "everything twice"
    return rng.choice(
        (b"", b"[]", b"5", b"null", b"---\n---\n", b"- a\n- b", b"x", b"\xff\xfe", text.encode() + b"\n...\nx")
    ), "top"


def recipe_fields(rng: Random) -> dict[str, Any]:
    """A recipe of the small system, whose data set is not there unless a case writes it."""
    return {
        "system": {"name": rng.choice(("small", "small", "tiny", "wordepth-tiny")), "options": {}, "weights": None},
        "data": {
            "name": "folder",
            "root": "set",
            "batch_size": 2,
            "workers": 0,
            "val_split": "val",
            "weights": {"a": 1.0},
            "aspects": [1.3],
            "augmentation": {"zoom": 1.2, "flip": 0.5},
            "trust_unit": False,
        },
        "optim": {
            "lr": 1e-3,
            "schedule": "one_cycle",
            "clip": 1.0,
            "betas": [0.9, 0.99],
            "milestones": [],
            "warm_up": 0.1,
        },
        "train": {
            "out": "out/run",
            "epochs": 1,
            "protocol": "full",
            "monitor": "abs_rel",
            "seed": 0,
            "ema": 0.5,
            "licence": "x",
        },
    }


def recipes(rng: Random, folder: Path) -> Case:
    """A recipe, a matrix or a prompt set with other values."""
    kind = rng.choice(("train",) * 5 + ("matrix", "matrix", "prompts", "prompts", "override"))
    if kind == "train":
        fields = recipe_fields(rng)
        content, change = yaml_changed(rng, fields)
        (folder / "recipe.yaml").write_bytes(content)
        if rng.random() < 0.6 and b"epochs: 1" in content and b"name: small" in content and b"batch_size: 2" in content:
            plain_set(folder, rng)
            write_index(folder / "set", [{**SET[0], "split": "train", "source": "a"}, {**SET[1], "split": "val"}])
        return Case(["train", "--config", "recipe.yaml"], change)
    if kind == "override":
        import yaml

        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_fields(rng)))
        section, key = rng.choice(
            (("optim", "lr"), ("train", "seed"), ("data", "root"), ("system", "name"), ("train", "epochs"))
        )
        value = rng.choice(TEXTS + NUMBERS + TAGS + ("[" * 3000, "{" * 90, "{a: 1}", nested("aliases", 9)))
        flag = f"--{rng.choice((section, section, '', 'x', section + '.a'))}.{rng.choice((key, key, '', 'x y', 'é'))}"
        argv = [flag, value] if rng.random() < 0.5 else [f"{flag}={value}"]
        return Case(["train", "--config", "recipe.yaml", *argv], f"{flag} {value[:30]!r}")
    if kind == "matrix":
        fields = {
            "data": [{"root": "set", "data": "folder", "protocols": ["full"], "limit": 1, "name": "s"}],
            "systems": [{"system": str(state["small file"]), "name": "a"}],
        }
        record = rng.choice(list(fields))
        content, change = yaml_changed(rng, {"x": fields[record][0]})
        text = content.decode("utf-8", "replace")
        if rng.random() < 0.7 and text.startswith("x:"):
            import yaml

            fields.pop(record)
            content = (yaml.safe_dump(fields) + text.replace("x:", f"{record}:\n-", 1)).encode()
        else:
            content, change = yaml_changed(rng, fields)
        (folder / "matrix.yaml").write_bytes(content)
        if rng.random() < 0.5:
            plain_set(folder, rng)
        return Case(["benchmark", "matrix.yaml", "--out", "out"], f"matrix {record}: {change}")
    fields = {
        "words": ["near", "far"],
        "bin_centers": [1.0, 5.0],
        "templates": ["an object {}"],
        "scenes": {"kitchen": {"bin_centers": [1, 2]}},
    }
    content, change = yaml_changed(rng, fields)
    (folder / "prompts.yaml").write_bytes(content)
    plain_set(folder, rng)
    argv = [*pool("predict set/good.png --system depthclip --clip-weights missing.pt --prompts prompts.yaml --out out")]
    return Case(argv, f"prompts: {change}")
