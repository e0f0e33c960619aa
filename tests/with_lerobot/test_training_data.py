"""A LeRobotDataset that LeRobot writes is learned from, and LeRobot loads the policy that comes of it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from rich.progress import Progress
from safetensors.torch import load_file

import asd_policy

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # where the script finds what is beside it
import train  # noqa: E402
from training.data import Choice, read_data  # noqa: E402

LeRobotDataset = pytest.importorskip("lerobot.datasets.lerobot_dataset", exc_type=ImportError).LeRobotDataset

STATE, FRONT, WRIST = "observation.state", "observation.images.front", "observation.images.wrist"
LENGTHS = [4, 3]
HEIGHT, WIDTH = 40, 48
Frames = dict[str, npt.NDArray[Any]]


def features(kind: str) -> dict[str, Any]:
    camera = {"dtype": kind, "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]}
    return {
        STATE: {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        FRONT: camera,
        WRIST: camera,
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    }


def steps() -> list[Frames]:
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 1, WIDTH)[None, :, None]  # which a video's codec keeps
    return [
        {
            STATE: rng.normal(size=3).astype(np.float32),
            FRONT: (255 * np.broadcast_to(smooth * rng.uniform(0.5, 1), (HEIGHT, WIDTH, 3))).astype(np.uint8),
            WRIST: (255 * np.broadcast_to(1 - smooth * rng.uniform(0.5, 1), (HEIGHT, WIDTH, 3))).astype(np.uint8),
            "action": rng.normal(size=2).astype(np.float32),
        }
        for _ in range(sum(LENGTHS))
    ]


def record(root: Path, kind: str) -> list[Frames]:
    """Have LeRobot write two episodes."""
    made = steps()
    dataset = LeRobotDataset.create("local/recording", 10, features(kind), root, use_videos=kind == "video")
    rest = iter(made)
    for length in LENGTHS:
        for _ in range(length):
            dataset.add_frame({**next(rest), "task": "push"})
        dataset.save_episode()
    dataset.finalize()
    return made


def read(root: Path, choice: Choice) -> Any:
    return read_data(root, choice, Progress(disable=True))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Frames]]:
    root = tmp_path_factory.mktemp("data") / "recording"
    return root, record(root, "image")


def test_what_lerobot_has_written_is_read(recording: tuple[Path, list[Frames]]) -> None:
    root, made = recording
    episodes = read(root, Choice(cameras=None))
    assert list(episodes.lengths) == LENGTHS
    assert set(episodes.features) == {STATE, FRONT, WRIST, "action"}
    for name, values in episodes.features.items():
        np.testing.assert_array_equal(values, np.stack([step[name] for step in made]))
    assert list(read(root, Choice(cameras=(WRIST,))).cameras) == [WRIST]
    assert read(root, Choice()).cameras == {}


def test_videos_are_read(tmp_path: Path) -> None:
    try:
        made = record(tmp_path / "recording", "video")
    except Exception as error:  # of ffmpeg's builds
        pytest.skip(f"no video can be written here: {type(error).__name__}")
    try:
        LeRobotDataset("local/recording", tmp_path / "recording")[0]
    except Exception as error:  # torchvision has no decoder since 0.26, and torchcodec is not everywhere
        with pytest.raises(SystemExit, match=f"frames near step 0 cannot be decoded: {type(error).__name__}"):
            read(tmp_path / "recording", Choice(cameras=None))
        return
    episodes = read(tmp_path / "recording", Choice(cameras=None))
    for name in (FRONT, WRIST):
        difference = episodes.features[name].numpy().astype(int) - np.stack([step[name] for step in made])
        assert np.abs(difference).mean() < 6


def test_what_is_not_there_is_named(recording: tuple[Path, list[Frames]], tmp_path: Path) -> None:
    root, _ = recording
    with pytest.raises(SystemExit, match=f"has no camera 'top'; its cameras are {FRONT}, {WRIST}"):
        read(root, Choice(cameras=("top",)))
    with pytest.raises(SystemExit, match="has no vector 'pose'; its vectors are observation.state"):
        read(root, Choice(state=("pose",)))
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text(json.dumps(json.loads((root / "meta" / "info.json").read_text())))
    with pytest.raises(SystemExit, match="cannot be read by LeRobot: "):
        read(tmp_path, Choice())


def test_lerobot_loads_the_policy_that_learned(
    recording: tuple[Path, list[Frames]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "policy"
    words = ["--data", str(recording[0]), "--images", "--out", str(out), "--steps", "2", "--batch", "2"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words, "--down-dims", "8", "16", "--crop", "36", "40"])
    train.main()
    theirs = DiffusionPolicy.from_pretrained(out)
    assert set(theirs.config.input_features or {}) == {STATE, FRONT, WRIST}
    weights = theirs.state_dict()
    stored = load_file(out / "model.safetensors")
    assert stored.keys() == weights.keys()
    for name, value in stored.items():
        assert torch.equal(value.float(), weights[name].float()), name
    assert asd_policy.load_policy(out, "ddpm").action_dim == 2
