"""The model card of a weights file: Markdown with the hub's metadata on top."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from torch import nn

from langdepth._version import __version__
from langdepth.config import to_mapping
from langdepth.errors import UsageError
from langdepth.utils.reading import read_text

_SHOWN = ("licence", "licence_link", "source", "training", "numbers", "datasets")
_LICENSES = (
    "mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0",
    "unlicense", "openrail",
)  # fmt: skip
"""Those of the hub's ids that weights usually have."""


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


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What its owner adds to the card of a repository.

    Args:
        license: The terms of the weights: the hub's id ("mit", "apache-2.0", "cc-by-nc-4.0") or a name in words. It
            replaces what the weights state, and is stored in them.
        license_link: The address of these terms.
        datasets: What it was trained on, by the hub's ids.
        tags: Beside "monocular-depth-estimation" and the name of the system.
        reports: Of ``langdepth evaluate``, files or what they hold; they become the card's model-index.
    """

    license: str | None = None
    license_link: str | None = None
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    reports: tuple[str | Path | Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for name in ("license", "license_link", "datasets", "tags"):
            value = getattr(self, name) or ()
            if not all(text.isprintable() for text in ((value,) if isinstance(value, str) else value)):
                raise UsageError(f"{name}: holds a line break or another character that no line of a card has")

    def facts(self) -> dict[str, Any]:
        """What is stored in the weights."""
        stated = {"licence": self.license, "licence_link": self.license_link, "datasets": list(self.datasets) or None}
        return {key: value for key, value in stated.items() if value is not None}


def model_card(system: Storable, facts: Mapping[str, Any], load_from: str, options: CardOptions | None = None) -> str:
    """The text of the card; ``load_from`` is what a user gives to ``langdepth.load``.

    Raises:
        UsageError: For a report that is none, or of another system.
    """
    options = options or CardOptions()
    reports = [_report(one, system.name) for one in options.reports]
    count = sum(parameter.numel() for parameter in system.parameters())
    others = {k: v for k, v in facts.items() if k not in _SHOWN}
    further = f"## Further facts\n\n{_table(others)}\n\n" if others else ""
    evaluated = "".join(_evaluated(report) for report in reports)
    config = yaml.safe_dump(to_mapping(system.config), sort_keys=False, default_flow_style=None, width=120)
    link = f" ([terms]({facts['licence_link']}))" if facts.get("licence_link") else ""
    origin = _origin(facts.get("continued_from"))
    return f"""\
---
{_head(system, facts, load_from, options, reports)}
---

# {system.name}

{system.about}| | |
|---|---|
| system | `{system.name}` ({count / 1e6:.2f} M parameters) |
| depth | {system.scale_kind} |
| licence of the weights | {facts["licence"]}{link} |
| source | {facts["source"]} |
{f"| continued from | {origin} |{chr(10)}" if origin else ""}| written by | langdepth {__version__} |

## Training

{_table(facts.get("training"))}

## Numbers

{_table(facts.get("numbers"))}

{evaluated}{further}## How to load

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


def _head(
    system: Storable,
    facts: Mapping[str, Any],
    load_from: str,
    options: CardOptions,
    reports: Sequence[Mapping[str, Any]],
) -> str:
    """The hub's metadata as YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="depth-estimation",
            dataset_type=_slug(str(report["dataset"])),
            dataset_name=str(report["dataset"]),
            dataset_split=report.get("split"),
            metric_type=metric,
            metric_value=value,
            metric_config="{name} ({hash})".format(**report["protocol"]),
            metric_args={"protocol_hash": report["protocol"]["hash"], "images": report.get("images")},
        )
        for report in reports
        for metric, value in report["image_mean"].items()
    ]
    origin = facts.get("continued_from")
    base = str(origin.get("weights")).partition("@")[0] if isinstance(origin, Mapping) else ""
    data = ModelCardData(
        library_name="langdepth",
        pipeline_tag="depth-estimation",
        tags=["monocular-depth-estimation", system.name, *options.tags],
        datasets=facts.get("datasets"),
        base_model=base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None,
        model_name=load_from.rpartition("/")[2] or system.name,
        eval_results=results or None,
        **_license(str(facts["licence"]), facts.get("licence_link")),
    )
    return str(data.to_yaml()).rstrip()


def _license(text: str, link: str | None) -> dict[str, Any]:
    """The hub's fields of a licence: one of its ids, or "other" with a name."""
    if text.lower() in _LICENSES:
        return {"license": text.lower()}
    if text.startswith("not stated"):
        return {"license": "unknown", "license_link": link}
    return {"license": "other", "license_name": _slug(text.partition("(")[0]), "license_link": link}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())[:96].strip("-") or "custom"


def _report(given: str | Path | Mapping[str, Any], system: str) -> Mapping[str, Any]:
    """A report of ``langdepth evaluate`` about the system. Raises UsageError."""
    label = "the report" if isinstance(given, Mapping) else str(given)
    try:
        report = given if isinstance(given, Mapping) else json.loads(read_text(given))
        right = all(isinstance(report[key], Mapping) for key in ("protocol", "image_mean"))
        right = right and all(isinstance(report["protocol"][key], str) for key in ("name", "hash"))
        name = str(report["system"]).partition(" (")[0]
    except OSError as error:
        raise UsageError(f"{label}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        right = False
    if not right or not str(report.get("dataset", "\n")).isprintable():
        raise UsageError(f"{label}: is no report of 'langdepth evaluate'")
    if name != system:
        raise UsageError(f"{label}: is about '{name}', and these are weights of '{system}'")
    return report


def _evaluated(report: Mapping[str, Any]) -> str:
    split = f", split {report['split']}" if report.get("split") else ""
    where = f"{report['dataset']}{split}, {report.get('images')} images"
    title = f"## Evaluated: {where}, protocol {report['protocol']['name']} ({report['protocol']['hash']})"
    return f"{title}\n\n{_table(report['image_mean'])}\n\n"


def _origin(facts: Any) -> str:
    """What training continued from, in a line, the last first."""
    words = []
    while isinstance(facts, Mapping):
        sha256 = f", sha256 {str(facts['sha256'])[:12]}..." if facts.get("sha256") else ""
        words.append(f"`{facts.get('weights')}` (licence: {facts.get('licence', 'not stated')}{sha256})")
        facts = facts.get("continued_from")
    return ", from ".join(words)


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
