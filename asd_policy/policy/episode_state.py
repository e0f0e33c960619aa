"""What a policy keeps of a robot from one control step to the next, and what it takes to control several."""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy.policy.observation import stack_frames
from asd_policy.policy.plan import Encoding, Plan, PlanRecord
from asd_policy.policy.sensors import ObservationEncoder, encode_history
from asd_policy.samplers.base import Sampler
from asd_policy.samplers.warm_start import move_on

PLANS_KEPT = 1000
"""Latest plans of a robot that are kept, and what they cost: its episode may be endless."""


class Observation(dict[str, Array]):
    """An observation, each feature by its name as `read_observation` gives it, and what an encoder has made of it."""

    encoder: ObservationEncoder | None = None
    """The one that `features` are of."""
    features: Array | None = None
    """What it has made of this observation [F], for the plans that look at it; None before the first."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out the encoder and its features: a copy is for another process, or another policy."""
        return Observation, (dict(self),)

    def shows(self, features: Mapping[str, Array]) -> bool:
        """Tell whether these are the same numbers in the same form; the smallest are looked at first."""
        return all(
            mine.dtype == features[name].dtype
            and np.array_equal(arrays.to_numpy(mine), arrays.to_numpy(features[name]))
            for name, mine in sorted(self.items(), key=lambda item: math.prod(item[1].shape))
        )


@dataclass
class EpisodeState:
    """What is kept of one robot that a policy controls, or of one row of a vector environment, during an episode."""

    generator: Any
    """Source of the noise of its plans."""
    history: deque[Observation]
    """Its last observations, oldest first."""
    queue: deque[npt.NDArray[np.float32]] = field(default_factory=deque)
    """Actions [action_dim] that are planned and not yet taken."""
    steps: int = 0
    """Actions taken."""
    plans: list[Plan] = field(default_factory=list)
    """The latest plans made for it in this episode, as batches of one, at most `PLANS_KEPT`."""
    records: list[PlanRecord] = field(default_factory=list)
    """What each of them cost."""

    @property
    def last_plan(self) -> PlanRecord | None:
        """What its latest plan cost; None before the first."""
        return self.records[-1] if self.records else None

    def observe(self, features: Mapping[str, Array]) -> None:
        """Take note of an observation; at the start of an episode it stands for those before it, too.

        One that is among the last ones, and is encoded already, is not encoded again.
        """
        encoded = (each for each in self.history if each.features is not None)
        seen = next((each for each in encoded if each.shows(features)), None) or Observation(features)
        for _ in range(max(1, (self.history.maxlen or 1) - len(self.history))):
            self.history.append(seen)

    def note(self, plan: Plan, record: PlanRecord) -> None:
        """Take note of a plan that was made for it, and of its cost; forget those of long ago."""
        self.plans.append(plan)
        self.records.append(record)
        del self.plans[:-PLANS_KEPT], self.records[:-PLANS_KEPT]

    def next_action(self) -> npt.NDArray[np.float32]:
        """Take the next action [action_dim] from the queue."""
        self.steps += 1
        return self.queue.popleft()

    def moved_on(self) -> Array | None:
        """Give the last plan's sample as seen now [1, *event], for the next one's draft; None before the first."""
        if not self.plans:
            return None
        return move_on(self.plans[-1].sample, self.steps - self.records[-1].at)


class Histories(Mapping[str, Array]):
    """The last observations of some robots: a history as `Policy.plan` takes it, which keeps what is made of it."""

    def __init__(self, robots: Sequence[EpisodeState]) -> None:
        """Take those that the robots, all of which have observed, have now."""
        self._robots = [list(robot.history) for robot in robots]

    def __getitem__(self, name: str) -> Array:
        return stack_frames([stack_frames([step[name] for step in steps]) for steps in self._robots])

    def __iter__(self) -> Iterator[str]:
        return iter(self._robots[0][0])

    def __len__(self) -> int:
        return len(self._robots[0][0])

    def encode(self, encoder: ObservationEncoder, device: Device) -> tuple[Array, int]:
        """Encode the observations that the encoder has not encoded yet, all at once, and keep their features.

        Returns:
            The conditioning [B, cond_dim], and how many observations were encoded for it.

        Raises:
            BackendError: The encoder's weights were changed, even where none of its networks is called.
        """
        every = [step for steps in self._robots for step in steps]
        new = list({id(step): step for step in every if step.encoder is not encoder}.values())
        if new:
            features = encoder.look({name: stack_frames([step[name] for step in new]) for name in self}, device)
            for step, made in zip(new, features, strict=True):
                step.encoder, step.features = encoder, made
        else:
            encoder.check()
        rows = arrays.namespace(every[0].features).stack([step.features for step in every])
        return encoder.join(rows.reshape(len(self._robots), -1, rows.shape[-1])), len(new)


def conditioning(
    encoder: ObservationEncoder, history: Mapping[str, Any], n_obs_steps: int, device: Device
) -> tuple[Array, Encoding | None]:
    """Encode histories as conditioning [B, cond_dim], as `sensors.encode_history`, and note what it cost.

    Args:
        encoder: Of the policy.
        history: Of some robots: `Histories`, or arrays.
        n_obs_steps: Observations that the policy looks at.
        device: Where it plans.

    Returns:
        The conditioning, and the cost where networks encode.

    Raises:
        ObservationError: As `sensors.encode_history`.
    """
    if not encoder.keeps:
        return encode_history(encoder, history, n_obs_steps, device), None
    start = time.perf_counter()
    if isinstance(history, Histories):
        cond, count = history.encode(encoder, device)
    else:
        cond = encode_history(encoder, history, n_obs_steps, device)
        count = len(cond) * n_obs_steps
    arrays.synchronize(device)
    return cond, Encoding(count, time.perf_counter() - start)


def together(robots: Sequence[EpisodeState]) -> dict[str, Any]:
    """Put what some robots have seen into one batch, as the arguments of `Policy.plan`.

    Args:
        robots: All of which have observed.

    Returns:
        `history`, each feature [B, n_obs_steps, …]; `generator`, one for each row; and `last_plan`
        [B, *event], zeros for those whose episode begins, or None where all begin.
    """
    lasts = [robot.moved_on() for robot in robots]
    known = next((last for last in lasts if last is not None), None)
    if known is not None:
        begun = arrays.zeros(known.shape, known)
        known = arrays.namespace(known).concatenate([begun if last is None else last for last in lasts])
    generators = [robot.generator for robot in robots]
    return {"history": Histories(robots), "generator": generators, "last_plan": known}


class Pilot(Protocol):
    """Controls the robots of a group: a policy, for which time stands still while it plans, or one of `clocks`."""

    @property
    def sampler(self) -> Sampler:
        """What it plans with."""
        ...

    @property
    def robots(self) -> list[EpisodeState]:
        """Those it controls."""
        ...

    def reset_batch(self, seeds: Sequence[int]) -> None:
        """As `Policy.reset_batch`."""
        ...

    def observe(self, row: int, observation: Any) -> None:
        """As `Policy.observe`."""
        ...

    def act(self, rows: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """As `Policy.act`."""
        ...
