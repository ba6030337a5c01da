"""What is differentiated for each token of an answer: its log-probability, or its logit less that of another token."""

from __future__ import annotations

from dataclasses import dataclass, field

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
