"""Observations of a robot: as they come, checked; and as the conditioning of a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import NUMPY, Array, Device
from asd_policy._common.border import as_numbers, finite
from asd_policy.errors import AsdError, ObservationError
from asd_policy.policy.normalisation import Affine

STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
ENVIRONMENT_KEYS = {STATE: "agent_pos", ENVIRONMENT_STATE: "environment_state"}
"""Policy feature → key in an environment's observation dictionary, by LeRobot's convention."""
OBS = "obs"
"""The one feature of policies whose library has a single observation vector."""
IMAGE, IMAGES, PIXELS = "observation.image", "observation.images.", "pixels"
"""The one camera of a policy, each of several, and an environment's frame or mapping of frames by camera, by LeRobot's
convention."""
_ALIASES = {name: (key,) for name, key in ENVIRONMENT_KEYS.items()} | {
    OBS: (STATE, ENVIRONMENT_KEYS[STATE]),
    IMAGE: (PIXELS,),
}


Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each observation feature: (n,) for a vector, (3, height, width) for a camera's frame, uint8 or not."""


class ObservationEncoder(Protocol):
    """Makes the conditioning of a network of what a robot has seen, once for each plan."""

    @property
    def shapes(self) -> Shapes:
        """Shape of each feature, in the order the network reads them."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Numbers of the conditioning that each feature becomes at each observation step, in the same order."""
        ...

    @property
    def normalization(self) -> Mapping[str, Affine]:
        """Map of each vector [feature_dim], and of the three colours of each camera's frames [3]."""
        ...

    @property
    def inpaints(self) -> bool:
        """Whether the network generates observations beside the actions, in place of being conditioned on them.

        Those that are known are given: arXiv 2303.04137 with `obs_as_global_cond=False`.
        """
        ...

    def to(self, device: Device) -> "ObservationEncoder":
        """Bring it to a device."""
        ...

    def encode(self, history: Mapping[str, Any], n_obs_steps: int, device: Device) -> Array:
        """Encode histories as conditioning [B, n_obs_steps · sum of `sizes`], a step after the other.

        Args:
            history: Each feature's last observations, oldest first, in any array: vectors [B, n_obs_steps,
                feature_dim]; frames [B, n_obs_steps, height, width, 3] in uint8, or [B, n_obs_steps, 3, height, width]
                in 0 … 1.
            n_obs_steps: Observations that the policy looks at.
            device: Where the policy plans.

        Raises:
            ObservationError: A feature is missing, a shape or a dtype is wrong, or a value is no finite real number.
        """
        ...


