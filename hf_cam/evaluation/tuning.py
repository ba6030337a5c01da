"""Choose method and layer of one model by a metric, and write the choice where `infer_adapter` finds it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_cam.cam import CAM
from hf_cam.errors import OptionError
from hf_cam.evaluation.bench import evaluate
from hf_cam.evaluation.table import Evaluation
from hf_cam.layouts import AnyLayout, Layout, Spatial
from hf_cam.metrics import get_metric
from hf_cam.models.loading import load
from hf_cam.models.traits import unwrap
from hf_cam.target_layers.adapter import Adapter

METHODS = ("gradcam", "hirescam", "layercam", "gradcam++", "eigengradcam")
NEIGHBOURS = 2


@dataclass(frozen=True)
class Tuned:
    """What a tuning chose.

    Args:
        adapter: With the chosen method and layer; `adapter.save_pretrained(folder)` or `.push_to_hub(repo)` keeps it.
        metric: What it was chosen by.
        score: Of the choice, its mean over the images.
        table: Every method and layer that was tried, beside the baselines.
        written: Where the choice was written, None where nowhere.
    """

    adapter: Adapter
    metric: str
    score: float
    table: Evaluation = field(repr=False)
    written: str | None = None


def tune(
    model: str | Path | nn.Module,
    images: Any,
    *,
    metric: str = "road",
    methods: Sequence[str] = METHODS,
    layers: Sequence[str] | None = None,
    save: str | Path | None = None,
    push_to_hub: str | None = None,
    processor: Any = None,
    device: str | torch.device | int | None = None,
    **settings: Any,
) -> Tuned:
    """Find the method and the layer that serve a model best on some images.

    Args:
        model: A Hub id, a folder, `demo:NAME`, or a loaded model.
        images: As in `hf_cam.evaluate`.
        metric: The id of the metric to choose by.
        methods: Ids to try.
        layers: Dotted names to try; the family's layer and its namesakes in the two blocks before where not given.
        save: A folder to write `cam_config.json` into, usually the model's own.
        push_to_hub: A Hub repo to upload it to.
        processor, device: As in `hf_cam.explain`.
        settings: `target`, `text`, `seed`, `resume`, `progress`, ... of `hf_cam.evaluate`.

    Raises:
        OptionError: there is no such metric, or it has no direction.

    >>> from sklearn.datasets import load_sample_image
    >>> found = tune("demo:convnext", [load_sample_image("flower.jpg")], metric="confidence-drop",
    ...              methods=["gradcam", "layercam"], progress=False)
    >>> found.adapter.method in ("gradcam", "layercam")
    True
    """
    if get_metric(metric).higher_is_better is None:
        raise OptionError(f"{metric!r} has no direction to choose by")
    loaded = load(model, processor=processor, device=device)
    family = CAM(loaded.model).adapter
    tried = list(layers) if layers is not None else _neighbours(loaded.model, family)
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
    """The family's layers, and where each name counts blocks the same part of the blocks before.

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
    """The family's own layout: blocks of one network lie alike."""
    own = family.layouts[family.layers.index(layer)] if layer in family.layers else family.layouts[0]
    return own if isinstance(own, Layout) else AnyLayout()
