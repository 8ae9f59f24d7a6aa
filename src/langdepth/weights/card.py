"""The model card of a weights file: Markdown with the hub's metadata on top."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import yaml
from torch import nn

from langdepth._version import __version__
from langdepth.config import to_mapping


class Storable(Protocol):
    """What is needed of a system to store it."""

    name: str
    about: str
    package: str | None
    scale_kind: str
    config: Any
    provenance: dict[str, Any]

    def state_dict(self) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


def model_card(system: Storable, facts: Mapping[str, Any], load_from: str) -> str:
    """The text of the card; ``load_from`` is what a user gives to ``langdepth.load``."""
    head = {
        "library_name": "langdepth",
        "pipeline_tag": "depth-estimation",
        "license": "other",
        "license_name": str(facts["licence"]),
    }
    count = sum(parameter.numel() for parameter in system.parameters())
    others = {k: v for k, v in facts.items() if k not in ("licence", "source", "training", "numbers")}
    further = f"## Further facts\n\n{_table(others)}\n\n" if others else ""
    config = yaml.safe_dump(to_mapping(system.config), sort_keys=False, default_flow_style=None, width=120)
    return f"""\
---
{yaml.safe_dump(head, sort_keys=False, width=1000).rstrip()}
---

# {system.name}

{system.about}| | |
|---|---|
| system | `{system.name}` ({count / 1e6:.2f} M parameters) |
| depth | {system.scale_kind} |
| licence of the weights | {facts["licence"]} |
| source | {facts["source"]} |
| written by | langdepth {__version__} |

## Training

{_table(facts.get("training"))}

## Numbers

{_table(facts.get("numbers"))}

{further}## How to load

```python
import langdepth

result = langdepth.load("{load_from}").predict("photo.jpg")
result.depth  # (H, W) float32, in result.unit
```

## Configuration

```yaml
{config.rstrip()}
```
"""


def _table(facts: Any) -> str:
    """Markdown rows of a mapping; a mapping inside becomes a dotted name."""
    if not facts:
        return "Not stated."
    return "\n".join(("| | |", "|---|---|", *_rows(facts, ""))) if isinstance(facts, Mapping) else str(facts)


def _rows(facts: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{key}.")
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            yield f"| {prefix}{key} | {' '.join(text.split())} |"