@dataclass(frozen=True)
class StateEncoder:
    """Normalises vectors and puts them in a row: the encoder of policies that observe states."""

    normalization: Mapping[str, Affine]
    """Normalisation of each observation feature, in the order the network reads them."""
    inpaints: bool = False
    """As `ObservationEncoder.inpaints`."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each feature."""
        return {name: (len(affine.origin),) for name, affine in self.normalization.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each feature."""
        return {name: len(affine.origin) for name, affine in self.normalization.items()}

    def to(self, device: Device) -> "StateEncoder":
        """Copy it to a device."""
        return StateEncoder({name: affine.to(device) for name, affine in self.normalization.items()}, self.inpaints)

    def encode(self, history: Mapping[str, Any], n_obs_steps: int, device: Device) -> Array:
        """Normalise and flatten histories, as `ObservationEncoder.encode`."""
        parts = [
            encode_vector(history, name, affine, n_obs_steps, device) for name, affine in self.normalization.items()
        ]
        cond = arrays.namespace(parts[0]).concatenate(parts, axis=-1)
        return cond.reshape(len(cond), -1)


def encode_vector(history: Mapping[str, Any], name: str, affine: Affine, n_obs_steps: int, device: Device) -> Array:
    """Normalise the history [B, n_obs_steps, feature_dim] of one vector, after a check.

    Raises:
        ObservationError: It is missing, its shape is wrong, or a value is no finite real number.
    """
    values, what = find_history(history, name), f"the history of {name!r}"
    if not hasattr(values, "detach"):  # a tensor's numbers may be on a GPU, which is not waited for
        values = finite(as_numbers(values, what), what)
    dim = len(affine.origin)
    if tuple(values.shape[1:]) != (n_obs_steps, dim):
        raise ObservationError(f"{what} has shape {tuple(values.shape)}, not (B, {n_obs_steps}, {dim})")
    return affine.normalize(arrays.asarray(values, device, "float32"))


def find_history(history: Mapping[str, Any], name: str) -> Any:
    """Find a feature's history.

    Raises:
        ObservationError: It is missing.
    """
    if name not in history:
        raise ObservationError(f"the history has no {name!r}; it has {_names(history)}")
    return history[name]


def at_rest(encoder: ObservationEncoder) -> dict[str, Array]:
    """Make an observation in the middle of what the normalisation knows; frames are grey."""
    seen = {}
    for name, shape in encoder.shapes.items():
        affine = encoder.normalization[name]
        middle = affine.unnormalize(0 * affine.origin)
        seen[name] = middle if len(shape) == 1 else 0.5 + arrays.zeros(shape, middle)
    return seen


def read_observation(observation: Any, shapes: Shapes, device: Device) -> dict[str, Array]:
    """Read each feature of an observation as an array of the host, a checked copy.

    Args:
        observation: As for `Policy.select_action`.
        shapes: Shape of each feature.
        device: Where the policy plans: NumPy's arrays for a policy of NumPy's, else PyTorch's.

    Returns:
        Vectors [feature_dim] in float32; frames [height, width, 3] in uint8 or [3, height, width] in float32, as they
        came.

    Raises:
        ObservationError: A key is missing, a shape or a dtype is wrong, or a value is no finite real number, or beyond
            a frame's 0 … 1.
    """
    if not isinstance(observation, Mapping):
        observation = _split(observation, shapes)
    features = {}
    for name, shape in shapes.items():
        key, value = _find(observation, name, shapes)
        what = f"observation {key!r}"
        values = as_numbers(value, what)
        if len(shape) == 1:
            if values.shape != shape:
                raise ObservationError(f"{what} has shape {values.shape}, not {shape}")
            values = finite(values, what)
        else:
            values = _read_frame(values, shape, what)
        features[name] = arrays.asarray(values, NUMPY if device == NUMPY else "cpu")
    return features


def refuse_cameras(shapes: Shapes, what: str, kind: type[AsdError]) -> None:
    """Refuse a policy with cameras where only vectors can be taken.

    Args:
        shapes: Of its features.
        what: What takes no frames, for the message.
        kind: Of the error.

    Raises:
        AsdError: It has cameras.
    """
    cameras = [name for name, shape in shapes.items() if len(shape) > 1]
    if cameras:
        raise kind(f"the policy observes {', '.join(cameras)}: {what} takes no cameras yet, only vectors")


def check_frames(shape: tuple[int, ...], dtype: str, want: tuple[int, ...], what: str, lead: str = "") -> None:
    """Refuse frames that are neither uint8 HWC nor float CHW of the wanted size.

    Args:
        shape: Of one frame.
        dtype: Of its numbers, by NumPy's name.
        want: (3, height, width).
        what: Names the frames, for messages.
        lead: Axes before those of a frame, for messages.

    Raises:
        ObservationError: They are.
    """
    colours, height, width = want
    forms = {"uint8": (height, width, colours), "float": (colours, height, width)}
    if shape != forms.get("float" if dtype.startswith(("float", "bfloat")) else dtype):
        raise ObservationError(
            f"{what} is {dtype} {lead}{shape}, not uint8 {lead}{forms['uint8']} in 0 … 255 or "
            f"float {lead}{forms['float']} in 0 … 1"
        )


def _read_frame(values: npt.NDArray[Any], want: tuple[int, ...], what: str) -> npt.NDArray[Any]:
    """Check a camera's frame, and copy it: uint8 stays uint8, which needs a quarter of the memory."""
    check_frames(values.shape, str(values.dtype), want, what)
    if values.dtype == np.uint8:
        return values.copy()
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # NaN, too
        raise ObservationError(f"{what} is {values.dtype} {values.shape} in {low:g} … {high:g}, not in 0 … 1")
    return np.array(values, np.float32)


def stack_frames(steps: Sequence[Array]) -> Array:
    """Stack observations of one feature; where frames of both forms are among them, in the form of floats."""
    if len({str(each.dtype) for each in steps}) > 1:
        steps = [as_floats(each) for each in steps]
    return arrays.namespace(steps[0]).stack(list(steps))


def as_floats(frames: Array) -> Array:
    """Convert checked frames of either form to float32 [..., 3, height, width] in 0 … 1."""
    if not str(frames.dtype).endswith("uint8"):
        return arrays.asarray(frames, arrays.device_of(frames), "float32")
    floats = arrays.asarray(frames, arrays.device_of(frames), "float32") / 255
    return arrays.namespace(floats).moveaxis(floats, -1, -3)


def _find(observation: Mapping[Any, Any], name: str, shapes: Shapes) -> tuple[str, Any]:
    """Find a feature in an observation by the policy's name for it or the environment's: the key, and the value."""
    names = (name, *_ALIASES.get(name, ()))
    for key in names:
        if key in observation:
            return key, observation[key]
    pixels, camera = observation.get(PIXELS), name.removeprefix(IMAGES)
    if name.startswith(IMAGES) and isinstance(pixels, Mapping):
        if camera in pixels:
            return f"{PIXELS}.{camera}", pixels[camera]
        names = (name, f"{PIXELS}.{camera}")
    raise ObservationError(
        f"the observation has no {' or '.join(map(repr, names))}; it has {_names(observation)}, the policy "
        f"reads {_describe(shapes)}"
    )


def _split(flat: Any, shapes: Shapes) -> dict[str, npt.NDArray[Any]]:
    """Take an observation that is one array apart into its features, which are vectors."""
    if any(len(shape) > 1 for shape in shapes.values()):
        raise ObservationError(
            f"the observation is a {type(flat).__name__}; the policy reads a mapping of {_describe(shapes)}"
        )
    flat, dims = as_numbers(flat, "the observation"), [shape[0] for shape in shapes.values()]
    if flat.shape != (sum(dims),):
        raise ObservationError(
            f"the observation has shape {flat.shape}; the policy reads ({sum(dims)},) or a mapping of "
            f"{_describe(shapes)}"
        )
    return dict(zip(shapes, np.split(flat, np.cumsum(dims)[:-1]), strict=True))


def _names(mapping: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, mapping)) or "nothing"


def _describe(shapes: Shapes) -> str:
    return ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
