"""The public laws hold for everything in the registries, and catch what breaks them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hf_cam
from hf_cam import heads, methods, metrics
from hf_cam.errors import MethodError, TargetError
from hf_cam.heads import Head, Request, Subject
from hf_cam.heads.registry import HEADS
from hf_cam.methods.registry import METHODS
from hf_cam.metrics.registry import METRICS
from hf_cam.registry import Registry
from hf_cam.targets import ClassLogit
from hf_cam.testing import LawError, check_head, check_method, check_metric, check_model_untouched
from hf_cam.testing.laws import pictures, transformer
from hf_cam.zoo import SCENE

COUNT = itertools.count()
ASKED = {"clip": Request(text=("a sneaker", "a bag"))}


@pytest.fixture
def scratch() -> Iterator[None]:
    """Whatever a test registers is gone behind it."""
    registries: list[Registry] = [METHODS, METRICS, HEADS]
    before = [dict(vars(registry)["_records"]) for registry in registries]
    yield
    for registry, records in zip(registries, before, strict=True):
        vars(registry)["_records"] = records


@pytest.mark.parametrize("method", [method for method in methods.list_methods() if method != "d-rise"])
def test_every_method_obeys_the_laws(method: str) -> None:
    defined = [type(model).__name__ for model in check_method(method)]
    assert ("ViTForImageClassification" in defined) == (method != "cam")  # which needs a pooling of all cells
    assert ("ResNetForImageClassification" in defined) != methods.get_method(method).needs_attention


@pytest.mark.parametrize("metric", metrics.list_metrics())
def test_every_metric_obeys_the_laws(metric: str) -> None:
    tried = check_metric(metric)
    assert tried == ([] if metric == "completeness-error" else ["right", "noise", "inverse"])


@pytest.mark.parametrize("model", ["vit", "convnext", "clip", "segformer", "detr", "maskformer"])
def test_every_head_of_the_demo_models_obeys_the_laws(model: str) -> None:
    found = check_head(f"demo:{model}", SCENE, request=ASKED.get(model))
    assert all(subject.label for subject in found)


@pytest.mark.usefixtures("scratch")
@pytest.mark.parametrize(
    ("broken", "law"),
    [
        pytest.param(lambda activations: activations.roll(next(COUNT), -1), "second call", id="another each time"),
        pytest.param(lambda activations: activations.flip(0), "a batch must give the same maps", id="by its neighbour"),
        pytest.param(
            lambda activations: activations / activations.norm(), "must give a finite map", id="no safe division"
        ),
        pytest.param(
            lambda gradients: gradients.abs().new_ones(gradients.shape), "share a map", id="ignores the class"
        ),
    ],
)
def test_a_broken_method_is_caught(broken: object, law: str) -> None:
    hf_cam.method("broken", name="Broken", paper="none", summary="Breaks a law.")(broken)
    with pytest.raises(LawError, match=law):
        check_method("broken")


@pytest.mark.usefixtures("scratch")
def test_a_method_that_no_model_defines_is_no_pass() -> None:
    def nowhere(activations: Tensor) -> Tensor:
        raise MethodError("defined for nothing")

    hf_cam.method("nowhere", name="Nowhere", paper="none", summary="Is never defined.")(nowhere)
    with pytest.raises(MethodError, match="defined for nothing"):
        check_method("nowhere")


@pytest.mark.usefixtures("scratch")
@pytest.mark.parametrize(
    ("broken", "law"),
    [
        pytest.param(lambda maps: maps.mean(), "one score per map", id="one for all"),
        pytest.param(lambda maps: maps.sum((1, 2)), "must lie in", id="out of range"),
        pytest.param(lambda maps: maps.mean((1, 2)) / len(maps), "other maps of the batch", id="by its neighbour"),
        pytest.param(lambda maps: maps.mean((1, 2)), "no worse than its inverse", id="upside down"),
    ],
)
def test_a_broken_metric_is_caught(broken: object, law: str) -> None:
    def documented(maps: Tensor) -> Tensor:
        """Breaks a law."""
        return broken(maps)

    hf_cam.metric("broken", "broken", paper="none")(documented)
    with pytest.raises(LawError, match=law):
        check_metric("broken")


class Loose(Head):
    """A head that breaks a law, a different one for each of its settings."""

    task = "loose"
    subject = Subject(ClassLogit(0), "thing")

    def check(self, request: Request) -> None:
        if request.target is not None:
            raise TargetError("nothing can be named")

    def subjects(self, output: object, request: Request, geometry: object) -> list[Subject]:
        return [self.subject] if self.subject else []


@pytest.mark.parametrize(
    ("subject", "law"),
    [
        pytest.param(None, "at least one subject", id="nothing"),
        pytest.param(Subject(ClassLogit(0), ""), "must have a name", id="no name"),
        pytest.param(Subject(ClassLogit(0), "x", float("nan")), "finite score", id="no score"),
        pytest.param(Subject(ClassLogit(0), "x", box=(0, 0, 10_000, 5)), "must lie in the image", id="box outside"),
        pytest.param(Subject(ClassLogit(0), "x", mask=np.ones((3, 4), bool)), "a mask must be", id="a mask of its own"),
        pytest.param(Subject(lambda output: output.logits, "x"), "must be a scalar", id="a vector"),
        pytest.param(Subject(lambda output: torch.zeros(()), "x"), "depend on the model's output", id="a constant"),
    ],
)
def test_a_broken_head_is_caught(subject: Subject | None, law: str) -> None:
    kind = type("Broken", (Loose,), {"subject": subject})
    with pytest.raises(LawError, match=law):
        check_head("demo:vit", head=kind)


def test_a_head_that_takes_any_target_is_caught() -> None:
    kind = type("Takes", (Loose,), {"check": lambda self, request: None})
    with pytest.raises(LawError, match="must refuse a meaningless target"):
        check_head("demo:vit", head=kind)


@pytest.mark.usefixtures("scratch")
def test_a_head_serves_the_models_that_it_was_registered_for() -> None:
    heads.register_head("loose", models=["ViTForImage*"], when=lambda traits: traits.image_size == (64, 96))(Loose)
    assert heads.head_kind(transformer()) is Loose
    other = hf_cam.load("demo:vit")
    assert heads.head_kind(other.model) is heads.ClassificationHead
    assert type(heads.head_of(other, "loose")) is Loose


@pytest.mark.parametrize(
    ("change", "what"),
    [
        pytest.param(lambda net: net[0].weight.data.add_(1), "the values of '0.weight'", id="values"),
        pytest.param(lambda net: net.train(), "the mode of ''", id="mode"),
        pytest.param(lambda net: net[1].register_forward_hook(lambda *_: None), "the hooks of '1'", id="hook"),
        pytest.param(lambda net: net(torch.ones(1, 2)).sum().backward(), "the gradient of '0.weight'", id="gradient"),
        pytest.param(lambda net: setattr(net[0], "forward", net[0].forward), "the attributes of '0'", id="forward"),
        pytest.param(lambda net: torch.rand(1), "the random state", id="random state"),
    ],
)
def test_what_a_call_leaves_behind_is_named(change: object, what: str) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
    with pytest.raises(LawError, match=what):
        check_model_untouched(net, lambda: change(net))


def test_an_explanation_leaves_nothing_behind() -> None:
    model = transformer().train()
    maps = check_model_untouched(model, lambda: hf_cam.GradCAM(model)(pictures(), 1))
    assert maps.shape == (2, 64, 96)
