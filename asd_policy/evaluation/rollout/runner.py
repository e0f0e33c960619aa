"""Groups of episodes, the unit of work, and the runner of this process."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from asd_policy.evaluation.rollout.episodes import Episode, run_group
from asd_policy.evaluation.rollout.vector import Envs
from asd_policy.policy.episode_state import Pilot


@dataclass(frozen=True)
class Group:
    """Episodes of one sampler that run side by side."""

    spec: str
    """Of the sampler, as it was asked for."""
    indices: tuple[int, ...]
    """Of the episodes."""


def groups(specs: Sequence[str], episodes: int, envs: int) -> Iterator[Group]:
    """Cut episodes into groups: group g has the episodes from g · envs on.

    Args:
        specs: Of the samplers. They take turns, so that a drift of the machine affects them all.
        episodes: For each sampler.
        envs: Episodes in a group; the last may have fewer.
    """
    for first in range(0, episodes, envs):
        for spec in specs:
            yield Group(spec, tuple(range(first, min(first + envs, episodes))))


class Runner(Protocol):
    """Runs groups somewhere. Whoever runs them, in whatever order, only the times of episodes differ."""

    @property
    def count(self) -> int:
        """Groups that are run at a time."""
        ...

    def run(self, groups: Iterable[Group]) -> Iterator[Episode]:
        """Run groups, asking for the next one when there is room for it.

        Yields:
            Episodes as they finish.

        Raises:
            AsdError: As `run_group`.
        """
        ...

    def close(self) -> None:
        """Release what runs them."""
        ...


class LocalRunner:
    """Runs one group after the other in this process."""

    def __init__(self, pilots: Mapping[str, Pilot], envs: Envs, seed: int) -> None:
        """Take pilots and environments.

        Args:
            pilots: By the specs of groups: planners from `prepare_planners`, or these on a clock.
            envs: With as many rows as a group has episodes; closed by `close`.
            seed: Of the evaluation.
        """
        self._pilots = pilots
        self._envs = envs
        self._seed = seed

    @property
    def count(self) -> int:
        """1."""
        return 1

    def run(self, groups: Iterable[Group]) -> Iterator[Episode]:
        """Run groups in order."""
        for group in groups:
            for episode in run_group(self._pilots[group.spec], self._envs, group.indices, self._seed):
                yield replace(episode, spec=group.spec)  # as it was asked for, whatever it ran as

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()
