"""Chunk continuity: plans that go on from what the robot is bound to do."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import asd_policy
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import SpecError
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.policy.continuity import Prefix, guidance, overlay
from asd_policy.samplers import make_sampler
from asd_policy.samplers.inpainting import Inpainting
from support.known_laws import DTYPE, EVENT, make_tape

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
SPECS = ["ddpm", "asd:window=4", "asd:window=4,draft=frozen,verify=reflection", "ddim:5", "paradigms:window=4"]
OBSERVATION = {"agent_pos": np.zeros(4), "environment_state": np.zeros(3)}


def rest(count: int) -> npt.NDArray[np.float32]:
    """Return actions inside the range of the small policy's."""
    return np.linspace([-0.9, -0.4], [0.4, 1.9], count).astype(np.float32)


def plan(
    folder: Path, spec: str, committed: list[Prefix | None] | None, robots: int = 1
) -> tuple[npt.NDArray[np.float32], bool]:
    """Return the actions [robots, n, 2] of a policy's first plan, and whether it is exact."""
    policy = asd_policy.load_policy(folder).with_sampler(make_sampler(spec))
    policy.reset_batch(list(range(robots)))
    for row in range(robots):
        policy.observe(row, OBSERVATION)
    actions = np.stack(policy.plan_for(range(robots), committed))
    return actions, policy.robots[0].records[0].exact


@pytest.mark.parametrize("spec", SPECS)
def test_a_plan_begins_with_what_is_committed(spec: str, small_checkpoint: Path) -> None:
    free, _ = plan(small_checkpoint, spec, None)
    bound, exact = plan(small_checkpoint, spec, [Prefix(rest(9), delay=3)])
    np.testing.assert_allclose(bound[0, :3], rest(9)[:3], atol=1e-5)
    assert abs(bound - free)[0, 3:].max() > 1e-3  # the rest goes with it
    assert exact is make_sampler(spec).exact


def test_robots_of_a_batch_are_bound_to_different_things(small_checkpoint: Path) -> None:
    free, _ = plan(small_checkpoint, "asd:window=4", None, robots=3)
    committed = [Prefix(rest(9), delay=2), None, Prefix(rest(15), delay=5)]
    bound, _ = plan(small_checkpoint, "asd:window=4", committed, robots=3)
    np.testing.assert_allclose(bound[0, :2], rest(9)[:2], atol=1e-5)
    np.testing.assert_allclose(bound[2, :5], rest(15)[:5], atol=1e-5)
    np.testing.assert_allclose(bound[1], free[1], atol=1e-4)


def test_without_delay_nothing_is_given(small_checkpoint: Path) -> None:
    bound, _ = plan(small_checkpoint, "asd:window=4", [Prefix(rest(9), delay=0)])
    assert np.array_equal(bound, plan(small_checkpoint, "asd:window=4", None)[0])


@pytest.mark.parametrize("spec", SPECS)
def test_soft_guidance_draws_nearer_and_is_no_exact_plan(spec: str, small_checkpoint: Path) -> None:
    apart = {}
    for soft in (False, True):
        bound, exact = plan(small_checkpoint, spec, [Prefix(rest(12), delay=2, soft=soft)])
        np.testing.assert_allclose(bound[0, :2], rest(12)[:2], atol=1e-5)
        apart[soft] = np.linalg.norm(bound[0, 2:8] - rest(12)[2:8], axis=1)
        assert exact is (make_sampler(spec).exact and not soft)
    assert apart[True].sum() < 0.6 * apart[False].sum()


