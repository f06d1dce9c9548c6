"""Vision transformer (Dosovitskiy et al., arXiv:2010.11929) as masked autoencoder (He et al., arXiv:2111.06377).

A picture of (C, size, size) is a row of N = (size / patch)^2 patches of C patch^2 values, in reading order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedAutoencoder(nn.Module):
    """Predicts all patches of a picture from some of them; only those pass the encoder.

    Args:
        channels, size, patch: of the picture; `size` is a multiple of `patch`.
        encoder, decoder: (width, depth, heads) of the two transformers; a width is a multiple of its heads and of 4.
    """

    def __init__(
        self, channels: int, size: int, patch: int, encoder: tuple[int, int, int], decoder: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.patch = patch
        values, (wide, deep, heads), (decoder_wide, decoder_deep, decoder_heads) = channels * patch**2, encoder, decoder
        self.embed = nn.Linear(values, wide)
        self.summary = nn.Parameter(0.02 * torch.randn(1, 1, wide))  # the class token
        self.encoder = nn.Sequential(*(Block(wide, heads) for _ in range(deep)), nn.LayerNorm(wide, eps=1e-6))
        self.hand_over = nn.Linear(wide, decoder_wide)
        self.hidden = nn.Parameter(0.02 * torch.randn(1, 1, decoder_wide))  # the mask token
        self.decoder = nn.Sequential(
            *(Block(decoder_wide, decoder_heads) for _ in range(decoder_deep)), nn.LayerNorm(decoder_wide, eps=1e-6)
        )
        self.picture = nn.Linear(decoder_wide, values)
        self.register_buffer("places", positions(size // patch, wide), persistent=False)
        self.register_buffer("decoder_places", positions(size // patch, decoder_wide), persistent=False)
        self.places: Tensor
        self.decoder_places: Tensor
        self.apply(started)

    def forward(self, x: Tensor, order: Tensor, seen: int) -> Tensor:
        """Predict.

        Args:
            x: (B, channels, size, size).
            order: (B, N) a permutation of the patches for each image.
            seen: how many of them, the first in `order`, the encoder sees.

        Returns:
            (B, N, values) all patches in reading order; what it says about patches it saw was never learned.
        """
        patches = self.embed(patched(x, self.patch)) + self.places[1:]
        visible = patches.take_along_dim(order[:, :seen, None], 1)
        summary = (self.summary + self.places[0]).expand(len(x), -1, -1)
        told = self.hand_over(self.encoder(torch.cat([summary, visible], 1)))
        rows = torch.cat([told[:, 1:], self.hidden.to(told).expand(len(x), order.shape[1] - seen, -1)], 1)
        rows = rows.take_along_dim(order.argsort(1)[:, :, None], 1)
        rows = torch.cat([told[:, :1], rows], 1) + self.decoder_places
        predicted: Tensor = self.picture(self.decoder(rows)[:, 1:])
        return predicted


class Block(nn.Module):
    """Attention, then a hidden layer four times as wide, each on the normed input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first_norm = nn.LayerNorm(width, eps=1e-6)
        self.asked = nn.Linear(width, 3 * width)  # query, key and value
        self.answered = nn.Linear(width, width)
        self.second_norm = nn.LayerNorm(width, eps=1e-6)
        self.hidden = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first_norm(x))
        return x + self.hidden(self.second_norm(x))  # type: ignore[no-any-return]

    def attention(self, x: Tensor) -> Tensor:
        """(B, N, width) to the same: each token asks all of them."""
        query, key, value = self.asked(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value)
        answered: Tensor = self.answered(heads.transpose(1, 2).flatten(2))
        return answered


def started(module: nn.Module) -> None:
    """Linear layers begin as in He et al.: weights Xavier-uniform, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def positions(side: int, width: int) -> Tensor:
    """(1 + side^2, width) fixed place of the class token (zeros) and of each patch, row by row.

    Half the entries tell the row and half the column, as sines and cosines of it at wavelengths from 2 pi to
    2 pi 10000 (He et al.; Vaswani et al., arXiv:1706.03762).
    """
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * rates
    place = torch.cat([angles.sin(), angles.cos()], 1)  # (side, width / 2)
    grid = torch.cat([place.repeat_interleave(side, 0), place.repeat(side, 1)], 1)
    return torch.cat([torch.zeros_like(grid[:1]), grid]).float()


def patched(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) to (B, N, C patch^2): square patches in reading order, each channel by channel and row by row."""
    return F.unfold(x, patch, stride=patch).transpose(1, 2)


def unpatched(patches: Tensor, patch: int, size: int) -> Tensor:
    """(B, N, C patch^2) to (B, C, size, size); inverse of `patched`."""
    return F.fold(patches.transpose(1, 2), size, patch, stride=patch)
