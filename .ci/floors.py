"""The oldest versions that pyproject.toml allows of everything it needs, one "name==version" a line."""

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = [project["optional-dependencies"][extra] for extra in ("torch", "train", "data")]
stated = dict.fromkeys(one for part in (project["dependencies"], *extras) for one in part if "[" not in one)
floors = [re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement) for requirement in stated]
if None in floors:
    sys.exit("pyproject.toml: every dependency needs a floor and nothing else: name>=version")
print("\n".join(f"{found[1]}=={found[2]}" for found in floors if found))
