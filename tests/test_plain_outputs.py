"""Plain modules whose output is already probabilities: established, scored as the model itself scores, explained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

import hf_cam
from hf_cam.errors import NoGradientError, OptionError, TargetError
from hf_cam.heads import head_of
from hf_cam.heads.classification import UNDECLARED
from hf_cam.heads.endings import ending_of
from hf_cam.heads.establish import reading_of
from hf_cam.metrics import confidence
from hf_cam.models.loading import LoadedModel
from hf_cam.readings import Reading, log_scores, probabilities_of
from hf_cam.targets import BinaryLogit, ClassLogit

PROCESSOR = transforms.Compose([transforms.Resize((64, 96)), transforms.ToTensor()])
BRIGHT, LAYER = (24, 40), "0.cut"


class Logits(nn.Module):
    """Logits of known sizes: class k grows with the brightness of the picture by `slopes[k]`."""

    def __init__(self, slopes: list[float], bias: list[float]) -> None:
        super().__init__()
        self.cut, self.act = nn.Conv2d(3, 1, 16, 16, bias=False), nn.ReLU()
        nn.init.constant_(self.cut.weight, 1 / 768)
        self.head = nn.Linear(1, len(slopes))
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor(slopes)[:, None])
            self.head.bias.copy_(torch.tensor(bias))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.act(self.cut(pixels)).mean((2, 3)))


class Then(nn.Module):
    """What a function makes of the logits, as networks do in their forward."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor) -> Any:
        return self.function(logits)


class OwnSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(found := values.sigmoid())
        return found

    @staticmethod
    def backward(ctx, gradient):
        [found] = ctx.saved_tensors
        return gradient * found * (1 - found)


def three(end: nn.Module) -> nn.Sequential:
    return nn.Sequential(Logits([1.0, 6.0, -2.0], [0.5, -0.5, 0.2]), end).eval()


def single(end: nn.Module, bias: float = -6.0) -> nn.Sequential:
    return nn.Sequential(Logits([4.0], [bias]), end).eval()


@pytest.fixture
def spot() -> Image.Image:
    """60 high, 130 wide; bright around a place at the lower right."""
    pixels = np.full((60, 130, 3), 20, np.uint8)
    pixels[30:50, 90:120] = 250
    return Image.fromarray(pixels)


def explained(model: nn.Module, image: Image.Image, **asked: Any) -> list[Any]:
    return hf_cam.explain(image, model, processor=PROCESSOR, layers=LAYER, **asked)


def own_scores(model: nn.Module, image: Image.Image) -> Tensor:
    with torch.no_grad():
        return model(PROCESSOR(image)[None])[0]


SHARED = {
    "a softmax module": nn.Softmax(1),
    "a softmax in the forward": Then(lambda logits: logits.softmax(-1)),
    "a softmax with a temperature": Then(lambda logits: (logits / 3).softmax(1)),
    "a softmax behind views": Then(lambda logits: logits.softmax(1)[:, :, None].transpose(1, 2).squeeze(1).clone()),
    "a softmax in an ensemble": Then(lambda logits: torch.stack([logits.softmax(1), (2 * logits).softmax(1)]).mean(0)),
    "a softmax by hand": Then(lambda logits: logits.exp() / logits.exp().sum(1, keepdim=True)),
    "a softmax clipped": Then(lambda logits: logits.softmax(1).clamp(1e-7, 1 - 1e-7)),
    "a softmax under no_grad": Then(torch.no_grad()(lambda logits: logits.softmax(1))),
    "a softmax in a record": Then(lambda logits: {"probs": logits.softmax(1), "loss": logits.mean()}),
}


@pytest.mark.parametrize("end", SHARED.values(), ids=SHARED)
def test_a_softmax_is_not_taken_twice(spot: Image.Image, end: nn.Module) -> None:
    model = three(end)
    scores = own_scores(model, spot) if not isinstance(model(torch.rand(1, 3, 64, 96)), dict) else None
    scores = model(PROCESSOR(spot)[None])["probs"][0] if scores is None else scores
    found = explained(model, spot, top_k=3, method="eigencam")
    assert [one.score for one in found] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-5)
    assert [int(one.label) for one in found] == scores.argsort(descending=True).tolist()


