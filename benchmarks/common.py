"""What several benchmarks share: options, runs in turns, systems whose weights follow from their tensors' names."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).parents[1]


def parser(about: str | None) -> argparse.ArgumentParser:
    """The script's own text as help, and where to write its numbers."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, help="write the numbers here as JSON")
    return made


def use_threads(count: int) -> None:
    """Of torch, which must not be imported yet, and of the programs that are started."""
    os.environ["OMP_NUM_THREADS"] = str(count)

    import torch

    torch.set_num_threads(count)


class Turns(NamedTuple):
    """What each run gave, and the medians of its seconds: on the clock, and of CPU time."""

    found: dict[str, Any]
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]


def in_turns(runs: Mapping[str, Callable[[], Any]], repetitions: int) -> Turns:
    """All run A B C A B C, so that they see the same machine; a first round is not counted."""
    found = {name: run() for name, run in runs.items()}
    clock: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            clock[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
    return Turns(found, *({name: statistics.median(taken[name]) for name in runs} for taken in (clock, cpu)))


def keyed_system(name: str, keys: str, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Tensor]]:
    """A system with weights that follow from the names in a keys file of tests/parity; and these, as the authors'."""
    sys.path.insert(0, str(ROOT))
    from tests.parity.keyed_weights import state_dict

    from langdepth.systems import registry

    weights = state_dict(ROOT / f"tests/parity/data/{keys}.keys.json")
    system = registry.build(name, options)
    system.load_state_dict(system.convert_official(weights)[0])
    return system.eval(), weights


def write(numbers: Any, out: Path | None) -> None:
    """Write the numbers, if a place for them was given."""
    if out is None:
        return
    from langdepth.utils.files import write_json

    write_json(numbers, out)
    print(f"\nwritten: {out}")
