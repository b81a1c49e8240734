"""Tiny networks of today's kinds: attention in all its forms, norms over channels, shuffles, gates, recurrence.

All take images `(batch, 3, 8, 8)` and give scores `(batch, 4)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Tokens(nn.Module):
    """Pixels as tokens `(batch, 16, 24)`, a residual block made of `mix`, and a head."""

    def __init__(self, mix: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.embed, self.place = nn.Conv2d(3, 24, 2, 2), nn.Parameter(torch.rand(1, 16, 24))
        self.first, self.mix, self.last = norm or nn.LayerNorm(24), mix, nn.LayerNorm(24)
        self.up, self.down, self.fc = nn.Linear(24, 20), nn.Linear(20, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        x = self.embed(x).flatten(2).transpose(1, 2) + self.place
        x = x + self.mix(self.first(x))
        x = x + self.down(F.gelu(self.up(x)))
        scores: Tensor = self.fc(self.last(x).mean(1))
        return scores


class Fused(nn.Module):
    """Queries, keys and values of one layer, as in vision transformers: scores by hand or by torch's own operator."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.own = nn.Linear(24, 72), nn.Linear(24, 24), own

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens."""
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        if self.own:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * 6**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        tokens: Tensor = self.out(x.transpose(1, 2).reshape(b, n, c))
        return tokens


class Chunked(nn.Module):
    """Queries, keys and values as thirds of one layer, batch and heads in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens."""
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, 3, 8).transpose(1, 2).reshape(b * 3, n, 8) for t in self.qkv(x).chunk(3, -1))
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        x = torch.bmm(weights, v).view(b, 3, n, 8).transpose(1, 2).reshape(b, n, 24)
        tokens: Tensor = self.out(x)
        return tokens


class Shared(nn.Module):
    """Two heads of keys and values for four of queries, with rotary positions, as in Llama."""

    def __init__(self, repeat: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(24, 24), nn.Linear(24, 12), nn.Linear(24, 12, bias=False)
        self.out, self.repeat = nn.Linear(24, 24), repeat
        self.register_buffer("frequencies", torch.tensor([1.0, 0.3, 0.1]))

    def _turn(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
        angles = steps[:, None] * self.get_buffer("frequencies").to(x.dtype)[None, :]
        angles = torch.cat([angles, angles], -1)
        left, right = x[..., :3], x[..., 3:]
        return x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens."""
        b, n, _ = x.shape
        q, k, v = (part(x).view(b, n, -1, 6).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = self._turn(q), self._turn(k)
        if self.repeat:
            k, v = (t[:, :, None].expand(b, 2, 2, n, 6).reshape(b, 4, n, 6) for t in (k, v))
            x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            x = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        tokens: Tensor = self.out(x.transpose(1, 2).reshape(b, n, -1))
        return tokens


class Window(nn.Module):
    """Attention in windows that are rolled, with a bias looked up for each head, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.table = nn.Linear(24, 72), nn.Linear(24, 24), nn.Parameter(torch.rand(7, 3))
        self.scale = nn.Parameter(torch.rand(3, 1, 1))
        place = torch.arange(4)
        self.register_buffer("index", (place[:, None] - place[None, :] + 3).flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens."""
        b = x.shape[0]
        x = torch.roll(x.view(b, 4, 4, 24), (1, 1), (1, 2))
        x = x.view(b, 2, 2, 2, 2, 24).permute(0, 1, 3, 2, 4, 5).reshape(b * 4, 4, 24)
        qkv = self.qkv(x).reshape(b * 4, 4, 3, 3, 8).permute(2, 0, 3, 1, 4)
        q, k, v = F.normalize(qkv[0], dim=-1), F.normalize(qkv[1], dim=-1), qkv[2]
        weights = q @ k.transpose(-2, -1) * self.scale
        weights = weights + self.table[self.get_buffer("index")].view(4, 4, 3).permute(2, 0, 1).unsqueeze(0)
        weights = weights.view(b, 4, 3, 4, 4).view(-1, 3, 4, 4).softmax(-1)
        x = self.out((weights @ v).transpose(1, 2).reshape(b * 4, 4, 24))
        x = x.view(b, 2, 2, 2, 2, 24).permute(0, 1, 3, 2, 4, 5).reshape(b, 4, 4, 24)
        return torch.roll(x, (-1, -1), (1, 2)).view(b, 16, 24)


class Root(nn.Module):
    """A norm by the root of the mean square, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(24))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Centred(nn.Module):
    """A layer norm written out, with `(x - u) / sqrt(s + eps)`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(24)), nn.Parameter(torch.rand(24))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        u = x.mean(-1, keepdim=True)
        s = (x - u).pow(2).mean(-1, keepdim=True)
        return self.weight * ((x - u) / torch.sqrt(s + 1e-5)) + self.bias


