"""Demonstrations from files: what a reader makes of them, and one line for each thing that is wrong."""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
import zarr
import zarr.storage
from rich.progress import Progress

import asd_policy
import train
from training.data import Choice, read_data
from training.episodes import Episodes

Array = npt.NDArray[Any]
LENGTHS = [3, 5]
STEPS = sum(LENGTHS)
ALL = Choice(cameras=None)


def random(*shape: int, frames: bool = False) -> Array:
    rng = np.random.default_rng(shape)
    return rng.integers(0, 256, shape, np.uint8) if frames else rng.normal(size=shape)


def buffer() -> dict[str, Array]:
    """What a replay buffer of Diffusion Policy has, with a camera."""
    return {
        "data/action": random(STEPS, 2).astype(np.float32),
        "data/state": random(STEPS, 5).astype(np.float32),
        "data/img": random(STEPS, 20, 24, 3, frames=True),
        "meta/episode_ends": np.cumsum(LENGTHS),
    }


def write_zarr(path: Path, arrays: Mapping[str, Array], version: int = 2) -> Path:
    store: Any = zarr.storage.ZipStore(path, mode="w") if path.suffix == ".zip" else path
    root = zarr.open_group(store, mode="w", zarr_format=version)  # pyright: ignore[reportArgumentType]  # 2 or 3
    for name, values in arrays.items():
        root.create_array(name, data=values, chunks=(min(2, len(values) or 1), *values.shape[1:]))
    if path.suffix == ".zip":
        store.close()
    return path


def demos() -> dict[str, Array]:
    """What a data set of robomimic has; the numbers of demonstrations are not in the order of their names."""
    arrays: dict[str, Array] = {}
    for demo, length in zip((2, 10), LENGTHS, strict=True):
        arrays[f"data/demo_{demo}/actions"] = random(length, 7)
        for name, size in {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}.items():
            arrays[f"data/demo_{demo}/obs/{name}"] = random(length, size)
        for name in ("agentview_image", "robot0_eye_in_hand_image"):
            arrays[f"data/demo_{demo}/obs/{name}"] = random(length, 20, 24, 3, frames=True)
    return arrays


def write_hdf5(path: Path, arrays: Mapping[str, Array]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
        if isinstance(data := file.get("data"), h5py.Group):
            for group in data.values():
                if isinstance(group, h5py.Group) and "actions" in group:
                    group.attrs["num_samples"] = len(group["actions"])  # pyright: ignore[reportArgumentType]
    return path


def read(path: Path, choice: Choice = ALL) -> Episodes:
    return read_data(path, choice, Progress(disable=True))


# Diffusion Policy's zarr


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["pusht.zarr", "umi.zarr.zip"])
def test_a_replay_buffer_is_read(name: str, version: int, tmp_path: Path) -> None:
    arrays = buffer()
    episodes = read(write_zarr(tmp_path / name, arrays, version))
    assert list(episodes.lengths) == LENGTHS
    assert episodes.vectors == {"observation.state": 5}
    assert episodes.cameras == {"observation.images.img": (3, 20, 24)}
    for feature, key in {"observation.state": "state", "observation.images.img": "img", "action": "action"}.items():
        np.testing.assert_array_equal(episodes.features[feature], arrays[f"data/{key}"])
    assert episodes.notes["observed"] == {"observation.state": ["state"]}
    assert read(tmp_path / name, Choice()).cameras == {}


def test_frames_that_are_stored_as_floats_are_frames(tmp_path: Path) -> None:
    arrays = buffer()
    frames = arrays["data/img"]
    episodes = read(write_zarr(tmp_path / "pusht.zarr", {**arrays, "data/img": frames.astype(np.float32)}))
    assert episodes.features["observation.images.img"].dtype == torch.uint8
    np.testing.assert_array_equal(episodes.features["observation.images.img"], frames)


def test_vectors_are_put_in_a_row_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    arrays = buffer() | {"data/keypoint": random(STEPS, 9, 2), "data/n_contacts": random(STEPS, 1)}
    path = write_zarr(tmp_path / "pusht.zarr", arrays)
    episodes = read(path, Choice(state=("n_contacts", "state"), objects=("keypoint",)))
    np.testing.assert_array_equal(
        episodes.features["observation.state"],
        np.concatenate([arrays["data/n_contacts"], arrays["data/state"]], 1).astype(np.float32),
    )
    np.testing.assert_array_equal(
        episodes.features["observation.environment_state"], arrays["data/keypoint"].reshape(STEPS, 18).astype("f4")
    )


