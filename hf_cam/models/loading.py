"""A model and its preprocessing from a Hub id, a folder, `demo:NAME` or a loaded model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hf_cam.doors import PASSING, door, unreadable
from hf_cam.errors import ImageError, ModelError, OptionError, TargetError, brief, reason
from hf_cam.images.geometry import Geometry
from hf_cam.images.patches import CutPictures, are_cut
from hf_cam.images.placing import Geometries
from hf_cam.images.reading import load_image
from hf_cam.images.videos import Video, is_video, load_video
from hf_cam.layouts import Size
from hf_cam.models.checkpoints import (
    load_pretrained,
    load_processor,
    load_tokenizer,
    load_whole_processor,
    resolve_name,
)
from hf_cam.models.libraries import adopted, library_processor, library_tokenizer
from hf_cam.models.refused import check_not_refused
from hf_cam.models.traits import ModelTraits, check_takes_pictures, traits_of
from hf_cam.threads import cached_property

Picture = Image.Image | Video
"""One input of a model: an image, or a video."""

Output = Literal["auto", "logits", "probabilities", "multi-label", "regression", "embedding"]
"""What the model returns: "auto" establishes it."""

Labels = Sequence[str] | Mapping[int, str]
"""Class names: in the order of the model's outputs, or by index."""


CHANNELS = (1, 3, 4)
"""Numbers of channels by which a picture's axis of channels is recognized."""

