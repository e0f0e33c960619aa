"""Denoisers in closed form: the predictions of perfect networks for data from a Gaussian mixture."""

import torch
from torch import Tensor

from asd_policy.chain.gaussian import GaussianChain


class _Mixture:
    """Data from Σ w_i N(μ_i, s_i² I), seen with noise."""

    def __init__(self, means: Tensor, scales: Tensor, weights: Tensor | None = None) -> None:
        """Fix the data's law.

        Args:
            means: μ_i [M, *event].
            scales: s_i [M], or [M, *event] for a standard deviation of each coordinate.
            weights: w_i [M]; None for equal ones.
        """
        self._means = means.flatten(1)  # [M, D]
        scales = scales.reshape(len(means), -1)
        self._variances = scales.square().expand_as(self._means)  # [M, D]
        count = len(means)
        self._log_weights = (means.new_full((count,), 1 / count) if weights is None else weights).log()

    def clean(self, x: Tensor, signal: Tensor, variance: Tensor) -> Tensor:
        """Compute E[x_0 | x] [N, D] at points x [N, D] = signal · x_0 + noise of a variance, each [N, 1]."""
        signal, variance = signal[:, None], variance[:, None]  # [N, 1, 1]
        spread = signal.square() * self._variances + variance  # [N, M, D] of x in each component
        centred = x[:, None] - signal * self._means
        log_density = -0.5 * (centred.square() / spread + spread.log()).sum(-1) + self._log_weights
        means = self._means + signal * self._variances / spread * centred  # E[x_0 | x, component]
        return (log_density.softmax(-1)[..., None] * means).sum(1)


class MixtureDenoiser(_Mixture):
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
        super().__init__(means, scales, weights)
        # ᾱ by timestep, from the chain itself: x̂0 = (x − √(1−ᾱ) ε)/√ᾱ.
        self._alpha_bar = means.new_full((int(chain.timesteps.max()) + 1,), float("nan"))
        visited = torch.as_tensor(chain.timesteps.copy(), device=means.device)
        self._alpha_bar[visited] = means.new_tensor(chain.input_scale**-2)

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None = None) -> Tensor:
        """Predict the noise in x [N, *event] at timesteps [N]; the conditioning is ignored."""
        alpha = self._alpha_bar[timestep][:, None]  # [N, 1]
        flat = x.flatten(1)
        mean = self.clean(flat, alpha.sqrt(), 1 - alpha)
        return ((flat - alpha.sqrt() * mean) / (1 - alpha).sqrt()).view_as(x)


class MixtureFlow(_Mixture):
    """The velocity E[ε − x_0 | x_t] of the flow x_t = (1 − t) x_0 + t ε, in a chain of the convention "noise"."""

    def __call__(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
        """Predict the velocity at x [N, *event] and times [N] above 0; the conditioning is ignored."""
        t, flat = time[:, None], x.flatten(1)
        return ((flat - self.clean(flat, 1 - t, t.square())) / t).view_as(x)
