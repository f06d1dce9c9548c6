"""What variational methods share: a code drawn from a Gaussian, its divergence from the prior, errors as sums."""

import torch
from torch import Tensor


def draw(mean: Tensor, log_var: Tensor, noise: Tensor | None = None) -> Tensor:
    """(B, latent) sample of q(z | x) = N(mean, exp(log_var)), differentiable in both; from given `noise` if any."""
    return mean + torch.exp(log_var / 2) * (torch.randn_like(mean) if noise is None else noise)


def kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """(B,) KL divergence of q(z | x) from the standard normal, nats, summed over the code."""
    return -0.5 * (1 + log_var - log_var.exp() - mean.square()).sum(1)


def squared(a: Tensor, b: Tensor) -> Tensor:
    """(B,) squared difference, summed over pixels."""
    return (a - b).square().flatten(1).sum(1)


def bound(error: Tensor, divergence: Tensor, beta_rec: float, beta_kl: float) -> dict[str, Tensor]:
    """The two weighted terms of -ELBO(x) by name, (B,) each: what an encoder weighs."""
    return {"rec": beta_rec * error, "kl": beta_kl * divergence}
