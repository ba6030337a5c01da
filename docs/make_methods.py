"""Write docs/methods.md from the registry, keeping its measured figures: `python docs/make_methods.py`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hf_cam.methods import Method, Signal, list_methods
from hf_cam.methods.options import options_of
from hf_cam.methods.registry import BUDGET, WIDTH
from hf_cam.methods.signals import SIGNALS

PAGE = Path(__file__).with_name("methods.md")
FIGURES = "## Figures\n"
HEAD = f"""# Methods

Written by `python docs/make_methods.py` from the registry that `explain(method=...)`, the classes, the pipeline and the
command read. Each method is a pure function of the signals that its parameters name; a signal is computed only if a
method needs it. To register a function of your own, use `@hf_cam.method(id, name=..., paper=..., summary=...)`; for a
new signal, which is a function of the run and a layer's name, use `@hf_cam.methods.signal(meaning)`. The methods for
transformers are defined only where attention runs over all cells of the picture: see
[which suits which family](transformers.md). Two explanations of other kinds have their own classes:
`hf_cam.DeepFeatureFactorization` finds concepts, and `hf_cam.GuidedBackprop` returns a picture in colour.

Two comparisons: [how well the maps lie on the objects](localization.md) that they explain, and
[how the model's confidence changes](defaults.md) when the pixels that they mark are removed.

The cost is counted in forwards of the model for one image and one target: the captured forward plus the cost of the
signals, with the options' defaults and a picture of 224 x 224. C is the number of channels of the target layer. The
figures are those of a ViT-B/16. One of RefineCAM's forwards finds its layers, and later calls do without it. By
default, `hf_cam.compare` and `hf_cam.evaluate` leave out
methods that take more than {BUDGET:.0f} forwards on {WIDTH} channels.

"""
SIGNED = """
## Signed maps

With `signed=True`, maps lie in [-1, 1] and also show what speaks against the target. These methods have such maps: {}.
The others refuse, because of what they do:

"""
IN_THE_GRAPH = """

## Maps in the graph

With `differentiable=True`, the map of a CAM stays in the caller's graph, so that a loss of it can train the model.
These methods can do that: {}. See [Activations, gradients and losses of maps](tutorials/research.md).
"""
AGREEMENT = """## Agreement with the papers

Printed by `python -m benchmarks.papers`: the largest difference between hf-cam's map and the same map computed
otherwise, as a share of the map's largest value. "The equation in float64" is a slow re-implementation written from the
paper's equation (`benchmarks/equations.py`, `benchmarks/equations_variants.py`), on random signals or on a tiny model
with random weights. Other packages compute in float32. Each comparison is a test too.

"""
DEPARTURES = """
## Departures

What a method does otherwise than its paper, or than its authors' code:

"""
TAKEN_BACK = """

What some of them change, printed by `python -m benchmarks.departures`: the correlation of the map with the map that has
no such departure, for the demo models, with its standard error.

"""
BESIDE = """
## Beside captum and torchxai

The same definitions in other libraries, written by `python -m benchmarks.blackbox --markdown docs/methods.md` with the
extra "peers" installed: the largest difference of the values, as a share of the largest value, and the ratio of the
processor times of one thread, on a busy machine. The command also prints what Recipro-CAM and RISE with tokens left out
cost in plain forwards.

"""
COSTS = """
The figures below are written by `python -m benchmarks.methods --repeats 5 --markdown docs/methods.md`, for one image
and one class, with every library at hf-cam's target layer. The time of a call is given as a multiple of a plain forward
timed next to it; memory is the peak above the weights. Score-CAM was timed on 32 channels and scaled up.
"Decomposition" is the principal component alone, from the same activations and gradients. The figures were measured
piece by piece and merged with `--records`, on a machine with other work on it, so differences of a tenth are not
significant. A dash means that the figure was not measured, or that no other library has the method.

"""


def page(written: str) -> str:
    """The page, with the figures of the page as it is."""
    lines = [HEAD + "| id | what it shows | needs | forwards | options | paper |", "|---|---|---|--:|---|---|"]
    lines += [line(method) for method in list_methods().values()]
    lines += ["", "## Signals", "", "| name | what it is | forwards | breakdown |", "|---|---|--:|---|"]
    lines += [signal_line(signal) for signal in SIGNALS.records().values()]
    lines += [SIGNED.format(listed(one for one in list_methods().values() if not one.why_unsigned({}))) + refusals()]
    lines += [IN_THE_GRAPH.format(listed(one for one in list_methods().values() if one.differentiable))]
    departures = [f"- `{one.id}`: {one.departure}" for one in list_methods().values() if one.departure]
    others = ", ".join(f"`{one.id}`" for one in list_methods().values() if not one.departure)
    departures.append(f"\nNone: {others}.")
    parts = [
        "\n".join(lines) + "\n" + DEPARTURES + "\n".join(departures),
        TAKEN_BACK + between("departures", written) + "\n\n",
        AGREEMENT + between("agreement", written) + "\n",
        BESIDE + between("beside", written) + "\n",
        COSTS,
        FIGURES + written.partition(FIGURES)[2],
    ]
    return "".join(parts)


def listed(methods: Iterable[Method]) -> str:
    return ", ".join(f"`{one.id}`" for one in methods)


def refusals() -> str:
    """The methods without a sign, by the reason."""
    reasons: dict[str, list[Method]] = {}
    for one in list_methods().values():
        if reason := one.why_unsigned({}):
            reasons.setdefault(reason, []).append(one)
    return "\n".join(f"- {listed(methods)}: {reason}" for reason, methods in reasons.items())


def between(name: str, written: str) -> str:
    """A table that another command wrote into the page, with its marks."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    return written[written.index(start) : written.index(end) + len(end)] if start in written else f"{start}\n\n{end}"


def line(method: Method) -> str:
    needs = ", ".join(f"`{name}`" for name in method.needs)
    options = ", ".join(f"`{name}={value!r}`" for name, value in method.options.items())
    cost = forwards(method.cost(0), method.cost(1) - method.cost(0))
    return f"| `{method.id}` | {method.description} | {needs} | {cost} | {options} | {method.paper} |"


def signal_line(signal: Signal) -> str:
    defaults = options_of(signal.provide)
    fixed = signal.price(0, defaults)
    cost = forwards(fixed, signal.price(1, defaults) - fixed)
    return f"| `{signal.name}` | {signal.meaning} | {cost} | {signal.cost} |"


def shown(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def forwards(fixed: float, per_channel: float) -> str:
    own = [shown(fixed)] if fixed or not per_channel else []
    return " + ".join([*own, *([f"{shown(per_channel)} C"] if per_channel else [])])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""), encoding="utf-8")
