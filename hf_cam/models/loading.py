"""A model and its preprocessing from a Hub id, a folder, `demo:NAME` or a loaded model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hf_cam.capture.capture import swallows
from hf_cam.capture.guard import unwrap
from hf_cam.errors import HFCamError, ImageError, ModelError, OptionError, TargetError
from hf_cam.images.geometry import Geometry, measure
from hf_cam.images.reading import load_image
from hf_cam.images.videos import Video, is_video, load_video
from hf_cam.layouts import Size
from hf_cam.target_layers.catalogue import config_of, timm_model
from hf_cam.target_layers.infer import check_takes_pictures, takes_pictures

Picture = Image.Image | Video
"""What a model looks at once."""

SHORT_NAMES = {
    "google/vit-base": "google/vit-base-patch16-224",
    "google/vit-large": "google/vit-large-patch16-224",
    "facebook/deit-base": "facebook/deit-base-distilled-patch16-224",
    "facebook/dinov2-base": "facebook/dinov2-base-imagenet1k-1-layer",
    "facebook/dinov2-small": "facebook/dinov2-small-imagenet1k-1-layer",
    "facebook/convnext-tiny": "facebook/convnext-tiny-224",
    "facebook/convnextv2-tiny": "facebook/convnextv2-tiny-1k-224",
    "microsoft/swin-tiny": "microsoft/swin-tiny-patch4-window7-224",
    "microsoft/swinv2-tiny": "microsoft/swinv2-tiny-patch4-window8-256",
    "microsoft/beit-base": "microsoft/beit-base-patch16-224",
    "microsoft/resnet-50": "microsoft/resnet-50",
    "apple/mobilevit-small": "apple/mobilevit-small",
    "nvidia/segformer-b0": "nvidia/mit-b0",
    "openai/clip-vit-base": "openai/clip-vit-base-patch32",
    "facebook/detr": "facebook/detr-resnet-50",
}
"""Short names of well-known checkpoints, for `hf_cam.explain`, `hf_cam.pipeline` and the command."""

OFFLINE_HINT = 'pass a local folder, or model="demo:imagenet", which needs no network'


@dataclass(frozen=True)
class LoadedModel:
    """A model with what turns images into its inputs.

    Args:
        model: In evaluation mode, if hf-cam loaded it.
        processor: A transformers image processor, or any callable from a PIL image to a tensor `[C, H, W]`.
        id2label: The class names.
        tokenizer: For models that take text; that of the processor or of the model's own name where not given.
    """

    model: nn.Module
    processor: Any
    id2label: dict[int, str]
    tokenizer: Any = None
    _geometries: dict[Size, Geometry] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def watches(self) -> bool:
        """Whether the model looks at videos."""
        return watches(self.model)

    def opened(self, source: Any) -> Picture:
        """What the model looks at: an image, or the frames that a model of videos takes.

        A module that is no transformers model gets the whole video where the source can be nothing else.

        Raises:
            ImageError: there is none, or it is a video and the model looks at images, or the other way round.
        """
        if self.watches:
            return load_video(source, frames_of(self.model))
        if not is_video(source):
            return load_image(source)
        if config_of(unwrap(self.model)) is not None:
            raise ImageError(
                "this model looks at images and got a video, or an array of four axes; pass a list of images"
            )
        return load_video(source)

    def inputs(self, images: Sequence[Picture]) -> dict[str, Tensor]:
        """The model's keyword inputs for a batch; `pixel_values` is `[B, C, H, W]`, or `[B, T, C, H, W]` of videos.

        Videos for a module that is no transformers model are volumes, `[B, C, T, H, W]`.

        Raises:
            ModelError: the images come out in different sizes.
        """
        if self.watches and not all(isinstance(image, Video) for image in images):
            raise ImageError("this model looks at videos, not at single images")
        if hasattr(self.processor, "model_input_names"):
            encoded = self._processed(images)
        else:
            encoded = {"pixel_values": _together([self._called(image) for image in images])}
        module = unwrap(self.model)
        return {
            name: value
            for name, value in encoded.items()
            if isinstance(value, Tensor) and (name == "pixel_values" or not swallows(module, name))
        }

    def _processed(self, images: Sequence[Picture]) -> dict[str, Any]:
        videos = [list(image.frames) for image in images if isinstance(image, Video)]
        kind = "video_processor" if videos else "image_processor"
        process = getattr(self.processor, kind, self.processor)
        if videos and hasattr(process, "do_sample_frames"):
            process = partial(process, do_sample_frames=False)
        try:
            encoded = (
                process(videos, return_tensors="pt") if videos else process(images=list(images), return_tensors="pt")
            )
            encoded = dict(encoded)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"the image processor cannot prepare these images: {error}") from error
        if "pixel_values_videos" in encoded:
            encoded["pixel_values"] = encoded.pop("pixel_values_videos")
        return encoded

    def _called(self, image: Picture) -> Tensor:
        """What a processor that is a plain function makes of an image, or of each frame of a video."""
        if not isinstance(image, Video):
            return _picture(self.processor(image))
        frames = _together([_picture(self.processor(frame)) for frame in image.frames])
        return frames if self.watches else frames.transpose(0, 1)

    @cached_property
    def text_processor(self) -> Any:
        """The tokenizer.

        Raises:
            ModelError: none is known.
        """
        known = self.tokenizer or getattr(self.processor, "tokenizer", None)
        return known or load_tokenizer(getattr(config_of(unwrap(self.model)), "_name_or_path", ""))

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The tokenised texts `[P, L]`, by the names that the model's forward takes.

        Raises:
            TargetError: a text has more tokens than the model reads.
        """
        config = config_of(unwrap(self.model))
        longest = _longest_text(config)
        fixed = config.model_type.startswith(FIXED_LENGTH) and longest is not None
        padding = {"padding": "max_length", "max_length": longest} if fixed else {"padding": True}
        encoded = dict(self.text_processor(list(texts), return_tensors="pt", **padding))
        count = encoded["input_ids"].shape[1]
        if longest is not None and count > longest:
            worst = max(texts, key=len)
            raise TargetError(f"the text {worst[:40]!r}... has {count} tokens, the model reads {longest} at most")
        taken = inspect.signature(unwrap(self.model).forward).parameters
        return {name: value for name, value in encoded.items() if any(known.endswith(name) for known in taken)}

    def geometry(self, image_size: Size) -> Geometry:
        """How the processor puts images of this size (height, width) into the model's input; measured once a size."""
        if image_size not in self._geometries:
            self._geometries[image_size] = measure(self.pixel_values, image_size)
        return self._geometries[image_size]

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Only the pictures, `[B, C, H, W]`: of a model of videos frames, of cut patches put together again."""
        if self.watches:
            return self.inputs([Video([image]) for image in images])["pixel_values"][:, 0]
        inputs = self.inputs(images)
        return uncut(inputs) if "spatial_shapes" in inputs else inputs["pixel_values"]


FIXED_LENGTH = ("siglip", "owl")
"""Types that were trained on texts padded to full length."""


def watches(model: nn.Module) -> bool:
    """Whether a transformers model looks at videos and at nothing else."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

    module = unwrap(model)
    modalities = getattr(module, "input_modalities", None) or ()
    listed = getattr(config_of(module), "model_type", "") in CLASSIFIERS  # TimeSformer says that it takes images
    return listed or ("video" in modalities and "image" not in modalities)


