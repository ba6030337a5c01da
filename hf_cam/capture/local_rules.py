"""Gradients by modified local rules on the unmodified model; the values of the forward do not change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hf_cam.capture.recorder import MATMUL, is_plain_multi_head, multi_head

Attend = Literal["frozen", "halved"]
Gates = Literal["halved", "frozen"]

ACTIVATIONS = {F.gelu, F.silu, F.hardswish, F.mish, F.elu, F.leaky_relu, F.tanh, torch.tanh, Tensor.tanh}
SIGMOIDS = {torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.tanh, Tensor.tanh, F.tanh}
ROOTS = {torch.sqrt, Tensor.sqrt, torch.rsqrt, Tensor.rsqrt, torch.norm, Tensor.norm, torch.linalg.vector_norm}
POWERS = {"pow", "__pow__"}
PRODUCTS = {"mul", "__mul__", "multiply"}
SUMS = {"add", "__add__", "__radd__"}


class _Instead(torch.autograd.Function):
    """A value whose gradient flows to a surrogate."""

    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class LocalRules(TorchFunctionMode):
    """A mode under which gradients flow by modified rules; the values of the forward do not change.

    - the scale of a norm is constant, so that the norm is linear (layer, group and RMS norms, lengths of embeddings);
    - an activation `f(x)` is `x` times the constant `f(x) / x`; a sigmoid or tanh that multiplies is constant;
    - attention weights are constant (`attend="frozen"`: LibraGrad), or each factor of the products in attention gets
      half of the gradient ("halved": AttnLRP);
    - in any other product of which both factors depend on the picture, such as that of a gated MLP (SwiGLU), each
      factor gets half of the gradient (`gates="halved"`: both papers), or the activated factor, the gate, is constant
      ("frozen").

    With frozen attention, the terms of the picture and of all biases sum to the score under either rule for gates.

    Papers: Mehri et al., LibraGrad, CVPR 2025, arXiv:2411.16760; Achtibat et al., AttnLRP, ICML 2024, arXiv:2402.05602.
    """

    def __init__(self, attend: Attend, gates: Gates = "halved") -> None:
        super().__init__()
        self.attend, self.gates = attend, gates
        # Tensors that may be gates, keyed by identity and kept alive so that no identity is reused.
        self._gates: dict[int, tuple[Tensor, bool]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute, as in half of all calls
            return func(*args)
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is F.multi_head_attention_forward and is_plain_multi_head(args, kwargs):
            with self:
                return multi_head(*args, **kwargs)
        if func in SURROGATES:
            return _Instead.apply(SURROGATES[func](*args, **kwargs), func(*args, **kwargs).detach())
        if func in ACTIVATIONS:
            return self._activation(func, args, kwargs)
        if (name in PRODUCTS or name in MATMUL) and len(args) == 2 and all(_is_live(arg) for arg in args):
            return self._product(func, name, *args)
        result = func(*args, **kwargs)
        if func in ROOTS or (name in POWERS and len(args) > 1 and args[1] in (0.5, -0.5)):
            return result.detach()
        if func in SIGMOIDS:
            self._gates[id(result)] = (result, True)
        elif func in (F.relu, torch.relu, Tensor.relu):
            self._gates[id(result)] = (result, False)
        elif name in SUMS and (known := next((id(arg) for arg in args if id(arg) in self._gates), None)) is not None:
            self._gates[id(result)] = (result, self._gates[known][1])
        elif name == "softmax" and self.attend == "frozen" and result.ndim == 4:
            return result.detach()
        return result

    def _activation(self, func: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
        given, rest = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
        copy = given.detach().clone()  # over which the function may write
        value = func(copy, *rest, **kwargs)
        ratio = torch.where(given == 0, torch.zeros_like(value), value / torch.where(given == 0, 1, given)).detach()
        result: Tensor = _Instead.apply(given * ratio, value)
        result = given.copy_(result) if value is copy else result
        self._gates[id(result)] = (result, func in SIGMOIDS)
        return result

    def _product(self, func: Callable[..., Tensor], name: str, left: Tensor, right: Tensor) -> Tensor:
        for gate, other in ((left, right), (right, left)):
            _, always = self._gates.get(id(gate), (None, False))
            if name in PRODUCTS and id(gate) in self._gates and (always or self.gates == "frozen"):
                return func(other, gate.detach())
        return func(_half(left), _half(right))

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if self.attend == "frozen" and not _is_live(value):
            query, key = query.detach(), key.detach()  # constant weights of constant values
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        if not any(_is_live(tensor) for tensor in (query, key, value)):
            return output
        if enable_gqa and key.shape[1] != query.shape[1]:
            key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
        if is_causal:
            attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        if self.attend == "halved":
            query, key, value = _half(query), _half(key), _half(value)
        scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if attn_mask is not None:
            masked = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
        weights = scores.softmax(-1)
        weights = weights.detach() if self.attend == "frozen" else _half(weights)
        result: Tensor = _Instead.apply(weights @ value, output.detach())
        return result


def _is_live(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _half(tensor: Tensor) -> Tensor:
    """The same value, half the gradient."""
    return tensor / 2 + (tensor / 2).detach()


def _layer_norm(given: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    scale = (given.var(axes, unbiased=False, keepdim=True) + eps).rsqrt().detach()
    return _affine((given - given.mean(axes, keepdim=True)) * scale, weight, bias)


def _rms_norm(given: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    eps = torch.finfo(given.dtype).eps if eps is None else eps
    return _affine(given * (given.square().mean(axes, keepdim=True) + eps).rsqrt().detach(), weight, None)


def _group_norm(given: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    parts = given.unflatten(1, (groups, -1))
    normed = _layer_norm(parts, parts.shape[2:], eps=eps).reshape(given.shape)
    shape = (-1, *[1] * (given.ndim - 2))
    return _affine(normed, *(None if term is None else term.reshape(shape) for term in (weight, bias)))


def _normalize(given: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Tensor:
    length: Tensor = given.norm(p, dim, keepdim=True)
    return given / length.clamp_min(eps).detach()


def _cosine(left: Tensor, right: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    return (_normalize(left, dim=dim, eps=eps) * _normalize(right, dim=dim, eps=eps)).sum(dim)


def _affine(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = normed if weight is None else normed * weight
    return scaled if bias is None else scaled + bias


SURROGATES: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.normalize: _normalize,
    F.cosine_similarity: _cosine,
    torch.cosine_similarity: _cosine,
}
