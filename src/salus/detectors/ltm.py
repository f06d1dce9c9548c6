"""Latent transformer model (LTM): what a language model of healthy images finds unlikely is said anew.

Written from Pinaya et al., "Unsupervised brain imaging 3D anomaly detection and segmentation with transformers",
Medical Image Analysis 79 (2022), doi:10.1016/j.media.2022.102475, with layers and settings of two later readings
for two-dimensional images, called T and G in docs/methods/ltm.md. A VQ-VAE turns an image into a small grid of codes,
its tokens; a transformer learns which tokens follow which in healthy images, read row by row. The networks are MONAI's.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salus.core.errors import ConfigError
from salus.core.machine import in_words, memory
from salus.detectors.base import (
    SMOOTHED,
    Channels,
    Detection,
    Entries,
    Preset,
    Recipe,
    Restorer,
    Side,
    Update,
    check_stages,
    first_stage,
    fitting,
    mean_squared,
    several_processes,
)
from salus.scores.base import Score

SHRINK = 4  # pixels along a token's side: the image is halved twice


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class LTMConfig:
    """Settings of `LTM`."""

    size: Side = 64  # side of the square input, pixels; T 64, G 128
    channels: Channels = 256  # of every convolution of the VQ-VAE but those around the code
    codes: int = Field(16, ge=2)  # K, vectors in the codebook
    entries: Entries = 64  # of a vector of the codebook
    decay: float = Field(0.5, ge=0, lt=1)  # d of the codebook's moving averages, a step
    commitment: float = Field(0.25, ge=0)  # weight of the encoder's distance from its code
    restart: float = Field(
        1.0, ge=0
    )  # tokens a step under which a code starts anew (Jukebox's); 0 never, as in T and G
    width: Channels = 128  # of the transformer
    depth: int = Field(16, ge=1)  # blocks of the transformer
    heads: int = Field(16, ge=1)  # of each attention; they divide the width
    stage: float = Field(0.5, gt=0, lt=1)  # share of the training for the VQ-VAE; the transformer has the rest
    threshold: Literal["per_image_quantile", "validation_quantile"] = "per_image_quantile"  # where healing begins
    quantile: float = Field(0.03, gt=0, lt=1)  # share of the tokens below it; the tutorial's comment says 5 %
    masked: bool = True  # the map shows healed tokens alone, as in T; off: the whole image, as in G
    image_score: Literal["map", "likelihood"] = "map"  # G reduces the map; T takes -log p of all tokens

    @model_validator(mode="after")
    def fits(self) -> "LTMConfig":
        """Two halvings, and heads of one width."""
        fitting(self.size, SHRINK, 8)
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        tokens = (self.size // SHRINK) ** 2
        if (masks := 4 * self.depth * tokens**2) > memory():  # MONAI draws one a block before it can be left out
            raise ValueError(
                f"the transformer's masks of {tokens} tokens take {in_words(masks)}, but this machine has "
                f"{in_words(memory())} of memory. Lower size or depth"
            )
        return self


class LTM(Restorer):
    """A VQ-VAE, and a causal transformer over its tokens; one is trained after the other."""

    Config = LTMConfig
    FAMILY = "transformer"
    PAPER = "Pinaya et al. 2022, doi:10.1016/j.media.2022.102475"
    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            recipe=Recipe(
                epochs=3000,
                batch=16,
                learning_rate=1e-4,
                parts={"transformer": {"learning_rate": 5e-4}},
                select="best",
                select_after=0.5,
                patience=500,
                augment="affine",
            ),
            settings={"size": 128, "restart": 0.0, "masked": False},
            score={"name": "residual"},
            about="G, the nearest to RA's tables: 128 px, Adam 1e-4 and 5e-4, batch 16, up to 1500 epochs each",
        ),
        "fast": Preset(
            recipe=Recipe(
                epochs=100,
                batch=16,
                learning_rate=1.5e-3,
                parts={"transformer": {"learning_rate": 8e-3}},
                schedule="cosine",
                select="last",
            ),
            settings={
                "channels": 32,
                "entries": 16,
                "width": 64,
                "depth": 4,
                "heads": 4,
                "stage": 0.6,
                "threshold": "validation_quantile",
            },
            score=SMOOTHED,
            about="ours: an eighth of the channels, half the width, a quarter of the depth; docs/methods/ltm.md",
        ),
        "tiny": Preset(
            recipe=Recipe(epochs=20, batch=8, learning_rate=3e-3, select="last"),
            settings={
                "size": 32,
                "channels": 16,
                "entries": 8,
                "width": 32,
                "depth": 1,
                "heads": 4,
                "stage": 0.7,
                "masked": False,
            },
            score={"name": "residual", "image": "top5"},
            about="tests",
        ),
    }

    def __init__(self, config: LTMConfig, score: Score) -> None:
        super().__init__(score)
        self.config = config
        self.side = config.size // SHRINK
        self.vqvae = vqvae(config)
        self.transformer = transformer(config, self.side**2)
        self.register_buffer("second", torch.tensor(False))  # whether the transformer's stage has begun
        # Log-likelihood below which `validation_quantile` doubts a token; before it is found, none is doubted.
        self.register_buffer("limit", torch.tensor(-math.inf))
        self.second: Tensor
        self.limit: Tensor

    def parts(self) -> Mapping[str, Iterable[nn.Parameter]]:
        # The codebook is no part: it follows the encoder as a moving average, not a gradient.
        learned = [p for p in self.vqvae.parameters() if p.requires_grad]
        return {"vqvae": learned, "transformer": self.transformer.parameters()}

    def training_step(self, x: Tensor, update: Update, progress: float) -> dict[str, Tensor]:
        self.second.fill_(progress >= self.config.stage)
        return self.transformer_step(x, update) if self.second else self.vqvae_step(x, update)

    def vqvae_step(self, x: Tensor, update: Update) -> dict[str, Tensor]:
        """One step of the VQ-VAE; its codebook moves in the pass forward."""
        self.vqvae.train()
        restored, commitment, tokens = self.quantised(x)
        error = (restored - x).abs().mean()
        update("vqvae", error + commitment)
        return {"l1": error.detach(), "commitment": commitment.detach(), **self.usage(tokens)}

    def transformer_step(self, x: Tensor, update: Update) -> dict[str, Tensor]:
        """One step of the transformer; the VQ-VAE rests."""
        self.vqvae.eval()
        tokens = self.tokens(x)
        loss = -self.likelihood(tokens).mean()
        update("transformer", loss)
        return {"cross_entropy": loss.detach(), **self.usage(tokens)}

    def quantised(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Restored (B, 1, H, W), not clamped; the weighted commitment error, a scalar; tokens (B, side, side).

        Gradients pass the quantiser straight through. In train mode the codebook moves.
        """
        seen = self.vqvae.encoder(x)
        with torch.autocast(x.device.type, enabled=False):
            code, commitment, tokens = self.vqvae.quantizer.quantizer(seen.float())
        if self.vqvae.training:
            self.restart(seen.detach().float())
        return self.vqvae.decoder(code).float(), commitment, tokens

    def restart(self, seen: Tensor) -> None:
        """Begin codes that hardly any token uses anew, each where the encoder has just been (arXiv:2005.00341)."""
        book = self.vqvae.quantizer.quantizer
        idle = (book.ema_cluster_size < self.config.restart).nonzero()[:, 0]
        if not len(idle):
            return
        places = seen.movedim(1, -1).flatten(0, 2)
        fresh = places[torch.randperm(len(places))[: len(idle)]]
        if several_processes():
            torch.distributed.broadcast(fresh, 0)  # one codebook for all processes
        book.embedding.weight.data[idle] = book.ema_w[idle] = fresh
        book.ema_cluster_size[idle] = 1.0

    @torch.no_grad()
    def tokens(self, x: Tensor) -> Tensor:
        """(B, N) in 0 .. codes - 1, row by row; no codebook moves, whatever the mode."""
        with torch.autocast(x.device.type, enabled=False):
            return self.vqvae.quantizer.quantizer.quantize(self.vqvae.encoder(x))[2].flatten(1)  # type: ignore

    def pictured(self, tokens: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1] behind (B, N) tokens."""
        grid = tokens.view(-1, self.side, self.side)
        out: Tensor = self.vqvae.decoder(self.vqvae.quantizer.quantizer.embed(grid))
        return out.float().clamp(0, 1)

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, n + 1, codes + 1): what may come at each place up to the one after the n `tokens`; last, the beginning.

        Place i sees the beginning and the tokens before i, never its own.
        """
        begun = F.pad(tokens, (1, 0), value=self.config.codes)
        out: Tensor = self.transformer(begun)
        return out.float()

    def likelihood(self, tokens: Tensor) -> Tensor:
        """(B, N) log p of each token given those before it, nats."""
        return -F.cross_entropy(self.logits(tokens[:, :-1]).transpose(1, 2), tokens, reduction="none")

    def doubtful(self, likelihood: Tensor) -> Tensor:
        """(B, N) where healing is needed."""
        if self.config.threshold == "validation_quantile":
            return likelihood < self.limit
        return likelihood < torch.quantile(likelihood, self.config.quantile, dim=1, keepdim=True)

    def heal(self, tokens: Tensor, doubtful: Tensor) -> Tensor:
        """(B, N) tokens, each doubtful one replaced by the likeliest after those before it, row by row.

        Round k does the k-th doubtful token of every image that has so many, wherever it lies; so an image costs as
        many passes as it has doubtful tokens, each over the tokens before.
        """
        tokens, rank = tokens.clone(), doubtful.cumsum(1)
        for k in range(1, int(rank.max()) + 1):
            rows = (rank[:, -1] >= k).nonzero()[:, 0]
            places = (rank[rows] >= k).int().argmax(1)
            logits = self.logits(tokens[rows, : int(places.max())])
            likely = logits[torch.arange(len(rows), device=rows.device), places]
            tokens[rows, places] = likely[:, : self.config.codes].argmax(1)  # the beginning is no token
        return tokens

    def healed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Restored (B, 1, H, W) in [0, 1], where tokens were doubtful (B, N), log-likelihoods (B, N)."""
        # In half precision near ties would be decided by an image's neighbours in the batch.
        with torch.autocast(x.device.type, enabled=False):
            tokens = self.tokens(x)
            likelihood = self.likelihood(tokens)
            doubtful = self.doubtful(likelihood)
            tokens = self.heal(tokens, doubtful)
        return self.pictured(tokens), doubtful, likelihood

    def restore(self, x: Tensor) -> Tensor:
        return self.healed(x)[0]

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """The VQ-VAE's error; healing has no gradient."""
        return {"rec": mean_squared(self.quantised(x)[0], x)}

    def detect(self, x: Tensor) -> Detection:
        restored, doubtful, likelihood = self.healed(x)
        anomaly = self.score.compare(x, restored, self.terms)
        if self.config.masked:
            grid = doubtful.view(-1, 1, self.side, self.side).to(anomaly)
            anomaly = anomaly * F.interpolate(grid, scale_factor=SHRINK, mode="nearest")
        score = self.score.reduce(anomaly) if self.config.image_score == "map" else -likelihood.sum(1)
        return Detection(map=anomaly, score=score, restored=restored)

    def validation_loss(self, x: Tensor) -> Tensor:
        """(B,) the VQ-VAE's mean absolute error in the first stage, the mean cross-entropy of tokens in the second."""
        tokens = self.tokens(x)
        if self.second:
            return -self.likelihood(tokens).mean(1)
        return (self.pictured(tokens) - x).abs().flatten(1).mean(1)

    def check(self, recipe: Recipe, images: int, validation: int) -> None:
        super().check(recipe, images, validation)
        check_stages("ltm", "transformer", self.config.stage, recipe, images)
        if (shown := min(images, recipe.batch)) * self.side**2 < self.config.codes:
            raise ConfigError(
                f"ltm: {shown} image(s) of {self.side**2} tokens show fewer tokens a step than there are "
                f"{self.config.codes} codes. Raise recipe.batch or size, or lower codes."
            )

    def finish_training(self) -> None:
        """Refuse weights of the first stage: their transformer is the one it began with."""
        if not self.second:
            raise first_stage("ltm", "transformer", self.config.stage)
        super().finish_training()

    @property
    def fitted(self) -> bool:
        return self.config.threshold == "validation_quantile" or super().fitted

    def fit_score(self, healthy: Iterable[Tensor]) -> None:
        """Find the limit of `validation_quantile`, then let the score learn."""
        images = list(healthy)
        if self.config.threshold == "validation_quantile":
            with torch.autocast(images[0].device.type, enabled=False):
                found = [self.likelihood(self.tokens(x)).flatten() for x in images]
            self.limit.fill_(float(np.quantile(torch.cat(found).cpu().numpy(), self.config.quantile)))
        super().fit_score(images)

    def usage(self, tokens: Tensor) -> dict[str, Tensor]:
        """How many codes the batch uses, and how many it would use if each were as frequent (perplexity)."""
        share = torch.bincount(tokens.flatten(), minlength=self.config.codes) / tokens.numel()
        return {"codes_used": (share > 0).sum().float(), "perplexity": torch.special.entr(share).sum().exp()}


