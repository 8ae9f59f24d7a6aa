"""``langdepth systems``: what there is, and the details of one system."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

from langdepth.commands._parse import list_or_show, run
from langdepth.config import to_mapping
from langdepth.systems import card, registry
from langdepth.utils.tables import columns

EXAMPLE = "langdepth systems\nlangdepth systems show tiny"
LONGEST = 32  # lists with more entries are not printed in full


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(systems, arguments, "langdepth systems", EXAMPLE)


def systems(action: Literal["list", "show"] = "list", name: str | None = None) -> None:
    """List the depth systems, or show one: its configuration, input, weights and size.

    Args:
        action: List all systems, or show one.
        name: The system to show.
    """
    list_or_show("system", action, name, table, describe, example="tiny")


def table() -> str:
    """All systems, one line each: name, whether the package holds weights, summary, licence. Imports no system."""
    rows = [("name", "weights", "summary", "licence of the weights")]
    for system in registry.list_systems():
        entry = registry.entry(system)
        weights = entry.weights or registry.PUBLISHED.get(system)
        rows.append((system, _where(entry), entry.summary, weights.licence if weights else "-"))
    return "\n".join(columns(rows))


def describe(name: str) -> str:
    """Everything known about one system, as text. Raises UsageError for an unknown name."""
    import yaml

    entry = registry.entry(name)
    weights = {"status": _where(entry)}
    if entry.weights is not None:
        weights |= {key: value for key, value in to_mapping(entry.weights).items() if value is not None}
    elif name in registry.PUBLISHED:
        published = registry.PUBLISHED[name]
        weights |= {"source": published.source, "licence": published.licence, "get": f"langdepth weights get {name}"}
    facts = {
        "name": name,
        "summary": entry.summary,
        "paper": entry.paper,
        **{key: address for key in ("paper_url", "repository") if (address := getattr(entry, key))},
        "class": entry.target,
        **({"package": entry.package} if entry.package else {}),
        "weights": weights,
        **_network(entry),
    }
    text: str = yaml.safe_dump(facts, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    return text.rstrip()


def _network(entry: card.Entry) -> dict[str, Any]:
    """Kind of depth, size, scenes, input and configuration: those of the weights in the package, else the preset's."""
    system: Any = None
    size: dict[str, str] = {}
    if entry.weights is not None and entry.weights.onnx is not None:
        from langdepth.runtimes.onnx import open_onnx

        system = open_onnx(entry.weights.onnx.path)
    if find_spec("torch") is None:
        if system is None:
            return {"network": "not shown without torch: pip install 'langdepth[torch]'"}
    else:
        import torch

        with torch.device("meta"):  # its sizes are enough
            system = registry.build(entry.name, None if system is None else system.config)
        count = sum(parameter.numel() for parameter in system.parameters())
        size = {"parameters": f"{count / 1e6:.2f} million"}
    return {
        "depth": system.scale_kind,
        **size,
        "scenes": ", ".join(system.scenes) or "none",
        "input": to_mapping(system.input_spec),
        "config": _shortened(system.config if isinstance(system.config, dict) else to_mapping(system.config)),
    }


def _shortened(value: Any) -> Any:
    """Long lists by their first and last entries."""
    if isinstance(value, dict):
        return {key: _shortened(inner) for key, inner in value.items()}
    if isinstance(value, list) and len(value) > LONGEST:
        return [*value[:2], f"... {len(value)} in all", value[-1]]
    return value


def _where(entry: card.Entry) -> str:
    """Whether weights are "embedded" in the package, "missing" there, "published" by the authors, or there are none."""
    if entry.weights is None:
        return "published" if entry.name in registry.PUBLISHED else "none"
    return "embedded" if entry.weights.path.is_file() else "missing"
