"""A denoiser in closed form: the prediction of a perfect network for data from a Gaussian mixture."""

import torch
from torch import Tensor

from asd_policy.chain.gaussian import GaussianChain


class MixtureDenoiser:
    """The noise prediction E[ε | x_t] for data from Σ w_i N(μ_i, s_i² I), in a chain of epsilon type.

    With one component it is linear in x, and the law of the sequential sampler is a Gaussian that can be computed.
    """

    def __init__(self, chain: GaussianChain, means: Tensor, scales: Tensor, weights: Tensor | None = None) -> None:
        """Fix the data's law.

        Args:
            chain: With prediction_type "epsilon"; the prediction is NaN at timesteps that it does not visit.
            means: μ_i [M, *event].
            scales: s_i [M], or [M, *event] for a standard deviation of each coordinate.
            weights: w_i [M]; None for equal ones.
        """
        # ᾱ by timestep, from the chain itself: x̂0 = (x − √(1−ᾱ) ε)/√ᾱ.
        self._alpha_bar = means.new_full((int(chain.timesteps.max()) + 1,), float("nan"))
        visited = torch.as_tensor(chain.timesteps.copy(), device=means.device)
        self._alpha_bar[visited] = means.new_tensor(chain.input_scale**-2)
        self._means = means.flatten(1)  # [M, D]
        scales = scales.reshape(len(means), -1)
        self._variances = scales.square().expand_as(self._means)  # [M, D]
        count = len(means)
        self._log_weights = (means.new_full((count,), 1 / count) if weights is None else weights).log()

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None = None) -> Tensor:
        """Predict the noise in x [N, *event] at timesteps [N]; the conditioning is ignored."""
        alpha = self._alpha_bar[timestep][:, None, None]  # [N, 1, 1]
        flat = x.flatten(1)[:, None]  # [N, 1, D]
        variance = alpha * self._variances + 1 - alpha  # [N, M, D] of x_t in each component
        centred = flat - alpha.sqrt() * self._means
        log_density = -0.5 * (centred.square() / variance + variance.log()).sum(-1) + self._log_weights
        clean = self._means + alpha.sqrt() * self._variances / variance * centred  # E[x_0 | x_t, component]
        mean = (log_density.softmax(-1)[..., None] * clean).sum(1)  # [N, D]
        noise = (flat[:, 0] - alpha[:, 0].sqrt() * mean) / (1 - alpha[:, 0]).sqrt()
        return noise.view_as(x)
