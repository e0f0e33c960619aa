"""What a policy's plans teach about its network, for the drafts and the window of later plans.

Nothing here can make a sample wrong: a response only shapes guesses, a window only the cost. It is learned between
plans, from whole committed paths; a response fitted with the data of the plan it drafts would see noise that has yet
to judge it, and the law would be another one.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from asd_policy.chain import GaussianChain

T = TypeVar("T")

_SMOOTHING = 2  # steps to each side whose statistics are pooled: J changes slowly along the chain
_BASIS_SHARE = 5  # the basis is that of the last K/5 steps, where the response is strong


@dataclass(frozen=True)
class Response:
    """The average Jacobian of x̂0 by x, J_k = U diag(g_k) Uᵀ.

    By Tweedie's formula J_k = √ᾱ_k/(1 − ᾱ_k) · Cov(x_0 | x_k) (Efron 2011): symmetric, and with the same smooth
    directions of time × action for all k, so that one basis serves, and D numbers for each step.
    """

    basis: Tensor
    """U, orthonormal columns [D, D]."""
    gain: Tensor
    """g [K, D]."""

    @classmethod
    def none(cls, x: Tensor, steps: int) -> "Response":
        """Return what is known before the first plan: J = 0, for points like x [B, D] and a chain of K `steps`."""
        return cls(torch.eye(x.shape[1], device=x.device, dtype=x.dtype), x.new_zeros((steps, x.shape[1])))


@dataclass
class Experience:
    """Sums over the plans of one network in one chain. Kept with the policy; `asd-policy tune` saves it."""

    plans: int = 0
    """Plans learned from."""
    moments: dict[str, Tensor] = field(default_factory=dict)
    """The sums by name: "cross" Σ Δx̂0 ⊗ σξ [K, D, D], "noise" Σ‖σξ‖²/D [K], "change" Σ‖Δx̂0‖²/D [K];
    Δx̂0 is the change of the prediction into step k, σξ the noise of the step before."""
    judgements: dict[tuple[str, str], tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By draft and verifier, how often a draft was judged and refused at each step, [K] and [K]."""
    latency: dict[int, float] = field(default_factory=dict)
    """Seconds of a network call by its number of points."""
    overhead: dict[tuple[str, str, int], dict[int, float]] = field(default_factory=dict)
    """By draft, verifier and batch, seconds of a round outside the network by its window."""
    learning: bool = True
    """Whether `learn` adds; off, a plan depends on its observation, its noise and nothing else."""
    _made: dict[Hashable, tuple[int, Any]] = field(default_factory=dict, repr=False)

    def copy(self) -> "Experience":
        """Return an experience with the same contents that goes its own way."""
        return replace(
            self,
            moments={name: sums.clone() for name, sums in self.moments.items()},
            judgements={pair: (judged.clone(), refused.clone()) for pair, (judged, refused) in self.judgements.items()},
            latency=dict(self.latency),
            overhead=dict(self.overhead),
            _made=dict(self._made),
        )

    def freeze(self) -> None:
        """Stop learning, with the last word on all that was learned."""
        self.learning = False
        self._made.clear()

    def learn(
        self,
        points: Tensor,
        clean: Tensor,
        free: Tensor | None,
        judged: Tensor,
        refused: Tensor,
        chain: GaussianChain,
        pair: tuple[str, str],
    ) -> None:
        """Add the committed paths of a batch of plans.

        Args:
            points: The points of the chain [B, K, D].
            clean: x̂0 there [B, K, D].
            free: Coordinates that are sampled, not given, [B, D]; None for all.
            judged: Which steps had a draft to be judged [B, K].
            refused: For which of them it was refused [B, K].
            chain: Whose.
            pair: Names of the draft and of the verifier.
        """
        if not self.learning:
            return
        tables = chain.tables(points.device, points.dtype)
        a, b = tables.a[:-1].unsqueeze(1), tables.b[:-1].unsqueeze(1)
        noise = points[:, 1:] - (a * clean[:, :-1] + b * points[:, :-1])  # [B, K − 1, D]
        change = clean[:, 1:] - clean[:, :-1]
        if free is not None:
            noise, change = noise * free.unsqueeze(1), change * free.unsqueeze(1)
        found = {
            "cross": torch.einsum("bki,bkj->kij", change, noise),
            "noise": noise.square().mean(2).sum(0),
            "change": change.square().mean(2).sum(0),
        }
        # Step 0 has no step before it.
        found = {name: torch.cat([torch.zeros_like(sums[:1]), sums]) for name, sums in found.items()}
        counts = judged.sum(0).to(points.dtype), refused.sum(0).to(points.dtype)
        before = self.judgements.get(pair)
        self.judgements[pair] = counts if before is None else (before[0] + counts[0], before[1] + counts[1])
        for name, sums in found.items():
            self.moments[name] = self.moments[name].to(sums) + sums if name in self.moments else sums
        self.plans += len(points)

    def response(self, device: torch.device, dtype: torch.dtype) -> Response | None:
        """Return what the plans so far say; None before the first.

        It is fitted anew each time the number of plans has doubled.
        """
        if not self.moments:
            return None
        return self.once_per_doubling((device, dtype), lambda: fit_response(self.moments, self.plans, device, dtype))

    def once_per_doubling(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` made for `key` when it was last called: the number of plans has not doubled since."""
        plans, made = self._made.get(key, (-1, None))
        if plans < 0 or self.plans >= max(1, 2 * plans):
            plans, made = self._made[key] = self.plans, make()
        return made


def fit_response(moments: Mapping[str, Tensor], plans: int, device: torch.device, dtype: torch.dtype) -> Response:
    """Fit basis and gains to the sums of `Experience.moments` over a number of plans.

    The noise that enters a step is independent of what was there, so its regression coefficient is the average
    Jacobian, not one confounded by what moves point and prediction alike. Gains that the data do not tell from zero
    are shrunk to it (James and Stein 1961, positive part), which makes few plans harmless.
    """
    cross, noise, change = (moments[name].double().cpu() for name in ("cross", "noise", "change"))
    steps, dim, _ = cross.shape
    late = cross[-max(1, steps // _BASIS_SHARE) :] / noise[-max(1, steps // _BASIS_SHARE) :, None, None].clamp(
        min=1e-30
    )
    pooled = late.sum(0)
    basis = torch.linalg.eigh(pooled + pooled.T).eigenvectors
    along = torch.einsum("di,kde,ei->ki", basis, cross, basis)  # [K, D] Σ of products along each direction
    along, noise, change = _pool(along), _pool(noise.unsqueeze(1)), _pool(change.unsqueeze(1))
    noise = noise.clamp(min=1e-30)
    gain = along / noise
    # A slope's variance: that of the response over that of the noise, by the number of pairs.
    uncertainty = change / noise / (plans * (2 * _SMOOTHING + 1))
    gain = gain.clamp(min=0) * (1 - uncertainty / gain.square().clamp(min=1e-30)).clamp(min=0)
    return Response(basis.to(device, dtype), gain.to(device, dtype))


def _pool(sums: Tensor) -> Tensor:
    """Add up sums [K, …] over neighbouring steps."""
    pooled = sums.clone()
    for shift in range(1, min(_SMOOTHING, len(sums) - 1) + 1):
        pooled[shift:] += sums[:-shift]
        pooled[:-shift] += sums[shift:]
    return pooled
