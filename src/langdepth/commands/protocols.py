"""``langdepth protocols``: the named evaluation protocols, and every rule of one in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from langdepth.commands._parse import list_or_show, run
from langdepth.evaluation import protocols
from langdepth.evaluation.protocols import Protocol
from langdepth.utils.plugins import usable
from langdepth.utils.tables import columns

EXAMPLE = "langdepth protocols\nlangdepth protocols show nyu-eigen"


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(show_protocols, arguments, "langdepth protocols", EXAMPLE)


def show_protocols(action: Literal["list", "show"] = "list", name: str | None = None) -> None:
    """List the evaluation protocols, or show one: every rule in words, and the hash that reports carry.

    Args:
        action: List all protocols, or show one.
        name: The protocol to show.
    """
    list_or_show("protocol", action, name, table, lambda known: describe(protocols.get(known)), example="nyu-eigen")


def table() -> str:
    """All protocols, one line each."""
    rows = [("name", "hash", "frame", "crop", "metres", "flip", "clamp", "alignment")]
    for protocol in usable(protocols.names(), protocols.get):
        metres = f"{protocol.min_depth:g} to {protocol.max_depth:g}"
        flip, clamp = ("yes" if switch else "no" for switch in (protocol.flip, protocol.clamp_prediction))
        rows.append(
            (protocol.name, protocol.hash, protocol.frame, protocol.crop, metres, flip, clamp, protocol.alignment)
        )
    return "\n".join(columns(rows))


def describe(protocol: Protocol) -> str:
    """Every switch of a protocol with its value and what it means."""
    switches, meanings = protocol.switches(), protocol.explain()
    width = max(map(len, switches))
    lines = [f"{protocol.name} ({protocol.hash})", ""]
    lines += [f"{key:<{width}}  {meanings[key]}  [{_value(value)}]" for key, value in switches.items()]
    if protocol.extra_metrics:
        lines += ["", f"reported beside the nine standard metrics: {', '.join(protocol.extra_metrics)}"]
    return "\n".join(lines)


def _value(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
