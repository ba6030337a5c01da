"""Write the tables of docs/methods.md from the registry: python docs/make_methods.py. What was measured stays below."""

from __future__ import annotations

from pathlib import Path

from hf_cam.methods import Method, Signal, list_methods
from hf_cam.methods.registry import PATIENCE, WIDTH
from hf_cam.methods.signals import SIGNALS

PAGE = Path(__file__).with_name("methods.md")
FIGURES = "## Figures\n"
HEAD = f"""# Methods

Written by `python docs/make_methods.py` from the registry that `explain(method=...)`, the classes, the pipeline and the
command read. A method is a pure function of the signals that its parameters name; a signal is computed only where a
method needs it. `@hf_cam.method(id, name=..., paper=..., summary=...)` registers a function of your own, and
`@hf_cam.methods.signal(meaning)` a new signal, as a function of the run and a layer's name. Methods of attention are
defined where attention runs over all cells of the picture: see [transformers.md](transformers.md).
`hf_cam.DeepFeatureFactorization` and `hf_cam.GuidedBackprop` are classes of their own: they give concepts, and a
picture in colours.

How well each lies on the thing it explains is in [localization.md](localization.md), whether the model loses what it
shows in [defaults.md](defaults.md).

The cost is in forwards of the model, for one image and one target: the forward that is explained, and what the signals
take beside it; C is the number of the target layer's channels. The figures are those of a ViT-B/16. RefineCAM's first
call takes one more, to find its layers. Where no method is named, `hf_cam.compare` and `hf_cam.evaluate` leave out
those that take {PATIENCE:.0f} forwards or more on {WIDTH} channels.

"""
COSTS = """
Below: `python -m benchmarks.methods --repeats 5 --markdown docs/methods.md`. One image, one class, every library at the
layer that hf-cam takes; a call in times of one plain forward that was timed beside it, and the peak of memory above the
weights. Score-CAM was timed on 32 channels and multiplied up. "Decomposition" is the principal component alone, from
the same activations and gradients. These figures were taken in pieces, which `--records` puts together, on a machine
with other work on it: differences of a tenth mean nothing. A dash was not measured, or nobody else has it.

"""


def page(figures: str) -> str:
    lines = [HEAD + "| id | what it shows | needs | forwards | options | paper |", "|---|---|---|--:|---|---|"]
    lines += [line(method) for method in list_methods().values()]
    lines += ["", "## Signals", "", "| name | what it is | forwards | for |", "|---|---|--:|---|"]
    lines += [signal_line(signal) for signal in SIGNALS.records().values()]
    return "\n".join(lines) + "\n" + COSTS + FIGURES + figures


def line(method: Method) -> str:
    needs = ", ".join(f"`{name}`" for name in method.needs)
    options = ", ".join(f"`{name}={value!r}`" for name, value in method.options.items())
    cost = forwards(method.cost(0), method.cost(1) - method.cost(0))
    return f"| `{method.id}` | {method.description} | {needs} | {cost} | {options} | {method.paper} |"


def signal_line(signal: Signal) -> str:
    cost = forwards(signal.forwards, signal.forwards_per_channel)
    return f"| `{signal.name}` | {signal.meaning} | {cost} | {signal.cost} |"


def forwards(fixed: float, per_channel: float) -> str:
    own = [f"{fixed:.2g}"] if fixed or not per_channel else []
    return " + ".join([*own, *([f"{per_channel:.2g} C"] if per_channel else [])])


if __name__ == "__main__":
    known = PAGE.read_text(encoding="utf-8").partition(FIGURES)[2] if PAGE.exists() else ""
    PAGE.write_text(page(known), encoding="utf-8")