def test_frames_are_resized_as_the_policy_resizes_them(tmp_path: Path) -> None:
    arrays = buffer()
    smooth = np.broadcast_to(np.linspace(0, 255, 24).astype(np.uint8)[None, None, :, None], (STEPS, 20, 24, 3))
    path = write_zarr(tmp_path / "pusht.zarr", {**arrays, "data/img": smooth})
    episodes = read(path, Choice(cameras=("img",), resize=(10, 12)))
    frames = episodes.features["observation.images.img"]
    assert frames.shape == (STEPS, 10, 12, 3)
    assert episodes.cameras == {"observation.images.img": (3, 20, 24)}
    expected = smooth[:, :10, :, :].reshape(STEPS, 10, 12, 2, 3).mean(3)
    assert np.abs(frames.numpy() - expected)[:, :, 1:-1].max() <= 1


Change = Callable[[dict[str, Array]], Any]
WRONG_ZARR: list[tuple[Change, Choice, str]] = [
    (lambda a: a.pop("data/action"), ALL, "has no data/action, as Diffusion Policy's replay buffers do; data has"),
    (lambda a: a.pop("meta/episode_ends"), ALL, "has no meta/episode_ends, as"),
    (
        lambda a: a.update({"meta/episode_ends": np.array([3, 9])}),
        ALL,
        "[3, 9] does not rise to the 8 steps of data",
    ),
    (lambda a: a.update({"meta/episode_ends": np.array([5, 5, 8])}), ALL, "[5, 5, 8] does not rise to the 8 steps"),
    (lambda a: a.update({"meta/episode_ends": np.array([0, 8])}), ALL, "[0, 8] does not rise to the 8 steps"),
    (
        lambda a: a.update({"meta/episode_ends": np.array([3.0, 8.0])}),
        ALL,
        "meta/episode_ends is float64 (2,), not ",
    ),
    (lambda a: a.update({"data/state": random(7, 5)}), ALL, "data/state has 7 steps, data/action has 8"),
    (
        lambda a: a.update({"data/state": np.full((8, 5), np.nan)}),
        ALL,
        "'state' has a value that is no finite number",
    ),
    (lambda a: a.update({"data/state": np.ones((8, 5), bool)}), ALL, "'state' is bool, and a vector has numbers"),
    (
        lambda a: a.update({"data/other": random(8, 1)}),
        ALL,
        "does not say what a robot's state is: name its",
    ),
    (lambda a: a.update({"data/img": random(8, 3, 20, 24)}), ALL, "(3, 20, 24), not (height, width, 3): height and wi"),
    (
        lambda a: a.update({"data/img": random(8, 20, 24, 4)}),
        ALL,
        "frames of 'img' are (20, 24, 4), not (height",
    ),
    (lambda a: a.update({"data/img": random(8, 20, 24, 3)}), ALL, "float64 in -"),
    (lambda a: a.update({"data/img": np.ones((8, 20, 24, 3), int)}), ALL, "frames of 'img' are int64, not uint8"),
    (
        lambda a: a.update({"data/left": random(8, 9, 9, 3)}),
        ALL,
        "take frames of one size, and there are img 20 × 24",
    ),
    (lambda a: a.pop("data/img"), ALL, "has no cameras, and --images learns from frames"),
    (lambda a: None, Choice(cameras=("front",)), "has no camera 'front'; its cameras are img"),
    (lambda a: None, Choice(state=("pose",)), "has no vector 'pose'; its vectors are state"),
    (lambda a: None, Choice(state=("img",)), "'img' has frames: name it with --cameras"),
]


@pytest.mark.parametrize(("change", "choice", "message"), WRONG_ZARR)
def test_wrong_replay_buffers(change: Change, choice: Choice, message: str, tmp_path: Path) -> None:
    arrays = buffer()
    change(arrays)
    with pytest.raises(SystemExit, match=re.escape(message)) as stop:
        read(write_zarr(tmp_path / "pusht.zarr", arrays), choice)
    assert "\n" not in str(stop.value)


