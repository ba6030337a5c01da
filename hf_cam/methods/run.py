"""What methods are functions of, each computed once and only where a method needs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.attention import Attention, AttentionTrace, Readouts
from hf_cam.capture.biases import BiasWatch
from hf_cam.capture.capture import Capture, first_tensor
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call
from hf_cam.capture.local_rules import Attend, LocalRules
from hf_cam.capture.recorder import recording
from hf_cam.capture.replay import Tail, tail_of
from hf_cam.capture.routes import tail_after, trace_of
from hf_cam.errors import DetachedError, LayoutError, MethodError, NoGradientError, SlowWarning, TargetError
from hf_cam.layouts import AnyLayout, Size
from hf_cam.maps import normalize, resize
from hf_cam.models.traits import unwrap
from hf_cam.outputs import sample_of
from hf_cam.target_layers.adapter import Adapter
from hf_cam.targets import Target

CHUNK_BYTES = 16 * 2**20
CHUNK_ON_CPU, CHUNK = 4, 64
SECOND_ORDER = "curvature"
WHOLE_MODEL = "gradient_terms"


@dataclass(frozen=True)
class Run:
    """One captured forward with one target an image: where all evidence comes from.

    Args:
        model: What ran.
        inputs: Its named inputs, B images.
        captured: What the target layers returned.
        adapter: Which layers, and how they lie in space.
        targets: One an image.
        size: Height and width of the model's input; behind its depth, for volumes.
        second_order: True keeps the gradients differentiable.
        batch_size: Forwards at once for methods that rerun the model; chosen where None.
        biases: What the modules with a bias returned, where a method asks for the gradient terms.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    captured: Capture
    adapter: Adapter
    targets: Sequence[Target]
    size: tuple[int, ...]
    second_order: bool = False
    batch_size: int | None = None
    biases: BiasWatch | None = None

    @cached_property
    def scores(self) -> Tensor:
        """The targets' values `[B]`, connected to the graph.

        Raises:
            TargetError: a target does not fit the output, or is not finite.
        """
        values = target_values(self.captured.outputs, self.targets)
        if not values.isfinite().all():
            raise TargetError(
                f"the target's value is not finite ({values.tolist()}): the images or the weights hold such values, "
                "or the model's dtype is too narrow"
            )
        return values

    @cached_property
    def raw_gradients(self) -> tuple[Tensor, ...]:
        """Of the targets' sum, one tensor a layer, as the layer's output lies."""
        return self.captured.gradients(self.scores.sum(), second_order=self.second_order)

    @property
    def picture_size(self) -> Size:
        """Height and width alone."""
        return self.size[-2], self.size[-1]

    def collect(self, needs: Sequence[str], layer: str) -> dict[str, Any]:
        """The evidence that a method needs of one layer."""
        return {name: PROVIDERS[name](self, layer) for name in needs}

    def activations(self, layer: str) -> Tensor:
        """`[B, C, *space]`."""
        return self.adapter.to_spatial(self._activation(layer).detach(), self.picture_size, layer)

    def gradients(self, layer: str) -> Tensor:
        """`[B, C, *space]`.

        Raises:
            NoGradientError: it is zero on every cell of every image.
        """
        gradient = self.raw_gradients[self.adapter.layers.index(layer)].detach()
        spatial = self.adapter.to_spatial(gradient, self.picture_size, layer)
        if not spatial.any():
            raise NoGradientError(
                f"the target's gradient is zero on every cell of {layer!r}: nothing there influences it"
            )
        return spatial

    def curvature(self, layer: str) -> Tensor:
        """The Hessian of the targets' sum times the activations, `[B, C, *space]`; zero on a linear tail."""
        gradient, activation = self.raw_gradients[self.adapter.layers.index(layer)], self._activation(layer)
        product = None
        if gradient.requires_grad:
            product = torch.autograd.grad(
                gradient, activation, activation.detach(), retain_graph=True, allow_unused=True
            )[0]
        product = torch.zeros_like(activation) if product is None else product
        return self.adapter.to_spatial(product.detach(), self.picture_size, layer)

    def ablated_scores(self, layer: str) -> Tensor:
        """The targets' values `[B, 1 + C]`: as they are, then without one channel of the layer each.

        Only the tail is rerun, in float32 or better: what a channel does is a small difference of large values.
        """
        activation = self._activation(layer).detach()
        axis = _channel_axis(activation, self.activations(layer))
        channels = activation.shape[axis]
        gone = torch.eye(1 + channels, channels, dtype=torch.bool, device=activation.device).roll(1, 0)
        size = self.batch_size or max(1, CHUNK_BYTES // (activation[0].numel() * activation.element_size()))
        with tail_of(self.model, layer, self.inputs) as tail:
            if not tail.exact:
                warnings.warn(
                    f"the model behind {layer!r} cannot be rerun alone, so each of its {channels} channels takes a "
                    "whole forward; a layer nearer to the output may be replayed",
                    SlowWarning,
                    stacklevel=2,
                )

            def without(sample: int, start: int, stop: int) -> Tensor:
                lost = gone[start:stop].unflatten(1, [channels if i == axis else 1 for i in range(1, activation.ndim)])
                variants = activation[sample : sample + 1].masked_fill(lost, 0)
                return target_values(tail(variants, sample), [self.targets[sample]] * (stop - start))

            return torch.stack([in_chunks(1 + channels, size, without, sample) for sample in range(len(activation))])

    def masked_scores(self, layer: str) -> Tensor:
        """The targets' values `[B, C]` of the images masked by one channel each, enlarged and stretched to [0, 1].

        A constant channel masks nothing out and nothing in: its image is black, never NaN.
        """
        activations = self.activations(layer)
        pixels = self.inputs["pixel_values"]

        def masked(sample: int, start: int, stop: int) -> Tensor:
            masks = normalize(resize(activations[sample, start:stop].float(), self.size), len(self.size))[:, None]
            inputs = {
                name: value[sample : sample + 1].expand(stop - start, *value.shape[1:])
                if isinstance(value, Tensor) and value.shape[:1] == pixels.shape[:1]
                else value
                for name, value in self.inputs.items()
            }
            inputs["pixel_values"] = pixels[sample] * masks.to(pixels)
            outputs = call(unwrap(self.model), inputs)
            return target_values(outputs, [self.targets[sample]] * (stop - start))

        with borrowed(unwrap(self.model)), torch.no_grad():
            size = self.batch_size or (CHUNK_ON_CPU if pixels.device.type == "cpu" else CHUNK)
            return torch.stack(
                [in_chunks(activations.shape[1], size, masked, sample) for sample in range(len(activations))]
            )

    def gradient_terms(self, layer: str) -> Tensor:
        """`[B, 1 + biases, H, W]`: the full-gradient terms that lie in space, as FullGrad shows them.

        Absolute, stretched to [0, 1] over each image and layer, enlarged, and summed over channels. The target layer
        plays no part.
        """
        del layer
        assert self.biases is not None
        found = self.biases.decompose(self.scores.sum(), self.inputs["pixel_values"])
        layout = AnyLayout(self.adapter.prefixes)
        terms = [_shown(found.pixels, self.size)]
        for term in found.biases.values():
            if len(term) != len(found.pixels):
                continue  # windows in the batch, of which a square one would pass for a small picture
            try:
                terms.append(_shown(layout.to_spatial(term, self.picture_size), self.size))
            except LayoutError:
                continue  # behind the pooling: of no place in the picture
        return torch.stack(terms, 1)

    @cached_property
    def trace(self) -> AttentionTrace:
        """What attention did, without gradients.

        Raises:
            MethodError: it does not run over all of the picture's cells.
        """
        grids: list[Size] = []
        for layer in self.adapter.layers:
            rows, columns = self.activations(layer).shape[-2:]
            grids.append((rows, columns))
        assert self.captured.pixels is not None
        layouts = (*self.adapter.layouts, AnyLayout(self.adapter.prefixes))
        watched, pixels = self.captured.watched, self.captured.pixels
        return trace_of(watched, pixels, self.scores.sum(), layouts, grids, self.picture_size)

    @cached_property
    def _read(self) -> AttentionTrace:
        [gradient] = self._gradients_at([self.trace.last.output])
        return self.trace.with_gradients([None] * (len(self.trace.calls) - 1) + [gradient])

    @cached_property
    def _differentiated(self) -> AttentionTrace:
        return self.trace.with_gradients(self._gradients_at([call.output for call in self.trace.calls]))

    def _gradients_at(self, outputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
        found: Sequence[Tensor | None] = torch.autograd.grad(
            self._connected(self.scores.sum()), outputs, retain_graph=True, allow_unused=True
        )
        if found[-1] is None or not found[-1].any():
            raise NoGradientError("the target's gradient is zero at the last attention: nothing there influences it")
        return found

    def _connected(self, score: Tensor) -> Tensor:
        if not score.requires_grad:
            raise DetachedError("the target does not depend on the model's attention: it is a constant or was detached")
        return score

    @cached_property
    def _readouts(self) -> Readouts:
        """LeGrad's: each layer of the encoder, read by the model's own head."""
        trace, record = self.trace, self.captured.watched
        if trace.decoder:
            raise MethodError("'legrad' is not defined where queries read the cells by cross-attention; 'chefer' is")
        blocks = [record.block_of(call) for call in trace.encoder]
        if len(set(blocks)) != len(blocks):
            raise MethodError("'legrad' needs one attention a block; 'chefer' is defined here")
        outputs = {record.names[done.module]: done.output for done in record.finished}
        tail = tail_after(record, self.captured, blocks[-1], unwrap(self.model), self.inputs)
        return Readouts(
            tuple(
                self._readout(call, first_tensor(outputs[block]), tail)
                for call, block in zip(trace.encoder, blocks, strict=True)
            ),
            trace.cells,
        )

    def _readout(self, call: Attention, tokens: Tensor | None, tail: Tail) -> Attention:
        assert tokens is not None
        if self.trace.pool is None:
            reading = tail.together(tokens.mean(1, keepdim=True).expand_as(tokens))
        else:
            with recording(unwrap(self.model)) as again:
                reading = tail.together(tokens)
            call = next(other for other in again.calls if other.layer == self.trace.pool.layer)
        score = self._connected(target_values(reading, self.targets).sum())
        [gradient] = torch.autograd.grad(score, call.output, retain_graph=True, allow_unused=True)
        return replace(call, gradient=gradient)

    def terms(self, attend: Attend) -> Tensor:
        """`[B, blocks + 1, h, w]`: token times gradient by local rules, before the first block and after each.

        Runs the model once more, under those rules.
        """
        module, record, trace = unwrap(self.model), self.captured.watched, self.trace
        blocks = list(dict.fromkeys(record.block_of(call) for call in trace.encoder))
        tokens: list[Tensor] = []
        handles = [module.get_submodule(blocks[0]).register_forward_pre_hook(_collector(tokens), with_kwargs=True)]
        handles += [
            module.get_submodule(block).register_forward_hook(lambda _, __, output: _keep(tokens, output))
            for block in blocks
        ]
        with borrowed(module), torch.enable_grad():
            pixels = self.inputs["pixel_values"].detach().requires_grad_()
            try:
                with LocalRules(attend):
                    outputs = call(module, {**self.inputs, "pixel_values": pixels})
                    score = target_values(outputs, self.targets).sum()
            finally:
                for handle in handles:
                    handle.remove()
            found = torch.autograd.grad(self._connected(score), tokens, allow_unused=True)
        return torch.stack(
            [
                trace.cells((token.detach() * (0 if gradient is None else gradient)).sum(-1))
                for token, gradient in zip(tokens, found, strict=True)
            ],
            1,
        )

    def _activation(self, layer: str) -> Tensor:
        return self.captured.activations[self.adapter.layers.index(layer)]


PROVIDERS: dict[str, Callable[[Run, str], Any]] = {
    "activations": Run.activations,
    "gradients": Run.gradients,
    "curvature": Run.curvature,
    "ablated_scores": Run.ablated_scores,
    "masked_scores": Run.masked_scores,
    "gradient_terms": Run.gradient_terms,
    "attention": lambda run, layer: run._read,  # noqa: SLF001
    "attention_gradients": lambda run, layer: run._differentiated,  # noqa: SLF001
    "readouts": lambda run, layer: run._readouts,  # noqa: SLF001
    "halved_terms": lambda run, layer: run.terms("halved"),
    "frozen_terms": lambda run, layer: run.terms("frozen"),
}


def _collector(tokens: list[Tensor]) -> Callable[..., None]:
    def collect(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = first_tensor(args) if args else first_tensor(kwargs)
        assert given is not None
        tokens.append(given)

    return collect


def _keep(tokens: list[Tensor], output: Any) -> None:
    found = first_tensor(output)
    assert found is not None
    tokens.append(found)


def _shown(term: Tensor, size: Sequence[int]) -> Tensor:
    """`[B, C, *space]` to `[B, *size]`: absolute, stretched to [0, 1] over channels and cells, enlarged, summed."""
    strength = normalize(term.float().abs().reshape(len(term), 1, -1)).reshape(term.shape)
    return resize(strength.sum(1), size)


def _channel_axis(activation: Tensor, spatial: Tensor) -> int:
    """Where the channels lie in a layer's output, told by their number.

    Raises:
        LayoutError: nowhere, because a reshape function changed their number.
    """
    for axis in (1, activation.ndim - 1) if activation.ndim == spatial.ndim else (activation.ndim - 1,):
        if activation.shape[axis] == spatial.shape[1]:
            return axis
    raise LayoutError(f"no axis of {tuple(activation.shape)} has the {spatial.shape[1]} channels that reshape returns")


def in_chunks(count: int, size: int, run: Callable[[int, int, int], Tensor], sample: int) -> Tensor:
    """`run(sample, start, stop)` over a range; the chunk is halved where the device's memory does not hold it."""
    found, start = [], 0
    while start < count:
        try:
            found.append(run(sample, start, min(start + size, count)))
        except RuntimeError as error:
            if size == 1 or not _is_out_of_memory(error):
                raise
            size //= 2
            torch.cuda.empty_cache()
        else:
            start += size
    return torch.cat(found)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # Only CUDA has an exception of its own for it.
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in words or "can't allocate memory" in words


def target_values(outputs: Any, targets: Sequence[Target]) -> Tensor:
    """The value of each sample's target, `[B]`.

    Raises:
        TargetError: a target does not fit the output, or is no scalar.
    """
    return torch.stack([_value(target, sample_of(outputs, i, len(targets))) for i, target in enumerate(targets)])


def _value(target: Target, output: Any) -> Tensor:
    name = getattr(target, "__name__", None) or repr(target)
    try:
        value = target(output)
    except (IndexError, AttributeError, KeyError) as error:
        raise TargetError(f"the target {name} does not fit the model's output: {error}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TargetError(f"a target must return a scalar tensor, {name} returned {got}")
    return value.reshape(())


@contextmanager
def twice_differentiable(needed: bool) -> Iterator[None]:
    """Run attention with the kernel that has a second derivative (the fused ones have none)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if needed:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield
