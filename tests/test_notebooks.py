"""The notebooks of examples/ run in a kernel, with the files that are shipped and nothing from elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_it_is_shipped(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANGDEPTH_CACHE", "JUPYTER_DATA_DIR", "IPYTHONDIR", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / ".kept"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LANGDEPTH_DOWNLOAD", "")
    place = tmp_path / "examples"
    shutil.copytree(EXAMPLES, place, ignore=shutil.ignore_patterns("*.ipynb"))
    content = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(place)}}
    NotebookClient(content, timeout=500, kernel_name="python3", resources=resources).execute()
    assert any(cell.get("outputs") for cell in content.cells)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_holds_no_outputs(notebook: Path) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
