"""The episodes of an evaluation so far: which are done, how they went, and how fast."""

import itertools
import time
from collections.abc import Iterator, Sequence

from asd_policy._common.statistics import enough_episodes
from asd_policy.evaluation.reports.names import short_name
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.rollout.runner import Group, groups


class Tally:
    """The episodes of a run so far, and whether they are enough."""

    def __init__(
        self, specs: Sequence[str], episodes: Sequence[Episode], most: int, group_size: int, until_ci: float | None
    ) -> None:
        """Begin to count.

        Args:
            specs: Of the samplers.
            episodes: That the run has from before.
            most: Episodes for each sampler, at most.
            group_size: Episodes in a group.
            until_ci: Stop when the success interval of every sampler reaches at most this far to either side.
        """
        self.episodes = list(episodes)
        self._specs, self._most, self._group_size, self._until_ci = specs, most, group_size, until_ci
        self._known = {(episode.spec, episode.index): episode for episode in episodes}
        self._before = len(episodes)
        self._started = time.perf_counter()

    def __contains__(self, episode: Episode) -> bool:
        return (episode.spec, episode.index) in self._known

    def add(self, episode: Episode) -> None:
        """Count an episode."""
        self._known[episode.spec, episode.index] = episode
        self.episodes.append(episode)

    def work(self) -> Iterator[Group]:
        """Yield the groups that are not done, until there are enough episodes."""
        for group in groups(self._specs, self._most, self._group_size):
            if self._enough() is not None:
                return
            if not all((group.spec, index) in self._known for index in group.indices):
                yield group

    @property
    def most(self) -> int:
        """Episodes of all samplers, at most."""
        return self._most * len(self._specs)

    @property
    def wanted(self) -> int:
        """Episodes for each sampler that make the run complete."""
        return self._enough() or self._most

    @property
    def goal(self) -> int:
        """Episodes of all samplers that make the run complete."""
        return self.wanted * len(self._specs)

    def counted(self) -> list[Episode]:
        """List the episodes that results count: of each sampler those among the first `wanted`."""
        wanted = self.wanted
        return [episode for episode in self.episodes if episode.index < wanted]

    def _enough(self) -> int | None:
        """Count the episodes of each sampler that are enough; None where they are not yet, or `until_ci` is not set."""
        return None if self._until_ci is None else enough_episodes(self._successes(), self._until_ci, self._group_size)

    def _successes(self) -> list[list[bool]]:
        """List for each sampler the successes of its episodes 0, 1, … up to the first that is missing."""
        counts = {
            spec: next(index for index in itertools.count() if (spec, index) not in self._known) for spec in self._specs
        }
        return [[self._known[spec, index].success for index in range(count)] for spec, count in counts.items()]

    def rates(self) -> dict[str, float | None]:
        """Measure how fast this process has run episodes; None where it has run none."""
        new, seconds = self._new()
        return {
            "episodes_per_second": len(new) / seconds if new else None,
            "environment_steps_per_second": sum(episode.steps for episode in new) / seconds if new else None,
        }

    def line(self) -> str:
        """Write the success rate of each sampler so far, and how many plans are made in a second."""
        new, seconds = self._new()
        rates = []
        for spec in self._specs:
            done = [episode.success for episode in self.episodes if episode.spec == spec]
            if done:
                rates.append(f"{short_name(spec)} {100 * sum(done) / len(done):.0f} %")
        plans = sum(len(episode.plans) for episode in new)
        return f"{', '.join(rates)}; {plans / seconds:.1f} plans/s"

    def _new(self) -> tuple[list[Episode], float]:
        """List the episodes that this process has run, and the time since it began [s]."""
        return self.episodes[self._before :], time.perf_counter() - self._started
