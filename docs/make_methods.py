"""Write the tables of docs/methods.md from the registry: python docs/make_methods.py. What was measured stays below."""

from __future__ import annotations

from pathlib import Path

from hf_cam.methods import Method, list_methods
from hf_cam.methods.registry import EVIDENCE

PAGE = Path(__file__).with_name("methods.md")
FIGURES = "## Figures\n"
HEAD = """# Methods

Written by `python docs/make_methods.py` from the registry that `explain(method=...)`, the classes, the pipeline and the
command read. A method is a pure function of the evidence that its parameters name; evidence is made once for all the
methods and targets of a call, and only where one asks for it. Those of attention are defined where attention runs over
all cells of the picture: see [transformers.md](transformers.md). `hf_cam.DeepFeatureFactorization` and
`hf_cam.GuidedBackprop` are classes of their own: they give concepts, and a picture in colours.

How well each lies on the thing it explains is in [localization.md](localization.md), whether the model loses what it
shows in [defaults.md](defaults.md).

"""
COSTS = """
Below: `python -m benchmarks.methods --repeats 5 --markdown docs/methods.md`. One image, one class, every library at the
layer that hf-cam takes; a call in times of one plain forward that was timed beside it, and the peak of memory above the
weights. Score-CAM was timed on 32 channels and multiplied up. "Decomposition" is the principal component alone, from
the same activations and gradients. These figures were taken in pieces, which `--records` puts together, on a machine
with other work on it: differences of a tenth mean nothing. A dash was not measured, or nobody else has it.

"""


def page(figures: str) -> str:
    lines = [HEAD + "| id | what it shows | needs | options | paper |", "|---|---|---|---|---|"]
    lines += [line(method) for method in list_methods().values()]
    lines += ["", "## Evidence", "", "| name | what it is, and what making it takes |", "|---|---|"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in EVIDENCE.items()]
    return "\n".join(lines) + "\n" + COSTS + FIGURES + figures


def line(method: Method) -> str:
    needs = ", ".join(f"`{name}`" for name in method.needs)
    options = ", ".join(f"`{name}={value!r}`" for name, value in method.options.items())
    return f"| `{method.id}` | {method.description} | {needs} | {options} | {method.paper} |"


if __name__ == "__main__":
    known = PAGE.read_text(encoding="utf-8").partition(FIGURES)[2] if PAGE.exists() else ""
    PAGE.write_text(page(known), encoding="utf-8")
