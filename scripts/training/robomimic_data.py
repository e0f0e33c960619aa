"""robomimic's data sets: `data/demo_<n>` with `actions` and `obs/<name>` (robomimic/utils/dataset.py)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.policy.observation import IMAGES
from training.data import CHUNK, Array, Source, fail, require

ACTIONS, OBJECT = "actions", "object"
_ARM = ("eef_pos", "eef_quat", "gripper_qpos")
"""Of each arm, what robomimic's and Diffusion Policy's configurations observe."""


class RobomimicData(Source):
    """Demonstrations in the order of their numbers; observations of three axes a step are frames."""

    format = "robomimic hdf5"
    action = ACTIONS

    def __init__(self, path: Path, demos: Mapping[str, Any]) -> None:
        """Look at the shapes.

        Args:
            path: For messages.
            demos: Each demonstration's group, by name.
        """
        self._path, self._demos = path, demos
        first = next(iter(demos.values()))
        shapes = {name: tuple(each.shape[1:]) for name, each in first["obs"].items()}
        self.vectors = {name: shape for name, shape in shapes.items() if len(shape) < 3}
        self.vectors[ACTIONS] = tuple(first[ACTIONS].shape[1:])
        self.cameras = {name: shape for name, shape in shapes.items() if len(shape) == 3}
        self.lengths = [self._length(name) for name in demos]
        arms = [f"robot{arm}_{part}" for arm in range(2) for part in _ARM]
        state = tuple(name for name in arms if name in self.vectors)
        self.own = state, (OBJECT,) if OBJECT in self.vectors else ()

    def vector(self, name: str) -> Array:
        """Read a vector at all steps [T, …]."""
        parts = [self._find(demo, name) for demo in self._demos]
        return np.concatenate([self._read(part, slice(None)) for part in parts])

    def frames(self, cameras: Sequence[str]) -> Iterator[Mapping[str, Array]]:
        """Read frames, some steps at a time."""
        for demo, length in zip(self._demos, self.lengths, strict=True):
            parts = {name: self._find(demo, name) for name in cameras}
            for start in range(0, length, CHUNK):
                yield {name: self._read(part, slice(start, start + CHUNK)) for name, part in parts.items()}

    def policy_name(self, camera: str) -> str:
        """Name a camera in LeRobot's way."""
        return IMAGES + camera

    def _length(self, demo: str) -> int:
        group = self._demos[demo]
        if ACTIONS not in group:
            fail(f"{self._path}: data/{demo} has no {ACTIONS}; it has {', '.join(group) or 'nothing'}")
        length, said = len(group[ACTIONS]), group.attrs.get("num_samples")
        if said is not None and int(said) != length:
            fail(f"{self._path}: data/{demo} says num_samples {said}, and has {length} actions")
        return length

    def _find(self, demo: str, name: str) -> Any:
        """Find one demonstration's array, after checks."""
        group = self._demos[demo]
        where, section = (name, group) if name == ACTIONS else (f"obs/{name}", group.get("obs", {}))
        if name not in section:
            fail(f"{self._path}: data/{demo} has no {where}, and others do")
        array, steps = section[name], len(group[ACTIONS])
        wanted = {**self.vectors, **self.cameras}[name]
        if tuple(array.shape) != (steps, *wanted):
            fail(f"{self._path}: data/{demo}/{where} is {tuple(array.shape)}, not {(steps, *wanted)}")
        return array

    def _read(self, array: Any, part: slice) -> Array:
        try:
            return np.asarray(array[part])
        except OSError as error:  # a damaged file, or a filter that is not installed
            fail(f"{self._path}: {array.name} cannot be read: {str(error).splitlines()[0]}")


def open_robomimic(path: Path) -> RobomimicData:
    """Open a data set.

    Raises:
        SystemExit: h5py is missing, the file cannot be read, or it is no data set of robomimic's.
    """
    h5py = require("h5py", "an .hdf5", "data")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        fail(f"{path} cannot be read as hdf5: {str(error).splitlines()[0]}")
    found = file.get("data")
    demos = {} if not isinstance(found, h5py.Group) else {
        name: each for name, each in found.items() if name.startswith("demo_") and name.removeprefix("demo_").isdigit()
    }  # fmt: skip
    if not demos:
        fail(f"{path} has no data/demo_0, as robomimic's data sets do; it has {', '.join(file) or 'nothing'}")
    demos = dict(sorted(demos.items(), key=lambda item: int(item[0].removeprefix("demo_"))))
    name, first = next(iter(demos.items()))
    for part in (ACTIONS, "obs"):
        if part not in first:
            hint = ": dataset_states_to_obs.py of robomimic makes it" if part == "obs" else ""
            fail(f"{path}: data/{name} has no {part}{hint}; it has {', '.join(first) or 'nothing'}")
    return RobomimicData(path, demos)
