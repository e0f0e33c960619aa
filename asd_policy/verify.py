"""Couplings of a draft step with its target step: pure functions of tensors, no network, no randomness.

Draft and target of a step are N(m̂, σ²I) and N(m, σ²I). With v = (m̂ − m)/σ and the draft drawn as m̂ + σξ, the
reflection maximal coupling accepts the draft where

    log u < −⟨ξ, v⟩ − ½‖v‖²,      P(accept) = 2Φ(−‖v‖/2),

and otherwise returns m + σ(ξ − 2⟨e, ξ⟩e), e = v/‖v‖; either way the result is N(m, σ²I) exactly
(De Bortoli et al., arXiv 2501.05370; the Gaussian rejection sampler of ASD, arXiv 2505.03983).
"""

import torch
from torch import Tensor


def accepts(gap: Tensor, scale: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
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
    shift = gap * scale.unsqueeze(-1)
    margin = -(shift * (noise + 0.5 * shift)).sum(-1)
    return (uniform.log() < margin) | (gap == 0).all(-1)


def reflect(gap: Tensor, noise: Tensor) -> Tensor:
    """Mirror a step's noise in the hyperplane orthogonal to the gap.

    Args:
        gap: Draft minus target prediction, flattened, [..., D]; only its direction counts.
        noise: ξ of the step [..., D].

    Returns:
        ξ − 2⟨e, ξ⟩e [..., D]; ξ itself where the gap is zero.
    """
    # Scaled by the largest entry first, so that the squares neither overflow nor vanish.
    largest = gap.abs().amax(-1, keepdim=True)
    direction = gap / torch.where(largest > 0, largest, torch.ones_like(largest))
    square = direction.square().sum(-1, keepdim=True)
    along = (direction * noise).sum(-1, keepdim=True) / torch.where(square > 0, square, torch.ones_like(square))
    return noise - 2 * along * direction
