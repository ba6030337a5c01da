"""What a model would write without the picture: the check of how far a word depends on it.

Gradients do not tell: where the model is certain, they vanish, however much its certainty is owed to the picture. So
the answer is read twice more: while the picture is hidden from everything behind it, and with a blank picture. Few
models have seen either in training, and some lose any word there; a word is owed to the picture if both lose it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hf_cam.capture.inputs import call
from hf_cam.errors import ModelError
from hf_cam.words.locate import Known
from hf_cam.words.weighing import Question, agree

SAME = 1e-3
"""Largest difference of the log-probabilities of two forwards that see the same."""


class Hidden(TorchFunctionMode):
    """Hide all positions from the first to the last cell of the picture from those behind, in all calls of attention.

    What lies between the cells, as the ends of rows or other text, is hidden too: it has seen them.

    Args:
        cells: `[n]` positions of the picture's cells in the text.
        queries: The number of positions of the forward, which are the last ones.
        length: The number of all positions, with those of a cache.
    """

    def __init__(self, cells: Tensor, queries: int, length: int) -> None:
        super().__init__()
        self.first, self.last = int(cells.min()), int(cells.max())
        self.queries, self.length = queries, length

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        if getattr(func, "__name__", "") == "softmax" and args and self._fits(args[0].shape):
            scores = args[0]
            args = (scores.masked_fill(self._hides(scores), float("-inf")), *args[1:])
        return func(*args, **kwargs)

    def _fits(self, shape: torch.Size) -> bool:
        """Of scores `[1, heads, queries, keys]`."""
        return (
            len(shape) == 4 and shape[0] == 1 and shape[2] == self.queries and self.queries <= shape[3] <= self.length
        )

    def _hides(self, scores: Tensor) -> Tensor:
        """Bool `[queries, keys]`; a call with fewer keys than positions has the last ones."""
        keys = torch.arange(self.length - scores.shape[3], self.length, device=scores.device)
        rows = torch.arange(self.length - self.queries, self.length, device=scores.device)
        return (rows[:, None] > self.last) & (keys >= self.first) & (keys <= self.last)

    def _fused(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        settings = {**dict(zip(("dropout_p", "is_causal"), args, strict=False)), **kwargs}
        if query.ndim != 4 or not self._fits(torch.Size((*query.shape[:3], key.shape[2]))):
            return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
        hides = self._hides(query.new_empty(1, 1, 1, 1).expand(1, 1, self.queries, key.shape[2]))
        if settings.pop("is_causal", False):
            at = torch.arange(key.shape[2], device=query.device)
            hides = hides | (at > at[: self.queries, None])  # the fused function aligns both at the first position
        if attn_mask is None:
            mask = ~hides
        elif attn_mask.dtype == torch.bool:
            mask = attn_mask & ~hides
        else:
            mask = attn_mask.masked_fill(hides, float("-inf"))
        found: Tensor = F.scaled_dot_product_attention(query, key, value, mask, **settings)
        return found


def readings_without(known: Known, question: Question) -> tuple[Tensor, ...]:
    """The logits `[T, V]` at the rows that predict the tokens, with the picture hidden and with a blank one.

    The picture is hidden from the attention of what follows, in a forward over that alone on the generation's cache, or
    over the whole text. Whether that hides it is checked once per model: another picture must then lead to the same
    logits. Where it does not, as through recurrent states or states that are attended to, noise takes its place. An
    answer with placeholders of pictures is read with the picture hidden alone.

    Args:
        known: What was measured on the model; the way that holds is added.
        question: What is explained.
    """
    if _writes_placeholders(question):  # no forward over the whole text takes them
        return (_from_cache(question),)
    if known.removal is None:
        known.removal = _way(question)
    return WAYS[known.removal](question), _replaced(question, question.blank())


def _way(question: Question) -> str:
    """The cheapest way that removes the picture."""
    if not question.within_text:
        return "noise"
    try:
        cached = _from_cache(question)
    except ModelError:
        cached = None
    noisy = _hidden(question, question.noisy())
    if cached is not None and _same(cached, noisy, question):
        return "cache"
    whole = _hidden(question, question.whole())
    if not _same(whole, noisy, question):
        return "noise"
    # Where the two differ, as where a prompt is read in both directions, the words were written on the cache.
    return "text" if cached is None or _reads_as_written(question) else "cache"


def _reads_as_written(question: Question) -> bool:
    return agree(_replaced(question, question.whole()), question)


def _writes_placeholders(question: Question) -> bool:
    """Whether the answer has tokens that stand for pictures, as untrained models write them."""
    ids = question.whole().get("input_ids")
    if ids is None or not question.within_text:
        return False
    return bool(torch.isin(question.score.tokens.to(ids.device), ids[0, question.place.cells.to(ids.device)]).any())


def _same(one: Tensor, other: Tensor, question: Question) -> bool:
    tokens = question.score.tokens[:, None].to(one.device)
    one, other = (logits.float().log_softmax(1).gather(1, tokens) for logits in (one, other))
    return bool(((one - other).abs() <= SAME + SAME * one.abs()).all())


@torch.no_grad()
def _hidden(question: Question, inputs: Mapping[str, Any], *, behind: bool = False) -> Tensor:
    """In a forward over the whole text, or over what is behind the picture on a cache."""
    queries = question.length - (int(question.place.cells.max()) + 1 if behind else 0)
    with Hidden(question.place.cells, queries, question.length):
        logits: Tensor = call(question.model, inputs)["logits"]
    return logits[0, question.rows]


def _from_cache(question: Question) -> Tensor:
    inputs = question.cached(int(question.place.cells.max()) + 1)
    if inputs is None:
        raise ModelError("the model has no cache of its generation that can be cut behind the picture")
    return _hidden(question, inputs, behind=True)


def _cached(question: Question) -> Tensor:
    try:
        return _from_cache(question)
    except ModelError:  # of this generation, as one by several beams
        return _hidden(question, question.whole())


@torch.no_grad()
def _replaced(question: Question, inputs: Mapping[str, Any]) -> Tensor:
    logits: Tensor = call(question.model, inputs)["logits"]
    return logits[0, question.rows]


WAYS: Mapping[str, Callable[[Question], Tensor]] = {
    "cache": _cached,
    "text": lambda question: _hidden(question, question.whole()),
    "noise": lambda question: _replaced(question, question.noisy()),
}
"""How the picture is hidden."""


def evidence_of(likely: Tensor, without: Sequence[Tensor]) -> Tensor:
    """The share of a word's probability that is owed to the picture, in [0, 1]: what every reading without it loses.

    Args:
        likely: Probabilities of words.
        without: The same in each reading without the picture.

    >>> evidence_of(torch.tensor([0.8, 0.5, 0.8]), [torch.tensor([0.2, 0.6, 0.1]), torch.tensor([0.1, 0.0, 0.8])])
    tensor([0.7500, 0.0000, 0.0000])
    """
    kept = torch.stack([*without]).amax(0)
    return (1 - kept / likely.clamp_min(torch.finfo(likely.dtype).tiny)).clamp(0, 1)
