"""What a page in the browser consists of and how it is laid out, and the laws that any page obeys."""

from __future__ import annotations

MEASURE = """() => {
  const PRESSED = "a[href], button, input:not([type=hidden]), textarea, summary, [role=tab], [role=slider]";
  const shown = e => e.checkVisibility({ opacityProperty: true, visibilityProperty: true })
    && e.getBoundingClientRect().width > 2 && e.getBoundingClientRect().height > 2;
  const scrolls = e => { for (let p = e.parentElement; p; p = p.parentElement)
    if (/auto|scroll/.test(getComputedStyle(p).overflowX) && p.scrollWidth > p.clientWidth) return true; return false };
  const inner = e => e.querySelector("[aria-label], [alt]:not([alt=''])");
  const name = e => (e.getAttribute("aria-label") || e.innerText || e.labels?.[0]?.innerText || e.placeholder
    || inner(e)?.ariaLabel || inner(e)?.alt || e.id || "").trim().split("\\n")[0];
  const place = e => { const r = e.getBoundingClientRect(), w = innerWidth;
    return r.width > 0.6 * w ? "whole" : r.x + r.width / 2 < w * 0.42 ? "left" : "right" };
  const all = [...document.querySelectorAll(PRESSED)].filter(shown);
  const boxes = all.map(e => { const r = e.getBoundingClientRect();
    return { e, x0: r.left, y0: r.top, x1: r.right, y1: r.bottom, area: r.width * r.height } });
  const overlaps = [];
  for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
    const a = boxes[i], b = boxes[j];
    if (a.e.contains(b.e) || b.e.contains(a.e) || a.e.closest("#map") && b.e.closest("#map")) continue;
    if (a.e.closest("label") && a.e.closest("label") === b.e.closest("label")) continue;
    const w = Math.min(a.x1, b.x1) - Math.max(a.x0, b.x0), h = Math.min(a.y1, b.y1) - Math.max(a.y0, b.y0);
    if (w > 1 && h > 1 && w * h > 0.2 * Math.min(a.area, b.area)) overlaps.push(name(a.e) + " / " + name(b.e));
  }
  const outside = boxes.filter(b => (b.x1 > innerWidth + 1 || b.x0 < -1) && !scrolls(b.e)).map(b => name(b.e));
  const cut = all.filter(e => e.matches("button, a, summary") && e.scrollWidth > e.clientWidth + 2
    && /hidden|clip/.test(getComputedStyle(e).overflowX)).map(name);
  const varying = "#links, #methods, #found, #grid, #picture, #map, #says, #code, #curves, #findings, #scores, iframe,"
    + " footer";
  const parts = all.filter(e => !e.closest(varying)).map(e => `${name(e)} (${place(e)})`);
  return {
    overlaps, outside, cut, parts,
    unnamed: all.filter(e => !name(e)).map(e => e.outerHTML.slice(0, 120)),
    wide: document.documentElement.scrollWidth - innerWidth,
    headings: document.querySelectorAll("h1").length,
    mains: document.querySelectorAll("main, [role=main]").length,
    ids: [...new Set([...document.querySelectorAll("[id]")].map(e => e.id)
      .filter((id, i, ids) => id && ids.indexOf(id) !== i))],
  };
}"""
"""Of the page as it stands: what can be pressed, in its order and with its column, and what breaks a law."""


def faults_of(measured: dict) -> dict[str, object]:
    """The laws that the page breaks, each with what breaks it: the same few for every page, width and theme."""
    found = {law: measured[law] for law in ("overlaps", "outside", "cut", "unnamed") if measured[law]}
    if measured["wide"] > 0:
        found["wider than the window by"] = measured["wide"]
    if measured["headings"] != 1:
        found["main headings"] = measured["headings"]
    if measured["mains"] != 1:
        found["main landmarks"] = measured["mains"]
    return found
