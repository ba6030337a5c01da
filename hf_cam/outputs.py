"""Read a model's output: fields by name, class logits, boxes, embeddings, and one sample of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_cam.errors import TargetError

LOGITS = ("logits", "class_queries_logits", "decoder_class_logits")

BOXES = ("pred_boxes", "decoder_coord_logits")

MASKS = ("masks_queries_logits", "pred_masks")

SIMILARITIES = ("logits_per_image", "logits_per_video")

DEPTH = ("predicted_depth",)

TEXT = ("last_hidden_state",)

EMBEDDINGS = ("image_embeds", "pooler_output", "last_hidden_state")


def field_of(output: Any, names: Sequence[str]) -> Tensor:
    """The first of these fields that a model's output has; a bare tensor is returned unchanged.

    Raises:
        TargetError: the output has none of them.
    """
    if isinstance(output, Tensor):
        return output
    for name in names:
        value = output.get(name) if isinstance(output, Mapping) else None
        if isinstance(value, Tensor):
            return value
    fields = f"fields: {', '.join(map(str, output))}" if isinstance(output, Mapping) else type(output).__name__
    raise TargetError(f"the model's output has no {' or '.join(names)} ({fields})")


def logits_of(output: Any, axes: int = 1) -> Tensor:
    """The logits in a model's output: the output itself, its field `logits`, or the first floating tensor of a tuple.

    Args:
        output: The output for one sample, or for a batch.
        axes: Number of axes of class logits: 1 for a sample, 2 for a batch. PP-LCNet's classifier calls its logits
            `last_hidden_state`; a real hidden state has more axes.

    Raises:
        TargetError: there are none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        if isinstance(logits := output.get("logits"), Tensor):
            return logits
        if isinstance(hidden := output.get("last_hidden_state"), Tensor) and hidden.ndim == axes:
            return hidden
        raise TargetError(
            f"the model's output has no logits (fields: {', '.join(map(str, output))}); pass target= as a callable "
            "from one sample's output to a scalar, e.g. lambda output: output.pooler_output.norm()"
        )
    if isinstance(output, Sequence):
        for item in output:
            if isinstance(item, Tensor) and item.is_floating_point():
                return item
    raise TargetError(f"no logits in an output of type {type(output).__name__}; pass target= as a callable")


def row_of(output: Any) -> Tensor:
    """The logits of one sample, `[K]`; the query axis of VideoPrism's `[1, K]` is removed."""
    logits = logits_of(output)
    return logits[0] if logits.ndim == 2 and len(logits) == 1 else logits


def class_logits(outputs: Any) -> Tensor:
    """The class logits of a batch, `[B, K]`.

    Raises:
        TargetError: the head is not a classifier.
    """
    logits = logits_of(outputs, axes=2)
    logits = logits[:, 0] if logits.ndim == 3 and logits.shape[1] == 1 else logits
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise TargetError(
            f"the model's logits have the shape {tuple(logits.shape)}, not [images, classes]; "
            "pass target= as a callable from one sample's output to a scalar"
        )
    return logits


def similarities_of(output: Any) -> Tensor:
    """How well each prompt fits, `[P]`; for VideoPrism cosines, as its own scores are shares of a batch of videos."""
    video = output.get("video_embeds") if isinstance(output, Mapping) else None
    if not isinstance(video, Tensor):
        return field_of(output, SIMILARITIES)
    texts = output["text_embeds"].reshape(-1, video.shape[-1])
    return torch.nn.functional.cosine_similarity(video[None], texts, dim=-1)


def embedding_of(output: Any) -> Tensor:
    """An embedding of the whole image from one sample's output: its embedding, pooled output or mean hidden state.

    For a backbone, it is the mean of the last feature map.

    Returns:
        `[D]`.

    Raises:
        TargetError: the output has none of these.
    """
    if isinstance(output, Mapping) and isinstance(levels := output.get("feature_maps"), list | tuple):
        return embedding_of({"last_hidden_state": levels[-1]})  # from a backbone, finest first
    for name in EMBEDDINGS:
        value = output.get(name) if isinstance(output, Mapping) else None
        if isinstance(value, Tensor):
            return value.flatten() if name != "last_hidden_state" else value.mean((1, 2) if value.ndim == 3 else 0)
    return field_of(output, EMBEDDINGS).flatten()


def upright(boxes: Tensor) -> Tensor:
    """Boxes `(centre x, centre y, width, height)`, `[..., 4]`, from such boxes or from corners around a centre.

    The boxes of PP-DocLayoutV4, `[..., 10]`, hold the centre and the offsets of the four corners from it, each half a
    unit too large.

    >>> upright(torch.tensor([0.5, 0.5, 0.4, 0.4, 0.6, 0.4, 0.6, 0.7, 0.4, 0.7]))
    tensor([0.5000, 0.5500, 0.2000, 0.3000])
    """
    if boxes.shape[-1] == 4:
        return boxes
    corners = boxes[..., None, :2] + boxes[..., 2:].unflatten(-1, (4, 2)) - 0.5
    low, high = corners.amin(-2), corners.amax(-2)
    return torch.cat([(low + high) / 2, high - low], -1)


def probabilities(logits: Tensor, problem_type: str | None = None) -> Tensor:
    """Scores of the classes in [0, 1]: the softmax, or the sigmoid for multi-label heads and single logits."""
    logits = logits.float()
    if problem_type == "multi_label_classification" or logits.shape[-1] == 1:
        return torch.sigmoid(logits)
    return logits.softmax(-1)


def sample_of(output: Any, index: int | slice, batch: int) -> Any:
    """One sample (or a slice of samples) of a batched output; every tensor whose first axis is the batch is indexed.

    >>> sample_of({"logits": torch.zeros(4, 10)}, 1, batch=4)["logits"].shape
    torch.Size([10])
    """
    if isinstance(output, list) and len(output) == batch and not isinstance(output[0], Tensor):
        return output[index]  # one entry per image, as torchvision's detectors return
    return map_tensors(output, lambda tensor: tensor[index] if tensor.ndim and len(tensor) == batch else tensor)


def map_tensors(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure (tensor, record, dict, tuple or list) with a function applied to every tensor in it.

    >>> map_tensors({"a": (torch.ones(2), "text")}, torch.neg)
    {'a': (tensor([-1., -1.]), 'text')}
    """
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, Mapping):
        items = {key: map_tensors(value, change) for key, value in output.items()}
        return type(output)(**items) if hasattr(output, "to_tuple") else items
    if type(output) in (tuple, list):
        return type(output)(map_tensors(item, change) for item in output)
    return output