def vqvae(config: LTMConfig) -> Any:
    """MONAI's VQ-VAE with two halvings and two residual units at each."""
    from monai.networks.nets.vqvae import VQVAE

    return VQVAE(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=(config.channels, config.channels),
        num_res_layers=2,
        num_res_channels=(config.channels, config.channels),
        downsample_parameters=((2, 4, 1, 1),) * 2,
        upsample_parameters=((2, 4, 1, 1, 0),) * 2,
        num_embeddings=config.codes,
        embedding_dim=config.entries,
        commitment_cost=config.commitment,
        decay=config.decay,
    )


def transformer(config: LTMConfig, length: int) -> Any:
    """MONAI's causal transformer for `length` tokens, with one more word: the beginning.

    MONAI's blocks (1.6) carry a norm for cross-attention that nothing uses, and a causal mask each, which fused
    attention does not need; both are left out, so that every parameter learns and none but weights are saved.
    """
    from monai.networks.nets.transformer import DecoderOnlyTransformer

    net = DecoderOnlyTransformer(
        num_tokens=config.codes + 1,
        max_seq_len=length,
        attn_layers_dim=config.width,
        attn_layers_depth=config.depth,
        attn_layers_heads=config.heads,
        use_flash_attention=True,
    )
    for block in net.blocks:
        block.norm_cross_attn = nn.Identity()
        block.get_submodule("attn").register_buffer("causal_mask", None)
    return net
