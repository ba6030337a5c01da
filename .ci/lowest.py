"""The lowest versions that pyproject.toml allows, as requirements for pip: `python .ci/lowest.py [EXTRA ...]`.

torch and torchvision are left out: their oldest wheels bring gigabytes of libraries for GPUs.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
wanted = [*project["dependencies"], *(one for extra in sys.argv[1:] for one in project["optional-dependencies"][extra])]
for one in wanted:
    name, lowest = re.fullmatch(r"([\w.-]+(?:\[[\w,]+\])?)(?:>=([\d.]+))?", one).groups()
    if lowest and not name.startswith("torch"):
        sys.stdout.write(f"{name}=={lowest if '.' in lowest else lowest + '.0'}.*\n")
