// What the page does in the browser, where its components have no setting for it.

const ROWS = { task: "What to explain", more: "What to do with the map" };

// Names and alternative texts where components take none; a picture whose caption says it needs none.
const describe = () => {
  for (const image of document.querySelectorAll("#map img"))
    if (!image.alt) image.alt = "The picture and its heatmap";
  for (const image of document.querySelectorAll(".tile img"))
    if (image.getAttribute("alt") !== "") image.alt = "";
  for (const empty of document.querySelectorAll(".empty[aria-label]:not([role])"))
    empty.setAttribute("role", "img");  // a name without a role is not read
  for (const code of document.querySelectorAll(".cm-scroller[tabindex='-1']"))
    code.tabIndex = 0;  // so that the arrow keys scroll long lines
  for (const [row, name] of Object.entries(ROWS))
    document.querySelector(`#${row} [role=tablist]`)?.setAttribute("aria-label", name);
  for (const tab of document.querySelectorAll("[role=tab]"))
    tab.tabIndex = tab.getAttribute("aria-selected") === "true" ? 0 : -1;  // the arrow keys reach the others
};
new MutationObserver(describe).observe(document, {
  childList: true, subtree: true, attributes: true, attributeFilter: ["alt", "src", "aria-selected"],
});

// The result comes into view where the visitor would have to look for it.
window.hfCamShow = () => {
  const top = document.getElementById("result")?.getBoundingClientRect().top ?? 0;
  if (top > 0 && top < innerHeight / 2) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  document.getElementById("result")?.scrollIntoView({ behavior: calm ? "auto" : "smooth" });
};
document.addEventListener("click", (event) => {
  if (event.target.closest?.("#go, .tile")) window.hfCamShow();
});

// The arrow keys, Home and End move the focus from tab to tab. Enter or Space opens the tab, not the focus alone: an
// opened tab brings its model.
document.addEventListener("keydown", (event) => {
  const tab = event.target.closest?.("[role=tab]");
  if (!tab || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const tabs = [...tab.closest("[role=tablist]").querySelectorAll("[role=tab]:not(:disabled)")];
  const at = tabs.indexOf(tab);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  tabs.at(next % tabs.length).focus();
});

// A list closes when the Tab key leaves it.
document.addEventListener("keydown", (event) => {
  if (event.key === "Tab" && event.target.matches?.("input[role=combobox], input[role=listbox]"))
    event.target.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
});

// Pictures of an uploaded folder keep its name, which is their class: browsers send files without their folders.
document.addEventListener("change", (event) => {
  const input = event.target;
  if (!input.matches?.("#audit-folder input[type=file]") || !input.files.length) return;
  const named = new DataTransfer();
  for (const file of input.files)
    named.items.add(new File([file], file.webkitRelativePath.split("/").slice(-2).join("/") || file.name, file));
  input.files = named.files;
}, true);
