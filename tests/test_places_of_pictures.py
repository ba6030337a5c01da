"""The picture goes to the parameter of the forward that takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_cam.cam import CAM
from hf_cam.errors import OptionError
from hf_cam.guided import GuidedBackprop
from hf_cam.models.traits import picture_place
from hf_cam.target_layers.infer import infer_adapter
from kinds import Plain, made
from pictures import SIZE, pictures
from unchanged import unchanged

AGE, SEX = torch.ones(2, 1), torch.zeros(2, 1)


class Second(Plain):
    def forward(self, age: Tensor, image: Tensor) -> Tensor:
        return self.scores(image) * age


class Middle(Plain):
    def forward(self, age: Tensor, image: Tensor, sex: Tensor) -> Tensor:
        return self.scores(image) * age + sex


class Keywords(Plain):
    def forward(self, *, age: Tensor, image: Tensor) -> Tensor:
        return self.scores(image) * age


class Optional(Plain):
    def forward(self, age: Tensor | None = None, img: Tensor | None = None) -> Tensor:
        return self.scores(img) * (1 if age is None else age)


class Video(Plain):
    main_input_name = "pixel_values_videos"

    def forward(self, age: Tensor | None = None, pixel_values_videos: Tensor | None = None) -> Tensor:
        return self.scores(pixel_values_videos) * (1 if age is None else age)


class Named(Plain):
    def forward(self, age: Tensor, pixel_values: Tensor, sex: Tensor | None = None) -> Tensor:
        return self.scores(pixel_values) * age + (0 if sex is None else sex)


class Anything(Plain):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.scores(args[0]) * kwargs.get("age", 1)


class OnlyKeywords(Plain):
    def forward(self, **kwargs: Any) -> Tensor:
        return self.scores(kwargs["pixel_values"]) * kwargs.get("age", 1)


class First(Plain):
    def forward(self, whatever: Tensor, age: Tensor | float = 1.0, mask: Tensor | None = None) -> Tensor:
        return self.scores(whatever) * age


KINDS: dict[type[Plain], dict[str, Tensor]] = {
    Second: {"age": AGE},
    Middle: {"age": AGE, "sex": SEX},
    Keywords: {"age": AGE},
    Optional: {},
    Video: {},
    Named: {"age": AGE},
    Anything: {"age": AGE},
    OnlyKeywords: {"age": AGE},
    First: {"age": AGE},
}


@pytest.mark.parametrize("method", ["hirescam", "scorecam", "ablationcam", "fullgrad", "eigencam"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_goes_where_it_belongs(kind: type[Plain], method: str) -> None:
    net, others = made(kind), KINDS[kind]
    expected = CAM(made(Plain), method)(pictures(), targets=[1, 2])
    with unchanged(net):
        found = CAM(net, method)(pictures(), targets=[1, 2], **others)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_found_there_too(kind: type[Plain]) -> None:
    found = GuidedBackprop(made(kind))(pictures(), targets=1, **KINDS[kind])
    assert found.shape == (2, 3, *SIZE)
    assert found.any()


@pytest.mark.parametrize(
    ("kind", "others", "left"),
    [
        (Second, {}, "age and image are left"),
        (Middle, {"age": AGE}, "image and sex are left"),
        (Keywords, {}, "age and image are left"),
        (Second, {"age": AGE, "image": AGE}, "none is left"),
    ],
)
def test_a_place_that_the_signature_leaves_open_is_asked_for(
    kind: type[Plain], others: dict[str, Tensor], left: str
) -> None:
    net = made(kind)
    with unchanged(net), pytest.raises(OptionError, match=f"{left} for the picture; name every input but the picture"):
        CAM(net)(pictures(), targets=1, **others)


class NoNames(Plain):
    def forward(self, one: Tensor | None = None, other: Tensor | None = None) -> Tensor:
        return self.scores(other if one is None else one)


def test_of_optional_parameters_the_one_that_says_so_is_the_pictures() -> None:
    assert picture_place(made(Optional), []) == "img"
    with pytest.raises(OptionError, match="one and other are left"):
        picture_place(made(NoNames), [])
    assert picture_place(made(NoNames), ["one"]) == "other"


def test_a_first_parameter_gets_the_picture_without_a_name() -> None:
    """Hooks in front of a model find it among the positional arguments."""
    net = made(First)
    seen: list[int] = []
    net.register_forward_pre_hook(lambda _, args: seen.append(len(args)))
    CAM(net, layers="b")(pictures(), targets=1)
    assert set(seen) == {1}


@pytest.mark.parametrize("kind", [Second, Middle, Named])
def test_the_probe_takes_the_same_inputs_by_name(kind: type[Plain]) -> None:
    picture = "pixel_values" if kind is Named else "image"
    inputs = {"age": AGE[:1], "sex": SEX[:1], picture: pictures(1)}
    if kind is Second:
        del inputs["sex"]
    assert infer_adapter(made(kind), inputs=inputs).layers == ("b.3",)


class Masked(Plain):
    main_input_name = "pixel_values_videos"

    def forward(self, pixel_values_videos: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.scores(pixel_values_videos)


@pytest.mark.parametrize(
    ("kind", "name", "others"),
    [(Plain, "image", {}), (Second, "image", {"age": AGE}), (Masked, "pixel_values_videos", {"mask": pictures()})],
)
def test_the_picture_may_come_under_the_forwards_own_name(kind: type[Plain], name: str, others: dict) -> None:
    net = made(kind)
    expected = CAM(net, layers="b")(pictures(), targets=1, **others)
    torch.testing.assert_close(CAM(net, layers="b")(targets=1, **{name: pictures()}, **others), expected)


def test_a_call_without_a_picture_names_what_came() -> None:
    cam = CAM(made(Plain), layers="b")
    with pytest.raises(OptionError, match=r"the picture is missing: pass it first .*got batch \(dict\)"):
        cam(batch={"image": pictures()})
    with pytest.raises(OptionError, match=r"got one \(Tensor\), other \(Tensor\)"):
        cam(one=pictures(), other=pictures())
    with pytest.raises(OptionError, match="got nothing"):
        cam()


def test_a_plain_sequence_takes_its_input_first() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()).eval()
    assert CAM(net)(pictures(), targets=1).shape == (2, *SIZE)
