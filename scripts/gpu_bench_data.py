"""The recording that gpu_bench.py takes to a machine without environments: demonstrations and planning states."""

import json
import shlex
import sys
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asd_policy import load_policy
from asd_policy._common.files import atomic_file
from asd_policy.checkpoints.lerobot.folder import ACTION
from asd_policy.policy.observation import ENVIRONMENT_KEYS
from asd_policy.policy.policy import Policy
from training.episodes import Demonstration

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "checkpoints/metaworld-pick-place"
"""The policy that met the states, and whose normalisation all numbers here have."""
ENVIRONMENT = "asd/MetaWorld-pick-place-v0"
NOISE = 0.1
"""Of the demonstrations, as the checkpoint's."""
PLANNER = "asd:window=32"
"""Exact, so that the states are those that sequential sampling would meet."""


@dataclass(frozen=True)
class Recording:
    """Numbers of pick-place as the checkpoint normalises them, in half precision."""

    demonstrations: list[Demonstration]
    """Of the scripted expert."""
    cond: Tensor
    """Conditioning of a network at moments of planning in closed-loop episodes, in random order, [N, C]."""
    previous: Tensor
    """Its conditioning at the plan before [N, C]; zeros at an episode's start."""
    first: npt.NDArray[np.bool_]
    """Whether it was the start [N]."""
    episode: npt.NDArray[np.int64]
    """The episode that each is of [N]."""
    notes: dict[str, Any]
    """How it was recorded."""

    def first_states(self, count: int) -> "Recording":
        """Cut the recording to its first states."""
        return replace(
            self,
            cond=self.cond[:count],
            previous=self.previous[:count],
            first=self.first[:count],
            episode=self.episode[:count],
        )


def record(path: Path, seed: int, demonstrations: int = 500, states: int = 512) -> None:
    """Record from the environment, with the checkpoint and the expert it was trained on, and write a file.

    Args:
        path: An .npz file.
        seed: Of demonstrations and episodes.
        demonstrations: How many successes of the expert, as scripts/train.py records them.
        states: How many moments of planning.
    """
    # What follows needs the environments, which the machine that reads the recording need not have.
    from rich.progress import Progress

    from asd_policy.evaluation.closed_loop import run_episode
    from asd_policy.evaluation.rollout.environments import make_env
    from training.recording import demonstrate

    policy = load_policy(CHECKPOINT, PLANNER)
    maps = {**{ENVIRONMENT_KEYS[name]: policy.normalization[name] for name in policy.observation_dims},
            ACTION: policy.normalization["action"]}  # fmt: skip
    with Progress() as progress:
        episodes = demonstrate(ENVIRONMENT, demonstrations, NOISE, seed, progress)
    streams = {
        name: _half(affine.normalize(torch.from_numpy(np.concatenate([episode[name] for episode in episodes]))))
        for name, affine in maps.items()
    }
    conds, previous, first, owners = [], [], [], []
    env = make_env(ENVIRONMENT)
    for index in count():
        run_episode(policy, env, index, seed)
        own = [plan.cond for plan in policy.plans]
        conds += own
        previous += [torch.zeros_like(own[0]), *own[:-1]]
        first += [place == 0 for place in range(len(own))]
        owners += [index] * len(own)
        if len(conds) >= states:
            break
    env.close()
    order = np.random.default_rng(seed).permutation(len(conds))[:states]
    notes = {"command": shlex.join(["python", *sys.argv]), "environment": ENVIRONMENT, "checkpoint": CHECKPOINT.name,
             "planner": policy.sampler.spec, "seed": seed, "episodes": len(set(owners))}  # fmt: skip
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            # Annotated as if a stream could be named allow_pickle.
            **streams,  # pyright: ignore[reportArgumentType]
            lengths=np.array([len(episode["action"]) for episode in episodes]),
            cond=_half(torch.cat(conds))[order],
            previous=_half(torch.cat(previous))[order],
            first=np.array(first)[order],
            episode=np.array(owners)[order],
            notes=json.dumps(notes),
        )


def load(path: Path) -> Recording:
    """Read a recording.

    Raises:
        SystemExit: There is none, or it is damaged; one line.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            ends = np.cumsum(file["lengths"])[:-1]
            names = (*ENVIRONMENT_KEYS.values(), ACTION)
            parts = {name: np.split(file[name].astype(np.float32), ends) for name in names}
            cond, previous = (torch.from_numpy(file[name].astype(np.float32)) for name in ("cond", "previous"))
            first, episode, notes = file["first"], file["episode"], json.loads(str(file["notes"]))
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(f"{path} is no recording: {error}; gpu_bench.py --record makes one") from None
    demonstrations = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
    return Recording(demonstrations, cond, previous, first, episode, notes)


def last_plans(
    policy: Policy, recording: Recording, seed: int, previous: Tensor | None = None, at_once: int = 64
) -> Tensor:
    """Plan before each state with a policy's own sampler [N, *event], moved on to the state; zeros at the start.

    The states were met with another network's plans; their drafts have to start from this network's own.

    Args:
        policy: Whose.
        recording: The states.
        seed: Of the noise.
        previous: The conditioning before each state [N, C], where it is not the recording's own.
        at_once: Plans that are made together, for memory.
    """
    generator = torch.Generator(policy.device).manual_seed(seed)
    cond = (recording.previous if previous is None else previous).to(policy.device)
    sampled = [
        policy.sampler.sample(policy.denoiser, policy.chain, (len(part), *policy.event), part, generator).sample
        for part in cond.split(at_once)
    ]
    first = torch.as_tensor(recording.first, device=policy.device)
    return torch.where(first.view(-1, 1, 1), 0, policy.move_on(torch.cat(sampled)))


def _half(values: Tensor) -> npt.NDArray[np.float16]:
    return values.cpu().numpy().astype(np.float16)
