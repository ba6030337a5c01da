"""Choose the method and layer for a model by a metric, and save the choice where `infer_adapter` finds it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_cam.cam import CAM
from hf_cam.doors import door
from hf_cam.errors import OptionError
from hf_cam.evaluation.bench import evaluate
from hf_cam.evaluation.table import Evaluation
from hf_cam.layouts import AnyLayout, Layout, Spatial
from hf_cam.metrics import get_metric
from hf_cam.models.loading import LoadedModel, load
from hf_cam.models.traits import unwrap
from hf_cam.target_layers.adapter import Adapter

METHODS = ("gradcam", "hirescam", "layercam", "gradcam++", "eigengradcam")
NEIGHBOURS = 2


@dataclass(frozen=True)
class Tuned:
    """The result of a tuning.

    Args:
        adapter: The chosen method and layer; `adapter.save_pretrained(folder)` or `.push_to_hub(repo)` saves it.
        metric: The id of the metric by which it was chosen.
        score: The mean of that metric over the images.
        table: All methods and layers that were tried, and the baselines.
        written: The path or URL to which the choice was saved, or None.
    """

    adapter: Adapter
    metric: str
    score: float
    table: Evaluation = field(repr=False)
    written: str | None = None


@door()
def tune(
    model: str | Path | nn.Module | LoadedModel,
    images: Any,
    *,
    metric: str = "road",
    methods: Sequence[str] = METHODS,
    layers: Sequence[str] | str | None = None,
    save: str | Path | None = None,
    push_to_hub: str | None = None,
    processor: Any = None,
    device: str | torch.device | int | None = None,
    **settings: Any,
) -> Tuned:
    """Find the method and layer that work best for a model on some images.

    Args:
        model: A Hub id, a folder, `demo:NAME`, a loaded model, or what `hf_cam.load` returned.
        images: As in `hf_cam.evaluate`.
        metric: The id of the metric to choose by.
        methods: Ids to try.
        layers: The dotted name or names to try; by default the default layer and its counterparts in the two blocks
            before it.
        save: A folder to write `cam_config.json` to, usually the model's own.
        push_to_hub: A Hub repo to upload it to.
        processor, device: As in `hf_cam.explain`.
        settings: Other arguments of `hf_cam.evaluate`: `target`, `text`, `seed`, `steps`, `resume`, `progress`, ...

    Raises:
        OptionError: there is no such metric, it has no direction, or several are given.

    >>> from sklearn.datasets import load_sample_image
    >>> found = tune("demo:convnext", [load_sample_image("flower.jpg")], metric="confidence-drop",
    ...              methods=["gradcam", "layercam"], progress=False)
    >>> found.adapter.method in ("gradcam", "layercam")
    True
    """
    if "metrics" in settings:
        raise OptionError("tune() chooses by one metric: pass metric=, and evaluate() for metrics=")
    if get_metric(metric).higher_is_better is None:
        raise OptionError(f"{metric!r} has no direction, so it cannot choose the best; pass another metric")
    loaded = load(model, processor=processor, device=device)
    family = CAM(loaded.model).adapter
    tried = _neighbours(loaded.model, family) if layers is None else layers
    table = evaluate(
        loaded.model, images, methods=methods, metrics=[metric], layers=tried, processor=loaded.processor, **settings
    )
    best = table.best(metric)
    adapter = replace(
        family,
        layers=best.layers,
        layouts=tuple(_layout(family, layer) for layer in best.layers),
        method=best.map,
        origin="cam_config",
        reason=f"best {metric} of {len(table.rows)} maps on {best.count} images: {best.means[metric]:.3f}",
    )
    written = None
    if save is not None:
        written = str(adapter.save_pretrained(save))
    if push_to_hub is not None:
        written = adapter.push_to_hub(push_to_hub)
    return Tuned(adapter, metric, best.means[metric], table, written)


def _neighbours(model: nn.Module, family: Adapter) -> list[str]:
    """The layers of an adapter and, if a layer's name contains a block number, the same layer in the blocks before.

    >>> net = nn.Sequential(*[nn.Identity() for _ in range(5)])
    >>> _neighbours(net, Adapter(("4",), (Layout("b c h w"),)))
    ['4', '3', '2']
    """
    known = {name for name, _ in unwrap(model).named_modules()}
    found = list(family.layers)
    for layer in family.layers:
        numbers = list(re.finditer(r"\d+", layer))
        if not numbers:
            continue
        last = numbers[-1]
        for step in range(1, NEIGHBOURS + 1):
            earlier = f"{layer[: last.start()]}{int(last.group()) - step}{layer[last.end() :]}"
            if earlier in known and earlier not in found:
                found.append(earlier)
    return found


def _layout(family: Adapter, layer: str) -> Spatial:
    """The layout from the adapter, since all blocks of a network share it."""
    own = family.layouts[family.layers.index(layer)] if layer in family.layers else family.layouts[0]
    return own if isinstance(own, Layout) else AnyLayout()
