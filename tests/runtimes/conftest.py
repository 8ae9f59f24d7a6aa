"""What the tests of the runtimes share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from langdepth.systems import registry
from tests.systems import test_tiny


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tiny with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    return registry.build("tiny", test_tiny.TestTiny.options).eval().save(path)
