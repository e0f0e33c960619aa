"""What is kept of a live policy's network in the user's cache, by its weights, and recalled by the next process."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from asd_policy._common.arrays import Device
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import CheckpointError
from asd_policy.policy.tuning import load_tuning, save_tuning, weights_file
from asd_policy.samplers.asd.experience import Experience


class Memory:
    """Measured times of a network, and what plans with a noise of their own have taught and cost.

    What other plans teach, and which setting they took the least time with, is not kept. It would be met by the noise
    that it was learned from when a program begins with the same seed again, and drafts and windows that know the noise
    that judges them change the law.
    """

    def __init__(
        self, path: Path | None, chain: GaussianChain, event: Sequence[int], device: Device, runs: str
    ) -> None:
        """Name the file, and what runs the network; None keeps nothing."""
        self._path, self._chain, self._event, self._runs = path, chain, tuple(event), runs
        self.device = device
        """Where the network is."""
        self._taught = Experience()  # by plans with a noise of their own
        self._kept = 0  # how many times and plans are in the file

    @classmethod
    def of(cls, module: Any, chain: GaussianChain, event: Sequence[int], device: Device, runs: str) -> Self:
        """Name the file by a module's weights of now; None keeps nothing."""
        return cls(module and weights_file(module.state_dict(), chain, event), chain, event, device, runs)

    def load(self, experience: Experience) -> None:
        """Add what is kept to an experience; warn where it is unreadable.

        Times are taken if they are of this hardware and backend; what plans have taught if there is nothing yet.
        """
        if self._path is None or not self._path.exists():
            return
        try:
            known, backend = load_tuning(self._path, self._chain, self._event, self.device)
        except CheckpointError as error:
            warnings.warn(f"times are measured anew: {error}", stacklevel=2)
            return
        self._taught = known.without_times()  # stays in the file, taken or not
        if backend == self._runs:
            self._taught.trials = known.trials
            again = known.copy()
            experience.latency, experience.trials = again.latency, again.trials
        if not experience.plans:
            experience.take_up(known)
        self._kept = self._count(experience)

    def keep(self, experience: Experience) -> None:
        """Keep what an experience has learned so far; all of its plans had a noise of their own."""
        self._taught = experience.copy()
        self.save(experience)

    def save(self, experience: Experience) -> None:
        """Keep the times of an experience, where there are more than in the file; warn where that is not possible."""
        count = self._count(experience)
        if self._path is None or count <= self._kept:
            return
        kept = replace(self._taught, latency=experience.latency)
        try:
            save_tuning(self._path, kept, self.device, self._runs)
        except OSError as error:
            warnings.warn(f"what was measured is not kept: {self._path}: {error.strerror}", stacklevel=2)
        self._kept = count

    def _count(self, experience: Experience) -> int:
        trials = sum(1 + trial.done for trial in self._taught.trials.values())
        return len(experience.latency) + trials + self._taught.plans
