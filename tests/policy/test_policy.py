"""The policy in closed loop: history, queue, seeds, and observations that do not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import asd_policy
from asd_policy._common import arrays
from asd_policy.errors import MAX_MESSAGE
from asd_policy.policy import episode_state as control
from asd_policy.policy.observation import ENVIRONMENT_STATE, STATE
from asd_policy.policy.policy import Policy
from asd_policy.samplers import compiled
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.warm_start import WarmStart

OBSERVATION = {"agent_pos": np.zeros(4), "environment_state": np.zeros(3)}


@pytest.fixture
def policy(checkpoint: Path) -> Policy:
    return asd_policy.load_policy(checkpoint)


def observation(value: float) -> dict[str, Any]:
    return {key: np.full_like(zeros, value) for key, zeros in OBSERVATION.items()}


def test_plans_every_n_action_steps(policy: Policy) -> None:
    policy.reset(seed=0)
    actions = [policy.select_action(OBSERVATION) for _ in range(17)]
    assert len(policy.plans) == 3
    assert all(action.shape == (2,) and action.dtype == np.float32 for action in actions)
    for index, plan in enumerate(policy.plans):
        assert plan.chunk.shape == (1, 16, 2)
        # Of a chunk that begins one observation in the past, the actions from now on are executed.
        assert torch.equal(plan.actions, plan.chunk[:, 1:9])
        executed = torch.from_numpy(np.stack(actions[8 * index : 8 * index + 8]))
        assert torch.equal(plan.actions[0, : len(executed)], executed)
        assert plan.seconds >= plan.stats.seconds > 0


def test_history_is_the_last_observations_oldest_first(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    plan = policy.plan

    def spy(history: dict[str, Tensor], *rest: Any, **options: Any) -> Any:
        seen.append(history[STATE][0, :, 0])
        return plan(history, *rest, **options)

    monkeypatch.setattr(policy, "plan", spy)
    for step in range(17):
        policy.select_action(observation(float(step)))
    assert [part.tolist() for part in seen] == [[0, 0], [7, 8], [15, 16]]
    policy.reset()
    policy.select_action(observation(40.0))
    assert seen[-1].tolist() == [40, 40]


@pytest.mark.parametrize("spec", ["ddpm", "asd:window=8"])
def test_where_nothing_compiles_plans_are_the_same(
    checkpoint: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []
    for compiles in (True, False):
        if not compiles:
            monkeypatch.setattr(compiled, "load_kernels", lambda _: None)
        policy = asd_policy.load_policy(checkpoint, spec)
        policy.reset(seed=0)
        plans.append([policy.select_action(observation(0.1 * step)) for step in range(9)])
    np.testing.assert_allclose(*plans, rtol=1e-4, atol=1e-5)


def test_seeds(policy: Policy) -> None:
    def first_action(seed: int | None) -> list[float]:
        policy.reset(seed)
        return policy.select_action(OBSERVATION).tolist()

    assert first_action(1) == first_action(1) != first_action(2)
    assert first_action(None) != first_action(None)


def test_observations_by_any_name(policy: Policy) -> None:
    """The environment's keys, LeRobot's, and one flat array in the features' order are the same observation."""
    rng = np.random.default_rng(0)
    state, environment = rng.normal(size=4), rng.normal(size=3)
    actions = []
    for form in (
        {"agent_pos": state, "environment_state": environment, "unused": 1},
        {STATE: torch.tensor(state), ENVIRONMENT_STATE: torch.tensor(environment)},
        np.concatenate([state, environment]),
    ):
        policy.reset(seed=3)
        actions.append(policy.select_action(form).tolist())
    assert actions[0] == actions[1] == actions[2]


def test_batched_plans_equal_single_ones(policy: Policy) -> None:
    fast = asd_policy.accelerate(policy, "asd:window=4")
    fast.experience.freeze()  # otherwise each plan would be drafted with what the ones before it taught
    histories = {STATE: torch.randn(3, 2, 4), ENVIRONMENT_STATE: torch.randn(3, 2, 3)}
    together = fast.plan(histories, [torch.Generator().manual_seed(seed) for seed in range(3)])
    for row in range(3):
        own = {name: values[row : row + 1] for name, values in histories.items()}
        alone = fast.plan(own, [torch.Generator().manual_seed(row)])
        torch.testing.assert_close(alone.chunk[0], together.chunk[row], rtol=0, atol=1e-4)


