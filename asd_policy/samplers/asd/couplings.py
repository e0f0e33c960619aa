"""Couplings of drafted steps with their target steps: pure functions of tensors, no network, no randomness.

Draft and target of a step are N(m̂, σ²I) and N(m, σ²I), the draft drawn as m̂ + σξ; v = (m̂ − m)/σ, e = v/‖v‖, δ = ‖v‖.
A verifier decides how many of a round's drafted steps stand, and how the one after them is drawn from its target.

`reflection` goes step by step. The reflection maximal coupling accepts the draft where

    log u < −⟨ξ, v⟩ − ½‖v‖²,      P(accept) = 2Φ(−‖v‖/2),

and otherwise returns m + σ(ξ − 2⟨e, ξ⟩e); either way the result is N(m, σ²I) exactly
(De Bortoli et al., arXiv 2501.05370; the Gaussian rejection sampler of ASD, arXiv 2505.03983).

`block` judges the prefixes of a round (block verification of tokens: Sun et al., arXiv 2403.10444, Algorithm 2; of
diffusion steps: arXiv 2511.07869). After i drafted steps the prefix has the weight

    p_0 = 1,   p_{i+1} = min(1, p_i·ρ_i),   ln ρ_i = −⟨ξ_i, v_i⟩ − ½‖v_i‖²,

and S_i = ∫ max(p_i N(m_i) − N(m̂_i), 0) is what the target of the NEXT step, i, has left over. The longest prefix τ
with u_τ ≤ h_τ stands, where h_i = S_i/(S_i + 1 − p_i), and h = p after the last draft. Then

    P(τ ≥ i | first i drafts) = p_i:   it is h_i + (1 − h_i)·E[p_{i+1}], with E[p_{i+1}] = p_i − S_i under the draft,

so that τ = i has the probability S_i, and step τ must come from the normalised max(p_τ N(m_τ) − N(m̂_τ), 0): together
with the drafts that go on, these make up p_i N(m_i). Where all drafts stand, the next step is its target's own.

What the refused part of the round tells about its noise is little: for every j ≥ τ,

    P(τ | x_k … x_{j+1}) = h_τ·(1 − h_{τ+1})·…·(1 − h_j)·(1 − p_{j+1}),

which depends on ξ_j through ⟨e_j, ξ_j⟩ alone. Given the points up to its own, ξ_j is still standard normal across e_j;
along e_j it has the `residual` module's refused law, which is mapped to the residual law for step τ (a reflection, if
p_τ = 1) and back to the standard normal for the steps after it. Likewise u_j is uniform above h_j. So the tape
serves on after a refusal, with nothing drawn.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.samplers.asd.residual import CLOSEST, FARTHEST, crossing, log_mass, mirror, refused_level, renew


class Verdict(NamedTuple):
    """What a verifier makes of one round of R rows of n points."""

    last: Array
    """Slot of the last step that the round commits, [R]; the steps before it stand as drafted."""
    rejected: Array
    """Whether the draft of step `last` was judged and refused, [R]."""
    noise: Array
    """The round's noise from now on [R, n, D].

    At `last`, ξ with which the step leaves its target mean, x = m + σξ; after it, what the next rounds must use.
    """
    uniform: Array
    """The round's uniforms from now on [R, n]."""


class Judge(Protocol):
    """The signature of `reflection` and `block`."""

    def __call__(self, gap: Array, scale: Array, noise: Array, uniform: Array, live: Array) -> Verdict:
        """Judge one round of R rows of n points; its last live point has no draft, and takes its own step if reached.

        Args:
            gap: Draft minus target prediction x̂0 at the points, flattened, [R, n, D].
            scale: a/σ of the steps that leave them [R, n], infinite where σ = 0.
            noise: ξ of these steps [R, n, D].
            uniform: u of these steps [R, n], in (0, 1].
            live: Which points exist [R, n]: the first one or more of each row.
        """
        ...


@dataclass(frozen=True)
class Verifier:
    """A way to judge a round, and what it leaves of the round's randomness."""

    judge: Judge
    renews_noise: bool
    """Whether the verdict's noise and uniforms after `last` differ from those given, and must replace them.

    Either way a draft of step k may be made of all that was seen at the points up to k, of this and earlier rounds, and
    of nothing that was seen beyond.
    """
    tolerance: float | None = None
    """The largest gap that it lets stand, where it is no coupling and so approximate, see `tolerance`."""


