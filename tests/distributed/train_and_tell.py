"""The command line with the system ``learner``; at the end every process writes to $RANKS_FOLDER what it ended with.

With $STUCK validation never ends.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from langdepth import cli
from langdepth.systems import registry
from langdepth.training import stopping, validation
from tests.helpers import LEARNER


def tell(trainer: Any, module: Any) -> None:
    end = {"weights": module.state_dict(), "drawn": module.system.drawn}
    torch.save(end, Path(os.environ["RANKS_FOLDER"], f"{trainer.global_rank}.pt"))


def stuck(*_: Any, **__: Any) -> None:
    """In the place of ``evaluate``: one process waits for the other, which does not come."""
    print("evaluating", flush=True)
    if "LOCAL_RANK" in os.environ and os.environ["LOCAL_RANK"] != "0":
        time.sleep(600)
    torch.distributed.all_gather_object([None, None], None)


if __name__ == "__main__":
    if "STUCK" in os.environ:
        validation.evaluate = stuck  # type: ignore[assignment]
        stopping.GRACE, stopping.UNWIND = 1.0, 2.0
    registry.REGISTRY[LEARNER.name] = LEARNER
    validation.Validation.teardown = lambda self, trainer, pl_module, stage: tell(trainer, pl_module)  # type: ignore[method-assign]
    sys.exit(cli.main())
