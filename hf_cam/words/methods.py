"""The methods that weigh the picture's cells for each word, and their registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from hf_cam.errors import MethodError
from hf_cam.methods.options import required_of
from hf_cam.registry import Registry
from hf_cam.words.entry import Entry
from hf_cam.words.readout import Readout
from hf_cam.words.rows import Rows

Weights = TypeVar("Weights", bound=Callable[..., Tensor])
Signal = Literal["linear_rows", "gradient_rows", "attention_rows", "entry", "relevance_entry", "readout"]
"""What a method may need: the attention rows that predict the words, with gradients that see norms, gates and attention
as constant, with plain ones or with none; the picture's cells where they enter with the words' gradients, plain or by
AttnLRP's rules; the words' logits at the picture's cells."""


@dataclass(frozen=True)
class WordMethod:
    """One method: how much each cell of the picture contributed to each word.

    Args:
        id: The name in `explain(method=...)`.
        weights: Pure function of signals, to weights `[words, n]`, or `[T, n]` of tokens, which are summed for each
            word and cut at 0 then. Its parameters without a default name the signals.
        paper: Authors, title or venue, and arXiv id.
        summary: One sentence.
        departure: One line on what it does otherwise than its paper; empty if nothing.
    """

    id: str
    weights: Callable[..., Tensor] = field(repr=False)
    paper: str
    summary: str
    departure: str = ""

    @property
    def source(self) -> Callable[..., Any]:
        """The registered function."""
        return self.weights

    @property
    def needs(self) -> tuple[str, ...]:
        """The signals that it needs."""
        return required_of(self.weights)


def _check_signals(method: WordMethod) -> None:
    if unknown := set(method.needs) - set(get_args(Signal)):
        raise MethodError(f"{method.id!r} needs {min(unknown)!r}; the signals are {', '.join(get_args(Signal))}")


WORD_METHODS: Registry[WordMethod] = Registry("method for words", MethodError, check=_check_signals)


def word_method(
    method_id: str, *, paper: str, summary: str, departure: str = "", replace: bool = False
) -> Callable[[Weights], Weights]:
    """Register a pure function of signals as a method for words; the function is returned unchanged.

    Args:
        method_id, paper, summary, departure: See `WordMethod`.
        replace: Also replace a method of the same id that comes from elsewhere.

    Raises:
        MethodError: the id is malformed or taken, or the function needs a signal that does not exist.
    """

    def add(weights: Weights) -> Weights:
        WORD_METHODS.add(WordMethod(method_id, weights, paper, summary, departure), replace)
        return weights

    return add


def list_word_methods() -> dict[str, WordMethod]:
    """All methods for words by id, the default first.

    >>> [*list_word_methods()][0]
    'word-contribution'
    """
    return WORD_METHODS.records()