SEPARATE = {
    "sigmoids": nn.Sigmoid(),
    "sigmoids in the forward": Then(torch.sigmoid),
    "expit": Then(torch.special.expit),
    "sigmoids of one's own": Then(OwnSigmoid.apply),
    "hard sigmoids": nn.Hardsigmoid(),
    "sigmoids, head by head": Then(lambda logits: torch.cat([logits[:, i : i + 1].sigmoid() for i in range(3)], 1)),
    "sigmoids in an ensemble": Then(lambda logits: (logits.sigmoid() + (2 * logits).sigmoid()) / 2),
}


@pytest.mark.parametrize("end", SEPARATE.values(), ids=SEPARATE)
def test_many_sigmoids_are_scored_one_by_one(spot: Image.Image, end: nn.Module) -> None:
    model = three(end)
    scores = own_scores(model, spot)
    assert scores.sum() > 1.05
    found = explained(model, spot, target=[0, 1, 2], labels=["a", "b", "c"])
    assert [one.score for one in found] == pytest.approx(scores.tolist(), abs=1e-5)


LOGARITHMS = {
    "log_softmax": (nn.LogSoftmax(1), None),
    "log_softmax in the forward": (Then(lambda logits: logits.log_softmax(1)), None),
    "logsigmoid": (nn.LogSigmoid(), None),
    "logsigmoid in the forward": (Then(F.logsigmoid), None),
}


@pytest.mark.parametrize("end", [end for end, _ in LOGARITHMS.values()], ids=LOGARITHMS)
def test_log_probabilities_are_scored_by_their_exponential(spot: Image.Image, end: nn.Module) -> None:
    model = three(end)
    scores = own_scores(model, spot).exp()
    found = explained(model, spot, target=[0, 1, 2])
    assert [one.score for one in found] == pytest.approx(scores.tolist(), abs=1e-5)


BINARY = {
    "[B, 1]": nn.Sigmoid(),
    "[B]": Then(lambda logits: logits.sigmoid().squeeze(1)),
    "[B], squeezed with the batch": Then(lambda logits: logits.squeeze().sigmoid()),
    "[B, 1, 1, 1]": Then(lambda logits: logits[:, :, None, None].sigmoid()),
    "in a dict": Then(lambda logits: {"prob": logits.sigmoid()}),
}


@pytest.mark.parametrize("bias", [-6.0, 6.0])
@pytest.mark.parametrize("end", BINARY.values(), ids=BINARY)
def test_a_single_sigmoid_is_explained_with_its_sign(spot: Image.Image, end: nn.Module, bias: float) -> None:
    model = single(end, bias)
    output = model(PROCESSOR(spot)[None])
    said = (output["prob"] if isinstance(output, dict) else output).item()
    [found] = explained(model, spot, labels=["bright"], method="eigencam")
    assert found.label == ("bright" if bias > 0 else "not bright")
    assert found.score == pytest.approx(max(said, 1 - said), abs=1e-6)


def test_two_names_of_a_single_score_are_the_negative_and_the_positive_class(spot: Image.Image) -> None:
    model = single(nn.Sigmoid())
    said = float(own_scores(model, spot))
    [found] = explained(model, spot, labels=["dark", "bright"], method="eigencam")
    assert (found.label, found.score) == ("dark", pytest.approx(1 - said))
    both = explained(model, spot, labels=["dark", "bright"], target=["bright", 0], method="eigencam")
    assert [(one.label, one.score) for one in both] == [
        ("bright", pytest.approx(said)),
        ("dark", pytest.approx(1 - said)),
    ]


RESCALED = {
    "a softmax in percent": Then(lambda logits: 100 * logits.softmax(1)),
    "sigmoids in percent": Then(lambda logits: 100 * logits.sigmoid()),
    "sigmoids around zero": Then(lambda logits: 2 * logits.sigmoid() - 1),
}


