"""Conditioning on the text of a task, which a policy is given as token numbers beside what the robot sees."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy._common import arrays
from asd_policy.errors import ObservationError, SpecError
from asd_policy.networks.backends.base import Backend
from asd_policy.networks.backends.torch_network import Weights
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import ATTENTION_MASK, TOKENS
from asd_policy.policy.sensors import SensorEncoder


@dataclass(frozen=True)
class TaskEncoder:
    """Encodes what a robot sees, and its task after it: an `ObservationEncoder`.

    The task of a plan is that of its last observation, for all of them, as in LeRobot's `MultiTaskDiTPolicy`.
    """

    seen: SensorEncoder
    """For all features but the task."""
    text: nn.Module
    """The library's own encoder: token numbers and attention mask [N, length], int64 and bool, to [N, size]."""
    length: int
    """Tokens of a task, padding included."""
    size: int
    """Numbers that a task becomes."""
    vocabulary: int
    """How many tokens there are."""
    weights: Weights
    """Sees whether the weights of `text` are those of before."""
    device: torch.device
    """Where they are."""
    inpaints: bool = False
    """As `ObservationEncoder.inpaints`."""
    random_crop: str | None = None
    """As `ObservationEncoder.random_crop`."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each feature."""
        return {**self.seen.shapes, TOKENS: (self.length,), ATTENTION_MASK: (self.length,)}

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers that each feature of one observation becomes; the task's are counted with its tokens."""
        return {**self.seen.sizes, TOKENS: self.size, ATTENTION_MASK: 0}

    @property
    def normalization(self) -> dict[str, Affine]:
        """Map of each feature; those of the task say what is at rest: tokens 0, all of them to be read."""
        zero = torch.zeros(self.length, device=self.device)
        rest = {TOKENS: Affine(zero, zero + 1, zero), ATTENTION_MASK: Affine(zero + 1, zero + 1, zero)}
        return {**self.seen.normalization, **rest}

    @property
    def keeps(self) -> bool:
        """Whether features are worth keeping: networks make them, and not at random."""
        return True

    def to(self, device: Any) -> "TaskEncoder":
        """Stay where the live policy is.

        Raises:
            SpecError: The device is another one.
        """
        if torch.device(device) != self.device:
            raise SpecError(f"the live policy's encoder is on {self.device}, not on {device}")
        return replace(self, seen=self.seen.to(device))

    def on(self, backend: Backend, device: Any) -> "TaskEncoder":
        """Make one whose networks of cameras a backend runs; the library encodes the text itself, in float32.

        Numbers of tokens have too many digits for half precision.
        """
        return replace(self, seen=self.seen.on(backend, device), weights=Weights(self.text))

    def check(self) -> None:
        """Refuse weights that were changed, as `ObservationEncoder.check`."""
        self.seen.check()
        self.weights.check()

    def look(self, observations: Mapping[str, Any], device: Any) -> Tensor:
        """Encode single observations, as `ObservationEncoder.look`; each task among them once.

        Raises:
            BackendError: Weights were changed.
            ObservationError: The task is no token numbers and a mask.
        """
        self.weights.check()
        tokens, mask = (arrays.asarray(observations[name], device) for name in (TOKENS, ATTENTION_MASK))
        _check_whole(tokens, TOKENS, self.vocabulary)
        _check_whole(mask, ATTENTION_MASK, 2)
        tasks, row = torch.unique(torch.stack([tokens, mask], dim=1).long(), dim=0, return_inverse=True)
        with arrays.sampling(self.device):
            features = self.text(tasks[:, 0], tasks[:, 1].bool())
        features = arrays.ordinary(features)[row]
        return torch.cat([self.seen.look(observations, device), features], dim=-1)

    def join(self, features: Tensor) -> Tensor:
        """Join features, a step after the other, all with the task of the last."""
        steps, task = features.shape[1], features[:, -1:, -self.size :]
        return torch.cat([features[..., : -self.size], task.expand(-1, steps, -1)], dim=-1).flatten(1)

    def recover(self, cond: Tensor) -> dict[str, Tensor]:
        """Recover the vectors that are normalised alone, as `ObservationEncoder.recover`; not the task."""
        features = cond.unflatten(1, (-1, sum(self.sizes.values())))
        return self.seen.recover(features[..., : -self.size].flatten(1))

    def cond_dim(self, n_obs_steps: int) -> int:
        """Count the numbers of the conditioning of one plan."""
        return n_obs_steps * sum(self.sizes.values())


def _check_whole(values: Tensor, name: str, count: int) -> None:
    """Refuse what is no whole number in 0 … count − 1."""
    wrong = (values != values.long()) | (values < 0) | (values >= count)
    if bool(wrong.any()):
        raise ObservationError(
            f"{name} has {float(values[wrong][0]):g}, no whole number in 0 … {count - 1}: give what LeRobot's "
            "tokenizer makes of the task"
        )
