"""Each observation is encoded once: the same plans, fewer frames through the network."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import asd_policy
from asd_policy.deploy.realtime.history import History
from asd_policy.deploy.realtime.planner import PolicyPlanner, shapes_of
from asd_policy.deploy.serving.dispatcher import Request
from asd_policy.deploy.serving.sessions import Session
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.networks.backends import make_backend
from asd_policy.policy.episode_state import Observation, together
from asd_policy.policy.observation import STATE, read_observation
from asd_policy.policy.plan import Horizons
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import SensorEncoder, encode_history

IMAGE = "observation.image"
CPU = torch.device("cpu")
N_OBS_STEPS = 2


class Counted:
    """An encoder's network that counts its rows."""

    def __init__(self, run: Any) -> None:
        """Wrap it."""
        self.run = run
        self.calls: list[int] = []

    def __call__(self, seen: Tensor) -> Tensor:
        """Count, and encode."""
        self.calls.append(len(seen))
        return self.run(seen)


@pytest.fixture(scope="module")
def loaded(camera_checkpoint: Path) -> Policy:
    return asd_policy.load_policy(camera_checkpoint, "ddpm")


def counting(policy: Policy, n_action_steps: int = 1) -> tuple[Policy, Counted]:
    """A policy that counts, and plans at every `n_action_steps`."""
    other = policy.with_sampler(policy.sampler)
    encoder = other.encoder
    assert isinstance(encoder, SensorEncoder)
    counted = Counted(encoder.sensors[IMAGE].run)
    features = {**encoder.features, IMAGE: replace(encoder.sensors[IMAGE], run=counted)}
    other.encoder = replace(encoder, features=features)
    other.horizons = Horizons(N_OBS_STEPS, policy.horizons.horizon, n_action_steps)
    other.reset(seed=0)
    return other, counted


def observation(step: int) -> dict[str, Any]:
    random = np.random.default_rng(step)
    return {STATE: random.random(2), IMAGE: random.integers(0, 256, (40, 48, 3), np.uint8)}


def stacked(steps: list[int]) -> dict[str, Any]:
    seen = [observation(step) for step in steps]
    return {name: np.stack([each[name] for each in seen])[None] for name in seen[0]}


def test_a_plan_encodes_what_no_plan_before_it_saw(loaded: Policy) -> None:
    policy, counted = counting(loaded)
    for step in range(4):
        policy.select_action(observation(step))
    assert counted.calls == [1, 1, 1, 1]  # at the start, too, where one observation stands for two
    assert [record.encoded for record in policy.robots[0].records] == [1, 1, 1, 1]
    assert all(record.encode_seconds and record.encode_seconds < record.seconds for record in policy.robots[0].records)
    policy, counted = counting(loaded, n_action_steps=4)
    for step in range(9):
        policy.select_action(observation(step))
    assert counted.calls == [1, 2, 2]  # plans that share no observation


def test_plans_are_those_without_reuse(loaded: Policy) -> None:
    policy, _ = counting(loaded)
    for step in range(4):
        policy.select_action(observation(step))
    generator = torch.Generator().manual_seed(0)
    for step, plan in enumerate(policy.plans):
        steps = [max(0, step - 1), step]
        cond = encode_history(loaded.encoder, stacked(steps), N_OBS_STEPS, CPU)
        torch.testing.assert_close(plan.cond, cond, rtol=1e-5, atol=1e-5)
        fresh = loaded.plan(stacked(steps), generator)
        torch.testing.assert_close(plan.chunk, fresh.chunk, rtol=0, atol=1e-4)
        assert fresh.encoding is not None and fresh.encoding.observations == N_OBS_STEPS


def test_robots_of_a_batch_share_one_call(loaded: Policy) -> None:
    policy, counted = counting(loaded)
    policy.reset_batch([1, 2, 3])
    for step in range(2):
        for row in range(3):
            policy.observe(row, observation(10 * row + step))
        policy.act([0, 1, 2])
    policy.observe(1, observation(12))
    policy.act([1])
    assert counted.calls == [3, 3, 1]
    for row, robot in enumerate(policy.robots):
        last = 2 if row == 1 else 1
        cond = encode_history(loaded.encoder, stacked([10 * row + last - 1, 10 * row + last]), N_OBS_STEPS, CPU)
        torch.testing.assert_close(robot.plans[-1].cond, cond, rtol=1e-5, atol=1e-5)


def test_an_observation_that_comes_again_is_not_encoded_again(loaded: Policy) -> None:
    """As it does from a control loop, which hands over copies of the last ones; another one of the same state is."""
    policy, counted = counting(loaded)
    planner = PolicyPlanner(policy)
    kept = History(N_OBS_STEPS, shapes_of(planner))
    for step in range(3):
        kept.add(observation(step))
        planner.plan(kept.hand_over(), step, begins=step == 0)
    assert counted.calls == [1, 1, 1]
    moved = observation(2)
    moved[IMAGE] = moved[IMAGE].copy()
    moved[IMAGE][0, 0, 0] ^= 1
    kept.add(moved)
    planner.plan(kept.hand_over(), 3, begins=False)
    floats = {**moved, IMAGE: np.moveaxis(moved[IMAGE], -1, 0).astype(np.float32) / 255}
    kept.add(floats)
    planner.plan(kept.hand_over(), 4, begins=False)
    assert counted.calls == [1] * 5


