"""What a policy's plans teach about its network, for the drafts and the window of later plans.

Nothing here can make a sample wrong: a response only shapes guesses, a window only the cost. It is learned between
plans, from whole committed paths; a response fitted with the data of the plan it drafts would see noise that has yet
to judge it, and the law would be another one.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from asd_policy import arrays
from asd_policy.arrays import Array, Device
from asd_policy.chain import GaussianChain
from asd_policy.pace import Pace

T = TypeVar("T")

_SMOOTHING = 2  # steps to each side whose statistics are pooled: J changes slowly along the chain
_BASIS_SHARE = 5  # the basis is that of the last K/5 steps, where the response is strong


@dataclass(frozen=True)
class Response:
    """The average Jacobian of x̂0 by x, J_k = U diag(g_k) Uᵀ.

    By Tweedie's formula J_k = √ᾱ_k/(1 − ᾱ_k) · Cov(x_0 | x_k) (Efron 2011): symmetric, and with the same smooth
    directions of time × action for all k, so that one basis serves, and D numbers for each step.
    """

    basis: Array
    """U, orthonormal columns [D, D]."""
    gain: Array
    """g [K, D]."""

    @classmethod
    def none(cls, x: Array, steps: int) -> "Response":
        """Return what is known before the first plan: J = 0, for points like x [B, D] and a chain of K `steps`."""
        return cls(
            arrays.asarray(np.eye(x.shape[1]), arrays.device_of(x), x.dtype), arrays.zeros((steps, x.shape[1]), x)
        )


_MOST_SQUARE = 100.0
"""Mean square, over a plan's steps and coordinates, of noise and of changes of the prediction, beyond which nothing is
learned of it. Both are of the order of 1, or less, for data that a chain's noise covers."""


@dataclass
class Experience:
    """Sums over the plans of one network in one chain. Kept with the policy; `asd-policy tune` saves it."""

    plans: int = 0
    """Plans learned from."""
    moments: dict[str, Array] = field(default_factory=dict)
    """The sums by name: "cross" Σ Δx̂0 ⊗ σξ [K, D, D], "noise" Σ‖σξ‖²/D [K], "change" Σ‖Δx̂0‖²/D [K];
    Δx̂0 is the change of the prediction into step k, σξ the noise of the step before."""
    judgements: dict[tuple[str, str], tuple[Array, ...]] = field(default_factory=dict)
    """By draft and verifier, how often a draft was judged and refused at each step, [K] and [K]."""
    latency: dict[int, float] = field(default_factory=dict)
    """Seconds of a network call by its number of points."""
    overhead: dict[tuple[str, str, int], dict[int, float]] = field(default_factory=dict)
    """By draft, verifier and batch, seconds of a round outside the network by its window."""
    pace: Pace = field(default_factory=Pace)
    """How long rounds and calls of plans with a deadline took."""
    learning: bool = True
    """Whether `learn` adds; off, a plan depends on its observation, its noise and nothing else."""
    _made: dict[Hashable, tuple[int, Any]] = field(default_factory=dict, repr=False)

    def copy(self) -> "Experience":
        """Return an experience with the same contents that goes its own way."""
        return replace(
            self,
            moments={name: arrays.copied(sums) for name, sums in self.moments.items()},
            judgements=dict(self.judgements),
            latency=dict(self.latency),
            overhead=dict(self.overhead),
            pace=self.pace.copy(),
            _made=dict(self._made),
        )

    def without_times(self) -> "Experience":
        """Return a copy that knows of no latencies: those of another backend or device tell nothing."""
        return replace(self.copy(), latency={}, overhead={}, pace=Pace(), _made={})

    def freeze(self) -> None:
        """Stop learning, with the last word on all that was learned."""
        self.learning = False
        self._made.clear()

    def learn(
        self,
        points: Array,
        clean: Array,
        done: Array,
        free: Array | None,
        judged: Array,
        refused: Array,
        chain: GaussianChain,
        pair: tuple[str, str],
    ) -> None:
        """Add the committed paths of a batch of plans.

        Args:
            points: The points of the chain [B, K, D].
            clean: x̂0 there [B, K, D].
            done: How many steps of each are committed [B]: all K, but for plans that a deadline has stopped.
            free: Coordinates that are sampled, not given, [B, D]; None for all.
            judged: Which steps had a draft to be judged [B, K].
            refused: For which of them it was refused [B, K].
            chain: Whose.
            pair: Names of the draft and of the verifier.
        """
        if not self.learning:
            return
        device, xp = arrays.device_of(points), arrays.namespace(points)
        tables = chain.tables(device, points.dtype)
        a, b = tables.a[:-1, None], tables.b[:-1, None]
        noise = points[:, 1:] - (a * clean[:, :-1] + b * points[:, :-1])  # [B, K − 1, D]
        change = clean[:, 1:] - clean[:, :-1]
        counted = (arrays.arange(len(chain), done)[1:] < done[:, None])[:, :, None]
        if free is not None:
            counted = counted & free[:, None]
        nothing = xp.zeros_like(noise)
        noise, change = (xp.where(counted, values, nothing) for values in (noise, change))
        # A plan for an observation without sense may overflow, or outweigh all others, and spoil the sums for good.
        fine = (noise * noise + change * change).mean((1, 2)) < _MOST_SQUARE  # not of NaN
        noise, change = (xp.where(fine[:, None, None], values, nothing) for values in (noise, change))
        judged, refused = judged & fine[:, None], refused & fine[:, None]
        found = {
            "cross": xp.einsum("bki,bkj->kij", change, noise),
            "noise": (noise * noise).mean(2).sum(0),
            "change": (change * change).mean(2).sum(0),
        }
        # Step 0 has no step before it.
        found = {name: xp.concatenate([xp.zeros_like(sums[:1]), sums]) for name, sums in found.items()}
        counts = tuple(arrays.cast(flags.sum(0), points.dtype) for flags in (judged, refused))
        before = self.judgements.get(pair)
        self.judgements[pair] = counts if before is None else tuple(a + b for a, b in zip(before, counts, strict=True))
        for name, sums in found.items():
            known = self.moments.get(name)
            self.moments[name] = sums if known is None else arrays.asarray(known, device, sums.dtype) + sums
        self.plans += len(points)

    def response(self, device: Device, dtype: Any) -> Response | None:
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


