"""Outputs of every structure: cut by image, and the part that holds the scores found or refused."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import ModelOutput

import hf_cam
from hf_cam.errors import TargetError, UnknownArchitecture
from hf_cam.outputs import (
    class_logits,
    detections_of,
    embedding_of,
    expression,
    map_tensors,
    part_at,
    sample_of,
    scores_path,
    tensors_of,
)
from hf_cam.target_layers.infer import infer_adapter

BATCH, CLASSES = 3, 4
SCORES = torch.arange(BATCH * CLASSES, dtype=torch.float32).reshape(BATCH, CLASSES)
FEATURES = torch.arange(BATCH * 6, dtype=torch.float32).reshape(BATCH, 6)

Pair = namedtuple("Pair", "logits aux")


class Typed(NamedTuple):
    features: Tensor
    scores: Tensor


@dataclass
class Record:
    hidden: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Frozen:
    scores: Tensor
    count: int = 3


@dataclass(slots=True)
class Slotted:
    hidden: Tensor
    scores: Tensor


class Attributes(dict):
    """Keys that are attributes too, as many projects have them."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.__dict__ = self


@dataclass
class Custom(ModelOutput):
    logits: Tensor | None = None
    states: tuple[Tensor, ...] | None = None


STRUCTURES = {
    "a tensor": (SCORES, ()),
    "a dict": ({"scores": SCORES, "loss": torch.tensor(1.0)}, ("scores",)),
    "an ordered dict": (OrderedDict(out=SCORES, aux=SCORES + 1), ("out",)),
    "a nested dict": ({"heads": {"main": {"logits": SCORES}}}, ("heads", "main", "logits")),
    "a dict with attributes": (Attributes(pred=SCORES), ("pred",)),
    "a named tuple": (Pair(SCORES, SCORES + 1), ("logits",)),
    "a typed named tuple": (Typed(FEATURES, SCORES), ("scores",)),
    "GoogLeNet's in training": (GoogLeNetOutputs(SCORES, SCORES + 1, None), ("logits",)),
    "Inception's in training": (InceptionOutputs(SCORES, SCORES + 1), ("logits",)),
    "a dataclass": (Record(FEATURES, SCORES), ("scores",)),
    "a frozen dataclass": (Frozen(SCORES), ("scores",)),
    "a dataclass with slots": (Slotted(FEATURES, SCORES), ("scores",)),
    "a namespace": (SimpleNamespace(y_pred=SCORES, name="net"), ("y_pred",)),
    "transformers' record": (ImageClassifierOutput(logits=SCORES, hidden_states=(FEATURES,)), ("logits",)),
    "a record of one's own": (Custom(logits=SCORES, states=(FEATURES, FEATURES)), ("logits",)),
    "a list of one": ([SCORES], (0,)),
    "a tuple in a tuple": (((SCORES,), torch.tensor(0.5)), (0, 0)),
    "a dict in a tuple": ((torch.tensor(0.5), {"logits": SCORES}), (1, "logits")),
    "a list of dicts": ([{"logits": SCORES}], (0, "logits")),
}


@pytest.mark.parametrize(("output", "path"), STRUCTURES.values(), ids=STRUCTURES)
def test_every_image_gets_its_own_part_of_an_output(output: Any, path: tuple) -> None:
    for index in range(BATCH):
        own = sample_of(output, index, BATCH)
        assert type(own) is type(output)
        assert torch.equal(part_at(own, path), SCORES[index])
        assert scores_path(own) == path


@pytest.mark.parametrize(("output", "path"), STRUCTURES.values(), ids=STRUCTURES)
def test_a_slice_of_images_keeps_the_structure(output: Any, path: tuple) -> None:
    own = sample_of(output, slice(0, 2), BATCH)
    assert [place for place, _ in tensors_of(own)] == [place for place, _ in tensors_of(output)]
    assert torch.equal(part_at(own, path), SCORES[:2])


@pytest.mark.parametrize(("output", "path"), STRUCTURES.values(), ids=STRUCTURES)
def test_the_code_that_a_message_shows_reads_that_part(output: Any, path: tuple) -> None:
    found = eval(expression(output, path), {"output": output})
    assert torch.equal(found, SCORES)


def test_attributes_of_a_cut_dict_are_those_of_the_image() -> None:
    own = sample_of(Attributes(pred=SCORES), 2, BATCH)
    assert torch.equal(own.pred, SCORES[2])


def test_what_is_shared_by_the_batch_is_left_whole() -> None:
    own = sample_of({"logits": SCORES, "prototypes": torch.ones(7, 2), "scale": torch.tensor(2.0)}, 1, BATCH)
    assert own["prototypes"].shape == (7, 2)
    assert own["scale"] == 2


def boxes(count: int, at: float) -> dict[str, Tensor]:
    return {"boxes": torch.full((count, 4), at), "labels": torch.ones(count).long(), "scores": torch.full((count,), at)}


