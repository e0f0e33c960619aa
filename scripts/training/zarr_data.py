"""Diffusion Policy's replay buffers, folders or zipped as UMI's are.

`data/<name>` has all steps, `meta/episode_ends` where episodes end (diffusion_policy/common/replay_buffer.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.checkpoints.lerobot.folder import ACTION
from asd_policy.policy.observation import IMAGES
from training.data import CHUNK, Array, Source, fail, require


class ZarrData(Source):
    """A replay buffer; the arrays of four axes are frames."""

    format = "Diffusion Policy zarr"
    action = ACTION

    def __init__(self, path: Path, arrays: Mapping[str, Any], ends: Array) -> None:
        """Look at the shapes.

        Args:
            path: For messages.
            arrays: What `data` has, by name.
            ends: `meta/episode_ends`.
        """
        self._path, self._arrays = path, arrays
        self.lengths = np.diff(ends, prepend=0).tolist()
        self.vectors = {name: tuple(each.shape[1:]) for name, each in arrays.items() if each.ndim < 4}
        self.cameras = {name: tuple(each.shape[1:]) for name, each in arrays.items() if each.ndim == 4}
        observed = [name for name in self.vectors if name != ACTION]
        self.own = (tuple(observed) if len(observed) == 1 else ()), ()

    def vector(self, name: str) -> Array:
        """Read a vector at all steps [T, …]."""
        return self._read(name, slice(None))

    def frames(self, cameras: Sequence[str]) -> Iterator[Mapping[str, Array]]:
        """Read frames, some steps at a time."""
        steps = sum(self.lengths)
        for start in range(0, steps, CHUNK):
            part = slice(start, min(start + CHUNK, steps))
            yield {name: self._read(name, part) for name in cameras}

    def policy_name(self, camera: str) -> str:
        """Name a camera in LeRobot's way."""
        return IMAGES + camera

    def _read(self, name: str, part: slice) -> Array:
        try:
            return np.asarray(self._arrays[name][part])
        except Exception as error:  # of any codec
            fail(f"{self._path}: data/{name} cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}")


def open_zarr(path: Path) -> ZarrData:
    """Open a replay buffer.

    Raises:
        SystemExit: zarr is missing, the file cannot be read, or it is no replay buffer.
    """
    zarr = require("zarr", "a .zarr", "data")
    try:
        store = zarr.storage.ZipStore(path, mode="r") if path.suffix == ".zip" else str(path)
        root = zarr.open_group(store, mode="r")
        arrays = dict(sorted(root["data"].arrays())) if "data" in root else {}
        ends = np.asarray(root["meta/episode_ends"][:]) if "meta/episode_ends" in root else None
    except Exception as error:  # zarr's, numcodecs', json's and the file system's
        fail(f"{path} cannot be read as zarr: {type(error).__name__}: {(str(error).splitlines() or ['?'])[0]}")
    if ACTION not in arrays or ends is None:
        missing = f"data/{ACTION}" if ACTION not in arrays else "meta/episode_ends"
        found = ", ".join(arrays) or "nothing"
        fail(f"{path} has no {missing}, as Diffusion Policy's replay buffers do; data has {found}")
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or len(ends) == 0:
        fail(f"{path}: meta/episode_ends is {ends.dtype} {ends.shape}, not whole numbers, one for each episode")
    steps = {name: each.shape[0] if each.ndim else 0 for name, each in arrays.items()}
    if (np.diff(ends.astype(np.int64), prepend=0) <= 0).any() or int(ends[-1]) != steps[ACTION]:
        fail(f"{path}: meta/episode_ends {_short(ends)} does not rise to the {steps[ACTION]} steps of data/{ACTION}")
    other = [name for name in steps if steps[name] != steps[ACTION]]
    if other:
        fail(f"{path}: data/{other[0]} has {steps[other[0]]} steps, data/{ACTION} has {steps[ACTION]}")
    return ZarrData(path, arrays, ends.astype(np.int64))


def _short(ends: Array) -> str:
    """Write numbers, of many only the ends."""
    return str(ends.tolist() if len(ends) < 7 else [*ends[:3].tolist(), "…", *ends[-2:].tolist()]).replace("'", "")
