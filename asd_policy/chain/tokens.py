"""The law of an any-order autoregressive model: a plan as tokens that are sampled one after the other.

    x_k ~ p(x_{o_k} | x_{o_0}, …, x_{o_{k−1}}),   k = 0 … n − 1,

for an order o that is fixed before sampling, or drawn with the plan (arXiv 2205.13554). A network's marginals need not
be those of one joint law; then each order is a law of its own, and the sequential sampler of that order defines it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import ChainError, SpecError

RANDOM = "random"
ORDERS = ("forward", "coarse", RANDOM)
"""Orders that have a name: from the first step of a plan to the last; from the last to ever finer steps between; drawn
anew with each plan."""


@dataclass(frozen=True)
class TokenChain:
    """A sequential sampler of n tokens, one for each number of a plan, which is rounded to a bin of [-1, 1]."""

    event: tuple[int, int]
    """Horizon and action_dim of a plan: n is their product."""
    alphabet: int
    """Values A that a token can have: bins of equal width."""
    order: tuple[int, ...] | None = None
    """The token that each step samples, as places in the flattened plan [n]; None draws an order with each plan."""

    def __post_init__(self) -> None:
        """Check that there is such a chain.

        Raises:
            ChainError: There is not.
        """
        if min(self.event) < 1:
            raise ChainError(f"a plan of {self.event[0]} × {self.event[1]} tokens has none")
        if self.alphabet < 2:
            raise ChainError(f"an alphabet of {self.alphabet} has nothing to choose from: 2 or more values make one")
        if self.order is not None:
            check_order(self.order, len(self))

    def __len__(self) -> int:
        return self.event[0] * self.event[1]

    @property
    def noise_steps(self) -> int:
        """Steps that a tape has noise for: one, which seeds a generator for all tokens."""
        return 1

    @property
    def has_integer_timesteps(self) -> bool:
        """True: a call's timestep is the number of tokens that are known."""
        return True

    @property
    def predicts_sample(self) -> bool:
        """True: the network predicts the tokens themselves, as far as its marginals do."""
        return True

    @property
    def timesteps(self) -> npt.NDArray[np.int64]:
        """What the network gets as timestep at step k: how many tokens are known."""
        return np.arange(len(self))

    @property
    def config(self) -> Mapping[str, Any]:
        """The options, under a class name of their own."""
        return {"_class_name": "AnyOrder", "event": list(self.event), "alphabet": self.alphabet, "order": self.order}

    def encode(self, values: Array) -> Array:
        """Round numbers of plans to bins, int64 in the same shape; beyond [-1, 1] to the outermost."""
        bins = arrays.namespace(values).floor((values + 1) * (self.alphabet / 2))
        xp = arrays.namespace(values)
        return xp.astype(bins.clip(0, self.alphabet - 1), xp.int64)

    def decode(self, tokens: Array) -> Array:
        """Find the middles of bins, float32 in the same shape."""
        xp = arrays.namespace(tokens)
        return (xp.astype(tokens, xp.float32) + 0.5) * (2 / self.alphabet) - 1


Chain = GaussianChain | TokenChain
"""A sequential sampler of either kind."""


def gaussian(what: str, chain: Chain) -> GaussianChain:
    """Narrow a chain to one of Gaussian steps.

    Args:
        what: Needs it, for the message.
        chain: Of a policy.

    Raises:
        SpecError: It is one of tokens.
    """
    if isinstance(chain, TokenChain):
        raise SpecError(
            f"{what} needs a chain of Gaussian steps, and this policy samples {len(chain)} tokens of {chain.alphabet} "
            "values: tokens, or tokens:window=16, samples it"
        )
    return chain


def check_order(order: Sequence[int], length: int) -> None:
    """Refuse an order that does not name each of so many tokens once.

    Raises:
        ChainError: It does not.
    """
    wrong = sorted(set(range(length)) ^ set(order))
    if wrong or len(order) != length:
        what = f"{wrong[0]} is {'missing' if wrong[0] in range(length) else 'not one'}" if wrong else "one is twice"
        raise ChainError(f"an order of {len(order)} tokens for {length}: each of 0 … {length - 1} once, and {what}")


def order_of(name: str, event: tuple[int, int]) -> tuple[int, ...] | None:
    """Make the order of a name for plans of horizon × action_dim tokens; None for one that is drawn.

    Raises:
        ChainError: There is no such name.
    """
    if name == RANDOM:
        return None
    if name not in ORDERS:
        raise ChainError(f"order {name!r} is not one of {', '.join(ORDERS)}")
    horizon, dim = event
    steps = list(range(horizon)) if name == "forward" else _coarse_to_fine(horizon)
    return tuple(step * dim + number for step in steps for number in range(dim))


def _coarse_to_fine(horizon: int) -> list[int]:
    """List steps from the last one to ever finer ones between."""
    stride = 1 << (horizon - 1).bit_length()
    found: list[int] = [horizon - 1]
    while stride:
        found += [step for step in range(horizon - 1, -1, -stride) if step not in found]
        stride //= 2
    return found
