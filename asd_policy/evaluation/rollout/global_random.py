"""The global random generators of NumPy, torch and Python, for environments that draw from them.

Processes of one group are forked copies of one server, with its generators. A process that runs several episodes would
pass the state that one leaves on to the next. So an environment gets a state of its own. The episode's seed fixes it,
whoever runs the episode, and the other users of the generators find them as they left them.
"""

import random
import sys
from typing import Any

import numpy as np

_SPAWN = 2  # spawn key: nothing else with an episode's seed may draw the same numbers


class GlobalRandom:
    """A state of the global generators: they have it inside `with`, and their own state again after it.

    torch's is that of the CPU, where torch is in use.
    """

    def __init__(self, seed: int) -> None:
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Set the state to that of a seed."""
        numbers = np.random.SeedSequence(seed, spawn_key=(_SPAWN,)).generate_state(3).tolist()
        states = [random.Random(numbers[0]).getstate(), np.random.RandomState(numbers[1]).get_state(legacy=False)]
        if (torch := sys.modules.get("torch")) is not None:
            states.append(torch.Generator().manual_seed(numbers[2]).get_state())
        self._own = states

    def __enter__(self) -> None:
        self._others = _states()
        _restore(self._own)

    def __exit__(self, *_: object) -> None:
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
