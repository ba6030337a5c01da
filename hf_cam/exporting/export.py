"""Export a classifier that explains itself, to ONNX or as a program of torch's."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import hf_cam
from hf_cam.cam import CAM
from hf_cam.capture.capture import capture
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call, model_inputs_of, one_image, others_of, picture_size
from hf_cam.doors import blaming, door
from hf_cam.errors import ImageError, MethodError, ModelError, OptionError, brief, reason
from hf_cam.exporting.closed_form import is_closed, needs_head
from hf_cam.exporting.graph import OpenMaps, Plan, SelfExplaining
from hf_cam.exporting.pooled_head import pooled_head
from hf_cam.heads import ClassificationHead, head_of
from hf_cam.heads.establish import reading_of
from hf_cam.images.patches import are_cut
from hf_cam.layouts import NCHW, NHWC, AnyLayout, Layout, Size
from hf_cam.methods import get_method, list_methods
from hf_cam.methods.registry import Method
from hf_cam.models.loading import Labels, LoadedModel, Output, load
from hf_cam.models.traits import unwrap
from hf_cam.outputs import class_logits, sample_of, scores_path
from hf_cam.request import check_count
from hf_cam.target_layers.named import Layers
from hf_cam.threads import unwarned

Format = Literal["onnx", "torch"]
SUFFIXES: Mapping[str, str] = {"onnx": ".onnx", "torch": ".pt2"}
INSTALL = 'pip install "hf-cam[export]"'
TOLERANCE = 1e-3
"""The largest difference between the exported model's map and hf-cam's own that is accepted, on noise, where rounding
weighs more than on pictures."""
LARGEST = 1_800_000_000
"""Bytes of weights from which on ONNX keeps them in a file beside the graph."""
Exported = Callable[..., tuple[Tensor, Tensor]]


@door(ModelError)
def export(
    model: str | Path | nn.Module | LoadedModel,
    path: str | Path,
    format: Format = "onnx",  # noqa: A002 - torch and transformers call it so
    *,
    method: str = "gradcam",
    method_options: Mapping[str, Any] | None = None,
    target_input: bool = False,
    size: Size | None = None,
    dynamic: bool = False,
    layers: Layers | None = None,
    reshape: Callable[[Tensor], Tensor] | None = None,
    processor: Any = None,
    labels: Labels | None = None,
    output: Output = "auto",
    dtype: torch.dtype | str | None = None,
    trust_config: bool = False,
) -> Path:
    """Export a classifier whose outputs are its logits and a map, to run without hf-cam.

    The map is the one that `hf_cam.CAM` returns, computed without a backward pass. "eigencam" and other methods that
    read only the activations are exported for every classifier; "gradcam", "cam", "recipro-cam" and the like for those
    whose logits are a linear layer, with or without a layer norm, of the mean over all cells of the target layer. That
    claim is checked on noise before the export, and the exported model's map is compared with hf-cam's own after it.

    Args:
        model: As in `hf_cam.explain`: a classifier of images.
        path: The file; it ends in `.onnx` or, for torch, in `.pt2`.
        format: "onnx", for onnxruntime and others (needs `hf-cam[export]`), or "torch", for `torch.export.load`.
        method: An id of `hf_cam.list_methods()`.
        method_options: Options of the method.
        target_input: Add an input `target [B]` of int64: the class of each image, or -1 for the model's top class. By
            default, the map is that of the top class.
        size: Height and width of the input; those that the processor gives by default. The number of images is open.
        dynamic: Whether height and width are open too; then `size` is the one at which the model is looked at. The
            target layers must return maps, and the model and the method must not depend on the size: a ViT has
            position embeddings for one, and "recipro-cam" keeps each cell in turn. This is checked at a second size.
        layers, reshape: As in `hf_cam.CAM`.
        processor, labels, output, dtype, trust_config: As in `hf_cam.explain`.

    Returns:
        The file. The model in it takes `pixel_values [B, C, H, W]` as the processor makes them, and `target`, and gives
        `logits [B, K]` and `map [B, H, W]` in [0, 1]. Beside it, under "hf_cam", are method, layers, size and labels
        as JSON.

    Raises:
        OptionError: the format, path or size is invalid, or a library is missing.
        MethodError: the method has no closed form for this model, or the exported map is not hf-cam's own; or, if
            `dynamic`, the method or the layers take one size.
        ModelError: torch cannot export the model, or not for any size.
        ImageError: the file cannot be written.

    >>> from tempfile import mkdtemp
    >>> from transformers import ResNetConfig, ResNetForImageClassification
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=5)
    >>> model = ResNetForImageClassification(config).eval()
    >>> path = export(model, Path(mkdtemp()) / "resnet.pt2", "torch", size=(64, 96))
    >>> logits, map_ = torch.export.load(path).module()(torch.rand(3, 3, 64, 96))
    >>> logits.shape, map_.shape
    (torch.Size([3, 5]), torch.Size([3, 64, 96]))
    """
    path = _checked_path(path, format)
    record = _checked_method(method, method_options or {})
    _check_dynamic(dynamic, record)
    where: dict[str, Any] = {"device": "cpu" if isinstance(model, str | Path) else None, "dtype": dtype}
    given = processor or (_no_processor if isinstance(model, nn.Module) and size is not None else None)
    loaded = load(model, processor=given, labels=labels, output=output, **where, trust_config=trust_config)
    cam = CAM(loaded.model, method, layers, reshape, **(method_options or {}))
    examples = _examples(loaded, size)
    plan = _plan(replace(loaded, given=one_image(examples, 0)), cam, record, examples)
    plan = _for_any_size(plan, loaded.model, examples) if dynamic else plan
    write = _write_onnx if format == "onnx" else _write_torch
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".hf-cam-export-", dir=path.parent) as folder:
            program = _program(loaded.model, plan, examples, target_input, dynamic)
            exported = write(program, Path(folder) / path.name, _described(loaded, plan, dynamic))
            _check_same(exported, cam, examples, plan.size, target_input)
            if dynamic:
                _check_same(exported, cam, examples, (sum(plan.size), plan.size[0]), target_input)
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):  # weights come first
                file.replace(path.parent / file.name)
    except OSError as error:
        raise ImageError(f"the exported model cannot be written to {brief(str(path))}: {reason(error)}") from error
    return path


def _no_processor(image: Any) -> Tensor:
    """The processor of a module that has none, where the size of its input is given."""
    raise ModelError(f"there is no processor for {type(image).__name__}")


def _checked_path(path: str | Path, given: Any) -> Path:
    """The path, whose suffix is the format's.

    Raises:
        OptionError: there is no such format, or the path ends otherwise.
    """
    if given not in get_args(Format):
        raise OptionError(f"format must be 'onnx' or 'torch', got {brief(given)}")
    path = Path(path).expanduser()
    if path.suffix.lower() != SUFFIXES[given]:
        raise OptionError(
            f"the path of a model in the format {given!r} must end in {SUFFIXES[given]}, got {path.name!r}"
        )
    if given == "onnx":
        for library in ("onnx", "onnxscript"):
            if importlib.util.find_spec(library) is None:
                raise OptionError(f"ONNX needs the library {library}: {INSTALL}; format='torch' needs none")
    return path


def _checked_method(method: str, options: Mapping[str, Any]) -> Method:
    """The method, if it needs neither a backward pass nor reruns where the head has a closed form.

    Raises:
        MethodError: there is no such method, or it needs more.
        OptionError: it has no such option.
    """
    record = get_method(method)
    if not is_closed(record):
        known = ", ".join(repr(one.id) for one in list_methods().values() if is_closed(one))
        raise MethodError(f"{method!r} has no closed form, so it cannot be exported; these have one: {known}")
    record.check_options(dict(options))
    return record


def _check_dynamic(dynamic: Any, method: Method) -> None:
    """Refuse an open size for a method that keeps each cell in turn, and so takes one number of cells.

    Raises:
        OptionError: `dynamic` is neither True nor False.
        MethodError: the method is one of these.
    """
    if not isinstance(dynamic, bool):
        raise OptionError(f"dynamic must be True or False, got {brief(dynamic)}")
    if dynamic and "cell_scores" in method.needs:
        raise MethodError(
            f"{method.id!r} keeps each cell in turn, so it is exported for one size; omit dynamic=True, or take "
            "'hirescam'"
        )


def _for_any_size(plan: Plan, model: nn.Module, examples: Mapping[str, Any]) -> Plan:
    """The plan with target layers whose maps are taken as they are, whatever their size.

    Raises:
        MethodError: a layer returns something else than maps.
    """
    adapter, layouts = plan.adapter, []
    with capture(model, adapter.layers, examples, gradients=False) as captured:
        for name, activation in zip(adapter.layers, captured.activations, strict=True):
            layout = adapter.layout_of(name)
            found = layout.reading(activation.shape, plan.size, 2) if isinstance(layout, AnyLayout) else layout
            if not isinstance(found, Layout) or found.axes not in (NCHW, NHWC):
                raise MethodError(
                    f"{name!r} does not return maps [B, C, h, w], so its cells are known for one size of the input "
                    "alone; omit dynamic=True"
                )
            layouts.append(OpenMaps(found.axes))
    return replace(plan, adapter=replace(adapter, layouts=tuple(layouts)))


def _examples(loaded: LoadedModel, size: Any) -> dict[str, Any]:
    """The named inputs of two pictures of noise.

    Raises:
        OptionError: the model is no classifier of images, takes other inputs than a picture, or the size is invalid.
    """
    if not isinstance(head_of(loaded), ClassificationHead) or loaded.takes_videos:
        raise OptionError(f"export takes classifiers of images, not {loaded.traits.class_name}")
    if size is None:
        given = loaded.example_inputs()
        if are_cut(given) or any(isinstance(value, Tensor) for value in others_of(given).values()):
            raise OptionError(f"export takes models whose only input is a picture, not {loaded.traits.class_name}")
        size = picture_size(given)
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise OptionError(f"size must be the height and the width of the input, got {brief(size)}")
    for name, side in zip(("the height", "the width"), size, strict=True):
        check_count(name, side)
    pixels = torch.randn(2, loaded.traits.channels, *size, generator=torch.Generator().manual_seed(0))
    return model_inputs_of(loaded.model, pixels, {})


def _plan(loaded: LoadedModel, cam: CAM, method: Method, examples: Mapping[str, Any]) -> Plan:
    """What the graph computes, established on the examples.

    Raises:
        MethodError: the method needs a pooled head, and the model has none.
    """
    adapter = cam.adapter_for(examples["pixel_values"], {})
    with borrowed(unwrap(loaded.model)) as module, torch.no_grad():
        outputs = call(module, examples)
    reading = reading_of(loaded, sample_of(outputs, 0, 2))
    classes = class_logits(outputs).shape[1]
    if needs_head(method) and (classes < 2 or reading.scale != "logits"):
        what = "one score" if classes < 2 else reading.scale
        raise MethodError(f"{method.id!r} is exported for models that return a logit per class, not {what}")
    head = pooled_head(loaded.model, adapter, examples) if needs_head(method) and len(adapter.layers) == 1 else None
    if needs_head(method) and head is None:
        raise MethodError(
            f"{method.id!r} has a closed form where the logits are a linear layer of the mean over all cells, which "
            f"they are not behind {adapter.layers[0]!r}; 'eigencam' is exported for every classifier"
        )
    exclusive = reading.exclusive and loaded.traits.problem_type != "multi_label_classification"
    path = scores_path(outputs, lambda tensor: tensor.ndim == 2 and len(tensor) == 2)
    return Plan(
        method,
        adapter,
        head,
        picture_size(examples),
        others_of(examples),
        path,
        exclusive,
        {**method.options, **cam.options},
    )


def _program(model: nn.Module, plan: Plan, examples: Mapping[str, Any], target_input: bool, dynamic: bool) -> Any:
    """The program of the self-explaining model, with any number of images, also of any size if `dynamic`.

    Raises:
        ModelError: torch cannot export the model.
    """
    batch = {0: torch.export.Dim("batch")}
    given = (examples["pixel_values"], torch.tensor([-1, 0])) if target_input else (examples["pixel_values"],)
    sides = dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC) if dynamic else {}
    shapes = ({**batch, **sides}, batch)[: len(given)]
    with (
        borrowed(unwrap(model)) as replica,
        torch.no_grad(),
        unwarned(),
        blaming("torch.export", ModelError),
    ):
        return torch.export.export(SelfExplaining(replica, plan).eval(), given, dynamic_shapes=shapes)


def _described(loaded: LoadedModel, plan: Plan, dynamic: bool) -> str:
    """JSON that the exported file carries."""
    described = {
        "hf_cam": hf_cam.__version__,
        "model": loaded.traits.name_or_path or loaded.traits.class_name,
        "method": plan.method.id,
        "options": {name: plan.options[name] for name in plan.method.options},
        "layers": list(plan.adapter.layers),
        "size": None if dynamic else list(plan.size),
        "labels": [loaded.id2label[index] for index in sorted(loaded.id2label)],
    }
    return json.dumps(described, default=str)


def _write_torch(program: Any, path: Path, described: str) -> Exported:
    torch.export.save(program, path, extra_files={"hf_cam": described})
    module: Exported = program.module()
    return module


def _write_onnx(program: Any, path: Path, described: str) -> Exported | None:
    """Write the file; returns what runs it, None without onnxruntime."""
    weights = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    with unwarned(), blaming("torch.onnx.export", ModelError):
        made = torch.onnx.export(program, dynamo=True, verbose=False, output_names=["logits", "map"])
        assert made is not None
        made.model.metadata_props["hf_cam"] = described
        made.save(path, external_data=weights > LARGEST)
    return _session(path) if importlib.util.find_spec("onnxruntime") else None


def _session(path: Path) -> Exported:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        given = {name: value.cpu().numpy() for name, value in zip(names, inputs, strict=True)}
        logits, maps = session.run(None, given)
        return torch.from_numpy(logits), torch.from_numpy(maps)

    return run


def _check_same(
    exported: Exported | None, cam: CAM, examples: Mapping[str, Any], size: Size, target_input: bool
) -> None:
    """Compare the exported model with hf-cam on three other pictures of a size.

    Raises:
        MethodError: the maps differ.
        ModelError: the model or the exported one does not run on them.
    """
    if exported is None:
        return
    like = examples["pixel_values"]
    pixels = torch.randn(3, like.shape[1], *size, generator=torch.Generator().manual_seed(1)).to(like)
    targets = [1, 0, 1] if target_input else None
    given = (pixels, torch.tensor(targets)) if target_input else (pixels,)
    try:
        own = cam(pixels, targets)
        with torch.no_grad():
            _, maps = exported(*given)
    except Exception as error:  # a model and a runtime may raise anything
        raise ModelError(
            f"the model cannot be exported for pictures of {size[0]} x {size[1]}: {reason(error)}"
        ) from error
    half = torch.finfo(like.dtype).bits == 16
    difference = float((maps.to(own) - own).abs().max())
    if not difference <= (20 * TOLERANCE if half else TOLERANCE):
        raise MethodError(
            f"the exported map differs from hf-cam's own by {difference:.1g} on noise of {size[0]} x {size[1]}, so "
            f"{cam.method.id!r} cannot be exported for this model; 'eigencam' reads the activations alone"
        )
