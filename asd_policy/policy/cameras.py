"""Observations with cameras' frames as the conditioning of a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy._common import arrays
from asd_policy._common.border import as_numbers
from asd_policy.errors import ObservationError
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import Shapes, as_floats, check_frames, encode_vector, find_history

MOST_PIXELS = 2**22
"""Pixels that are encoded in one call; a ResNet-18 needs about 100 bytes of memory for each."""


@dataclass(frozen=True)
class Camera:
    """One camera, and what makes features of its frames."""

    shape: tuple[int, int, int]
    """Of a frame: 3, height, width."""
    colours: Affine
    """Normalisation of the three colours, from 0 … 1."""
    network: nn.Module
    """Turns normalised frames [N, 3, height, width] into features [N, size], each row by itself; of several cameras it
    may be the same."""
    size: int
    """Numbers that a frame becomes."""


class CameraEncoder:
    """Normalises vectors, runs frames through vision networks, and puts all in a row."""

    inpaints = False

    def __init__(self, features: Mapping[str, Affine | Camera]) -> None:
        """Make an encoder of features in the order the network reads them, the networks being on one device."""
        self.features = dict(features)

    @property
    def cameras(self) -> dict[str, Camera]:
        """Its cameras, in the network's order."""
        return {name: each for name, each in self.features.items() if isinstance(each, Camera)}

    @property
    def shapes(self) -> Shapes:
        """Shape of each feature: vectors (n,), frames (3, height, width)."""
        return {name: each.shape if isinstance(each, Camera) else (len(each.origin),) for name, each in self._items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of the conditioning that each feature becomes at each observation step."""
        return {name: each.size if isinstance(each, Camera) else len(each.origin) for name, each in self._items()}

    @property
    def normalization(self) -> dict[str, Affine]:
        """Map of each vector, and of the colours of each camera."""
        return {name: each.colours if isinstance(each, Camera) else each for name, each in self._items()}

    def to(self, device: torch.device) -> "CameraEncoder":
        """Bring it to a device, the networks themselves and not copies."""
        return CameraEncoder({name: _to(each, device) for name, each in self._items()})

    def encode(self, history: Mapping[str, Any], n_obs_steps: int, device: torch.device) -> Tensor:
        """Encode histories, as `ObservationEncoder.encode`."""
        frames = {
            name: read_frames(find_history(history, name), camera.shape, n_obs_steps, f"the history of {name!r}")
            for name, camera in self.cameras.items()
        }
        if len({len(each) for each in frames.values()}) > 1:
            found = ", ".join(f"{len(each)} of {name!r}" for name, each in frames.items())
            raise ObservationError(f"the history has not as many rows of each camera: {found}")
        with arrays.sampling(device):
            seen = {name: _look(camera, frames[name], device) for name, camera in self.cameras.items()}
        parts = [
            arrays.ordinary(seen[name]) if isinstance(each, Camera)
            else encode_vector(history, name, each, n_obs_steps, device)
            for name, each in self._items()
        ]  # fmt: skip
        return torch.cat(parts, dim=-1).flatten(1)

    def _items(self) -> Sequence[tuple[str, Affine | Camera]]:
        return list(self.features.items())


def read_frames(values: Any, want: tuple[int, ...], n_obs_steps: int, what: str) -> Tensor:
    """Check a history of frames; return it as it came, uint8 HWC or float CHW, as a tensor.

    Args:
        values: The history [B, n_obs_steps, …].
        want: Shape of a frame, (3, height, width).
        n_obs_steps: Observations that the policy looks at.
        what: Names the history, for messages.

    Raises:
        ObservationError: It is none of the two forms, has another number of frames, or floats beyond 0 … 1.
    """
    frames = values if isinstance(values, Tensor) else torch.as_tensor(as_numbers(values, what))
    shape, dtype = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
    check_frames(shape[2:], dtype, want, what, f"(B, {n_obs_steps}) + ")
    if shape[1] != n_obs_steps:
        raise ObservationError(f"{what} has {shape[1]} frames in each row, not {n_obs_steps}: its shape is {shape}")
    if dtype != "uint8" and frames.numel():
        low, high = (float(each) for each in torch.aminmax(frames.detach()))
        if not (low >= 0 and high <= 1):  # NaN, too
            raise ObservationError(f"{what} is {dtype} {shape} in {low:g} … {high:g}, not in 0 … 1")
    return frames


def _look(camera: Camera, frames: Tensor, device: torch.device) -> Tensor:
    """Encode a history of frames as [B, n_obs_steps, size], not more at once than there may be memory for."""
    _, height, width = camera.shape
    parts = frames.flatten(0, 1).split(max(1, MOST_PIXELS // (height * width)))
    seen = [camera.network(_normalize(camera.colours, as_floats(part.to(device)))) for part in parts]
    return torch.cat(seen).unflatten(0, frames.shape[:2])


def _normalize(colours: Affine, frames: Tensor) -> Tensor:
    """Normalise the colours of frames [N, 3, height, width]."""
    origin, gain, shift = (each[:, None, None] for each in (colours.origin, colours.gain, colours.shift))
    return (frames - origin) * gain + shift


def _to(feature: Affine | Camera, device: torch.device) -> Affine | Camera:
    if isinstance(feature, Affine):
        return feature.to(device)
    return replace(feature, colours=feature.colours.to(device), network=feature.network.to(device))
