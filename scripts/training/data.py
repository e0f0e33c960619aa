"""Demonstrations from files: what a reader of a format tells, what is chosen of it, and the checks of both."""

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional

from asd_policy.checkpoints.lerobot.folder import ACTION
from asd_policy.policy.observation import ENVIRONMENT_STATE, STATE
from training.episodes import Episodes

FORMATS = "a LeRobotDataset folder (meta/info.json), a robomimic .hdf5, a Diffusion Policy .zarr or .zarr.zip"
CHUNK = 64
"""Frames that are read at once."""
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Choice:
    """What of the data is observed."""

    state: tuple[str, ...] | None = None
    """Vectors that make up observation.state, in this order, by the data's names; None for the format's own."""
    objects: tuple[str, ...] | None = None
    """Vectors that make up observation.environment_state; None for the format's own."""
    cameras: tuple[str, ...] | None = ()
    """Cameras, in this order; None for all."""
    resize: tuple[int, int] | None = None
    """Height and width that frames are resized to [pixels]; None for their own."""


class Source(ABC):
    """Data of one format, opened and not yet read."""

    format: str
    """Name of the format, for notes and messages."""
    lengths: Sequence[int]
    """Steps of each episode."""
    action: str
    """Name of the actions."""
    vectors: Mapping[str, tuple[int, ...]]
    """Shape of what can be observed and is no frame, and of the actions, at one step."""
    cameras: Mapping[str, tuple[int, ...]]
    """Shape of each camera's frames as stored, which should be (height, width, 3)."""
    own: tuple[tuple[str, ...], tuple[str, ...]]
    """What makes up the state and the environment's state where nothing is said; empty where that is not known."""

    @abstractmethod
    def vector(self, name: str) -> Array:
        """Read a vector at all steps [T, …]."""

    @abstractmethod
    def frames(self, cameras: Sequence[str]) -> Iterator[Mapping[str, Array]]:
        """Read the frames [n, height, width, 3] of cameras, some steps at a time, in the order of the steps."""

    @abstractmethod
    def policy_name(self, camera: str) -> str:
        """Name a camera as the policy will."""


def fail(message: str) -> NoReturn:
    """End with one line.

    Raises:
        SystemExit: Always.
    """
    raise SystemExit(message)