class Einsums(nn.Module):
    """Products by letters."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(24, 3, 8) / 5) for _ in range(3))
        self.out = nn.Parameter(torch.randn(3, 8, 24) / 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens."""
        q, k, v = (torch.einsum("bnc,chd->bhnd", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bhnd,bhmd->bhnm", q, k).div(math.sqrt(8)).softmax(-1)
        return torch.einsum("bhnm,bhmd,hdc->bnc", weights, v, self.out)


class Gates(nn.Module):
    """Half of the channels gate the others, across tokens; a linear layer over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.glu, self.norm = nn.Linear(24, 32), nn.Linear(16, 24), nn.LayerNorm(16)
        self.across, self.down = nn.Linear(16, 16), nn.Linear(12, 24)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens."""
        u, v = self.up(x).chunk(2, dim=-1)
        u = u * self.across(self.norm(v).transpose(-1, -2)).transpose(-1, -2)
        tokens: Tensor = self.down(F.glu(self.glu(u), dim=-1))
        return tokens


class Recurrent(nn.Module):
    """Two layers of LSTM in both directions, then a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 6, 2, batch_first=True, bidirectional=True)
        self.gru, self.out = nn.GRU(12, 10, batch_first=True), nn.Linear(10, 24)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens."""
        x, _ = self.lstm(x)
        x, last = self.gru(x)
        tokens: Tensor = self.out(x + last.transpose(0, 1))
        return tokens


class Shuffled(nn.Module):
    """Channels in groups that are shuffled, convolved by groups, split and concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(16, 16, 1)
        self.grouped, self.norm, self.fc = nn.Conv2d(16, 24, 3, groups=4), nn.GroupNorm(3, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        left, right = self.a(x).split(8, 1)
        x = torch.cat([left, F.relu(self.b(right))], 1)
        x = x.view(-1, 2, 8, 8, 8).transpose(1, 2).reshape(-1, 16, 8, 8)
        x = F.channel_shuffle(F.relu(self.c(x)), 4)
        scores: Tensor = self.fc(F.relu(self.norm(self.grouped(x))).amax((2, 3)))
        return scores


class Enlarged(nn.Module):
    """Pixels out of channels and back, transposed convolutions with and without groups, resizing, padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up = nn.Conv2d(3, 24, 3, 2, 1), nn.ConvTranspose2d(6, 8, 2, 2)
        self.groups, self.b = nn.ConvTranspose2d(8, 12, 2, 2, groups=4), nn.Conv2d(14, 6, 3)
        self.act, self.fc = nn.PReLU(6), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        x = F.pixel_shuffle(F.relu(self.a(x)), 2)
        x = self.groups(self.up(F.avg_pool2d(x, 2)))
        x = F.pad(x, (1, 1, 1, 1, 1, 1))
        x = F.interpolate(self.act(self.b(x)), size=(4, 4), mode="bilinear")
        x = F.pixel_unshuffle(x, 2).mean((2, 3))
        scores: Tensor = self.fc(x)
        return scores


class Standardized(nn.Module):
    """Weights that are normalized before use, a response norm over pixels and channels, every second channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 3, bias=False)
        self.gamma, self.beta, self.fc = nn.Parameter(torch.rand(16)), nn.Parameter(torch.rand(16)), nn.Linear(12, 4)
        self.squeeze = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        x = F.relu(self.a(x))
        flat = self.b.weight.reshape(1, 16, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0).reshape_as(self.b.weight)
        x = F.relu(F.conv2d(x, weight)).permute(0, 2, 3, 1)
        size = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        x = x + self.gamma * (x * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.beta
        x = x[..., ::2] * x[..., 1::2]
        scores: Tensor = self.fc(F.silu(self.squeeze(torch.stack([x, x + 1]).sum(0))).mean((1, 2)))
        return scores


class Words(nn.Module):
    """Embeddings of numbers that are made of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(10, 24), nn.Embedding(16, 24)
        self.norm, self.fused, self.fc = nn.RMSNorm(24), Fused(True), nn.Linear(24, 4)
        self.register_buffer("ids", torch.arange(16)[None])

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        numbers = (x.mean(1).flatten(1)[:, :16] * 3).clamp(-4, 5).long() + 4
        tokens = self.words(numbers) + self.places(self.ids)
        scores: Tensor = self.fc(self.fused(self.norm(tokens))[:, 0])
        return scores


class Tied(nn.Module):
    """Two convolutions with one weight, known by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        x = F.relu(self.b(F.relu(self.a(F.relu(self.stem(x))))))
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


WIDER: dict[str, Callable[[], nn.Module]] = {
    "attention by hand": lambda: Tokens(Fused(False)),
    "attention": lambda: Tokens(Fused(True)),
    "chunked attention": lambda: Tokens(Chunked()),
    "repeated keys": lambda: Tokens(Shared(True), nn.RMSNorm(24)),
    "grouped queries": lambda: Tokens(Shared(False), Root()),
    "windows": lambda: Tokens(Window()),
    "torch attention": lambda: nn.Sequential(
        nn.Conv2d(3, 24, 2, 2), nn.Flatten(2), _Swap(), nn.TransformerEncoderLayer(24, 4, 20, 0.0, batch_first=True),
        _Swap(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 4),
    ),
    "einsum": lambda: Tokens(Einsums(), Centred()),
    "gates": lambda: Tokens(Gates()),
    "recurrent": lambda: Tokens(Recurrent()),
    "shuffled": Shuffled,
    "enlarged": Enlarged,
    "standardized": Standardized,
    "words": Words,
    "tied": Tied,
}  # fmt: skip


class _Swap(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Return the last two dimensions in the other order."""
        return x.transpose(1, 2)
