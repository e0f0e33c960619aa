"""Observations of a robot as they come, checked: by the policy's names or the environment's, frames in two forms."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import NUMPY, Array, Device
from asd_policy._common.border import as_numbers, finite
from asd_policy.errors import ObservationError

STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
ENVIRONMENT_KEYS = {STATE: "agent_pos", ENVIRONMENT_STATE: "environment_state"}
"""Policy feature → key in an environment's observation dictionary, by LeRobot's convention."""
OBS = "obs"
"""The one feature of policies whose library has a single observation vector."""
IMAGE, IMAGES, PIXELS = "observation.image", "observation.images.", "pixels"
"""The one camera of a policy, each of several, and an environment's frame or mapping of frames by camera, by LeRobot's
convention."""
TOKENS, ATTENTION_MASK = "observation.language.tokens", "observation.language.attention_mask"
"""The text of a task, as LeRobot's tokenizer makes it: numbers of tokens, and which of them are to be read."""
_ALIASES = {name: (key,) for name, key in ENVIRONMENT_KEYS.items()} | {
    OBS: (STATE, ENVIRONMENT_KEYS[STATE]),
    IMAGE: (PIXELS,),
}


Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each observation feature: (n,) for a vector, (3, height, width) for a camera's frame, uint8 or not, (points,
channels) for a point cloud."""


def is_frame(shape: tuple[int, ...]) -> bool:
    """Tell whether a feature is a camera's frame, which comes in two forms."""
    return len(shape) == 3


@contextmanager
def given_by(whom: str) -> Iterator[None]:
    """Say in an error within whose observation it speaks of; where that is said twice, the outer one knows best.

    Args:
        whom: Who gave it, such as "robot 2".

    Raises:
        ObservationError: One was raised within.
    """
    try:
        yield
    except ObservationError as error:
        bare = error.__cause__ if isinstance(error.__cause__, ObservationError) else error
        raise ObservationError(f"{whom} gave an observation that cannot be used: {bare}") from bare


