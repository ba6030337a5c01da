"""What a visitor does on the page, in a browser."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

ANOTHER = """b => {
    const shown = [...document.querySelectorAll('#map img')].map(i => i.getAttribute('src'));
    const said = document.querySelector('#says .prose')?.innerText;
    return said && shown.length && JSON.stringify([...shown, said]) !== JSON.stringify(b)
}"""
EXPLAINED = "b => { const s = document.querySelector('#says .prose')?.innerText; return s && s !== b }"

UNMOUNTED = "Cannot read properties of null (reading 'offsetWidth')"
"""What gradio's plots raise now and then when they are hidden: they go on watching the size of what is gone."""


class Visit:
    """A page in the browser, with what a visitor does there."""

    def __init__(self, browser: Any, server: str, folder: Path, **options: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 1000}, **options})
        self.page.set_default_timeout(60_000)
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.folder = folder
        self.page.on("request", lambda request: self._note(request.url))
        self.page.on("pageerror", lambda error: self.errors.extend({str(error)} - {UNMOUNTED}))
        started = time.perf_counter()
        self.page.goto(server)
        self.page.wait_for_selector("#go")
        self.page.wait_for_selector("#map img")
        self.seconds = time.perf_counter() - started

    def _note(self, url: str) -> None:
        if "127.0.0.1" not in url and not url.startswith(("data:", "blob:")):
            self.outside.append(url)

    def says(self) -> str:
        """The sentence of the map that is shown."""
        return self.page.inner_text("#says .prose")

    def changes(self, act: Any) -> str:
        """What the sentence says once `act` has changed it."""
        before = self.says()
        act()
        self.page.wait_for_function(EXPLAINED, arg=before)
        return self.says()

    def redraws(self, act: Any) -> None:
        """Wait until `act` has changed the map."""
        before = self.source()
        act()
        self.page.wait_for_function("b => document.querySelectorAll('#map img')[1]?.src !== b[1]", arg=before)

    def explain(self) -> str:
        """Press Explain; the map changes, or the sentence alone where other prompts leave the map as it was."""
        before = [*self.source(), self.says()]
        self.page.click("#go")
        self.page.wait_for_function(ANOTHER, arg=before)
        self.current()
        return self.says()

    def current(self) -> None:
        """Wait until what is shown is what the page asks for."""
        self.page.locator("#stale p").wait_for(state="hidden")

    def outdated(self) -> None:
        """Wait until what is shown is grey."""
        self.page.locator("#stale p").wait_for(state="visible")

    def open(self, tab: str) -> None:
        """Press a tab."""
        self.page.get_by_role("tab", name=tab, exact=True).click()

    def opened(self) -> str:
        """The open tab of the upper row."""
        return self.page.locator("#task button[role=tab][aria-selected=true]").inner_text()

    def settings(self) -> None:
        """Open the settings, unless they are open."""
        if not self.page.is_visible("#method"):
            self.page.get_by_text("Method, effort and more").click()
        self.page.wait_for_selector("#method")

    def choose(self, menu: str, option: str) -> None:
        """Choose from a list."""
        self.page.click(f"{menu} input")
        self.page.get_by_role("option", name=option, exact=True).click()

    def model(self) -> str:
        """The chosen model."""
        return self.page.input_value("#model input")

    def upload(self, file: Path) -> None:
        """Put a file in place of the picture."""
        if self.page.locator("#picture button[aria-label='Remove Image']").count():
            self.page.click("#picture button[aria-label='Remove Image']")
        self.page.locator("#picture input[type=file]").set_input_files(file)
        self.page.wait_for_selector("#picture img", state="attached")

    def download(self, button: str) -> Path:
        """The file behind a button."""
        with self.page.expect_download() as download:
            self.page.click(button)
        return download.value.path()

    def source(self, selector: str = "#map img") -> list[str | None]:
        """The addresses of pictures."""
        return [image.get_attribute("src") for image in self.page.query_selector_all(selector)]

    def reach(self, selector: str) -> None:
        """Go to an element with the Tab key alone."""
        for _ in range(120):
            self.page.keyboard.press("Tab")
            if self.page.evaluate("s => !!document.activeElement.closest(s)", selector):
                return
        pytest.fail(f"the Tab key does not reach {selector}")

    def reach_by_key(self, element: Any) -> None:
        """Leave an element and come back to it with the Tab key; its focus is seen."""
        element.focus()
        self.page.keyboard.press("Shift+Tab")
        assert not element.evaluate("e => e === document.activeElement")
        self.page.keyboard.press("Tab")
        assert element.evaluate("e => e === document.activeElement")
        assert element.evaluate("e => getComputedStyle(e).outlineStyle") != "none"

    def reach_by_arrows(self, tab: Any) -> None:
        """Go from another tab of its row to a tab; its focus is seen."""
        for _ in range(tab.locator("xpath=..").locator("[role=tab]").count()):
            if tab.evaluate("e => e === document.activeElement"):
                break
            self.page.keyboard.press("ArrowRight")
        else:
            pytest.fail("the arrow keys do not reach the tab")
        assert tab.evaluate("e => getComputedStyle(e).outlineStyle") != "none"

    def shoot(self, name: str) -> None:
        """Keep a screenshot."""
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(400)
        self.page.screenshot(path=self.folder / f"{name}.png", full_page=True)

    def close(self) -> None:
        """Nothing was fetched from elsewhere, no script failed, no picture is without words."""
        assert self.outside == []
        assert self.errors == []
        without = "[...document.images].filter(i => i.width > 40 && !i.hasAttribute('alt')).map(i => i.outerHTML)"
        assert self.page.evaluate(without) == []
        self.page.close()
