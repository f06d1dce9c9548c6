"""Maps from what the network minimises: how strongly each pixel pulls on it.

Written from Zimmerer et al., "Context-encoding Variational Autoencoder for Unsupervised Anomaly Detection",
arXiv:1812.05941, and "Unsupervised Anomaly Localization using Variational Auto-Encoders", arXiv:1907.02796.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, validate_call
from torch import Tensor

from salus.core.errors import ConfigError
from salus.scores.base import Reduction, Score, Terms
from salus.scores.residual import gaussian


class Gradient(Score):
    """|d term / d x|, smoothed; the picture is judged by the network, not against its restoration.

    Args:
        of: "rec" the error of the restoration, "kl" the divergence of the code, "elbo" their sum, or "combi", the
            squared residual times the KL's gradient. "kl", "elbo" and "combi" need a variational method.
        sigma: of the Gaussian that smooths the gradient, pixels; Zimmerer et al. smooth with 3, MedIAnomaly does not.
        image: see `Score`.

    The published "combi" scales each gradient map to [0, 1] by its own range, which hides differences between images;
    here it is left as it is.
    """

    @validate_call
    def __init__(
        self,
        *,
        of: Literal["rec", "kl", "elbo", "combi"] = "rec",
        sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.0,
        image: Reduction = "mean",
    ) -> None:
        super().__init__(f"gradient-{of}-{sigma:g}", image)
        self.of, self.sigma = of, sigma

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        raise TypeError("a gradient cannot be had from two pictures alone: use compare")

    def compare(self, x: Tensor, restored: Tensor, terms: Terms) -> Tensor:
        with torch.enable_grad():
            pulled = x.detach().clone().requires_grad_()
            found = terms(pulled)
            names = {"elbo": ("rec", "kl"), "combi": ("kl",)}.get(self.of, (self.of,))
            if missing := [name for name in names if name not in found]:
                raise ConfigError(f"score gradient of {self.of} needs a method with a {missing[0]} term, such as vae.")
            loss = torch.stack([found[name].float().sum() for name in names]).sum()
            (gradient,) = torch.autograd.grad(loss, pulled)
        smooth = gaussian(gradient.detach().float().abs(), self.sigma)
        return smooth * (x - restored).square() if self.of == "combi" else smooth
