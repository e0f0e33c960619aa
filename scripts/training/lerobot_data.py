"""LeRobotDataset folders of version 3, read by LeRobot's own class."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.checkpoints.lerobot.folder import ACTION
from asd_policy.policy.observation import ENVIRONMENT_STATE, STATE, as_bytes
from training.data import CHUNK, Array, Source, fail, require

VERSION = "v3."
EPISODE = "episode_index"


class LerobotData(Source):
    """A LeRobotDataset; the names of its features are kept."""

    format = "LeRobotDataset v3"
    action = ACTION

    def __init__(self, path: Path, dataset: Any, features: Mapping[str, Any]) -> None:
        """Look at the shapes.

        Args:
            path: For messages.
            dataset: LeRobot's.
            features: `features` of meta/info.json.
        """
        self._path, self._dataset = path, dataset
        kinds = {name: str(each.get("dtype")) for name, each in features.items()}
        shapes = {name: tuple(each.get("shape", ())) for name, each in features.items()}
        self.cameras = {name: _height_first(features[name]) for name in kinds if kinds[name] in ("image", "video")}
        self.vectors = {
            name: shape for name, shape in shapes.items()
            if name not in self.cameras and (name.startswith("observation.") or name == ACTION)
        }  # fmt: skip
        state, objects = ((name,) if name in self.vectors else () for name in (STATE, ENVIRONMENT_STATE))
        self.own = state, objects
        episodes = self._column(EPISODE)
        starts = np.flatnonzero(np.diff(episodes, prepend=-1))
        self.lengths = np.diff(starts, append=len(episodes)).tolist()

    def vector(self, name: str) -> Array:
        """Read a vector at all steps [T, …]."""
        return self._column(name)

    def frames(self, cameras: Sequence[str]) -> Iterator[Mapping[str, Array]]:
        """Decode frames, some steps at a time."""
        for start in range(0, len(self._dataset), CHUNK):
            try:
                steps = [self._dataset[row] for row in range(start, min(start + CHUNK, len(self._dataset)))]
            except Exception as error:  # of any decoder
                fail(
                    f"{self._path}: frames near step {start} cannot be decoded: {type(error).__name__}: {_line(error)}"
                )
            yield {name: np.stack([as_bytes(step[name].numpy()) for step in steps]) for name in cameras}

    def policy_name(self, camera: str) -> str:
        """Keep the name."""
        return camera

    def _column(self, name: str) -> Array:
        table = self._dataset.hf_dataset
        if name not in table.column_names:
            fail(f"{self._path}: the data has no column {name!r}, and meta/info.json does")
        return np.asarray(table.select_columns([name]).with_format("numpy")[:][name])


def open_lerobot(path: Path) -> LerobotData:
    """Open a data set that is on this computer; nothing is asked of the Hub.

    Raises:
        SystemExit: lerobot is missing, or the folder is of another version or cannot be read.
    """
    try:
        info = json.loads((path / "meta" / "info.json").read_text())
        version, features = str(info["codebase_version"]), dict(info["features"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{path}/meta/info.json cannot be read: {type(error).__name__}: {_line(error)}")
    if not version.startswith(VERSION):
        way = "LeRobot's convert_dataset_v21_to_v30 converts it"
        fail(f"{path} is a LeRobotDataset {version}, and {VERSION}x is read: {way}")
    if ACTION not in features:
        fail(f"{path} has no feature {ACTION!r}; it has {', '.join(features) or 'none'}")
    module = require("lerobot.datasets.lerobot_dataset", "a LeRobotDataset", "lerobot")
    try:
        dataset = module.LeRobotDataset(f"local/{path.resolve().name}", root=path)
        return LerobotData(path, dataset, features)
    except Exception as error:  # pyarrow's, datasets' or LeRobot's
        fail(f"{path} cannot be read by LeRobot: {type(error).__name__}: {_line(error)}")


def _height_first(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """Read a frame's shape as (height, width, channels); LeRobot's `names` say which is which."""
    shape, names = tuple(feature.get("shape", ())), feature.get("names")
    if isinstance(names, list) and list(names[:1]) in (["channels"], ["channel"]) and len(shape) == 3:
        return *shape[1:], shape[0]
    return shape


def _line(error: Exception) -> str:
    return (str(error).splitlines() or ["?"])[0]
