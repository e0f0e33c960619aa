"""Observations of a robot: as they come, checked; and as the conditioning of a network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import NUMPY, Array, Device
from asd_policy._common.border import as_numbers, finite
from asd_policy.errors import ObservationError
from asd_policy.policy.normalisation import Affine

STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
ENVIRONMENT_KEYS = {STATE: "agent_pos", ENVIRONMENT_STATE: "environment_state"}
"""Policy feature → key in an environment's observation dictionary, by LeRobot's convention."""
OBS = "obs"
"""The one feature of policies whose library has a single observation vector."""
_ALIASES = {name: (key,) for name, key in ENVIRONMENT_KEYS.items()} | {OBS: (STATE, ENVIRONMENT_KEYS[STATE])}


@dataclass(frozen=True)
class StateEncoder:
    """Normalises vectors and puts them in a row: the encoder of policies that observe states."""

    features: Mapping[str, Affine]
    """Normalisation of each observation feature, in the order the network reads them."""
    inpaints: bool = False
    """Whether the network generates actions and observations side by side, the known ones being given (arXiv 2303.04137
    with `obs_as_global_cond=False`), in place of being conditioned on the observations."""

    @property
    def dims(self) -> dict[str, int]:
        """Length of each feature."""
        return {name: len(affine.origin) for name, affine in self.features.items()}

    def to(self, device: Device) -> "StateEncoder":
        """Copy it to a device."""
        return StateEncoder({name: affine.to(device) for name, affine in self.features.items()}, self.inpaints)

    def encode(self, history: Mapping[str, Any], n_obs_steps: int, device: Device) -> Array:
        """Normalise and flatten histories to conditioning [B, n_obs_steps · feature dims].

        Args:
            history: Each feature's last observations [B, n_obs_steps, feature_dim], oldest first, in any array.
            n_obs_steps: Observations that the policy looks at.
            device: Where the policy plans.

        Raises:
            ObservationError: A feature is missing, a shape is wrong, or a value is no finite real number.
        """
        parts = []
        for name, affine in self.features.items():
            if name not in history:
                raise ObservationError(f"the history has no {name!r}; it has {_names(history)}")
            values, what = history[name], f"the history of {name!r}"
            if not hasattr(values, "detach"):  # a tensor's numbers may be on a GPU, which is not waited for
                values = finite(as_numbers(values, what), what)
            dim = len(affine.origin)
            if tuple(values.shape[1:]) != (n_obs_steps, dim):
                raise ObservationError(f"{what} has shape {tuple(values.shape)}, not (B, {n_obs_steps}, {dim})")
            parts.append(affine.normalize(arrays.asarray(values, device, "float32")))
        cond = arrays.namespace(parts[0]).concatenate(parts, axis=-1)
        return cond.reshape(len(cond), -1)


def read_observation(observation: Any, dims: Mapping[str, int], device: Device) -> dict[str, Array]:
    """Read each feature of an observation as a float32 array [feature_dim] of the host, a checked copy.

    Args:
        observation: As for `Policy.select_action`.
        dims: Length of each feature.
        device: Where the policy plans: NumPy's arrays for a policy of NumPy's, else PyTorch's.

    Raises:
        ObservationError: A key is missing, a shape is wrong, or a value is no finite real number.
    """
    if not isinstance(observation, Mapping):
        observation = _split(as_numbers(observation, "the observation"), dims)
    features = {}
    for name, dim in dims.items():
        names = (name, *_ALIASES.get(name, ()))
        key = next((key for key in names if key in observation), None)
        if key is None:
            raise ObservationError(
                f"the observation has no {' or '.join(map(repr, names))}; it has {_names(observation)}, the policy "
                f"reads {_describe(dims)}"
            )
        what = f"observation {key!r}"
        values = as_numbers(observation[key], what)
        if values.shape != (dim,):
            raise ObservationError(f"{what} has shape {values.shape}, not ({dim},)")
        features[name] = arrays.asarray(finite(values, what), NUMPY if device == NUMPY else "cpu")
    return features


def _split(flat: npt.NDArray[Any], dims: Mapping[str, int]) -> dict[str, npt.NDArray[Any]]:
    """Take an observation that is one array apart into its features."""
    if flat.shape != (sum(dims.values()),):
        raise ObservationError(
            f"the observation has shape {flat.shape}; the policy reads ({sum(dims.values())},) or a mapping "
            f"of {_describe(dims)}"
        )
    return dict(zip(dims, np.split(flat, np.cumsum(list(dims.values()))[:-1]), strict=True))


def _names(mapping: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, mapping)) or "nothing"


def _describe(dims: Mapping[str, int]) -> str:
    return ", ".join(f"{name!r} ({dim},)" for name, dim in dims.items())