def require(module: str, what: str, extra: str) -> ModuleType:
    """Import an optional library.

    Raises:
        SystemExit: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        fail(f"{what} is read by {module}, and {error.name} is not installed: pip install 'asd-policy[{extra}]'")
    except ImportError as error:  # LeRobot's, of its own extras
        fail(f"{what} is read by {module}, which cannot be imported: {str(error).splitlines()[0]}")


def open_data(path: Path) -> Source:
    """Open data of a format that is known by its name.

    Raises:
        SystemExit: It is of none, cannot be read, or its library is missing.
    """
    if not path.exists():
        fail(f"--data {path} does not exist")
    # Each reader is imported with the library that it needs.
    if path.suffix in (".hdf5", ".h5"):
        from training.robomimic_data import open_robomimic

        return open_robomimic(path)
    if path.name.endswith((".zarr", ".zarr.zip")):
        from training.zarr_data import open_zarr

        return open_zarr(path)
    if (path / "meta" / "info.json").is_file():
        from training.lerobot_data import open_lerobot

        return open_lerobot(path)
    fail(f"--data {path} is not {FORMATS}")


def read_data(path: Path, choice: Choice, progress: Progress) -> Episodes:
    """Read demonstrations.

    Args:
        path: A file or folder of one of `FORMATS`.
        choice: What of it is observed.
        progress: Shows how far it is.

    Raises:
        SystemExit: The data cannot be read, contradicts itself, or has not what was chosen.
    """
    source = open_data(path)
    if not source.lengths or min(source.lengths) < 1:
        fail(f"{path}: an episode has no steps" if source.lengths else f"{path} has no episodes")
    names = {STATE: _chosen(choice.state, source.own[0]), ENVIRONMENT_STATE: _chosen(choice.objects, source.own[1])}
    if not names[STATE]:
        found = ", ".join(f"{name} {shape}" for name, shape in source.vectors.items() if name != source.action)
        fail(f"{path} does not say what a robot's state is: name its vectors, such as --state {found or '(none)'}")
    features: dict[str, Tensor] = {}
    for feature, parts in {**names, ACTION: (source.action,)}.items():
        if parts:
            features[feature] = torch.from_numpy(np.concatenate([_vector(path, source, name) for name in parts], 1))
    cameras = tuple(source.cameras) if choice.cameras is None else choice.cameras
    if choice.cameras is None and not cameras:
        fail(f"{path} has no cameras, and --images learns from frames")
    features |= _frames(path, source, cameras, choice.resize, progress)
    notes = {
        "data": path.name,
        "format": source.format,
        "observed": {feature: list(parts) for feature, parts in names.items() if parts},
        "cameras": {source.policy_name(name): name for name in cameras},
    }
    return Episodes(features, list(source.lengths), notes, frame=_size(source, cameras) if choice.resize else None)


def _chosen(named: tuple[str, ...] | None, own: tuple[str, ...]) -> tuple[str, ...]:
    return own if named is None else named


def _vector(path: Path, source: Source, name: str) -> Array:
    """Read one vector at all steps [T, n] in float32, after checks."""
    if name not in source.vectors:
        if name in source.cameras:
            fail(f"{path}: {name!r} has frames: name it with --cameras")
        known = ", ".join(name for name in source.vectors if name != source.action) or "none"
        fail(f"{path} has no vector {name!r}; its vectors are {known}")
    values, steps = source.vector(name), sum(source.lengths)
    if values.dtype.kind not in "fiu":
        fail(f"{path}: {name!r} is {values.dtype}, and a vector has numbers")
    if len(values) != steps:
        fail(f"{path}: {name!r} has {len(values)} steps, the episodes have {steps}")
    flat = values.reshape(steps, -1).astype(np.float32)
    if flat.shape[1] == 0:
        fail(f"{path}: {name!r} has no numbers: its shape is {values.shape}")
    broken = ~np.isfinite(flat).all(1)
    if broken.any():
        fail(f"{path}: {name!r} has a value that is no finite number, at step {int(broken.argmax())}")
    return flat


def _frames(
    path: Path, source: Source, cameras: Sequence[str], resize: tuple[int, int] | None, progress: Progress
) -> dict[str, Tensor]:
    """Read the frames of cameras as uint8 [T, height, width, 3], by the policy's names."""
    if not cameras:
        return {}
    steps = sum(source.lengths)
    for name in cameras:
        if name not in source.cameras:
            fail(f"{path} has no camera {name!r}; its cameras are {', '.join(source.cameras) or 'none'}")
        shape = source.cameras[name]
        if len(shape) != 3 or shape[2] != 3:
            turned = ": height and width come first" if len(shape) == 3 and shape[0] == 3 else ""
            fail(f"{path}: frames of {name!r} are {shape}, not (height, width, 3){turned}")
    if len({source.cameras[name] for name in cameras}) > 1:
        found = ", ".join("{} {} × {}".format(name, *source.cameras[name]) for name in cameras)
        fail(f"{path}: LeRobot's policies take frames of one size, and there are {found}: choose --cameras")
    height, width = resize or _size(source, cameras)
    needed, there = len(cameras) * steps * height * width * 3, memory()
    if needed > there:
        sizes = f"{needed / 2**30:.1f} GiB of memory, and there are {there / 2**30:.1f}"
        fail(f"{path}: frames take {sizes}: --resize, or fewer --cameras")
    task = progress.add_task("reading frames", total=steps)
    kept = {name: torch.empty((steps, height, width, 3), dtype=torch.uint8) for name in cameras}
    at = 0
    for part in source.frames(cameras):
        count = len(part[cameras[0]])
        for name in cameras:
            kept[name][at : at + count] = _resized(_uint8(path, name, part[name], source.cameras[name]), resize)
        at += count
        progress.update(task, completed=at)
    if at != steps:
        fail(f"{path}: there are frames of {at} steps, the episodes have {steps}")
    return {source.policy_name(name): values for name, values in kept.items()}


def _size(source: Source, cameras: Sequence[str]) -> tuple[int, int]:
    height, width, _ = source.cameras[cameras[0]]
    return height, width


def memory() -> int:
    """Measure this computer's memory [bytes]."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _uint8(path: Path, name: str, frames: Array, shape: tuple[int, ...]) -> Tensor:
    """Check frames, uint8 or whole numbers in 0 … 255 that are stored as floats."""
    if frames.shape[1:] != shape:
        fail(f"{path}: a frame of {name!r} is {frames.shape[1:]}, and others are {shape}")
    if frames.dtype.kind == "f":  # as in Diffusion Policy's own Push-T data
        low, high = frames.min(), frames.max()
        if not (low >= 0 and high <= 255) or (frames != np.floor(frames)).any():
            fail(f"{path}: frames of {name!r} are {frames.dtype} in {low:g} … {high:g}, not whole numbers in 0 … 255")
        frames = frames.astype(np.uint8)
    if frames.dtype != np.uint8:
        fail(f"{path}: frames of {name!r} are {frames.dtype}, not uint8")
    return torch.from_numpy(np.ascontiguousarray(frames))


def _resized(frames: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize frames as the policy's encoder does, to whole numbers."""
    if size is None or tuple(frames.shape[1:3]) == size:
        return frames
    moved = frames.permute(0, 3, 1, 2).float()
    moved = functional.interpolate(moved, size, mode="bilinear", antialias=True)
    return moved.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