FRAMES = 8
"""Frames of a video that a vision-language model is shown."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with its preprocessing.

    Args:
        model: The model; in evaluation mode if hf-cam loaded it.
        processor: A transformers image processor, or any callable from a PIL image to a tensor `[C, H, W]`.
        id2label: The class names, by index.
        tokenizer: For models that take text; by default the processor's, or the one found under the model's name.
        output: What the model returns, if the caller declares it.
        example: An image to try the model on, where what it returns must be established; by default noise.
        given: The model's own inputs of one image, to try it on if there is no processor.
        known: What was established about the model, by name.
        crop: The box `(left, top, right, bottom)` of the image on which a model of poses looks at one person; None for
            the whole image.
    """

    model: nn.Module
    processor: Any
    id2label: dict[int, str]
    tokenizer: Any = None
    output: Output = "auto"
    example: Picture | None = field(default=None, repr=False, compare=False)
    given: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    crop: tuple[float, float, float, float] | None = None
    _geometries: Geometries = field(default_factory=Geometries, repr=False, compare=False)

    @cached_property
    def traits(self) -> ModelTraits:
        """What the model reports about itself."""
        return traits_of(self.model)

    @property
    def module(self) -> nn.Module:
        """The model without wrappers such as `torch.compile` or `DataParallel`."""
        return self.traits.module

    @property
    def takes_videos(self) -> bool:
        """Whether the model takes videos."""
        return self.traits.takes_videos

    def opened(self, source: Any) -> Picture:
        """The image at a source, or as many frames of the video there as a video model takes.

        For a module that is not a transformers model, a source that can only be a video gives the whole video.

        Raises:
            ImageError: the source cannot be opened, or it is a video and the model takes images, or vice versa.
        """
        if self.takes_videos:
            return load_video(source, self.traits.frames)
        if not is_video(source):
            return load_image(source)
        if self.traits.answers_in_words:
            video = load_video(source)
            return video.sampled(min(len(video.frames), FRAMES))
        if self.traits.config is not None:
            raise ImageError("this model takes images, but got a video or an array of four axes; pass a list of images")
        return load_video(source)

    def inputs(self, images: Sequence[Picture]) -> dict[str, Tensor]:
        """The model's keyword inputs for a batch; `pixel_values` is `[B, C, H, W]`, or `[B, T, C, H, W]` for videos.

        For a module that is not a transformers model, videos become volumes, `[B, C, T, H, W]`.

        Raises:
            ImageError: the model takes videos, and an image was given.
            ModelError: the processor fails, or returns no pixels, no floats, or images of different sizes.
        """
        if self.takes_videos and not all(isinstance(image, Video) for image in images):
            raise ImageError("this model takes videos, not single images")
        if hasattr(self.processor, "model_input_names"):
            encoded = self._processed(images)
        else:
            encoded = {"pixel_values": _together([self._called(image) for image in images])}
        _check_pixels(encoded)
        return {
            name: value
            for name, value in encoded.items()
            if isinstance(value, Tensor) and (name == "pixel_values" or not self.traits.swallows(name))
        }

    def example_inputs(self) -> dict[str, Any]:
        """The model's keyword inputs for one image to try it on."""
        if self.given:
            return dict(self.given)
        noise = np.random.default_rng(0).integers(0, 256, (*self.traits.usual_size, 3), np.uint8)
        return dict(self.inputs([self.example or Image.fromarray(noise)]))

    def _processed(self, images: Sequence[Picture]) -> dict[str, Any]:
        videos = [list(image.frames) for image in images if isinstance(image, Video)]
        kind = "video_processor" if videos else "image_processor"
        process = getattr(self.processor, kind, self.processor)
        if videos and hasattr(process, "do_sample_frames"):
            process = partial(process, do_sample_frames=False)
        if (boxes := self._boxes_of_persons(images)) is not None:
            process = partial(process, boxes=boxes)
        try:
            encoded = (
                process(videos, return_tensors="pt") if videos else process(images=list(images), return_tensors="pt")
            )
            encoded = dict(encoded)
        except PASSING:
            raise
        except Exception as error:  # with a damaged config it may raise anything
            raise ModelError(f"the image processor cannot prepare these images: {reason(error)}") from error
        if "pixel_values_videos" in encoded:
            encoded["pixel_values"] = encoded.pop("pixel_values_videos")
        return encoded

    @property
    def crops(self) -> bool:
        """Whether the processor cuts persons out of an image."""
        return "boxes" in _parameters_of(getattr(self.processor, "image_processor", self.processor))

    def cropped(self, box: tuple[float, float, float, float]) -> LoadedModel:
        """The same model looking at one person.

        Raises:
            OptionError: the processor cuts no persons out.
        """
        if not self.crops:
            raise OptionError(
                "the processor of this model takes no boxes of persons; omit input_boxes= and pass an image of one"
            )
        return replace(self, crop=box, known={}, _geometries=Geometries())

    def _boxes_of_persons(self, images: Sequence[Picture]) -> list[list[list[float]]] | None:
        """The box of the one person per image, `[left, top, width, height]`; None where the processor needs none."""
        parameter = _parameters_of(getattr(self.processor, "image_processor", self.processor)).get("boxes")
        if parameter is None or (self.crop is None and parameter.default is None):
            return None
        crops = [self.crop or (0.0, 0.0, float(image.width), float(image.height)) for image in images]
        return [[[left, top, right - left, bottom - top]] for left, top, right, bottom in crops]

    def _called(self, image: Picture) -> Tensor:
        """The output of a plain function as processor, for an image or for each frame of a video."""
        if not isinstance(image, Video):
            return self._made_of(image)
        frames = _together([self._made_of(frame) for frame in image.frames])
        return frames if self.takes_videos else frames.transpose(0, 1)

    def _made_of(self, image: Image.Image) -> Tensor:
        try:
            made = self.processor(image)
        except PASSING:
            raise
        except Exception as error:
            raise ModelError(
                f"the processor failed on an image ({reason(error)}); a processor of your own gets a PIL image and "
                "returns a tensor [C, H, W]"
            ) from error
        return _picture(made)

    @cached_property
    def text_processor(self) -> Any:
        """The tokenizer.

        Raises:
            ModelError: there is none.
        """
        known = self.tokenizer or getattr(self.processor, "tokenizer", None)
        return known or load_tokenizer(self.traits.name_or_path)

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The tokenized texts, `[P, L]` each, under the names of the forward's parameters.

        Raises:
            TargetError: a text has more tokens than the model can read.
        """
        longest = self.traits.longest_text
        fixed = self.traits.declares("padded_text") and longest is not None
        padding = {"padding": "max_length", "max_length": longest} if fixed else {"padding": True}
        encoded = dict(self.text_processor(list(texts), return_tensors="pt", **padding))
        count = encoded["input_ids"].shape[1]
        if longest is not None and count > longest:
            worst = max(texts, key=len)
            raise TargetError(f"the text {brief(worst)} has {count} tokens, but the model reads at most {longest}")
        taken = self.traits.inputs
        return {name: value for name, value in encoded.items() if any(known.endswith(name) for known in taken)}

    def geometry(self, image_size: Size, model_size: Size | None = None) -> Geometry:
        """How the processor puts images of this size (height, width) into the model's input.

        Args:
            image_size: Of the image.
            model_size: Of what `inputs` made of it, where that is known; it spares the processor a picture.

        Raises:
            ModelError: it is random, places images by their content, or does more than `Geometry` can undo.
        """
        return self._geometries.of(self.pixel_values, image_size, model_size)

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Only the pictures, `[B, C, H, W]`: single frames for a video model, reassembled if cut into patches."""
        if self.takes_videos:
            return self.inputs([Video([image]) for image in images])["pixel_values"][:, 0]
        inputs = self.inputs(images)
        return CutPictures.of(inputs).pictures() if are_cut(inputs) else inputs["pixel_values"]