@pytest.mark.parametrize("counts", [(0, 5), (2, 2), (1, 3)], ids=str)
@pytest.mark.parametrize(
    "wrapped", [lambda found: found, lambda found: ({}, found), lambda found: {"detections": found}]
)
def test_a_list_with_an_entry_per_image_is_indexed_also_inside(counts: tuple[int, int], wrapped: Any) -> None:
    output = wrapped([boxes(count, float(at)) for at, count in enumerate(counts)])
    for index, count in enumerate(counts):
        found = detections_of(sample_of(output, index, 2))
        assert found is not None
        assert len(found["scores"]) == count
        assert (found["boxes"] == index).all()


def test_a_list_of_levels_is_cut_level_by_level() -> None:
    levels = [torch.rand(2, 8, 4, 6), torch.rand(2, 8, 2, 3)]
    own = sample_of(levels, 1, 2)
    assert [level.shape for level in own] == [(8, 4, 6), (8, 2, 3)]


def test_a_list_of_tensors_of_any_length_is_one_per_image() -> None:
    assert sample_of([torch.zeros(5, 6), torch.ones(3, 6)], 1, 2).shape == (3, 6)


def test_a_detectors_missing_labels_are_one_class() -> None:
    found = detections_of({"boxes": torch.zeros(2, 4), "scores": torch.ones(2)})
    assert found is not None
    assert found["labels"].tolist() == [0, 0]


def test_every_tensor_is_mapped_in_the_same_structure() -> None:
    found = map_tensors(Record(FEATURES, SCORES), torch.neg)
    assert isinstance(found, Record)
    assert torch.equal(found.scores, -SCORES)


# Which part holds the scores -----------------------------------------------------------------------------------------

ESTABLISHED = {
    "by the number of classes": ((FEATURES[0], SCORES[0]), CLASSES, (1,)),
    "by the number of classes, first": ((SCORES[0], FEATURES[0]), CLASSES, (0,)),
    "logits before their softmax": ((SCORES[0], SCORES[0].softmax(0)), None, (0,)),
    "logits behind their softmax": ((SCORES[0].softmax(0), SCORES[0]), None, (1,)),
    "logits beside their sigmoid": ((SCORES[0].sigmoid(), SCORES[0]), None, (1,)),
    "the only row beside maps": ((torch.rand(8, 4, 6), SCORES[0]), None, (1,)),
    "the only row beside a loss": ((torch.tensor(0.3), SCORES[0]), None, (1,)),
    "the only floating row": ((torch.arange(CLASSES), SCORES[0]), None, (1,)),
    "not what its name says is none": ({"embedding": FEATURES[0], "cls": SCORES[0]}, None, ("cls",)),
    "the outermost of two": ({"out": SCORES[0], "stage": {"out": FEATURES[0]}}, None, ("out",)),
}


@pytest.mark.parametrize(("output", "classes", "path"), ESTABLISHED.values(), ids=ESTABLISHED)
def test_the_part_with_the_scores_is_established(output: Any, classes: int | None, path: tuple) -> None:
    assert scores_path(output, classes=classes) == path


REFUSED = {
    "two rows": (
        (FEATURES[0], SCORES[0]),
        r"output\[0\] \[6\], output\[1\] \[4\].*target=lambda output: output\[1\]\[0\]",
    ),
    "two rows of one length": ((SCORES[0], -SCORES[0]), r"output\[0\] \[4\], output\[1\] \[4\]"),
    "two of one name": ({"a": {"logits": SCORES[0]}, "b": {"logits": SCORES[0] + 1}}, r"output\['a'\]\['logits'\]"),
    "no row": ({"image_embeds": FEATURES[0]}, "no logits .*dict with image_embeds"),
    "no floating tensor": ((torch.arange(4), "text"), "no logits"),
    "a number per class": ({"cat": SCORES[0, 0], "dog": SCORES[0, 1]}, r"lambda output: output\['dog'\]$"),
    "many": ([torch.rand(5) for _ in range(40)], "and 36 more"),
}


