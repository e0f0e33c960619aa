"""The global random generators of NumPy, torch and Python, for environments that draw from them.

Processes of one group are forked copies of one server, its generators included, and a process that runs several
episodes would hand the state that one leaves on to the next. So an environment gets a state of its own: an episode's is
fixed by the episode's seed, whoever runs it, and whoever else draws in the process finds his own where he left it.
"""

import random
import sys
from typing import Any

import numpy as np

_SPAWN = 2  # spawn key: nothing else that is seeded by an episode's seed must draw the same numbers


class GlobalRandom:
    """A state of the global generators, which are in it within `with`, and as they were before behind it.

    torch's is that of the CPU, where torch is in use.
    """

    def __init__(self, seed: int) -> None:
        """Begin with the state of a seed."""
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Go on with the state of a seed."""
        numbers = np.random.SeedSequence(seed, spawn_key=(_SPAWN,)).generate_state(3).tolist()
        states = [random.Random(numbers[0]).getstate(), np.random.RandomState(numbers[1]).get_state(legacy=False)]
        if (torch := sys.modules.get("torch")) is not None:
            states.append(torch.Generator().manual_seed(numbers[2]).get_state())
        self._own = states

    def __enter__(self) -> None:
        """Lend the generators."""
        self._others = _states()
        _restore(self._own)

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        self._own = _states()
        _restore(self._others)


def _states() -> list[Any]:
    states: list[Any] = [random.getstate(), np.random.get_state(legacy=False)]
    if (torch := sys.modules.get("torch")) is not None:
        states.append(torch.default_generator.get_state())
    return states


def _restore(states: list[Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    if len(states) == 3:
        sys.modules["torch"].default_generator.set_state(states[2])
