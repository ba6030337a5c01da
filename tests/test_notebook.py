"""What notebooks show of results."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np

import hf_cam
from hf_cam.check import Check
from hf_cam.evaluation.table import Evaluation, Record
from hf_cam.explanation import THUMBNAIL, Explanation, Explanations
from hf_cam.heads.subjects import CONFIDENCE
from pictures import noise


class Shown(HTMLParser):
    """The tags and the text of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data + " "

    def count(self, wanted: str) -> int:
        return sum(tag == wanted for tag, _ in self.tags)


def found(label: str, *flags: str) -> Explanation:
    heatmap = np.zeros((300, 500), np.float32)
    return Explanation(label, 0.25, heatmap, heatmap, "gradcam", ("layer",), noise(300, 500), flags=flags)


def test_a_list_of_explanations_shows_each_map_with_label_score_method_and_flags():
    page = Explanations([found("cat"), found("<b>", "no evidence")])._repr_html_()
    shown = Shown(page)
    assert shown.count("img") == 2
    for expected in ("cat", "<b>", f"0.250 {CONFIDENCE}", "gradcam", "no evidence"):
        assert expected in shown.text
    assert len(page) < 2 * 2 * 3 * THUMBNAIL**2


def test_explain_returns_a_list_that_shows_itself(vit_folder):
    explained = hf_cam.explain(noise(), vit_folder, top_k=2)
    assert isinstance(explained, list)
    assert Shown(explained._repr_html_()).count("img") == 2
    assert Shown(hf_cam.explain([noise()], vit_folder)[0]._repr_html_()).count("img") == 1


def test_a_check_shows_its_verdict_and_the_reasons():
    checked = Check("supports", 0.9, 0.5, 0.8, 0.1, 0.1, 0.5, 0.6, 0.3, (3, 3), 0.6)
    shown = Shown(checked._repr_html_())
    assert shown.text.startswith("supports")
    assert str(checked) in shown.text


def test_an_evaluation_shows_the_table_that_it_writes_as_markdown():
    records = [
        Record("a", name, ("layer<1>",), {"road": score}, 0.01) for name, score in (("gradcam", 0.5), ("fem", 0.1))
    ]
    table = Evaluation(tuple(records), ("road",))
    shown = Shown(table._repr_html_())
    assert shown.count("tr") == 3
    cells = [cell.strip() for line in table.to_markdown().splitlines() for cell in line.strip("|").split("|")]
    assert shown.text.split() == " ".join(cell for cell in cells if "--" not in cell).split()
