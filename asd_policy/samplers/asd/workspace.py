"""Memory for the compiled rounds of plans of one shape, kept from one plan to the next.

To allocate it, and to tell the loops where it is, takes as long as two rounds of a small network.
"""

import math
from collections.abc import Callable, Hashable
from types import ModuleType
from typing import Any

import numpy as np

from asd_policy._common import arrays
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers.asd.couplings import block
from asd_policy.samplers.asd.draft import FrozenDraft
from asd_policy.samplers.asd.engine import Round
from asd_policy.samplers.asd.path import PathMemory
from asd_policy.samplers.compiled import STEP_ROWS, Numbers, loop_tables
from asd_policy.samplers.inpainting import Inpainting

_MOST_KEPT, _SMALL = 12, 2**20
"""How many a chain keeps, as settings are tried in turn, and the numbers of a path beyond which it keeps none."""


class Workspace:
    """The memory of a batch of plans, and the loops, which know where it is.

    It is one batch's at a time: `take` gives it, and after `leave` the next may have it.
    """

    def __init__(self, key: Hashable, round_: Round, memory: PathMemory, kernels: ModuleType) -> None:
        """Allocate the rest of it beside the memory of a path; see `take`."""
        inpainting, chain = round_.target.inpainting, round_.target.chain
        self._key, self._kept = key, chain.keep("workspaces", dict)
        self.memory, self.path = memory, memory.path()
        x: Numbers = arrays.on_host(self.path.x)
        tables = loop_tables(chain, x.dtype)
        self.predicts = inpainting is None and tables.predicts
        """Whether the loops make predictions of outputs. Of a chain that thresholds, or of which something is given,
        the reference's text does."""
        self.times = None if chain.has_integer_timesteps else tables.timesteps
        """A flow's times, which are looked up beside the loops: these know integers alone."""
        self.most = len(x) * min(round_.window, len(chain))
        """Points of a round, at most."""
        self.work: Numbers = np.empty((4, self.most, x.shape[1]), x.dtype)
        """A round's points, and what the loops know of them."""
        self.places = np.empty((3, self.most), np.int64)
        """Their steps, rows and timesteps."""
        self._given = np.zeros((0, 0) if inpainting is None else x.shape, np.bool_)
        timesteps = np.zeros(len(chain), np.int64) if self.times is not None else tables.timesteps
        kept = (
            tuple(vars(self.memory).values()),
            (tables.rows if self.predicts else tables.rows[:STEP_ROWS], timesteps),
            (*_how(round_, x.dtype, kernels), self._given),
            (self.work, self.places, np.empty(len(x), np.int64)),
        )
        self._named = round_.response, kernels  # in the key by their identity
        self._small = math.prod(self.memory.by_step.shape) <= _SMALL
        self.advance: Callable[..., int] = kernels.hold_rows(kept)
        """`kernels.advance_rows`, bound to all of it."""

    @classmethod
    def take(cls, round_: Round, tape: NoiseTape, last_plan: Any, kernels: ModuleType) -> "Workspace":
        """Give one with a batch of plans at its start: one that was left, if there is one.

        Args:
            round_: Of the plans.
            tape: Their noise, in arrays of NumPy's.
            last_plan: As for `PathMemory.begin`.
            kernels: What `compiled.loops_of` gave.
        """
        inpainting, verifier = round_.target.inpainting, round_.verifier
        key = (
            (tape.initial.shape, tape.initial.dtype, round_.window, type(round_.draft), verifier.judge),
            (verifier.tolerance, id(round_.response), id(kernels), inpainting is None),
        )
        kept: dict[Hashable, Workspace] = round_.target.chain.keep("workspaces", dict)
        given = None if inpainting is None else _on_host(inpainting)
        taken = kept.pop(key, None)
        if taken is None:
            taken = cls(key, round_, PathMemory.begin(given, tape, last_plan), kernels)
        else:
            taken.memory.begin_again(given, tape, last_plan)
        if given is not None:
            taken._given[:] = arrays.on_host(given.mask).reshape(taken._given.shape)
        return taken

    def leave(self) -> None:
        """Let another batch of plans have it. What looks at its memory sees that batch from now on."""
        if self._small:
            self._kept[self._key] = self
            for oldest in list(self._kept)[:-_MOST_KEPT]:
                self._kept.pop(oldest, None)


def _how(round_: Round, dtype: Any, kernels: ModuleType) -> tuple[Numbers, Numbers, Numbers]:
    """Tell the loops how to draft and to judge, see `kernels.advance_rows`."""
    basis = gain = np.empty((0, 0), dtype)
    if round_.response is not None:
        parts = round_.response.basis, round_.response.gain
        basis, gain = (np.ascontiguousarray(arrays.on_host(each)) for each in parts)
    verifier, holds = round_.verifier, isinstance(round_.draft, FrozenDraft)
    tolerance = -1.0 if verifier.tolerance is None else verifier.tolerance
    return kernels.how_of(round_.window, holds, verifier.judge is block, tolerance), basis, gain


def _on_host(inpainting: Inpainting) -> Inpainting:
    """Look at what is given as arrays of NumPy's, as far as a path asks for it."""
    return Inpainting(arrays.on_host(inpainting.mask), arrays.on_host(inpainting.values))