def test_pulls_are_those_of_the_paper() -> None:
    """Eq. 5 of arXiv 2506.07339 for H = 16, s = 6, d = 3: 10 actions left of the last plan."""
    found = guidance(Prefix(rest(10), delay=3, soft=True))
    c = [(10 - i) / (10 - 3 + 1) for i in range(10)]
    expected = [1.0] * 3 + [c[i] * (math.exp(c[i]) - 1) / (math.e - 1) for i in range(3, 10)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert guidance(Prefix(rest(10), delay=3)).tolist() == [1.0] * 3 + [0.0] * 7


@given(count=st.integers(0, 20), share=st.floats(0, 1), soft=st.booleans())
def test_pulls_fall_from_one_to_zero(count: int, share: float, soft: bool) -> None:
    delay = round(share * count)
    found = guidance(Prefix(np.zeros((count, 2), np.float32), delay, soft))
    assert (found[:delay] == 1).all()
    assert ((found[delay:] >= 0) & (found[delay:] < 1)).all()
    assert (np.diff(found) <= 0).all()


def test_what_is_beyond_the_horizon_is_left_out() -> None:
    actions, pull = overlay([Prefix(rest(9), delay=2), None], first=1, event=(4, 2))
    np.testing.assert_array_equal(actions[0, 1:], rest(9)[:3])
    assert pull[:, :, 0].tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("delay", [-1, 10])
def test_a_delay_has_actions(delay: int) -> None:
    with pytest.raises(SpecError, match=f"delay={delay} is not in 0 … 9, the actions left of the last plan"):
        Prefix(rest(9), delay)


def test_given_values_are_shown_as_noisy_as_the_forward_process_makes_them(schedule: GaussianChain) -> None:
    """DDPM's chain towards a known sample has the forward process's marginals: q(x_k | x_0)."""
    rows = 20_000
    tape = NoiseTape.draw((rows, 1), len(schedule), torch.Generator().manual_seed(0), dtype=DTYPE)
    held = Inpainting.noised(
        torch.ones((rows, 1), dtype=torch.bool), torch.full((rows, 1), 0.7, dtype=DTYPE), schedule, tape
    )
    assert held.noisy_values is not None
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    options = {key: value for key, value in schedule.config.items() if not key.startswith("_")}
    kept = DDPMScheduler(**options).alphas_cumprod.double()
    for k in range(0, len(schedule), 9):
        alpha = float(kept[int(schedule.timesteps[k])])
        seen = held.noisy_values[:, k, 0]
        assert float(seen.mean()) == pytest.approx(0.7 * math.sqrt(alpha), abs=5 / math.sqrt(rows))
        assert float(seen.std()) == pytest.approx(math.sqrt(1 - alpha), rel=0.03)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_pulled_outputs_predict_what_pulled_predictions_are(prediction: str) -> None:
    """What few-step samplers, whose predictions are made inside diffusers, are given."""
    chain = GaussianChain.from_scheduler(
        {"num_train_timesteps": 20, "prediction_type": prediction, "clip_sample": False}
    )
    generator = torch.Generator().manual_seed(1)
    x, output, values = torch.randn((3, 5, *EVENT), generator=generator, dtype=DTYPE)
    pull = torch.rand((5, *EVENT), generator=generator, dtype=DTYPE)
    guided = Inpainting(pull > 2, values, guidance=pull)
    step = torch.tensor([0, 5, 10, 15, 19])
    torch.testing.assert_close(
        chain.predict(x, guided.guide_output(x, output, step, chain), step),
        guided.guide(chain.predict(x, output, step)),
    )


@pytest.mark.parametrize(
    ("actions", "says"),
    [
        (rest(9)[:, :1], r"^committed actions have shape \(9, 1\), not \(n, 2\)$"),
        (np.zeros(9, np.float32), r"^committed actions have shape \(9,\), not \(n, action_dim\)$"),
        (np.full((9, 2), np.nan, np.float32), r"^committed actions holds NaN or infinity: nan at \[0, 0\]$"),
        (np.full((9, 2), 1e300), r"^committed actions holds NaN or infinity in 32 bits: 1e\+300 at \[0, 0\]$"),
        ([["a", "b"]] * 9, "^committed actions is an array of <U1, not of real numbers$"),
    ],
)
def test_committed_actions_that_are_none(actions: Any, says: str, small_checkpoint: Path) -> None:
    with pytest.raises(SpecError, match=says):
        plan(small_checkpoint, "ddpm", [Prefix(actions, delay=2)])


def test_committed_actions_are_a_copy() -> None:
    actions = rest(9)
    committed = Prefix(actions, delay=2)
    actions[:] = 0
    np.testing.assert_array_equal(committed.actions, rest(9))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_asd_beside_ddpm_in_a_window_of_one(seed: int, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """To the bit, with given, noised and pulled coordinates."""
    tape = make_tape(3, chain, seed)
    mask = torch.zeros((3, *EVENT), dtype=torch.bool)
    mask[:, 0, 1] = True
    values = torch.full((3, *EVENT), 0.2, dtype=DTYPE)
    held = Inpainting.noised(mask, values, chain, tape, torch.full((3, *EVENT), 0.3, dtype=DTYPE) * ~mask)
    samples = [
        make_sampler(spec).sample(mixture, chain, (3, *EVENT), generator=tape, inpainting=held)
        for spec in ("ddpm", "asd:window=1")
    ]
    assert torch.equal(samples[0].sample, samples[1].sample)
    assert (samples[0].sample[:, 0, 1] == 0.2).all()
    assert samples[0].stats.exact == (False,) * 3