@pytest.mark.parametrize("end", RESCALED.values(), ids=RESCALED)
def test_rescaled_probabilities_are_no_logits(spot: Image.Image, end: nn.Module) -> None:
    with pytest.raises(TargetError, match=r"come from a s\w+, but reach from .*return probabilities in \[0, 1\]"):
        explained(three(end), spot)
    scores = own_scores(three(end), spot)
    [found] = explained(three(end), spot, output="logits")
    assert found.score == pytest.approx(float(scores.softmax(0).max()), abs=1e-5)


VALUES = {
    "a line": (nn.Identity(), "regression"),
    "below zero": (Then(lambda logits: logits - 50), "regression"),
    "of a limited range": (Then(lambda logits: 4 * logits.sigmoid() + 1), "auto"),
    "the mean of classes": (
        Then(lambda logits: (torch.cat([logits, -logits], 1).softmax(1) * torch.tensor([20.0, 60.0])).sum(1)),
        "auto",
    ),
}


@pytest.mark.parametrize(("end", "output"), VALUES.values(), ids=VALUES)
def test_a_predicted_value_keeps_its_sign_and_is_the_score(spot: Image.Image, end: nn.Module, output: Any) -> None:
    model = single(end)
    [found] = explained(model, spot, labels=["age"], output=output, method="eigencam")
    assert (found.label, found.flags) == ("age", ())
    assert found.score == pytest.approx(float(own_scores(model, spot)), rel=1e-5)


def test_several_values_are_scored_as_they_are(spot: Image.Image) -> None:
    model = three(nn.Identity())
    found = explained(model, spot, labels=["x", "y", "z"], target=["z", "x"], output="regression", method="eigencam")
    assert [one.score for one in found] == pytest.approx(own_scores(model, spot)[[2, 0]].tolist())


def test_a_single_number_that_nothing_declares_is_flagged(spot: Image.Image) -> None:
    model = single(nn.Identity())
    assert explained(model, spot, method="eigencam")[0].flags == (UNDECLARED,)
    for known in ({"labels": ["dark", "bright"]}, {"output": "logits"}, {"output": "regression"}):
        assert explained(model, spot, method="eigencam", **known)[0].flags == ()
    assert explained(single(nn.Sigmoid()), spot, method="eigencam")[0].flags == ()


def test_two_columns_made_of_one_sigmoid_exclude_each_other(spot: Image.Image) -> None:
    def columns(logits: Tensor) -> Tensor:
        share = logits[:, 1:2].sigmoid()
        return torch.cat([1 - share, share], 1)

    model = three(Then(columns))
    [found] = explained(model, spot)
    assert found.score == pytest.approx(float(own_scores(model, spot).max()), abs=1e-5)


# What is differentiated ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_log_probability_is_differentiated_behind_a_softmax(spot: Image.Image, index: int) -> None:
    logits, sure = three(nn.Identity()), three(nn.Softmax(1))
    pixels = PROCESSOR(spot)[None]
    expected = hf_cam.GradCAM(logits, LAYER)(pixels, targets=lambda output: output.log_softmax(-1)[index])
    torch.testing.assert_close(hf_cam.GradCAM(sure, LAYER)(pixels, targets=index), expected, atol=1e-4, rtol=0)
    assert expected.any() == (index == 1)


@pytest.mark.parametrize("bias", [-12.0, -3.0, 3.0, 12.0])
def test_the_log_odds_are_differentiated_behind_a_sigmoid(bias: float) -> None:
    pixels = torch.rand(1, 3, 64, 96)
    for positive in (True, False):
        target = BinaryLogit(positive)
        expected = hf_cam.HiResCAM(single(nn.Identity(), bias), LAYER).saliency(pixels, lambda _: [[target]])  # noqa: B023
        behind = BinaryLogit(positive, Reading(scale="probabilities", exclusive=False))
        found = hf_cam.HiResCAM(single(nn.Sigmoid(), bias), LAYER).saliency(pixels, lambda _: [[behind]])  # noqa: B023
        torch.testing.assert_close(found.raw[0], expected.raw[0], rtol=0.02, atol=0)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("scale", ["logits", "probabilities", "log-probabilities"])