def test_features_are_of_one_encoder(loaded: Policy) -> None:
    policy, counted = counting(loaded)
    policy.select_action(observation(0))
    history = policy.robots[0].history
    other, counted_there = counting(loaded)
    other.robots[0].history.extend(history)
    other.plan_for([0])
    assert (counted.calls, counted_there.calls) == ([1], [1])
    # The first robot's features are of the other encoder now.
    policy.plan_for([0])
    assert counted.calls == [1, 1]
    rounded = policy.with_backend(make_backend("torch-eager:dtype=bfloat16"))
    rounded.robots[0].history.extend(history)
    kept = history[0].features
    rounded.plan_for([0])
    assert kept is not None and history[0].features is not None
    assert not torch.equal(kept, history[0].features)


def test_a_copy_encodes_for_itself(loaded: Policy) -> None:
    policy, _ = counting(loaded)
    policy.select_action(observation(0))
    for entry in (copy.deepcopy(policy.robots[0].history[0]), pickle.loads(pickle.dumps(policy.robots[0].history[0]))):
        assert isinstance(entry, Observation) and entry.features is None and entry.encoder is None
        assert np.array_equal(entry[IMAGE].numpy(), observation(0)[IMAGE])


def test_histories_are_arrays_to_others(loaded: Policy) -> None:
    policy, _ = counting(loaded)
    for step in range(2):
        policy.observe(0, observation(step))
    history = together(policy.robots)["history"]
    assert list(history) == [STATE, IMAGE] and len(history) == 2
    assert np.array_equal(history[IMAGE].numpy(), stacked([0, 1])[IMAGE])


@pytest.mark.parametrize("backend", ["torch-eager", "torch-replicas:devices=cpu+cpu"])
def test_features_of_other_weights_are_not_reused(backend: str, camera_checkpoint: Path) -> None:
    """Not even where a robot stands still, and nothing is to be encoded."""
    policy = asd_policy.load_policy(camera_checkpoint, "ddpm", backend=backend)
    for _ in range(1 + policy.horizons.n_action_steps):
        policy.select_action(observation(0))
    assert [record.encoded for record in policy.robots[0].records] == [1, 0]
    assert isinstance(policy.encoder, SensorEncoder)
    network = policy.encoder.sensors[IMAGE].network
    assert isinstance(network, torch.nn.Module)
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    with pytest.raises(asd_policy.BackendError, match="weights were changed after it was prepared"):
        policy.plan_for([0])


def test_vectors_are_not_kept(small_checkpoint: Path) -> None:
    policy = asd_policy.load_policy(small_checkpoint, "ddpm")
    policy.select_action(np.zeros(sum(policy.observation_dims.values())))
    assert policy.robots[0].history[0].features is None
    record = policy.robots[0].records[0]
    assert (record.encoded, record.encode_seconds, policy.plans[0].encoding) == (None, None, None)


def test_what_encoding_took_is_in_the_journal(loaded: Policy) -> None:
    policy, _ = counting(loaded)
    policy.select_action(observation(0))
    episode = Episode("ddpm", 0, True, 1.0, 1, None, None, tuple(policy.robots[0].records))
    written = episode.to_json()
    assert written["plans"][0]["encoded"] == 1
    assert Episode.from_json(written) == episode
    for name in ("encoded", "encode_seconds"):  # as written before they were
        del written["plans"][0][name]
    assert Episode.from_json(written).plans[0].encoded is None
    with pytest.raises(ValueError, match="a plan's encoded is -1, which is below 0"):
        Episode.from_json({**written, "plans": [{**written["plans"][0], "encoded": -1, "encode_seconds": 0.1}]})


def test_a_servers_requests_share_observations(loaded: Policy) -> None:
    """The plan of a request keeps features with the session, for the next one."""
    policy, counted = counting(loaded)
    session = Session(policy.new_episode(0), lease=1.0)
    for step in range(3):
        read = [read_observation(observation(each), policy.observation_shapes, CPU) for each in (step, step + 1)]
        robot = Request(session, read, step, begins=step == 0).robot(CPU)
        policy.robots = [robot]
        policy.plan_for([0])
        session.robot = robot
        cond = encode_history(loaded.encoder, stacked([step, step + 1]), N_OBS_STEPS, CPU)
        torch.testing.assert_close(robot.plans[-1].cond, cond, rtol=1e-5, atol=1e-5)
    assert counted.calls == [2, 1, 1]


def test_a_warm_up_encodes_as_many_as_plans_will(loaded: Policy) -> None:
    """So that no plan waits for a recording, or for the compiler."""
    policy, counted = counting(loaded)
    policy.warm_up(robots=3)
    assert {3, 6} <= set(counted.calls)
    before = list(counted.calls)
    policy.reset_batch([1, 2, 3])
    for step in range(2):
        for row in range(3):
            policy.observe(row, observation(10 * row + step))
        policy.act([0, 1, 2])
    assert set(counted.calls[len(before) :]) <= set(before)