def test_a_damaged_replay_buffer(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "pusht.zarr", buffer())
    (path / "data" / "state" / "0.0").write_bytes(b"nothing that could be decompressed")
    with pytest.raises(SystemExit, match=r"pusht\.zarr: data/state cannot be read"):
        read(path)
    (tmp_path / "umi.zarr.zip").write_bytes(b"no zip")
    with pytest.raises(SystemExit, match=r"umi\.zarr\.zip cannot be read as zarr: BadZipFile"):
        read(tmp_path / "umi.zarr.zip")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(SystemExit, match=r"empty\.zarr cannot be read as zarr"):
        read(tmp_path / "empty.zarr")


# robomimic's hdf5


def test_a_robomimic_data_set_is_read(tmp_path: Path) -> None:
    arrays = demos()
    episodes = read(write_hdf5(tmp_path / "lift.hdf5", arrays))
    assert list(episodes.lengths) == LENGTHS
    assert episodes.vectors == {"observation.state": 9, "observation.environment_state": 10}
    assert episodes.cameras == {
        "observation.images.agentview_image": (3, 20, 24),
        "observation.images.robot0_eye_in_hand_image": (3, 20, 24),
    }
    arm = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    rows = [np.concatenate([arrays[f"data/demo_{demo}/obs/{name}"] for name in arm], 1) for demo in (2, 10)]
    np.testing.assert_array_equal(episodes.features["observation.state"], np.concatenate(rows).astype(np.float32))
    for feature, key in {"action": "actions", "observation.images.agentview_image": "obs/agentview_image"}.items():
        both = np.concatenate([arrays[f"data/demo_{demo}/{key}"] for demo in (2, 10)])
        np.testing.assert_array_equal(episodes.features[feature], both.astype(episodes.features[feature].numpy().dtype))
    assert episodes.notes["observed"] == {"observation.state": arm, "observation.environment_state": ["object"]}


WRONG_HDF5: list[tuple[Change, Choice, str]] = [
    (lambda a: a.clear(), ALL, "has no data/demo_0, as robomimic's data sets do; it has nothing"),
    (lambda a: a.pop("data/demo_2/actions"), ALL, "data/demo_2 has no actions; it has obs"),
    (lambda a: a.pop("data/demo_10/actions"), ALL, "data/demo_10 has no actions; it has obs"),
    (lambda a: [a.pop(key) for key in list(a) if "/obs/" in key], ALL, "data/demo_2 has no obs: dataset_states_to_obs"),
    (lambda a: a.pop("data/demo_10/obs/object"), ALL, "data/demo_10 has no obs/object, and others do"),
    (lambda a: a.update({"data/demo_10/obs/object": random(5, 9)}), ALL, "demo_10/obs/object is (5, 9), not (5, 10)"),
    (lambda a: a.update({"data/demo_10/obs/object": random(4, 10)}), ALL, "demo_10/obs/object is (4, 10), not (5, 10)"),
    (lambda a: a.update({"data/demo_10/actions": random(5, 6)}), ALL, "demo_10/actions is (5, 6), not (5, 7)"),
    (
        lambda a: a.update({"data/demo_2/obs/object": np.array([b"x"] * 3)}),
        ALL,
        "'object' is |S1, and a vector has",
    ),
    (
        lambda a: None,
        Choice(cameras=("frontview_image",)),
        "has no camera 'frontview_image'; its cameras are agent",
    ),
    (lambda a: None, Choice(objects=("actions2",)), "has no vector 'actions2'; its vectors are object, robot0_eef_pos"),
]


@pytest.mark.parametrize(("change", "choice", "message"), WRONG_HDF5)
def test_wrong_robomimic_data(change: Change, choice: Choice, message: str, tmp_path: Path) -> None:
    arrays = demos()
    change(arrays)
    if "data/demo_2/obs/object" in arrays and arrays["data/demo_2/obs/object"].dtype.kind == "S":
        arrays["data/demo_10/obs/object"] = np.array([b"x"] * 5)
    with pytest.raises(SystemExit, match=re.escape(message)) as stop:
        read(write_hdf5(tmp_path / "lift.hdf5", arrays), choice)
    assert "\n" not in str(stop.value)


def test_a_count_that_is_wrong_and_a_file_that_is_damaged(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "lift.hdf5", demos())
    with h5py.File(path, "a") as file:
        file["data/demo_2"].attrs["num_samples"] = 4
    with pytest.raises(SystemExit, match="data/demo_2 says num_samples 4, and has 3 actions"):
        read(path)
    path.write_bytes(b"no hdf5")
    with pytest.raises(SystemExit, match=r"lift\.hdf5 cannot be read as hdf5: "):
        read(path)