def test_window_one_plans_as_ddpm(policy: Policy) -> None:
    one = asd_policy.accelerate(policy, "asd:window=1")
    for planner in (policy, one):
        planner.reset(seed=5)
    for _ in range(20):
        assert policy.select_action(OBSERVATION).tolist() == one.select_action(OBSERVATION).tolist()


def test_accelerate_leaves_the_original_alone(policy: Policy) -> None:
    fast = asd_policy.accelerate(policy, "asd:window=4")
    assert policy.sampler.spec == "ddpm"
    assert fast.sampler.spec == "asd:window=4,draft=response,verify=block"
    assert fast.denoiser is policy.denoiser
    fast.select_action(OBSERVATION)
    assert len(fast.plans) == 1
    assert not policy.plans
    assert fast.plans[0].stats.algorithmic_speedup > 1


def test_accelerate_refuses(policy: Policy) -> None:
    with pytest.raises(asd_policy.SpecError, match="window=11 is not in 1 … 10"):
        asd_policy.accelerate(policy, "asd:window=11")
    with pytest.raises(asd_policy.SpecError, match="cannot accelerate a dict"):
        asd_policy.accelerate({}, "asd")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"agent_pos": np.zeros(4)}, "has no 'observation.environment_state' or 'environment_state'"),
        (OBSERVATION | {"agent_pos": np.zeros(5)}, "'agent_pos' has shape (5,), not (4,)"),
        (OBSERVATION | {"agent_pos": np.zeros((1, 4))}, "'agent_pos' has shape (1, 4), not (4,)"),
        (OBSERVATION | {"environment_state": np.array([0, np.nan, 0])}, "'environment_state' holds NaN or infinity"),
        (OBSERVATION | {"environment_state": np.array([0, np.inf, 0])}, "'environment_state' holds NaN or infinity"),
        (np.zeros(6), "has shape (6,); the policy reads (7,)"),
        (None, "the observation is an array of object, not of real numbers"),
        ([[0.0], [1.0, 2.0]], "the observation is no array: ValueError: "),
        ({None: 1, 5: 2}, "it has None, 5, the policy reads 'observation.state' (4,)"),
        (OBSERVATION | {"agent_pos": np.array([0, 0, 0, None])}, "'agent_pos' is an array of object, not of real"),
        (OBSERVATION | {"agent_pos": ["0", "0", "0", "0"]}, "'agent_pos' is an array of <U1, not of real numbers"),
        (OBSERVATION | {"agent_pos": np.zeros(4, complex)}, "'agent_pos' is an array of complex128, not of real"),
        (OBSERVATION | {"agent_pos": torch.zeros(4).to_sparse()}, "'agent_pos' is no array: TypeError: "),
        (OBSERVATION | {"agent_pos": np.ma.masked_equal(np.arange(4), 2)}, "'agent_pos' has masked entries"),
        (OBSERVATION | {"agent_pos": np.array([0, 1e300, 0, 0])}, "NaN or infinity in 32 bits: 1e+300 at [1]"),
        (OBSERVATION | {"agent_pos": np.zeros((1000, 1000))}, "'agent_pos' has shape (1000, 1000), not (4,)"),
    ],
)
def test_bad_observations_are_named(bad: Any, message: str, policy: Policy) -> None:
    with pytest.raises(asd_policy.ObservationError) as error:
        policy.select_action(bad)
    assert message in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) <= MAX_MESSAGE
    assert not policy.plans


def test_an_error_says_which_robot(policy: Policy) -> None:
    bad = OBSERVATION | {"agent_pos": np.zeros(5)}
    said = "observation 'agent_pos' has shape (5,), not (4,)"
    for seeds, message in (([0], said), ([0, 1], f"robot 0 gave an observation that cannot be used: {said}")):
        policy.reset_batch(seeds)
        with pytest.raises(asd_policy.ObservationError) as caught:
            policy.observe(0, bad)
        assert str(caught.value) == message


def test_a_policy_prints_what_it_is(policy: Policy) -> None:
    steps = policy.horizons
    assert repr(policy.with_deadline(40)) == (
        "Policy('observation.state' (4,), 'observation.environment_state' (3,) → action (2,); "
        f"n_obs_steps {steps.n_obs_steps}, horizon {steps.horizon}, n_action_steps {steps.n_action_steps}; "
        f"{policy.sampler.spec} of {policy.steps} steps, deadline 40 ms by jump; {policy.backend.spec} on cpu)"
    )
    assert "deadline" not in repr(policy)


