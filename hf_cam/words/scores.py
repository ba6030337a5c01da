"""What is differentiated for each token of an answer: its log-probability, or its logit less that of another token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Score:
    """The scores of the T tokens of an answer.

    Args:
        tokens: `[T]` ids.
        others: The ids that single tokens are contrasted with, by the token's index in the answer.
    """

    tokens: Tensor = field(repr=False)
    others: dict[int, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """T."""
        return len(self.tokens)

    def values(self, logits: Tensor) -> Tensor:
        """`[T]`, from the logits `[T, V]` at the rows that predict the tokens.

        >>> Score(torch.tensor([0]), {0: 1}).values(torch.tensor([[2.0, 0.5, 9.0]]))
        tensor([1.5000])
        """
        logits = logits.float()
        own = logits.gather(1, self.tokens.to(logits.device)[:, None])[:, 0]
        less = torch.logsumexp(logits, 1)
        if not self.others:
            return own - less
        rows = torch.tensor(list(self.others), device=logits.device)
        rivals = torch.tensor(list(self.others.values()), device=logits.device)
        return own - less.index_copy(0, rows, logits[rows, rivals])

    def probabilities(self, logits: Tensor) -> Tensor:
        """`[T]` in [0, 1], of the tokens themselves."""
        logits = logits.detach().float()
        return logits.softmax(1).gather(1, self.tokens.to(logits.device)[:, None])[:, 0].cpu()


@dataclass(frozen=True)
class WordScore:
    """The log-probability of a word of an answer, or its logit less that of the token that it is contrasted with.

    Args:
        text: The answer.
        ids: Of its T tokens.
        tokens: The indices of the word's tokens.
        other: The id that the word's only token is contrasted with; None for a log-probability.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    other: int | None = None

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output over prompt and answer, whose last T rows predict the answer.

        >>> WordScore("a cup", (0, 1), (1,))({"logits": torch.tensor([[0.0, 9.0], [9.0, 9.0], [0.0, 0.0]])}).exp()
        tensor(0.5000)
        """
        score = Score(torch.tensor(self.ids), {} if self.other is None else {self.tokens[0]: self.other})
        return score.values(output["logits"][-len(self.ids) :])[list(self.tokens)].sum()