# All formats


def test_other_files_and_libraries_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(SystemExit, match="is not a LeRobotDataset folder"):
        read(tmp_path)
    for name, module, extra in (("a.hdf5", "h5py", "data"), ("a.zarr", "zarr", "data")):
        (tmp_path / name).touch()
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(SystemExit, match=rf"{module} is not installed: pip install 'asd-policy\[{extra}\]'"):
            read(tmp_path / name)
    (tmp_path / "meta").mkdir()
    info = tmp_path / "meta" / "info.json"
    for text, message in (
        ("{", "cannot be read: JSONDecodeError"),
        ('{"codebase_version": "v3.0"}', "cannot be read: KeyError: 'features'"),
        ('{"codebase_version": "v2.1", "features": {}}', r"is a LeRobotDataset v2\.1, and v3\.x is read"),
        ('{"codebase_version": "v3.0", "features": {"x": {}}}', "has no feature 'action'; it has x"),
    ):
        info.write_text(text)
        with pytest.raises(SystemExit, match=message):
            read(tmp_path)
    info.write_text('{"codebase_version": "v3.0", "features": {"action": {}}}')
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(SystemExit, match=r"lerobot.* is not installed: pip install 'asd-policy\[lerobot\]'"):
        read(tmp_path)


def test_frames_that_memory_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.memory", lambda: 10_000)
    path = write_zarr(tmp_path / "pusht.zarr", buffer())
    with pytest.raises(SystemExit, match="GiB of memory, and there are .*: --resize, or fewer --cameras"):
        read(path)
    assert read(path, Choice(cameras=None, resize=(5, 6))).features["observation.images.img"].shape == (8, 5, 6, 3)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    small = ["--steps", "2", "--down-dims", "8", "16", "--batch", "2", "--horizon", "8", "--n-action-steps", "4"]
    monkeypatch.setattr(sys, "argv", ["train.py", *small, *words])
    train.main()


def test_a_policy_learns_from_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With frames that are resized and cropped; the robot's frames have their own size."""
    path = write_hdf5(tmp_path / "lift.hdf5", demos())
    words = ["--images", "--resize", "40", "48", "--crop", "30", "36", "--out", str(tmp_path / "policy")]
    run(monkeypatch, "--data", str(path), *words)
    policy = asd_policy.load_policy(tmp_path / "policy", "ddpm")
    cameras = ["observation.images.agentview_image", "observation.images.robot0_eye_in_hand_image"]
    assert dict(policy.observation_shapes) == {
        "observation.state": (9,), **dict.fromkeys(cameras, (3, 20, 24)), "observation.environment_state": (10,)
    }  # fmt: skip
    seen = {name: np.zeros((20, 24, 3), np.uint8) for name in cameras}
    seen |= {"observation.state": np.zeros(9), "observation.environment_state": np.zeros(10)}
    assert policy.select_action(seen).shape == (7,)
    assert policy.horizons.horizon == 8
    text = (tmp_path / "policy" / "training.json").read_text()
    assert '"format": "robomimic hdf5"' in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --env or --data says what to learn from"),
        (["--env", "asd/Avoid-v0", "--data", "a.zarr"], "either --env or --data says what to learn from"),
        (["--env", "asd/Avoid-v0", "--cameras", "front"], "--cameras is of --data: leave it out with --env"),
        (["--data", "a.zarr", "--noise", "0.2"], "--noise is of an environment's expert: leave it out with --data"),
        (
            ["--data", "a.zarr", "--resize", "64", "64", "--crop", "60", "50"],
            "--crop 60 50 is not the same part of",
        ),
        (["--data", "a.zarr", "--resize", "0", "64"], "--resize 0 64 is not a height and a width"),
    ],
)
def test_options_that_contradict_each_other(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "--out", str(tmp_path / "policy"), *words)


def test_a_crop_larger_than_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zarr(tmp_path / "pusht.zarr", buffer())
    with pytest.raises(SystemExit, match=r"--crop does not fit: crop_shape \[30, 20\] is larger than frames of 20 × "):
        run(monkeypatch, "--data", str(path), "--images", "--crop", "30", "20", "--out", str(tmp_path / "policy"))