def _parameters_of(processor: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of an image processor's `preprocess`; none of a plain function."""
    preprocess = getattr(processor, "preprocess", None)
    return inspect.signature(preprocess).parameters if callable(preprocess) else {}


def input_size(inputs: Mapping[str, Tensor]) -> Size | None:
    """Height and width in pixels of the pictures in a batch of `LoadedModel.inputs`; None if they have none."""
    pixels = inputs["pixel_values"]
    if are_cut(inputs):
        return CutPictures.of(inputs).size
    return (pixels.shape[-2], pixels.shape[-1]) if pixels.ndim >= 4 else None


def _picture(tensor: Any) -> Tensor:
    """The output of a caller's processor for one picture, checked, `[C, H, W]`."""
    expected = "a processor must return a tensor [C, H, W] for an image, but this one returned"
    if not isinstance(tensor, Tensor):
        way = "torchvision's ToTensor makes one of a PIL image"
        if isinstance(tensor, Mapping) and tensor:
            way = f"return the tensor alone, such as its [{brief(next(iter(tensor)))}]"
        raise OptionError(f"{expected} {type(tensor).__name__}; {way}")
    shape = tuple(tensor.shape)
    if tensor.ndim not in (3, 4):
        raise OptionError(f"{expected} {shape}")
    picture = tensor[0] if tensor.ndim == 4 and len(tensor) == 1 else tensor
    if picture.ndim == 3 and picture.shape[0] not in CHANNELS and picture.shape[2] in CHANNELS:
        raise OptionError(f"{expected} {shape}, with the channels last; return its .permute(2, 0, 1)")
    return picture


def _check_pixels(encoded: Mapping[str, Any]) -> None:
    """Refuse what a processor returned if it cannot be what a model takes.

    Raises:
        ModelError: it holds no `pixel_values`, or none with finite floats.
    """
    pixels = encoded.get("pixel_values")
    if not isinstance(pixels, Tensor):
        fields = ", ".join(f"{name}: {type(value).__name__}" for name, value in encoded.items()) or "nothing"
        raise ModelError(f"the processor returned no tensor pixel_values ({fields}); it may be one for texts alone")
    if problem := unreadable(pixels):
        raise ModelError(f"the processor returned a tensor that {problem}")
    if pixels.numel() == 0:
        raise ModelError(f"the processor returned no pixels, but a tensor of shape {tuple(pixels.shape)}")
    if not pixels.is_floating_point():
        raise ModelError(
            f"the processor returned {pixels.dtype} in place of floats; scale the values, as ToTensor or "
            "do_rescale=True does"
        )
    if not pixels.isfinite().all():
        raise ModelError("the processor returned values that are not finite; look at its mean, std and rescale_factor")


def _together(tensors: list[Tensor]) -> Tensor:
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ModelError("the processor returns images of different sizes; use batch_size=1")
    return torch.stack(tensors)


@door(ModelError)
def load(
    model: str | Path | nn.Module | LoadedModel,
    *,
    processor: Any = None,
    labels: Labels | None = None,
    output: Output = "auto",
    device: str | torch.device | int | None = None,
    dtype: torch.dtype | str | None = None,
    trust_config: bool = False,
) -> LoadedModel:
    """A model with its preprocessing, ready to use.

    Args:
        model: A Hub id, a short name, a folder, `demo:NAME`, a module (which is neither moved nor changed), or what
            this function returned, which keeps what was established about the model.
        processor: The processor to use instead of the model's own.
        labels: Class names to use instead of the model's own: a list, or a dict from index to name.
        output: What the model returns: "logits", "probabilities" (already a softmax or sigmoid of them), "multi-label"
            (each class has a sigmoid of its own), "regression" (predicted values) or an "embedding"; "auto"
            establishes it.
        device: Device of a model that is loaded here; by default the GPU if there is one.
        dtype: Dtype of a model that is loaded here; by default float32.
        trust_config: Also build a network that is deeper or wider than any known model.

    Raises:
        ModelError: the model cannot be found, reached or read, takes no images, or its config describes a network of
            absurd size.
        OptionError: there is no such device, dtype or kind of output, a device was given for a model that is already
            loaded, the processor is not callable, or the labels are no list or dict of names.
    """
    names = None if labels is None else names_of(labels)
    check_output(output)
    if processor is not None and not callable(processor):
        raise OptionError(
            f"a processor must be a transformers image processor or a function, not {type(processor).__name__}; "
            "AutoImageProcessor.from_pretrained(NAME) loads one"
        )
    if isinstance(model, nn.Module | LoadedModel) and (device is not None or dtype is not None):
        raise OptionError("device and dtype apply to models that hf-cam loads; move this one with .to() yourself")
    if isinstance(model, LoadedModel):
        return _with(model, processor=processor, id2label=names, output=None if output == "auto" else output)
    if isinstance(model, nn.Module):
        check_takes_pictures(model)
        model = adopted(model)
        known_names = names or traits_of(model).id2label
        tokenizer = getattr(processor, "tokenizer", None) or library_tokenizer(model)
        return LoadedModel(model, processor or processor_of(model), known_names, tokenizer, output)
    if not isinstance(model, str | Path):
        raise ModelError(
            f"a model must be a Hub id, a folder, 'demo:NAME' or a torch module, not {type(model).__name__}"
        )
    chosen, precision = _device(device), _dtype(dtype)
    name = resolve_name(model)
    loaded = load_pretrained(name, dtype=precision, trust_config=trust_config).eval()
    known_names = names or traits_of(loaded).id2label
    found = processor or _processor_named(name, loaded)
    return LoadedModel(loaded.to(chosen), found, known_names, output=output)


def _with(loaded: LoadedModel, **settings: Any) -> LoadedModel:
    """The same model with other settings, where they are given; without any, the same record."""
    given = {name: value for name, value in settings.items() if value is not None}
    return replace(loaded, known={}, _geometries=Geometries(), **given) if given else loaded


def check_output(output: Any) -> Output:
    """What a model is declared to return.

    Raises:
        OptionError: there is no such kind of output.
    """
    if not isinstance(output, str) or output not in get_args(Output):
        known = ", ".join(map(repr, get_args(Output)))
        raise OptionError(f"output must be one of {known}, not {brief(output)}")
    return cast("Output", output)


def names_of(labels: Any) -> dict[int, str]:
    """Class names by index, from a list or from a dict whose keys are indices.

    >>> names_of(["cat", "dog"]), names_of({"7": "cat"})
    ({0: 'cat', 1: 'dog'}, {7: 'cat'})

    Raises:
        OptionError: they are neither, or a name is not a text.
    """
    named = dict(enumerate(labels)) if isinstance(labels, list | tuple) else labels
    if not isinstance(named, Mapping) or not named or not all(isinstance(name, str) for name in named.values()):
        raise OptionError(
            f"labels must be a list of class names, or a dict from index to name such as {{0: 'cat'}}, "
            f"not {brief(labels)}"
        )
    try:
        return {int(index): name for index, name in named.items()}
    except (TypeError, ValueError) as error:
        raise OptionError(f"the keys of labels= must be class indices, got {brief(labels)}") from error


def processor_of(model: nn.Module) -> Any:
    """The processor of a model that the caller loaded: found under its name, or made by timm or its own library.

    Raises:
        ModelError: the model has neither.
        UnknownArchitecture: no map of it can lie over the picture.
    """
    traits = traits_of(model)
    if traits.name_or_path:
        return _processor_named(traits.name_or_path, model)
    if traits.timm is not None:
        import timm.data

        return timm.data.create_transform(**timm.data.resolve_data_config({}, model=traits.timm))
    if (own := library_processor(traits.module)) is not None:
        return own
    check_not_refused(model)
    raise ModelError(
        f"no image processor is known for this {type(model).__name__}; pass processor= "
        "(a transformers image processor, or a function from a PIL image to a tensor [C, H, W])"
    )


def _processor_named(name: str, model: nn.Module) -> Any:
    """The processor of a checkpoint: of a vision-language model the whole one, if it has one, with the tokenizer."""
    if not traits_of(model).answers_in_words:
        try:
            return load_processor(name)
        except ModelError:
            check_not_refused(model)  # a refused model needs no processor
            raise
    try:
        return load_whole_processor(name)
    except ModelError:
        return load_processor(name)


def _device(device: str | torch.device | int | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except Exception as error:  # each backend has its own
        named = brief(str(device) if isinstance(device, torch.device) else device)
        others = ", ".join(repr(f"cuda:{number}") for number in range(torch.cuda.device_count()))
        raise OptionError(
            f"no device {named} here ({reason(error)}); there is 'cpu'{others and ', '}{others}"
        ) from error
    if chosen.type == "meta":
        raise OptionError("a model on the meta device has no weights to explain")
    return chosen


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    if dtype is None or dtype == "auto":
        return dtype
    chosen = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        got = str(dtype) if isinstance(dtype, torch.dtype) else brief(dtype)
        raise OptionError(f"dtype must be a floating-point type such as 'float32' or 'bfloat16', not {got}")
    return chosen