def read_observation(observation: Any, shapes: Shapes, device: Device) -> dict[str, Array]:
    """Read each feature of an observation as an array of the host, a checked copy.

    Args:
        observation: As for `Policy.select_action`.
        shapes: Shape of each feature.
        device: Where the policy plans: NumPy's arrays for a policy of NumPy's, else PyTorch's.

    Returns:
        Vectors [n] and clouds [points, channels] in float32; frames [height, width, 3] in uint8 or [3, height, width]
        in float32, as they came.

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
        if is_frame(shape):
            values = _read_frame(values, shape, what)
        elif values.shape != shape:
            raise ObservationError(f"{what} has shape {values.shape}, not {shape}")
        else:
            values = finite(values, what)
        features[name] = arrays.asarray(values, NUMPY if device == NUMPY else "cpu")
    return features


def frames_seen(observation: Any, shapes: Shapes) -> dict[str, npt.NDArray[np.uint8]]:
    """Find the frames [height, width, 3] that a policy sees of an observation, by the names of its cameras.

    Raises:
        ObservationError: As `read_observation`.
    """
    cameras = {name: shape for name, shape in shapes.items() if is_frame(shape)}
    read = read_observation(observation, cameras, NUMPY) if cameras else {}
    return {name: as_bytes(arrays.to_numpy(each)) for name, each in read.items()}


def read_history(history: Mapping[str, Any], shapes: Shapes, n_obs_steps: int) -> dict[str, Any]:
    """Check each feature's last observations.

    Args:
        history: As for `sensors.encode_history`.
        shapes: Shape of each feature.
        n_obs_steps: Observations that the policy looks at.

    Returns:
        The features [B, n_obs_steps, …] as they came, tensors or NumPy's arrays.

    Raises:
        ObservationError: A feature is missing, a shape or a dtype is wrong, a value is no finite real number, or the
            features do not have equally many rows.
    """
    read = {}
    for name, shape in shapes.items():
        if name not in history:
            raise ObservationError(f"the history has no {name!r}; it has {_names(history)}")
        values, what = history[name], f"the history of {name!r}"
        tensor = hasattr(values, "detach")  # its numbers may be on a GPU, which is not waited for
        values = values if tensor else as_numbers(values, what)
        if is_frame(shape):
            _check_frames_of(values, shape, n_obs_steps, what)
        else:
            if tuple(values.shape[1:]) != (n_obs_steps, *shape):
                wanted = ", ".join(map(str, ("B", n_obs_steps, *shape)))
                raise ObservationError(f"{what} has shape {tuple(values.shape)}, not ({wanted})")
            values = values if tensor else finite(values, what)
        if not len(values):
            raise ObservationError(f"{what} has no rows: its shape is {tuple(values.shape)}")
        read[name] = values
    if len({len(each) for each in read.values()}) > 1:
        found = ", ".join(f"{len(each)} of {name!r}" for name, each in read.items())
        raise ObservationError(f"the history has not as many rows of each feature: {found}")
    return read


def _check_frames_of(frames: Any, want: tuple[int, ...], n_obs_steps: int, what: str) -> None:
    """Check a history of frames [B, n_obs_steps, …], of either form.

    Raises:
        ObservationError: It is none of the two forms, has another number of frames, or floats beyond 0 … 1.
    """
    shape, dtype = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
    check_frames(shape[2:], dtype, want, what, f"(B, {n_obs_steps}) + ")
    if shape[1] != n_obs_steps:
        raise ObservationError(f"{what} has {shape[1]} frames in each row, not {n_obs_steps}: its shape is {shape}")
    if dtype != "uint8" and shape[0]:
        check_range(frames, f"{what} is {dtype} {shape}")


def check_range(frames: Any, what: str) -> None:
    """Refuse floats beyond 0 … 1, and NaN.

    Args:
        frames: Floats of either library, at least one.
        what: Names and describes them, for the message.

    Raises:
        ObservationError: There are some.
    """
    low, high = float(frames.min()), float(frames.max())
    if not (low >= 0 and high <= 1):  # NaN, too
        raise ObservationError(f"{what} in {low:g} … {high:g}, not in 0 … 1")


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
    check_range(values, f"{what} is {values.dtype} {values.shape}")
    return np.array(values, np.float32)


def stack_frames(steps: Sequence[Array]) -> Array:
    """Stack observations of one feature; where frames of both forms are among them, in the form of floats."""
    if len({str(each.dtype) for each in steps}) > 1:
        steps = [as_floats(each) for each in steps]
    return arrays.namespace(steps[0]).stack(list(steps))


def as_floats(frames: Any) -> Any:
    """Convert checked frames of either form to float32 [..., 3, height, width] in 0 … 1."""
    if not str(frames.dtype).endswith("uint8"):
        return arrays.asarray(frames, arrays.device_of(frames), "float32")
    floats = arrays.asarray(frames, arrays.device_of(frames), "float32") / 255
    return arrays.namespace(floats).moveaxis(floats, -1, -3)


def as_bytes(frame: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Convert a checked frame of either form to uint8 [height, width, 3], floats to the nearest."""
    if frame.dtype == np.uint8:
        return frame
    return np.rint(255 * np.moveaxis(frame, 0, -1)).astype(np.uint8)


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
        f"reads {describe_shapes(shapes)}"
    )


def _split(flat: Any, shapes: Shapes) -> dict[str, npt.NDArray[Any]]:
    """Take an observation that is one array apart into its features, which are vectors."""
    if any(len(shape) > 1 for shape in shapes.values()):
        raise ObservationError(
            f"the observation is a {type(flat).__name__}; the policy reads a mapping of {describe_shapes(shapes)}"
        )
    flat, dims = as_numbers(flat, "the observation"), [shape[0] for shape in shapes.values()]
    if flat.shape != (sum(dims),):
        raise ObservationError(
            f"the observation has shape {flat.shape}; the policy reads ({sum(dims)},) or a mapping of "
            f"{describe_shapes(shapes)}"
        )
    return dict(zip(shapes, np.split(flat, np.cumsum(dims)[:-1]), strict=True))


def _names(mapping: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, mapping)) or "nothing"


def describe_shapes(shapes: Shapes) -> str:
    """Write the policy's features with their shapes, for messages."""
    return ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