def fit_response(moments: Mapping[str, Array], plans: int, device: Device, dtype: Any) -> Response:
    """Fit basis and gains to the sums of `Experience.moments` over a number of plans.

    The noise that enters a step is independent of what was there, so its regression coefficient is the average
    Jacobian, not one confounded by what moves point and prediction alike. Gains that the data do not tell from zero
    are shrunk to it (James and Stein 1961, positive part), which makes few plans harmless.
    """
    cross, noise, change = (arrays.to_numpy(moments[name]).astype(np.float64) for name in ("cross", "noise", "change"))
    late = slice(-max(1, len(cross) // _BASIS_SHARE), None)
    pooled = (cross[late] / noise[late, None, None].clip(min=1e-30)).sum(0)
    basis = np.linalg.eigh(pooled + pooled.T).eigenvectors
    along = np.einsum("di,kde,ei->ki", basis, cross, basis, optimize=True)  # [K, D] Σ of products along each direction
    along, noise, change = _pool(along), _pool(noise[:, None]), _pool(change[:, None])
    noise = noise.clip(min=1e-30)
    gain = along / noise
    # A slope's variance: that of the response over that of the noise, by the number of pairs.
    uncertainty = change / noise / (plans * (2 * _SMOOTHING + 1))
    gain = gain.clip(min=0) * (1 - uncertainty / (gain**2).clip(min=1e-30)).clip(min=0)
    return Response(arrays.asarray(basis, device, dtype), arrays.asarray(gain, device, dtype))


def _pool(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Add up sums [K, …] over neighbouring steps."""
    pooled = sums.copy()
    for shift in range(1, min(_SMOOTHING, len(sums) - 1) + 1):
        pooled[shift:] += sums[:-shift]
        pooled[:-shift] += sums[shift:]
    return pooled
