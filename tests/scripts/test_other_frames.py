"""The script that hides an environment from its policy: frames are others, all else is the episode's own."""

import sys
from ctypes.util import find_library
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import asd_envs  # noqa: F401  registers the environments

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))
from other_frames import GREY, OTHER, OtherFrames  # noqa: E402


@pytest.mark.skipif(find_library("EGL") is None, reason="frames need the system library libEGL")
@pytest.mark.parametrize("shown", [OTHER, GREY])
def test_only_the_frames_are_others(shown: str) -> None:
    own = gymnasium.make("asd/AvoidPixels-v0")
    hidden = OtherFrames(gymnasium.make("asd/AvoidPixels-v0"), shown)
    expected, _ = own.reset(seed=3)
    seen, _ = hidden.reset(seed=3)
    first = seen["pixels"]
    for _ in range(3):
        np.testing.assert_array_equal(seen["agent_pos"], expected["agent_pos"])
        assert (seen["pixels"] != expected["pixels"]).any()
        np.testing.assert_array_equal(seen["pixels"], first)
        action = np.array([0.1, 0.02])
        expected, seen = own.step(action)[0], hidden.step(action)[0]
    assert (first == 128).all() if shown == GREY else first.std() > 10
    own.close()
    hidden.close()