def test_scores_and_logits_are_two_forms_of_the_same(scale: str, exclusive: bool) -> None:
    logits = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = logits.softmax(0) if exclusive else logits.sigmoid()
    values = {"logits": logits, "probabilities": scores, "log-probabilities": scores.log()}[scale]
    torch.testing.assert_close(probabilities_of(values, scale, exclusive=exclusive).double(), scores, rtol=1e-5, atol=0)
    expected = logits if not exclusive or scale == "logits" else logits.log_softmax(0)
    torch.testing.assert_close(log_scores(values, scale, exclusive=exclusive), expected)


@pytest.mark.parametrize("values", [[0.0, 1.0], [1.0, 0.0], [1e-30, 1.0]], ids=str)
@pytest.mark.parametrize("exclusive", [True, False])
def test_saturated_probabilities_have_finite_logits(values: list[float], exclusive: bool) -> None:
    assert log_scores(torch.tensor(values), "probabilities", exclusive=exclusive).isfinite().all()


def test_metrics_measure_the_models_own_probability() -> None:
    scores = torch.tensor([0.1, 0.7, 0.2])
    assert confidence(ClassLogit(1, Reading(scale="probabilities")))(scores) == pytest.approx(0.7)
    negative = BinaryLogit(positive=False, reading=Reading(scale="probabilities"))
    assert float(confidence(negative)(torch.tensor([0.2]))) == pytest.approx(0.8)


SATURATED = {
    "a sigmoid at 1": (single(nn.Sigmoid(), bias=30.0), torch.float32),
    "a sigmoid at 0": (single(nn.Sigmoid(), bias=-200.0), torch.float32),
    "a softmax at 1": (three(Then(lambda logits: (500 * logits).softmax(1))), torch.float32),
}


@pytest.mark.parametrize(("model", "dtype"), SATURATED.values(), ids=SATURATED)
def test_a_probability_without_a_gradient_is_refused_with_the_reason(
    spot: Image.Image, model: nn.Module, dtype: torch.dtype
) -> None:
    with pytest.raises(NoGradientError, match=r"a probability that is exactly 0 or 1.* run it in float64"):
        explained(model, spot)
    with pytest.raises(NoGradientError, match=r"a probability that is exactly 0 or 1"):
        hf_cam.GradCAM(model, LAYER)(PROCESSOR(spot)[None])
    [found] = explained(model, spot, method="eigencam")
    assert found.score == 1
    assert "probability saturated" in found.flags


def test_float64_lets_a_sure_sigmoid_be_explained(spot: Image.Image) -> None:
    [found] = explained(single(nn.Sigmoid(), bias=20.0).double(), spot, labels=["bright"])
    assert (found.label, found.flags) == ("bright", ())
    assert found.heatmap[40, 105] > 0.7 > 0.1 > found.heatmap[10, 20]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("end", [nn.Identity(), nn.Softmax(1), nn.Sigmoid()], ids=["logits", "softmax", "sigmoid"])
def test_concepts_are_named_with_the_models_own_scores(end: nn.Module) -> None:
    model = three(end)
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    found = hf_cam.DeepFeatureFactorization(model, layers="0.act")(pixels, components=1, top_k=3)
    with torch.no_grad():
        cells = found.concepts[0] * found.strengths.max()
        scores = end(model[0].head(cells[None]))[0]
        scores = scores.softmax(0) if isinstance(end, nn.Identity) else scores
    [named] = found.classes
    assert dict(named) == pytest.approx(dict(enumerate(scores.tolist())), abs=1e-4)


# What is not taken for probabilities ---------------------------------------------------------------------------------

LOGITS = {
    "logits that happen to lie in [0, 1]": three(Then(lambda logits: 0.5 + logits / 100)),
    "logits behind a ReLU": three(Then(lambda logits: (logits / 100).relu())),
    "logits clipped to [0, 1]": three(Then(lambda logits: logits.clamp(0, 1))),
    "a gate times logits": three(Then(lambda logits: logits.sigmoid() * (logits / 50).abs())),
    "logits that sum to 1 for one picture": three(Then(lambda logits: logits - logits.detach().sum() / 3 + 1 / 3)),
}


