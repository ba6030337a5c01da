"""Nets of which each has one peculiarity, for the tests of where hf-cam looks; all weights are random."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 32


def made(kind: Callable[..., nn.Module], *args: object, seed: int = 0, **options: object) -> nn.Module:
    """A net in evaluation mode, with the same weights at every call."""
    torch.manual_seed(seed)
    return kind(*args, **options).eval()


def backbone(channels: int = 3) -> nn.Sequential:
    """Two strided convolutions, 3 is the last layer: `[B, 16, H / 4, W / 4]`."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
    )  # fmt: skip


class Plain(nn.Module):
    """A classifier; `forward` is what the tests vary."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.b, self.fc = backbone(channels), nn.Linear(16, 4)

    def scores(self, image: Tensor) -> Tensor:
        return self.fc(self.b(image).mean((2, 3)))

    def forward(self, image: Tensor) -> Tensor:
        return self.scores(image)


class Block(nn.Module):
    """A block of OpenAI's CLIP; `first` is batch first."""

    def __init__(self, first: bool = True) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, 4, batch_first=first)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class OwnBlock(nn.Module):
    """Attention of its own, fused or step by step."""

    def __init__(self, first: bool, fused: bool) -> None:
        super().__init__()
        self.first, self.fused = first, fused
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        to, back = ((0, 2, 1, 3), (0, 2, 1, 3)) if self.first else ((1, 2, 0, 3), (2, 0, 1, 3))
        query, key, value = (part.unflatten(-1, (4, -1)).permute(to) for part in self.qkv(self.norm(x)).chunk(3, -1))
        if self.fused:
            read = functional.scaled_dot_product_attention(query, key, value)
        else:
            read = ((query @ key.mT) * query.shape[-1] ** -0.5).softmax(-1) @ value
        x = x + self.out(read.permute(back).flatten(2))
        return x + self.mlp(x)


class Tokens(nn.Module):
    """A transformer whose tokens lie batch first or tokens first in its blocks.

    Args:
        first: Batch first.
        block: From `first` to a block.
        front: Tokens before the grid; the head reads the first, or the mean of all if there are none.
        joined_first: The tokens in front are joined when the tokens already come first.
    """

    def __init__(
        self, first: bool, block: Callable[[bool], nn.Module] = Block, front: int = 1, joined_first: bool = False
    ) -> None:
        super().__init__()
        self.first, self.joined_first = first, joined_first
        self.patch, self.front = nn.Conv2d(3, WIDTH, 16, 16), nn.Parameter(torch.randn(front, 1, WIDTH))
        self.blocks = nn.ModuleList(block(first) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).permute(2, 0, 1)
        front = self.front.expand(-1, x.shape[1], -1)
        if self.first or not self.joined_first:
            x = torch.cat([front.transpose(0, 1), x.transpose(0, 1)], 1)
            x = x if self.first else x.transpose(0, 1)
        else:
            x = torch.cat([front, x])
        for block in self.blocks:
            x = block(x)
        x = self.norm(x if self.first else x.transpose(0, 1))
        return self.head(x[:, 0] if len(self.front) else x.mean(1))


class Queries(nn.Module):
    """DETR as in its demo: a backbone and `nn.Transformer`."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.b, self.conv = first, backbone(), nn.Conv2d(16, WIDTH, 4, 4)
        self.transformer = nn.Transformer(WIDTH, 4, 2, 2, 64, 0.0, batch_first=first)
        self.query, self.classes = nn.Parameter(torch.rand(6, WIDTH)), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.conv(self.b(x)).flatten(2)
        queries = self.query[:, None].expand(-1, len(x), -1)
        if self.first:
            found = self.transformer(tokens.permute(0, 2, 1), queries.transpose(0, 1))
        else:
            found = self.transformer(tokens.permute(2, 0, 1), queries).transpose(0, 1)
        return {"logits": self.classes(found)}


def twins(kind: Callable[..., nn.Module], **options: object) -> tuple[nn.Module, nn.Module]:
    """The same net batch first and tokens first."""
    one, other = made(kind, True, **options), made(kind, False, **options)
    other.load_state_dict(one.state_dict())
    return one, other
