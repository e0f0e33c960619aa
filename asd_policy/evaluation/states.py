"""Situations to plan in: the network's conditioning, and the plan before."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from asd_policy._common import arrays
from asd_policy.policy.observation import is_frame
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import ObservationEncoder, at_rest
from asd_policy.samplers import Sampler
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.records import SampleResult
from asd_policy.samplers.warm_start import WarmStart

CALIBRATION_PLANS = 32
"""Plans that a sampler which learns may learn from before it is measured."""
TRIAL_PLANS = 192
"""How many more, at most, one may make to choose its setting by what plans cost."""

SCENES, PATCHES = 16, 4
"""Different random frames of a camera, and their patches along each side."""


@dataclass(frozen=True)
class States:
    """Situations to plan in."""

    cond: Tensor
    """Conditioning: the encoded observations, [N, …]."""
    last_plan: Tensor
    """The plan before, moved on to the present; zeros at an episode's start, [N, *event]."""
    episode: npt.NDArray[np.int64]
    """The episode that each comes from [N]; those of one episode are not independent."""

    def __len__(self) -> int:
        return len(self.cond)

    def rows(self, rows: slice | npt.NDArray[np.int64]) -> "States":
        """Select some of them."""
        return States(self.cond[rows], self.last_plan[rows], self.episode[rows])

    def first(self, count: int) -> "States":
        """Select the first `count` of them."""
        return self.rows(slice(count))

    @classmethod
    def none(cls, count: int, event: Sequence[int]) -> "States":
        """Make `count` states of a denoiser without conditioning, with no plan before."""
        zeros = torch.zeros(count, *event, dtype=torch.float32, device="cpu")
        return cls(zeros.new_zeros(count, 1), zeros, np.arange(count))


def random_conditioning(policy: Policy, count: int, seed: int) -> Tensor:
    """Draw conditioning [count, C] for observations at rest.

    Vectors are uniform in [-1, 1] once normalised. Cameras see patches of random colours: at most `SCENES` different
    frames, because encoding one takes longer than all else here.
    """
    encoder, cpu = policy.encoder, torch.device("cpu")
    generator = arrays.make_generator(cpu, seed)
    once = 2 * arrays.uniforms((count, sum(encoder.sizes.values())), generator, cpu) - 1
    sensed = [name for name, shape in encoder.shapes.items() if len(shape) > 1]
    if sensed:
        scenes = min(count, SCENES)
        features = encoder.look(_scenes(policy, scenes, generator), policy.device).cpu()
        first = 0
        for name, size in encoder.sizes.items():
            if name in sensed:
                once[:, first : first + size] = features[torch.arange(count) % scenes, first : first + size]
            first += size
    return encoder.join(once[:, None].expand(-1, policy.horizons.n_obs_steps, -1).to(policy.device))


def _scenes(policy: Policy, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw `count` observations: frames of patches of random colours, clouds of random points; vectors at rest."""
    cpu = torch.device("cpu")
    scenes: dict[str, Tensor] = {}
    for name, values in at_rest(policy.encoder).items():
        if is_frame(tuple(values.shape)):
            patches = arrays.uniforms((count, 3, PATCHES, PATCHES), generator, cpu)
            scenes[name] = functional.interpolate(patches, tuple(values.shape[1:]))
        elif values.ndim > 1:
            points = 2 * arrays.uniforms((count, *values.shape), generator, cpu) - 1
            scenes[name] = policy.normalization[name].unnormalize(points.to(values.device))
        else:
            scenes[name] = values.expand(count, -1)
    return scenes


def random_states(policy: Policy, count: int, seed: int) -> States:
    """Draw `count` states at random, each the start of an episode of its own."""
    cond = random_conditioning(policy, count, seed)
    return States(cond, cond.new_zeros((count, *policy.event)), np.arange(count))


def histories(policy: Policy, cond: Tensor) -> dict[str, Tensor]:
    """Recover the observations that a policy turns into conditioning [N, C], up to rounding.

    What cannot be recovered is at rest, as long as it takes to encode: frames are grey.

    Returns:
        Each feature [N, n_obs_steps, …], in the environment's units.
    """
    steps, known = policy.horizons.n_obs_steps, policy.encoder.recover(cond)
    history: dict[str, Tensor] = {}
    for name, values in at_rest(policy.encoder).items():
        if name in known:
            history[name] = known[name]
        elif is_frame(shape := tuple(values.shape)):
            history[name] = torch.full((len(cond), steps, *shape[1:], 3), 128, dtype=torch.uint8)
        else:
            history[name] = values.expand(len(cond), steps, *shape)
    return history


def plan_at(
    cond: Tensor, policy: Policy, sampler: Sampler, experience: Experience, generator: torch.Generator
) -> SampleResult:
    """Plan once at the conditioning [B, C] of a policy's observations, each the start of an episode."""
    return sampler.sample(
        policy.denoiser,
        policy.chain,
        (len(cond), *policy.event),
        cond,
        generator,
        inpainting=policy.inpainting(cond),
        warm_start=WarmStart(None, experience),
    )


def recalling(policy: Policy, cond: Tensor) -> Policy:
    """Make a policy that plans at `cond` after the work of encoding what `histories` recovers of it.

    A camera's frames cannot be recovered of their features, and encoding takes as long whatever they show.

    Args:
        policy: Shares all but its encoder.
        cond: Conditioning of one plan's rows.
    """
    if policy.encoder.recover(cond).keys() == policy.observation_shapes.keys():
        return policy
    other = copy.copy(policy)
    other.encoder = cast(ObservationEncoder, _Recalling(policy.encoder, cond))
    return other


class _Recalling:
    """Does the work of an encoder, and joins what it made to conditioning that was given."""

    def __init__(self, encoder: ObservationEncoder, cond: Tensor) -> None:
        self._encoder, self._cond = encoder, cond

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def join(self, features: Tensor) -> Tensor:
        return self._cond