def frames_of(model: nn.Module) -> int | None:
    """How many frames a model of videos takes; None where its config does not tell."""
    config = config_of(unwrap(model))
    vision = getattr(config, "vision_config", None) or config
    frames = getattr(vision, "num_frames", None) or getattr(vision, "frames_per_clip", None)
    return frames if isinstance(frames, int) else None


def uncut(inputs: Mapping[str, Tensor]) -> Tensor:
    """Pictures `[B, C, H, W]` from patches in raster order with padding behind them, `[B, N, patch * patch * C]`.

    Args:
        inputs: `pixel_values`, and in `spatial_shapes` `[B, 2]` the rows and columns of patches of each picture.

    Raises:
        ModelError: the pictures differ in size.
    """
    patches, grids = inputs["pixel_values"], inputs["spatial_shapes"]
    if (grids != grids[0]).any():
        raise ModelError("pictures of different sizes cannot be put into one tensor")
    rows, columns = grids[0].tolist()
    side = math.isqrt(patches.shape[2] // 3)
    grid = patches[:, : rows * columns].reshape(len(patches), rows, columns, side, side, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, rows * side, columns * side)


def _longest_text(config: Any) -> int | None:
    """How many tokens the model's text tower reads, where the config tells."""
    text = getattr(config, "text_config", None) or config
    length = getattr(text, "max_position_embeddings", None)
    return length if isinstance(length, int) else None


def _picture(tensor: Any) -> Tensor:
    """What a caller's processor made of a picture, `[C, H, W]`."""
    if not isinstance(tensor, Tensor) or tensor.ndim not in (3, 4):
        got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise OptionError(f"a processor returns a tensor [C, H, W] for an image, this one returned {got}")
    return tensor[0] if tensor.ndim == 4 and len(tensor) == 1 else tensor


def _together(tensors: list[Tensor]) -> Tensor:
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ModelError("the processor returns images of different sizes; use batch_size=1")
    return torch.stack(tensors)


def load(
    model: str | Path | nn.Module,
    *,
    processor: Any = None,
    device: str | torch.device | int | None = None,
    dtype: torch.dtype | str | None = None,
) -> LoadedModel:
    """A ready model.

    Args:
        model: A Hub id, a short name, a folder, `demo:NAME`, or a module (which is neither moved nor changed).
        processor: In place of the one that belongs to the model.
        device: Where to put a model that is loaded here; the GPU where there is one.
        dtype: Of a model that is loaded here; float32 where not given.

    Raises:
        ModelError: it cannot be found, reached or read, or takes no images.
        OptionError: there is no such device or dtype, one is asked for a model that is already loaded, or the processor
            is none.
    """
    if processor is not None and not callable(processor):
        raise OptionError(
            f"a processor is a transformers image processor or a function, not {type(processor).__name__}"
        )
    if isinstance(model, nn.Module):
        if device is not None or dtype is not None:
            raise OptionError("device and dtype belong to models that hf-cam loads; move this one with .to() yourself")
        check_takes_pictures(model)
        return LoadedModel(model, processor or processor_of(model), labels(model))
    if not isinstance(model, str | Path):
        raise ModelError(f"a model is a Hub id, a folder, 'demo:NAME' or a torch module, not {type(model).__name__}")
    chosen, precision = _device(device), _dtype(dtype)
    name = resolve_name(model)
    loaded = load_pretrained(name, dtype=precision).eval()
    return LoadedModel(loaded.to(chosen), processor or load_processor(name), labels(loaded))


def resolve_name(model: str | Path) -> str:
    """A folder or Hub id from a folder, Hub id, short name or `demo:NAME`.

    >>> resolve_name("google/vit-base")
    'google/vit-base-patch16-224'

    Raises:
        ModelError: a folder without a config, or an unknown demo model.
    """
    name = str(model)
    if name.startswith("demo:"):
        from hf_cam.zoo import demo_model

        return str(demo_model(name.removeprefix("demo:")))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"the folder {name!r} has no config.json, so it holds no model")
        return str(folder)
    if isinstance(model, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {name!r}")
    if folder.is_file():
        raise ModelError(f"{name!r} is a file; a model is a folder with a config.json, or a Hub id")
    return SHORT_NAMES.get(name, name)


def load_pretrained(name: str, *, dtype: torch.dtype | str | None = None, **kwargs: Any) -> nn.Module:
    """The model of the class that its own config names (a chain of auto classes would silently load a wrong head).

    Raises:
        ModelError: not found, not reachable, unreadable, or no vision model.
    """
    import transformers

    known = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}
    config = load_config(name, **known)
    for architecture in getattr(config, "architectures", None) or []:
        if (found := getattr(transformers, architecture, None)) is not None:
            loader = found
            break
    else:
        loader = transformers.AutoModelForImageClassification
    if not takes_pictures(loader, config):
        raise ModelError(f"{name!r} is a {config.model_type!r} model ({loader.__name__}), which takes no images")
    dtype = dtype or torch.float32
    loaded, report = explained(
        name, lambda: loader.from_pretrained(name, config=config, dtype=dtype, output_loading_info=True, **kwargs)
    )
    if report["missing_keys"]:
        raise ModelError(
            f"{name!r} lacks {len(report['missing_keys'])} weights of {type(loaded).__name__} "
            f"(such as {min(report['missing_keys'])!r}), which would stay random; "
            "explain a model that was trained for its task"
        )
    return loaded  # type: ignore[no-any-return]


