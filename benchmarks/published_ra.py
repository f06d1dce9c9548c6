"""RA's training step in the published order: fourteen passes, nothing shared, full precision.

A plain transcription of docs/methods/ra.md ("the step as released"), kept to measure `salus.detectors.ra` against and
to prove that sharing passes changes nothing. Not part of the package.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salus.detectors.ra import RA


def plain_networks(ra: RA) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder with the same parameters and none of the short cuts of `salus.nets.introspective`."""

    class Block(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            b = self.block
            if b.enlarge:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            h = F.leaky_relu(b.first_norm(b.first(x)), 0.2)
            return F.leaky_relu(b.second_norm(b.second(h)) + b.shortcut(x), 0.2)

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code, self.deepest, self.picture = ra.decoder.code, ra.decoder.deepest, ra.decoder.picture
            self.blocks = nn.Sequential(*(Block(b) for b in (*ra.decoder.stages, ra.decoder.last)))

        def forward(self, z: Tensor) -> Tensor:
            h = self.code(z).unflatten(1, (self.deepest, 4, 4))
            return torch.sigmoid(F.conv2d(self.blocks(h), self.picture.weight, self.picture.bias, padding=2))

    return ra.encoder, Decoder()


def sample(mean: Tensor, log_var: Tensor) -> Tensor:
    return mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    return -0.5 * torch.sum(1 + log_var - torch.exp(log_var) - mean**2, dim=1)


def error(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).sum(dim=(1, 2, 3))


class PublishedStep:
    """Call it with a batch; it updates both halves with their own Adam and returns the two losses."""

    def __init__(self, ra: RA, learning_rate: float = 5e-5) -> None:
        self.ra, self.config = ra, ra.config
        self.encoder, self.decoder = plain_networks(ra)
        self.encoder_adam = torch.optim.Adam(ra.encoder.parameters(), lr=learning_rate)
        self.decoder_adam = torch.optim.Adam(ra.decoder.parameters(), lr=learning_rate)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c, encoder, decoder = self.config, self.encoder, self.decoder
        scale = 1 / (x.shape[1] * x.shape[2] * x.shape[3])
        noise = torch.randn(len(x), c.latent, dtype=x.dtype)

        decoder.requires_grad_(False)
        encoder.requires_grad_(True)
        fake = decoder(noise)  # 1
        mean, log_var, features = encoder(x)  # 2
        z = sample(mean, log_var)
        rec = decoder(z)  # 3
        _, _, features_rec = encoder(rec.detach())  # 4
        reversed_loss = torch.zeros((), dtype=x.dtype)
        for a, b in zip(features[:-1], features_rec[:-1], strict=True):
            similarity = F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)
            reversed_loss = reversed_loss + 0.5 * F.mse_loss(a, b) + (1 - similarity).mean()
        real = scale * (c.beta_rec * error(x, rec) + c.beta_kl * divergence(mean, log_var)).mean()
        mean_rec, log_var_rec, _ = encoder(rec.detach())  # 5, the same input as 4
        rec_rec = decoder(sample(mean_rec, log_var_rec))  # 6
        mean_fake, log_var_fake, _ = encoder(fake.detach())  # 7
        rec_fake = decoder(sample(mean_fake, log_var_fake))  # 8
        exponent_rec = c.beta_rec * error(rec, rec_rec) + self.ra.beta_neg * divergence(mean_rec, log_var_rec)
        exponent_fake = c.beta_rec * error(fake, rec_fake) + self.ra.beta_neg * divergence(mean_fake, log_var_fake)
        repelled = (
            torch.exp(-c.alpha * scale * exponent_rec).mean() + torch.exp(-c.alpha * scale * exponent_fake).mean()
        )
        loss_encoder = real + repelled / (2 * c.alpha) + c.reversed_weight * reversed_loss
        self.encoder_adam.zero_grad()
        loss_encoder.backward()
        self.encoder_adam.step()

        encoder.requires_grad_(False)
        decoder.requires_grad_(True)
        fake = decoder(noise)  # 9
        rec = decoder(z.detach())  # 10
        mean_rec, log_var_rec, _ = encoder(rec)  # 11
        mean_fake, log_var_fake, _ = encoder(fake)  # 12
        rec_rec = decoder(sample(mean_rec, log_var_rec).detach())  # 13
        rec_fake = decoder(sample(mean_fake, log_var_fake).detach())  # 14
        attracted = divergence(mean_rec, log_var_rec) + divergence(mean_fake, log_var_fake)
        again = error(rec.detach(), rec_rec) + error(fake.detach(), rec_fake)
        loss_decoder = c.beta_rec * error(x, rec) + 0.5 * c.beta_kl * attracted
        loss_decoder = scale * (loss_decoder + 0.5 * c.gamma_rec * c.beta_rec * again).mean()
        self.decoder_adam.zero_grad()
        loss_decoder.backward()
        self.decoder_adam.step()
        encoder.requires_grad_(True)
        return loss_encoder.detach(), loss_decoder.detach()
