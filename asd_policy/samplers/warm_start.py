"""What earlier plans tell the next one."""

from dataclasses import dataclass

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.samplers.asd.experience import Experience


@dataclass(frozen=True)
class WarmStart:
    """What earlier plans tell a draft.

    No sampler's law depends on it, if those plans had a noise of their own: a generator that is seeded anew before each
    plan makes drafts that know the noise which judges them.
    """

    last_plan: Array | None = None
    """For each row the sample before this one, moved on to the present, [B, *event]; zeros where there is none."""
    experience: Experience | None = None
    """Learned from the plans of a policy; a sampler that can learn adds its own."""

    @property
    def lacking(self) -> Array:
        """Which rows have no last plan, for zeros stand for none [B]; only where there is a `last_plan`."""
        assert self.last_plan is not None
        return (self.last_plan == 0).reshape(len(self.last_plan), -1).all(1)


def move_on(sample: Array, executed: int) -> Array:
    """Move samples [B, horizon, …] on by `executed` control steps; their last step is held."""
    xp, executed = arrays.namespace(sample), min(executed, sample.shape[1])
    last = xp.broadcast_to(sample[:, -1:], (len(sample), executed, *sample.shape[2:]))
    return xp.concatenate([sample[:, executed:], last], axis=1)