def test_errors_are_one_line_of_bounded_length(policy: Policy) -> None:
    """However much was wrong; its beginning says what, its end what would be right."""
    with pytest.raises(asd_policy.ObservationError) as error:
        policy.select_action({f"topic\n{number}": 0 for number in range(100_000)})
    said = str(error.value)
    assert len(said) == MAX_MESSAGE and said.isprintable()
    assert said.startswith("the observation has no 'observation.state' or 'agent_pos'; it has 'topic\\n0', ")
    assert said.endswith("the policy reads 'observation.state' (4,), 'observation.environment_state' (3,)")
    assert str(asd_policy.SpecError(" a\n\x1b[2J\u2028 b\t")) == "a \\x1b[2J b"


NUMBERS = np.array([0.25, -0.5, 1.0, 0.0])
"""The same in every precision below."""


@pytest.mark.parametrize(
    "form",
    [
        NUMBERS[::-1].copy()[::-1],
        np.stack([NUMBERS, NUMBERS], 1)[:, 0],
        NUMBERS.astype(">f4"),
        NUMBERS.astype(np.longdouble),
        NUMBERS.astype(np.float16),
        np.ma.masked_array(NUMBERS),
        NUMBERS.tolist(),
        [np.float32(value) for value in NUMBERS],
        [torch.tensor(value) for value in NUMBERS],
        torch.tensor(NUMBERS, dtype=torch.bfloat16),
        torch.tensor(NUMBERS, requires_grad=True),
        torch.tensor(NUMBERS)[None].expand(3, 4)[1],
    ],
)
@pytest.mark.filterwarnings("error")
def test_observations_in_any_form(form: Any, policy: Policy) -> None:
    frozen = NUMBERS.astype(np.float32)
    frozen.flags.writeable = False
    actions = []
    for values in (frozen, form):
        policy.reset(seed=2)
        actions.append(policy.select_action(OBSERVATION | {"agent_pos": values}).tolist())
    assert actions[0] == actions[1]


@pytest.mark.parametrize("flat", [False, True])
def test_observations_in_memory_that_is_used_again(flat: bool, policy: Policy) -> None:
    """A driver fills the same array at every step."""
    seen = np.random.default_rng(0).uniform(-0.3, 0.3, (20, 7)).astype(np.float32)
    buffer, actions = np.zeros(7, np.float32), []
    for form in (buffer, torch.from_numpy(buffer), None):
        policy.reset(seed=1)
        actions.append([])
        for now in seen:
            buffer[:] = now
            values: Any = now.copy() if form is None else form
            whole = values if flat else {"agent_pos": values[:4], "environment_state": values[4:]}
            actions[-1].append(policy.select_action(whole).tolist())
    assert actions[0] == actions[1] == actions[2]


def test_what_is_done_to_an_action_is_not_done_to_a_plan(policy: Policy) -> None:
    action = policy.select_action(OBSERVATION)
    planned = policy.plans[0].chunk.clone()
    action *= 100
    assert torch.equal(policy.plans[0].chunk, planned)
    policy.plans[0].chunk[:] = 100
    assert policy.select_action(OBSERVATION).tolist() == planned[0, 2].tolist()


def test_an_infinite_action_is_no_action(policy: Policy) -> None:
    """The network's numbers are finite, and in the environment's units they are not."""
    action = policy.normalization["action"]
    policy._action = replace(action, gain=torch.full((2,), 1e-45))
    with pytest.raises(asd_policy.DenoiserError, match=r"the plan, in the environment's units, holds NaN or infinity"):
        policy.select_action(OBSERVATION)
    assert not policy.plans


@pytest.mark.parametrize("as_array", [np.asarray, torch.as_tensor, lambda x: np.asarray(x)[::-1].copy()[::-1]])
def test_a_history_in_any_form(as_array: Any, policy: Policy) -> None:
    rng = np.random.default_rng(0)
    history: dict[str, Any] = {STATE: rng.normal(size=(3, 2, 4)), ENVIRONMENT_STATE: rng.normal(size=(3, 2, 3))}
    plain = {name: torch.tensor(values, dtype=torch.float32) for name, values in history.items()}
    chunks = [
        policy.plan(told, torch.Generator().manual_seed(0)).chunk
        for told in (plain, {name: as_array(values) for name, values in history.items()})
    ]
    assert torch.equal(chunks[0], chunks[1])
    with pytest.raises(asd_policy.ObservationError, match=r"the history has no 'observation.state'; it has nothing"):
        policy.plan({})
    with pytest.raises(asd_policy.ObservationError, match=r"has shape \(3, 2, 3\), not \(B, 2, 4\)"):
        policy.plan({name: history[ENVIRONMENT_STATE] for name in history})


