"""Draw the picture of the page of concepts: the first concept of coats in `demo:cheater`, as a browser shows it.

python docs/make_concepts.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from make_audit import draw

import hf_cam
from hf_cam.zoo.scenes import cheater_scenes

PICTURE = Path(__file__).parent / "images" / "concepts.jpg"


def main() -> None:
    """Find the concepts as the tutorial does, and draw the page."""
    found = hf_cam.concepts("demo:cheater", cheater_scenes(60), target="coat", components=6, scored=12)
    print(found)
    with tempfile.TemporaryDirectory() as folder:
        draw(found.save(Path(folder) / "concepts.html"), PICTURE)


if __name__ == "__main__":
    main()