def joined(rows: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """The sums over each word's tokens, `[words, n]`, of rows per token, `[T, n]`.

    >>> joined(torch.tensor([[1.0], [2.0], [4.0]]), [[0], [1, 2]])
    tensor([[1.],
            [6.]])
    """
    return torch.stack([rows[list(word)].sum(0) for word in words])


@word_method(
    "word-contribution",
    paper="after Ali et al., ICML 2022, arXiv:2202.07304, and Ferrando et al., ACL 2023, arXiv:2305.12535",
    summary="What the rows that predict a word take from each cell by attention, as shares of the word's score.",
    departure="Shares pass later layers by gradients that see norms and gates as constant, and end at keys and values.",
)
def word_contribution(linear_rows: Rows) -> Tensor:
    """`w[t, n] = sum over layers and heads of A[t, n] <v[n], ds_t/do[t]>`, `[T, n]`, of either sign.

    `o[t] = sum_n A[t, n] v[n]` is what a head returns. With norms, gates and attention held constant, a logit without
    biases is the sum of these terms over all keys and of the term of the row's own embedding. The plain gradient of a
    norm is blind along the state, so that whatever already points to the word would count for nothing.
    """
    return _summed(one.sum(0) for one in _products(linear_rows))


@word_method(
    "word-relevance",
    paper="after Chefer et al., ICCV 2021, arXiv:2103.15679",
    summary="Attention times its gradient in the rows that predict a word, over all layers and heads.",
    departure="The rows are summed over the layers, not propagated from layer to layer; keys and values are constant.",
)
def word_relevance(gradient_rows: Rows) -> Tensor:
    """`w[t, n] = sum over layers and heads of relu(A[t, n] * ds_t/dA[t, n])`, `[T, n]`."""
    return _summed(one.clamp_min(0).sum(0) for one in _products(gradient_rows))


@word_method(
    "attention-contrast",
    paper="after Zhang et al., MLLMs Know Where to Look, ICLR 2025, arXiv:2502.17422",
    summary="Attention in the rows that predict a word, less its mean over the answer; no backward.",
    departure="The reference is the mean of the answer's rows; the paper divides by the attention of another prompt.",
)
def attention_contrast(attention_rows: Rows) -> Tensor:
    """`relu(a[t, n] - mean_t a[t, n])`, where `a` is the mean over layers and heads, `[T, n]`."""
    mean = _summed(row.weights.mean(0) for row in attention_rows) / max(len(attention_rows.calls), 1)
    return (mean - mean.mean(0)).clamp_min(0)


@word_method(
    "word-gradient-x-input",
    paper="Shrikumar et al., 2016, arXiv:1605.01713",
    summary="Gradient times input where the picture enters the language model; one backward per word.",
)
def word_gradient_x_input(entry: Entry) -> Tensor:
    """`relu(sum_d x[n, d] * ds_w/dx[n, d])`, `[words, n]`."""
    return torch.stack([(gradient.float() * entry.states.float()).sum(-1) for gradient in entry.gradients]).clamp_min(0)


@word_method(
    "word-attnlrp",
    paper="Achtibat et al., AttnLRP, ICML 2024, arXiv:2402.05602",
    summary="Relevance by AttnLRP's rules where the picture enters the language model; one backward per word.",
    departure="The epsilon rule alone; the paper uses the gamma rule in the vision tower, which is not differentiated.",
)
def word_attnlrp(relevance_entry: Entry) -> Tensor:
    """Gradient times input under the rules, `[words, n]`."""
    return word_gradient_x_input(relevance_entry)


@word_method(
    "tam",
    paper="Li et al., Token Activation Map, ICCV 2025, arXiv:2506.23270",
    summary="Logit of the word at the picture's positions, less what earlier words explain; no backward.",
    departure="Interference is estimated from the answer's own tokens, and the rank Gaussian filter is left out.",
)
def token_activation(readout: Readout) -> Tensor:
    """`relu(a_t - s_t i_t)`, `[T, n]`: the logits of a token at the cells, less what earlier tokens explain.

    `a_t = relu(<x_n, u_t>)`, `i_t` is the mean of earlier maps by textual relevance, and `s_t` its best fit to `a_t`.
    """
    maps = readout.at_cells.float().clamp_min(0)
    found = [maps[0]]
    for t in range(1, len(maps)):
        relevance = readout.at_tokens[t, :t].float().clamp_min(0)
        relevance = relevance * (readout.tokens[:t] != readout.tokens[t]).to(relevance)
        interference = (relevance[:, None] * maps[:t]).sum(0) / relevance.sum().clamp_min(1e-12)
        share = (maps[t] * interference).sum() / interference.square().sum().clamp_min(1e-12)
        found.append((maps[t] - share * interference).clamp_min(0))
    return torch.stack(found)


def _products(rows: Rows) -> Iterator[Tensor]:
    """Attention times its gradient, `[heads, T, n]`, call by call; those without a gradient are left out."""
    return (row.weights * row.gradients for row in rows if row.gradients is not None)


def _summed(parts: Any) -> Tensor:
    total: Tensor | None = None
    for part in parts:
        total = part if total is None else total + part
    if total is None:
        raise MethodError("the model makes no call of attention that shows its queries and keys")
    return total