@pytest.mark.parametrize("seed", [np.int64(5), np.uint8(5), torch.tensor(5), np.array(5)])
def test_seeds_of_any_integer_type(seed: Any, policy: Policy) -> None:
    actions = []
    for each in (5, seed):
        policy.reset(each)
        actions.append(policy.select_action(OBSERVATION).tolist())
        policy.reset_batch([each])
        policy.observe(0, OBSERVATION)
        actions.append(policy.act([0])[0].tolist())
    assert actions[0] == actions[1] == actions[2] == actions[3]


@pytest.mark.parametrize("device", ["cpu", "numpy"])
@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, np.float32(2), "5", np.array([1, 2]), object()])
def test_seeds_that_are_none(seed: Any, device: str) -> None:
    with pytest.raises(asd_policy.SpecError, match="^seed .* is not a whole number in 0 … 18446744073709551615$"):
        arrays.make_generator(arrays.find_device(device), seed)


def test_the_last_plan_is_a_record_of_what_it_cost(policy: Policy) -> None:
    assert policy.last_plan is None
    for _ in range(policy.horizons.n_action_steps + 1):
        policy.select_action(OBSERVATION)
    last, plan = policy.last_plan, policy.plans[-1]
    assert last is not None and last.at == policy.horizons.n_action_steps
    assert (last.rounds, last.nfe, last.window) == (plan.stats.rounds[0], plan.stats.nfe[0], plan.stats.window)
    assert (last.batch, last.exact, last.seconds) == (1, True, plan.seconds)
    policy.reset()
    assert policy.last_plan is None


