"""Situations to plan in: the network's conditioning, and the plan before."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from asd_policy._common import arrays
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import ObservationEncoder, Shapes, at_rest
from asd_policy.policy.policy import Policy

CALIBRATION_PLANS = 32
"""Plans that a sampler which learns may learn from before it is measured."""

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
    sizes, cpu = policy.encoder.sizes, torch.device("cpu")
    generator = arrays.make_generator(cpu, seed)
    once = 2 * arrays.uniforms((count, 1, sum(sizes.values())), generator, cpu) - 1
    cameras = [name for name, shape in policy.observation_shapes.items() if len(shape) > 1]
    if cameras:
        parts = dict(zip(sizes, once.split(list(sizes.values()), dim=-1), strict=True))
        scenes = min(count, SCENES)
        seen = policy.encoder.encode(_scenes(policy, scenes, generator), 1, policy.device).unflatten(1, (1, -1)).cpu()
        encoded = dict(zip(sizes, seen.split(list(sizes.values()), dim=-1), strict=True))
        parts |= {name: encoded[name][torch.arange(count) % scenes] for name in cameras}
        once = torch.cat(list(parts.values()), dim=-1)
    return once.expand(-1, policy.horizons.n_obs_steps, -1).flatten(1).to(policy.device)


def _scenes(policy: Policy, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw one observation for each of `count` rows [count, 1, …]: frames of patches; vectors at rest."""
    scenes: dict[str, Tensor] = {}
    for name, values in at_rest(policy.encoder).items():
        if values.ndim == 1:
            scenes[name] = values.expand(count, 1, -1)
            continue
        patches = arrays.uniforms((count, 3, PATCHES, PATCHES), generator, torch.device("cpu"))
        scenes[name] = functional.interpolate(patches, tuple(values.shape[1:]))[:, None]
    return scenes


def random_states(policy: Policy, count: int, seed: int) -> States:
    """Draw `count` states at random, each the start of an episode of its own."""
    cond = random_conditioning(policy, count, seed)
    return States(cond, cond.new_zeros((count, *policy.event)), np.arange(count))


def histories(policy: Policy, cond: Tensor) -> dict[str, Tensor]:
    """Recover the observations that a policy turns into conditioning [N, C], up to rounding; frames are grey.

    Returns:
        Each feature [N, n_obs_steps, …], in the environment's units.
    """
    sizes, steps = policy.encoder.sizes, policy.horizons.n_obs_steps
    parts = cond.unflatten(1, (steps, -1)).split(list(sizes.values()), dim=-1)
    history: dict[str, Tensor] = {}
    for (name, shape), part in zip(policy.observation_shapes.items(), parts, strict=True):
        if len(shape) == 1:
            history[name] = policy.normalization[name].unnormalize(part)
        else:
            _, height, width = shape
            history[name] = torch.full((len(cond), steps, height, width, 3), 128, dtype=torch.uint8)
    return history


def recalling(policy: Policy, cond: Tensor) -> Policy:
    """Make a policy that plans at `cond` after the work of encoding what `histories` recovers of it.

    A camera's frames cannot be recovered of their features, and encoding takes as long whatever they show.

    Args:
        policy: Shares all but its encoder.
        cond: Conditioning of one plan's rows.
    """
    if not any(len(shape) > 1 for shape in policy.observation_shapes.values()):
        return policy
    other = copy.copy(policy)
    other.encoder = _Recalling(policy.encoder, cond)
    return other


@dataclass(frozen=True)
class _Recalling:
    """Does the work of an encoder, and returns conditioning that was given."""

    encoder: ObservationEncoder
    cond: Tensor
    inpaints = False

    @property
    def shapes(self) -> Shapes:
        return self.encoder.shapes

    @property
    def sizes(self) -> Mapping[str, int]:
        return self.encoder.sizes

    @property
    def normalization(self) -> Mapping[str, Affine]:
        return self.encoder.normalization

    def to(self, device: torch.device) -> "_Recalling":
        return _Recalling(self.encoder.to(device), self.cond.to(device))

    def encode(self, history: Mapping[str, Any], n_obs_steps: int, device: torch.device) -> Tensor:
        self.encoder.encode(history, n_obs_steps, device)
        return self.cond
