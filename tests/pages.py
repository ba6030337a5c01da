"""The pages of the docs, and the code on them."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^ *```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def python_blocks(page: Path | str) -> list[str]:
    """The Python blocks of a page, given from the root of the repository, without the cells of a notebook."""
    return [dedent(block) for block in BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))]