def test_the_last_plan_begins_the_next(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved on by the actions executed; an episode's first plan has none."""
    fast = asd_policy.accelerate(policy, "asd:window=4")
    pasts: list[WarmStart] = []
    sample = Asd.sample

    def spy(self: Asd, *arguments: Any, **options: Any) -> Any:
        pasts.append(options["warm_start"])
        return sample(self, *arguments, **options)

    monkeypatch.setattr(Asd, "sample", spy)
    for _ in range(17):
        fast.select_action(OBSERVATION)
    first, second, third = pasts
    assert first.last_plan is None
    for past, plan in ((second, fast.plans[0]), (third, fast.plans[1])):
        assert past.last_plan is not None
        assert torch.equal(past.last_plan[:, :8], plan.sample[:, 8:])
        assert (past.last_plan[:, 8:] == plan.sample[:, -1:]).all()
    assert fast.experience.plans == 3
    fast.reset()
    fast.select_action(OBSERVATION)
    assert pasts[-1].last_plan is None
    assert fast.experience.plans == 4  # an episode's end is no end to learning


def test_accelerate_refuses_a_random_network(policy: Policy) -> None:
    network = policy.network
    policy.denoiser = lambda x, timestep, cond: network(x, timestep, cond) + 0.1 * torch.randn_like(x)
    with pytest.raises(asd_policy.DenoiserError, match="two equal calls of the network differ"):
        asd_policy.accelerate(policy, "asd")


def test_only_the_latest_plans_are_kept(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between resets too; what is planned does not depend on it."""
    fast = asd_policy.accelerate(policy, "asd:window=4,draft=warm,verify=block")
    found = []
    for kept in (control.PLANS_KEPT, 2):
        monkeypatch.setattr(control, "PLANS_KEPT", kept)
        fast.reset(seed=1)
        found.append([fast.select_action(observation(0.01 * step)).tolist() for step in range(41)])
    assert found[0] == found[1]
    assert [record.at for record in fast.robots[0].records] == [32, 40]
    assert [plan.actions[0, 0].tolist() for plan in fast.plans] == [found[1][32], found[1][40]]


def test_robots_are_planned_for_together(policy: Policy) -> None:
    """Each acts as if it were alone; a batch has those whose queue is empty."""
    fast = asd_policy.accelerate(policy, "asd:window=4")
    fast.experience.freeze()
    begins = {0: 0, 1: 0, 2: 3}  # the control step at which each robot begins
    expected = {}
    for row, begin in begins.items():
        fast.reset(seed=row)
        expected[row] = [fast.select_action(observation(0.1 * row + 0.01 * step)) for step in range(20 - begin)]
    fast.reset_batch(list(begins))
    found: dict[int, list[Any]] = {row: [] for row in begins}
    for step in range(20):
        rows = [row for row, begin in begins.items() if step >= begin]
        for row in rows:
            fast.observe(row, observation(0.1 * row + 0.01 * (step - begins[row])))
        for row, action in zip(rows, fast.act(rows), strict=True):
            found[row].append(action)
    for row in begins:
        np.testing.assert_allclose(found[row], expected[row], rtol=0, atol=1e-4)
    assert [[(plan.at, plan.batch) for plan in robot.records] for robot in fast.robots] == [
        [(0, 2), (8, 2), (16, 2)],
        [(0, 2), (8, 2), (16, 2)],
        [(0, 1), (8, 1), (16, 1)],
    ]
    for robot in fast.robots:
        for plan, record in zip(robot.plans, robot.records, strict=True):
            assert plan.chunk.shape == (1, 16, 2)
            assert plan.record(0, record.at) == replace(record, batch=1)


class CountedDenoiser:
    """A prepared network that counts its calls and their points."""

    def __init__(self, denoiser: Any) -> None:
        """Begin at none."""
        self._denoiser, self.calls, self.points = denoiser, 0, 0

    def encode(self, cond: Tensor) -> Tensor:
        """Encode."""
        return self._denoiser.encode(cond)

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Predict."""
        self.calls, self.points = self.calls + 1, self.points + len(x)
        return self._denoiser(x, timestep, cond)


@pytest.mark.parametrize("robots", [1, 3])
@pytest.mark.parametrize("spec", ["asd", "asd:window=4", "ddpm", "ddim:5"])
def test_after_a_warm_up_no_plan_is_held_up(small_checkpoint: Path, spec: str, robots: int) -> None:
    """By what is tried or timed; and all that was called is said."""
    policy = asd_policy.load_policy(small_checkpoint, spec)
    counted = policy.denoiser = CountedDenoiser(policy.denoiser)
    before = torch.get_rng_state(), policy.generator.get_state(), policy.robots
    warm = asd_policy.warm_up(policy, robots)
    assert (warm.calls, warm.points) == (counted.calls, counted.points)
    assert warm.seconds > warm.plan_seconds > 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(policy.generator.get_state(), before[1])
    assert policy.robots is before[2] and not policy.plans
    assert policy.experience.plans == 0 and policy.experience.learning
    counted.calls = 0
    policy.reset_batch(range(robots))
    for row in range(robots):
        policy.observe(row, OBSERVATION)
    policy.act(range(robots))
    stats = policy.plans[0].stats
    assert stats.trial_calls == stats.trial_points == 0
    assert counted.calls == max(robot.plans[0].stats.rounds[0] for robot in policy.robots)
    if spec == "asd":  # plans try its settings in turn
        assert stats.spec.startswith("asd:window=") and warm.spec.startswith("asd:window=")
    else:
        assert stats.spec == warm.spec
    assert counted.calls < 15  # a warm-up for so many; for more, what is left to the sampler is timed anew


@pytest.mark.parametrize("continuity", ["none", "inpaint", "soft"])
def test_a_warm_up_is_of_no_consequence(policy: Policy, continuity: str) -> None:
    """For the plans of a sampler to which nothing is left."""
    policies = [policy.with_sampler(Asd(4)) for _ in range(2)]
    policies[0].warm_up(2, continuity)
    actions = []
    for each in policies:
        each.reset(seed=3)
        actions.append(np.stack([each.select_action(OBSERVATION) for _ in range(20)]))
    assert np.array_equal(*actions)


def test_a_warm_up_sees_a_network_that_cannot_be_sampled_from(policy: Policy) -> None:
    other = policy.with_sampler(Asd(4))
    other.denoiser = lambda x, timestep, cond: torch.randn_like(x)
    with pytest.raises(asd_policy.DenoiserError, match="two equal calls of the network differ"):
        other.warm_up()


def test_plans_are_ordinary_tensors(policy: Policy) -> None:
    policy.select_action(OBSERVATION)
    plan = policy.plans[0]
    for part in (plan.sample, plan.chunk, plan.actions, plan.cond):
        assert not part.is_inference()
        part += 1
    torch.nn.Linear(2, 1)(plan.actions).sum().backward()