def load_config(name: str, **kwargs: Any) -> Any:
    """The config of a checkpoint.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoConfig

    return explained(name, lambda: AutoConfig.from_pretrained(name, **kwargs), what="config")


def load_processor(name: str) -> Any:
    """The image processor that belongs to a checkpoint, or its video processor where it has no other.

    Raises:
        ModelError: it has none.
    """
    from transformers import AutoImageProcessor, AutoVideoProcessor

    try:
        return explained(name, lambda: AutoImageProcessor.from_pretrained(name), what="image processor")
    except ModelError as error:
        try:
            return explained(name, lambda: AutoVideoProcessor.from_pretrained(name), what="video processor")
        except ModelError:
            raise error from None


def load_tokenizer(name: str) -> Any:
    """The tokenizer that belongs to a checkpoint.

    Raises:
        ModelError: it has none, or the model has no name to look it up by.
    """
    from transformers import AutoTokenizer

    if not name:
        raise ModelError("the model takes text and no tokenizer is known for it; pass processor= (AutoProcessor's)")
    return explained(name, lambda: AutoTokenizer.from_pretrained(name), what="tokenizer")


def processor_of(model: nn.Module) -> Any:
    """The processor of a model that the caller loaded: by its name, or from timm's own data config.

    Raises:
        ModelError: neither tells.
    """
    config = getattr(unwrap(model), "config", None)
    if name := getattr(config, "_name_or_path", ""):
        return load_processor(name)
    net = timm_model(unwrap(model))
    if net is not None:
        import timm.data

        return timm.data.create_transform(**timm.data.resolve_data_config({}, model=net))
    raise ModelError(
        f"no image processor is known for this {type(model).__name__}; pass processor= "
        "(a transformers image processor, or a function from a PIL image to a tensor [C, H, W])"
    )


def labels(model: nn.Module) -> dict[int, str]:
    """The class names of a model's config, by index; empty where it has none."""
    id2label = getattr(getattr(unwrap(model), "config", None), "id2label", None) or {}
    return {int(index): str(label) for index, label in id2label.items()}