@pytest.mark.parametrize(("output", "words"), REFUSED.values(), ids=REFUSED)
def test_scores_that_are_not_established_are_refused_with_the_candidates(output: Any, words: str) -> None:
    with pytest.raises(TargetError, match=words) as refusal:
        scores_path(output)
    assert len(str(refusal.value)) <= 400


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 5), (3, 5, 1, 1), (3, 1, 5)], ids=str)
def test_class_logits_of_a_batch_are_rows(shape: tuple[int, ...]) -> None:
    assert class_logits(torch.zeros(shape)).shape == (3, max(1, torch.Size(shape).numel() // 3))


EMBEDDINGS = {
    "a row": torch.arange(4.0),
    "a pooled map": torch.arange(4.0)[:, None, None],
    "a map": torch.arange(4.0)[:, None, None].expand(4, 3, 2),
    "tokens": torch.arange(4.0).expand(5, 4),
    "a record": {"pooler_output": torch.arange(4.0), "last_hidden_state": torch.rand(5, 4)},
    "a record of one's own": {"features": torch.arange(4.0), "loss": torch.tensor(1.0)},
    "stages": [torch.rand(2, 6, 4), torch.arange(4.0)[:, None, None].expand(4, 3, 2)],
}


@pytest.mark.parametrize("output", EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_an_embedding_is_one_row(output: Any) -> None:
    torch.testing.assert_close(embedding_of(output), torch.arange(4.0))


# Through the door of tensors -----------------------------------------------------------------------------------------


class Shows(nn.Module):
    """A classifier of brightness that returns whatever a function makes of its features and its logits."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form, self.cut = form, nn.Conv2d(3, 5, 16, 16)
        self.head = nn.Linear(5, 2)
        with torch.no_grad():
            self.cut.weight.fill_(1 / 768)
            self.cut.bias.zero_()
            self.head.weight.copy_(torch.tensor([[-0.2], [0.2]]).expand(2, 5))

    def forward(self, pixels: Tensor) -> Any:
        features = self.cut(pixels).relu().mean((2, 3))
        return self.form(features, self.head(features))


FORMS = {
    "a named tuple": lambda features, logits: Pair(logits, -logits),
    "features before logits": lambda features, logits: {"features": features, "scores": logits},
    "a dataclass": lambda features, logits: Record(features, logits),
    "probabilities and logits": lambda features, logits: (logits.softmax(1), logits),
    "maps and logits": lambda features, logits: (features[:, :, None, None].expand(-1, -1, 3, 4), logits),
}


SEARCHED = FORMS | {
    "a dataclass with slots": lambda features, logits: Slotted(features, logits),
    "a namespace": lambda features, logits: SimpleNamespace(logits=logits, features=features),
    "a record in a record": lambda features, logits: ({"heads": Record(features, logits)},),
    "the loss first": lambda features, logits: (features.mean(), logits),
}


@pytest.mark.parametrize("form", SEARCHED.values(), ids=SEARCHED)
def test_the_layer_is_found_whatever_the_model_returns(form: Any) -> None:
    assert infer_adapter(Shows(form), inputs={"pixel_values": torch.rand(2, 3, 64, 96)}).layers == ("cut",)


UNREADABLE = {
    "class numbers": (lambda features, logits: logits.argmax(1), r"torch\.int64 \[1\]"),
    "an array": (lambda features, logits: logits.detach().numpy(), "ndarray"),
    "a detached record": (lambda features, logits: Record(features.detach(), logits.detach()), "Record with hidden"),
    "complex numbers": (lambda features, logits: torch.complex(logits, logits), r"torch\.complex64 \[1, 2\]"),
    "numbers": (lambda features, logits: logits[0].tolist(), "list with 0, 1"),
}


@pytest.mark.parametrize(("form", "kind"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_no_gradient_passes_is_refused_by_what_it_is(form: Any, kind: str) -> None:
    with pytest.raises(UnknownArchitecture, match=rf"what Shows returns \({kind}.*without argmax, detach"):
        hf_cam.GradCAM(Shows(form))(torch.rand(1, 3, 64, 96), targets=lambda output: output[0])


def test_the_deepest_level_of_several_is_looked_at_and_embeds() -> None:
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 6, 2, 2)

        def forward(self, pixels: Tensor) -> dict[str, Tensor]:
            fine = self.one(pixels).relu()
            return {"layer1": fine, "layer2": self.two(fine).relu()}

    pixels = torch.rand(1, 3, 64, 96)
    assert infer_adapter(Levels(), inputs={"pixel_values": pixels}).layers == ("two",)
    output = {name: level[0] for name, level in Levels()(pixels).items()}
    torch.testing.assert_close(embedding_of(output), output["layer2"].mean((1, 2)))
    with pytest.raises(TargetError, match=r"no embedding that can be recognized \(dict with a, b\); pass target="):
        embedding_of({"a": torch.ones(3), "b": torch.ones(4)})


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_batch_is_explained_as_its_images_alone_whatever_the_model_returns(form: Any) -> None:
    pixels = torch.zeros(2, 3, 64, 96)
    pixels[0, :, 16:32, 16:32], pixels[1, :, 32:64, 64:96] = 1, 1
    expected = hf_cam.GradCAM(Shows(lambda features, logits: logits), "cut")(pixels, targets=1)
    assert expected.amax((1, 2)).tolist() == [1, 1]
    torch.testing.assert_close(hf_cam.GradCAM(Shows(form), "cut")(pixels, targets=1), expected)
    torch.testing.assert_close(hf_cam.GradCAM(Shows(form), "cut")(pixels[1:], targets=1), expected[1:])
