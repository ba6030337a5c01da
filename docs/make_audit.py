"""Draw the README's picture of an audit: the first finding of the report on `demo:cheater`, as a browser shows it.

python docs/make_audit.py
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import hf_cam
from hf_cam.zoo.scenes import cheater_scenes

PICTURE = Path(__file__).parent / "images" / "audit.jpg"
CHROMIUM = "/usr/bin/chromium"


def draw(report: Path, picture: Path) -> None:
    """Open a report in a browser, and keep what stands above its second finding."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1040, "height": 900}, color_scheme="light")
        page.goto(report.as_uri())
        edge = page.locator(".finding").first.bounding_box()
        shot = page.screenshot(clip={"x": 0, "y": 0, "width": 1040, "height": edge["y"] + edge["height"] + 16})
        browser.close()
    Image.open(io.BytesIO(shot)).convert("RGB").save(picture, quality=88, optimize=True)


def main() -> None:
    """Audit, and draw the report."""
    audit = hf_cam.audit("demo:cheater", cheater_scenes())
    print(audit)
    with tempfile.TemporaryDirectory() as folder:
        draw(audit.save(folder), PICTURE)


if __name__ == "__main__":
    main()
