"""``langdepth systems``: what there is, and the details of one system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from langdepth.commands._parse import list_or_show, run
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
        rows.append((system, _where(entry), entry.summary, entry.weights.licence if entry.weights else "-"))
    return "\n".join(columns(rows))


def describe(name: str) -> str:
    """Everything known about one system, as text. Raises UsageError for an unknown name."""
    import torch
    import yaml

    from langdepth.config import to_mapping

    entry = registry.entry(name)
    with torch.device("meta"):  # its sizes are enough
        system = registry.build(name)
    parameters = sum(parameter.numel() for parameter in system.parameters())
    weights = {"status": _where(entry)}
    if entry.weights is not None:
        weights |= {key: value for key, value in to_mapping(entry.weights).items() if value is not None}
    facts = {
        "name": name,
        "summary": entry.summary,
        "paper": entry.paper,
        **{key: address for key in ("paper_url", "repository") if (address := getattr(entry, key))},
        "class": entry.target,
        **({"package": entry.package} if entry.package else {}),
        "depth": system.scale_kind,
        "parameters": f"{parameters / 1e6:.2f} million",
        "scenes": ", ".join(system.scenes) or "none",
        "weights": weights,
        "input": to_mapping(system.input_spec),
        "config": to_mapping(system.config),
    }
    facts["config"] = _shortened(facts["config"])
    text: str = yaml.safe_dump(facts, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    return text.rstrip()


def _shortened(value: Any) -> Any:
    """Long lists by their first and last entries."""
    if isinstance(value, dict):
        return {key: _shortened(inner) for key, inner in value.items()}
    if isinstance(value, list) and len(value) > LONGEST:
        return [*value[:2], f"... {len(value)} in all", value[-1]]
    return value


def _where(entry: card.Entry) -> str:
    """Whether the package holds the weights ("embedded"), should but does not ("missing"), or has none ("none")."""
    if entry.weights is None:
        return "none"
    return "embedded" if entry.weights.path.is_file() else "missing"