@pytest.mark.parametrize("model", LOGITS.values(), ids=LOGITS)
def test_what_cannot_be_established_to_be_probabilities_is_logits(model: nn.Module) -> None:
    pixels = torch.full((1, 3, 64, 96), 0.01)
    reading = reading_of(LoadedModel(model, None, {}, given={"pixel_values": pixels}), model(pixels)[0])
    assert reading == Reading()


def test_logits_outside_of_the_unit_range_cost_no_run() -> None:
    model, runs = three(nn.Identity()), []
    model.register_forward_hook(lambda *_: runs.append(1))
    cam = hf_cam.GradCAM(model, LAYER)
    cam(torch.rand(1, 3, 64, 96), targets=lambda output: output[1])  # also finds out how the named layer is laid out
    runs.clear()
    cam(torch.rand(1, 3, 64, 96), targets=lambda output: output[1])
    assert len(runs) == 1
    runs.clear()
    reading_of(LoadedModel(model, None, {}, given={}), torch.tensor([-1.0, 2.0]))
    assert not runs


def test_one_run_per_loaded_model_establishes_what_its_output_means(spot: Image.Image) -> None:
    model, runs = three(nn.Softmax(1)), []
    model.register_forward_hook(lambda *_: runs.append(1))
    loaded = hf_cam.load(model, processor=PROCESSOR)
    for _ in range(3):
        head = head_of(loaded)
        reading_of(loaded, torch.tensor([0.2, 0.7, 0.1]))
    assert head.task == "image-classification"
    assert len(runs) == 1


# Declared ------------------------------------------------------------------------------------------------------------


def test_a_declaration_goes_before_what_would_be_established(spot: Image.Image) -> None:
    model = three(nn.Softmax(1))
    own = own_scores(model, spot)
    [found] = explained(model, spot, output="logits")
    assert found.score == pytest.approx(float(own.softmax(0).max()), abs=1e-5)


def test_logits_are_declared_to_be_of_labels_that_do_not_exclude_each_other(spot: Image.Image) -> None:
    model = three(nn.Identity())
    found = explained(model, spot, output="multi-label", target=[0, 1, 2])
    assert [one.score for one in found] == pytest.approx(own_scores(model, spot).sigmoid().tolist(), abs=1e-5)


def test_probabilities_are_declared_where_nothing_shows_them(spot: Image.Image) -> None:
    model = single(Then(lambda logits: 1 / (1 + (-logits).exp())), bias=-3.0)
    said = float(own_scores(model, spot))
    [found] = explained(model, spot, output="probabilities")
    assert (found.label, found.score) == ("not 0", pytest.approx(1 - said, abs=1e-5))


def test_scores_that_are_no_probabilities_contradict_a_declaration(spot: Image.Image) -> None:
    with pytest.raises(TargetError, match=r"'probabilities' is declared, but the scores reach from .* 'multi-label'"):
        explained(three(Then(lambda logits: 9 * logits)), spot, output="probabilities")


@pytest.mark.parametrize("output", ["probability", None, 3])
def test_an_unknown_kind_of_output_is_refused(spot: Image.Image, output: Any) -> None:
    with pytest.raises(OptionError, match="output must be one of 'auto', 'logits', 'probabilities', 'multi-label'"):
        explained(three(nn.Identity()), spot, output=output)


# What a network ends in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("test_vit", "linear"), ("test_convnext", "linear"), ("test_efficientnet", "linear")]
)
def test_the_end_of_timms_networks_is_read_from_the_graph(name: str, kind: str) -> None:
    net = timm.create_model(name, num_classes=5).eval()
    pixels = torch.rand(1, 3, *net.pretrained_cfg["input_size"][1:])
    assert ending_of(net(pixels)) == kind
    assert ending_of(net(pixels).softmax(1)) == "softmax"
    assert ending_of(F.normalize(net(pixels))) == "unit-length"
    net.reset_classifier(0)
    assert ending_of(net(pixels)) == "normalized"