def accepts(gap: Array, scale: Array, noise: Array, uniform: Array) -> Array:
    """Decide which drafted steps stand.

    Args:
        gap: Draft minus target prediction x̂0, flattened, [..., D].
        scale: a/σ of the step, so that v = scale · gap; [...], infinite where σ = 0.
        noise: ξ of the step [..., D].
        uniform: u of the step [...], in (0, 1].

    Returns:
        Booleans [...]. A gap of zero is accepted whatever the scale. Where ‖v‖ overflows or is not a number the
        draft is not accepted, so that the step is taken from the target.
    """
    shift = gap * scale[..., None]
    margin = -(shift * (noise + 0.5 * shift)).sum(-1)
    return (arrays.namespace(gap).log(uniform) < margin) | (gap == 0).all(-1)


def reflect(gap: Array, noise: Array) -> Array:
    """Mirror a step's noise in the hyperplane orthogonal to the gap.

    Args:
        gap: Draft minus target prediction, flattened, [..., D]; only its direction counts.
        noise: ξ of the step [..., D].

    Returns:
        ξ − 2⟨e, ξ⟩e [..., D]; ξ itself where the gap is zero.
    """
    direction, _ = _polar(gap)
    return noise - 2 * (direction * noise).sum(-1)[..., None] * direction


def reflection(gap: Array, scale: Array, noise: Array, uniform: Array, live: Array) -> Verdict:
    """Judge each drafted step by itself, and reflect the first that is refused."""
    stands = accepts(gap, scale, noise, uniform)[:, :-1] & live[:, 1:]
    last = stands.cumprod(1).sum(1)
    rejected = last + 1 < live.sum(1)
    refused = (arrays.arange(live.shape[1], live) == last[:, None]) & rejected[:, None]
    moved = arrays.namespace(gap).where(refused[:, :, None], reflect(gap, noise), noise)
    return Verdict(last, rejected, moved, uniform)


def block(gap: Array, scale: Array, noise: Array, uniform: Array, live: Array) -> Verdict:
    """Judge the prefixes of a round, and draw the step after the longest that stands from its residual."""
    xp = arrays.namespace(gap)
    direction, size = _polar(gap)
    # ‖v‖ [R, n]; 0 though it be 0 · ∞.
    shift = xp.astype(xp.where(size > 0, scale * size, size), xp.float64).clip(max=FARTHEST)
    along = xp.astype((direction * noise).sum(-1), xp.float64)

    # min(1, ·) at every step is a walk reflected at zero, which is the free walk less its running maximum.
    walk = xp.roll((-shift * (along + 0.5 * shift)).cumsum(1), 1, axis=1)  # [R, n] sum of ln ρ before each slot
    walk[:, 0] = 0
    log_weight = walk - arrays.running_maximum(walk)  # [R, n] ln p
    delta = shift.clip(min=CLOSEST)
    left_over = xp.exp(log_mass(crossing(delta, log_weight), delta, log_weight))  # [R, n] S
    refused = left_over - xp.expm1(log_weight)  # [R, n] S + 1 − p

    slots, count = arrays.arange(live.shape[1], live), live.sum(1)
    judged = slots + 1 < count[:, None]
    threshold = xp.where(judged, left_over / refused, xp.exp(log_weight))  # [R, n] h
    last = xp.amax(slots * (live & (uniform <= threshold)), axis=1)  # slot 0 has h = 1
    rejected = last + 1 < count

    # The noise of the refused drafts moves along e: at `last` to the residual law, after it to the standard normal.
    here = last[:, None]
    log_level = refused_level(along, delta, log_weight, xp.log(refused))
    at_last = mirror(*(xp.take_along_axis(values, here, axis=1) for values in (log_level, along, delta, log_weight)))
    moved = xp.where(slots == here, at_last, renew(log_level))
    move = xp.astype(xp.where(judged & (slots >= here), moved - along, 0.0), noise.dtype)
    after = live & (slots > here) & rejected[:, None]
    above = xp.astype((uniform - threshold) / (1 - threshold), uniform.dtype)
    renewed = move[:, :, None] * direction
    renewed += noise
    return Verdict(last, rejected, renewed, xp.where(after, above, uniform))


VERIFIERS = {
    "reflection": Verifier(reflection, renews_noise=False),
    "block": Verifier(block, renews_noise=True),
}


def _polar(gap: Array) -> tuple[Array, Array]:
    """Split vectors [..., D] into directions [..., D] and lengths [...]; zeros for a zero vector."""
    # Scaled by the largest entry first, so that the squares neither overflow nor vanish.
    xp = arrays.namespace(gap)
    largest = xp.amax(xp.abs(gap), axis=-1, keepdims=True)
    scaled = gap / xp.where(largest > 0, largest, 1)
    length = xp.sqrt((scaled * scaled).sum(-1)[..., None])
    return scaled / xp.where(largest > 0, length, 1), (largest * length)[..., 0]
