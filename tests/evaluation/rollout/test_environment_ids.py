"""An environment's id with the options of its constructor."""

import os
import sys
from ctypes.util import find_library
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from asd_policy.checkpoints import load_policy
from asd_policy.errors import EnvError, ObservationError
from asd_policy.evaluation.closed_loop import prepare_planners
from asd_policy.evaluation.rollout.environments import make_env, read_id
from asd_policy.samplers import make_sampler


def test_options_are_read_as_numbers_or_texts() -> None:
    assert read_id("asd/Avoid-v0") == ("asd/Avoid-v0", {})
    text = "my_robot:my/Robot-v0,obs_type=pixels_agent_pos,size=96,gain=-0.5,fast=True,limit=None"
    options = {"obs_type": "pixels_agent_pos", "size": 96, "gain": -0.5, "fast": True, "limit": None}
    assert read_id(text) == ("my_robot:my/Robot-v0", options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("asd/Avoid-v0,obs_type", "'obs_type' is not an option name=value of its own"),
        ("asd/Avoid-v0,", "'' is not an option"),
        ("asd/Avoid-v0,a=1,a=2", "'a=2' is not an option"),
        ("asd/Avoid-v0,a b=1", "'a b=1' is not an option"),
        ("asd/Avoid-v0,obs_type=pixels", "ValueError: no obs_type 'pixels'; there are state, pixels_agent_pos"),
        ("asd/Avoid-v0,colour=red", "colour"),
        ("asd/Avoyd-v0,obs_type=state", "no environment 'asd/Avoyd-v0'; the nearest are asd/Avoid-v0"),
    ],
)
def test_other_options_are_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(EnvError) as caught:
        make_env(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(find_library("EGL") is None, reason="rendering without a screen needs the system library libEGL")
@pytest.mark.parametrize(
    ("env_id", "size"),
    [("asd/Avoid-v0,obs_type=pixels_agent_pos", 96), ("asd/MetaWorld-reach-v0,obs_type=pixels_agent_pos", 480)],
)
def test_frames_are_an_option(env_id: str, size: int) -> None:
    env = make_env(env_id)
    assert set(env.observation_space.spaces) == {"pixels", "agent_pos"}  # pyright: ignore[reportAttributeAccessIssue]
    first, _ = env.reset(seed=1)
    assert env.observation_space.contains(first) and first["pixels"].shape == (size, size, 3)
    assert first["pixels"].std() > 10
    again, _ = env.reset(seed=1)
    np.testing.assert_array_equal(first["pixels"], again["pixels"])
    env.close()


def test_a_module_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program looks for modules in its own folder, and not where it was called."""
    (tmp_path / "here_alone.py").write_text(
        "import gymnasium\ngymnasium.register('here/Avoid-v0', 'asd_envs.avoid:AvoidEnv', max_episode_steps=3)\n"
    )
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
    with pytest.raises(EnvError, match="No module named 'here_alone'"):
        make_env("here_alone:here/Avoid-v0")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    make_env("asd/Avoid-v0").close()
    assert sys.path == before
    for _ in range(2):
        make_env("here_alone:here/Avoid-v0").close()
    assert sys.path == [*before, str(tmp_path)]  # once, and where it hides nothing


def test_an_error_says_whose_observation(small_checkpoint: Path) -> None:
    """The environment's, by its id before the first episode."""
    env = gymnasium.wrappers.TransformObservation(
        make_env("asd/Avoid-v0"), lambda seen: {"pos": seen["agent_pos"]}, gymnasium.spaces.Dict()
    )
    said = "asd/Avoid-v0 gave an observation that cannot be used: the observation has no 'observation.state' or "
    with pytest.raises(ObservationError, match=f"^{said}'agent_pos'; it has 'pos', the policy reads "):
        prepare_planners(load_policy(small_checkpoint), env, [make_sampler("ddim:2")])
    env.close()
