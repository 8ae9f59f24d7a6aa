"""The command line with the system ``learner``; tests run it in processes of their own."""

from __future__ import annotations

import sys

from langdepth import cli
from langdepth.systems import registry
from tests.helpers import LEARNER

if __name__ == "__main__":
    registry.REGISTRY[LEARNER.name] = LEARNER
    sys.exit(cli.main())