def _device(device: str | torch.device | int | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise OptionError(f"no device {device!r} here: {str(error).splitlines()[0]}") from error
    if chosen.type == "meta":
        raise OptionError("a model on the meta device has no weights to explain")
    return chosen


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    if dtype is None or dtype == "auto":
        return dtype
    chosen = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise OptionError(f"dtype is a floating one such as 'float32' or 'bfloat16', not {dtype!r}")
    return chosen


def explained(name: str, load_it: Callable[[], Any], what: str = "model") -> Any:
    """Run a `from_pretrained`; whatever it raises becomes one sentence that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils import httpx

    try:
        return load_it()
    except HFCamError:
        raise
    except (
        Exception
    ) as error:  # a damaged checkpoint may raise anything: safetensors', pickle's, the config's own errors
        causes = list(_chain(error))
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            raise ModelError(
                f"{name!r} is gated: ask for access on its page and log in with `hf auth login`"
            ) from error
        if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            raise ModelError(f"the Hub knows no model {name!r}; {OFFLINE_HINT}") from error
        if any(isinstance(cause, HFValidationError) for cause in causes):
            raise ModelError(f"{name!r} is neither a folder nor a valid Hub id; {OFFLINE_HINT}") from error
        unreachable = (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError)
        if any(isinstance(cause, unreachable) for cause in causes):
            raise ModelError(f"the Hub cannot be reached and {name!r} is not in the cache; {OFFLINE_HINT}") from error
        raise ModelError(f"the {what} of {name!r} cannot be loaded: {_first_sentence(error)}") from error


def _first_sentence(error: BaseException) -> str:
    """What an error of transformers says, without the paragraphs of advice that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "ignore_mismatched_sizes" in lines[0]:
        return "the shapes of its weights are not those that its config.json describes"
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return first.split(". If you were trying to load it")[0].split(". This could be because")[0]


def _chain(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
