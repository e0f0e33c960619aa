"""Demonstrations of an environment's scripted expert."""

from typing import Any

import gymnasium
import numpy as np
from rich.progress import Progress

from asd_envs.experts import make_expert
from asd_policy.policy.observation import ENVIRONMENT_KEYS, ENVIRONMENT_STATE, PIXELS
from training.episodes import UNSEEN, Demonstration

MAX_ATTEMPTS_PER_DEMONSTRATION = 10


def record_episode(env: gymnasium.Env[Any, Any], noise: float, seed: int) -> Demonstration | None:
    """Record one demonstration; None where the expert failed.

    The expert's own action is recorded and a noisy one executed, so that the data shows how to recover
    (as in DART, arXiv 1703.09327).
    """
    rng = np.random.default_rng(seed)
    expert = make_expert(env)
    expert.reset(rng)
    observation, info = env.reset(seed=seed)
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)  # all environments with an expert have one
    steps, done = [], False
    while not done:
        action = expert.act(observation)
        unseen = {} if PIXELS not in observation else {UNSEEN: env.get_wrapper_attr("environment_state")}
        steps.append({**observation, **unseen, "action": action})
        executed = action + noise * (space.high - space.low) / 2 * rng.standard_normal(action.shape)
        observation, _, terminated, truncated, info = env.step(
            np.clip(executed, space.low, space.high).astype(space.dtype)
        )
        done = terminated or truncated
    if not info["success"]:
        return None
    return {
        key: np.stack([step[key] for step in steps]).astype(np.uint8 if key == PIXELS else np.float32)
        for key in steps[0]
    }


def demonstrate(
    env_id: str, count: int, noise: float, seed: int, progress: Progress, images: bool = False
) -> list[Demonstration]:
    """Record as many successful episodes as asked for.

    Args:
        env_id: Of an environment with an expert.
        count: Episodes.
        noise: As `Options.noise`.
        seed: Of the first.
        progress: Shows how far it is.
        images: Whether frames are to be learned from.

    Raises:
        SystemExit: The environment shows no frames, or nothing else, or the expert fails nine times out of ten.
    """
    env = gymnasium.make(env_id)
    assert isinstance(env.observation_space, gymnasium.spaces.Dict)  # all environments with an expert have one
    shown = env.observation_space.spaces
    if images and PIXELS not in shown:
        raise SystemExit(f"{env_id} shows no frames: --images needs an environment that does, asd/AvoidPixels-v0")
    if not images and ENVIRONMENT_KEYS[ENVIRONMENT_STATE] not in shown:
        raise SystemExit(f"{env_id} shows frames and not the state of its objects: --images learns from them")
    task = progress.add_task("demonstrations", total=count)
    found: list[Demonstration] = []
    for attempt in range(count * MAX_ATTEMPTS_PER_DEMONSTRATION):
        demonstration = record_episode(env, noise, seed=seed * 1_000_003 + 500_000 + attempt)
        if demonstration is not None:
            found.append(demonstration)
            progress.advance(task)
        if len(found) == count:
            env.close()
            return found
    raise SystemExit(f"the expert of {env_id} fails too often with --noise {noise}: try less")
