"""The seam for other libraries' policies: found by class name, patched, restored; the planner behind the patches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import asd_policy
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.policy import adapters
from asd_policy.policy.adapters.base import Acceleration, Adapter, LivePlanner, Patch
from asd_policy.samplers import make_sampler
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.warm_start import WarmStart

CPU = torch.device("cpu")
SHAPE = (3, 2, 2)


class Robot:
    """Another library's policy."""

    def plan(self) -> str:
        """Say who planned."""
        return "own"


class Arm(Robot):
    """A subclass is known too."""


def fail(robot: Robot, wanted: Acceleration) -> list[Patch]:
    raise asd_policy.ChainError("no chain")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    def patches(robot: Robot, wanted: Acceleration) -> list[Patch]:
        own = robot.plan
        return [Patch(robot, "plan", lambda: f"{wanted.sampler.spec} for {own()}"), Patch(robot, "asd_stats", None)]

    monkeypatch.setitem(adapters.ADAPTERS, "a Robot", Adapter((f"{__name__}.Robot",), patches))


@pytest.mark.usefixtures("known")
def test_patched_and_restored() -> None:
    arm, other = Arm(), Arm()
    assert asd_policy.accelerate(arm, "ddpm") is arm
    assert (arm.plan(), other.plan()) == ("ddpm for own", "own")
    asd_policy.accelerate(arm, "ddim:10,eta=1")
    assert arm.plan() == "ddim:10,eta=1 for own"
    assert asd_policy.restore(arm) is arm
    assert arm.plan() == "own"
    assert not vars(arm)


@pytest.mark.usefixtures("known")
def test_a_failure_leaves_the_policy_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = asd_policy.accelerate(Arm(), "ddpm")
    with pytest.raises(asd_policy.SpecError, match="no sampler 'fast'"):
        asd_policy.accelerate(arm, "fast")
    assert arm.plan() == "ddpm for own"
    monkeypatch.setitem(adapters.ADAPTERS, "a Robot", Adapter((f"{__name__}.Robot",), fail))
    with pytest.raises(asd_policy.ChainError, match="no chain"):
        asd_policy.accelerate(arm)
    assert arm.plan() == "own"
    assert not vars(arm)


def test_what_is_not_accelerated_cannot_be_restored() -> None:
    with pytest.raises(asd_policy.SpecError, match="this Arm is not accelerated"):
        asd_policy.restore(Arm())
    with pytest.raises(
        asd_policy.SpecError, match="cannot accelerate a Arm; what can be accelerated: a Policy .*LeRobot's"
    ):
        asd_policy.accelerate(Arm())


def test_a_policy_of_this_package_needs_no_restoring(checkpoint: Path) -> None:
    policy = asd_policy.load_policy(checkpoint)
    for one in (policy, asd_policy.accelerate(policy)):
        with pytest.raises(asd_policy.SpecError, match="accelerate returned another Policy and left it as it is"):
            asd_policy.restore(one)


@pytest.fixture
def planner(chain: GaussianChain) -> LivePlanner:
    return LivePlanner(make_sampler("asd:window=5"), chain)


def test_plans_learn_until_the_episode_ends(
    planner: LivePlanner, mixture: MixtureDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft is told the last plan, moved on to the present; when that is, who asks for plans may know better."""
    told: list[Tensor | None] = []
    own = type(planner.sampler).sample

    def sample(*given: Any, warm_start: WarmStart, **options: Any) -> Any:
        told.append(warm_start.last_plan)
        return own(*given, warm_start=warm_start, **options)

    monkeypatch.setattr(type(planner.sampler), "sample", sample)

    def plan(rows: int = 3) -> Tensor:
        return planner.sample(mixture, (rows, 2, 2), 1, CPU, generator=torch.Generator().manual_seed(0))

    first = plan()
    assert planner.experience.plans == 3
    second = plan()
    nothing = torch.zeros((3, 2, 2))
    with planner.committed(nothing.bool(), nothing, moved=0):
        plan()
    with planner.committed(nothing.bool(), nothing):
        plan(2)  # other robots: the last plans are not theirs
    assert planner.last_sample is not None
    planner.begin_episode()
    assert planner.last_sample is None
    plan(2)
    expected = [None, first[:, [1, 1]], second, None, None]
    for seen, last in zip(told, expected, strict=True):
        assert (seen is None and last is None) or (seen is not None and last is not None and torch.equal(seen, last))
    assert (planner.stats.plans, planner.experience.plans) == (13, 13)


def test_given_coordinates_are_kept(planner: LivePlanner, mixture: MixtureDenoiser) -> None:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[:, 0] = True
    sample = planner.sample(mixture, SHAPE, 1, CPU, inpainting=Inpainting(mask, torch.full(SHAPE, 0.25)))
    assert (sample[:, 0] == 0.25).all()
    assert (sample[:, 1] != 0.25).all()


def test_the_network_is_tried_once(planner: LivePlanner, mixture: MixtureDenoiser) -> None:
    sizes: list[int] = []

    def denoise(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        assert cond.shape == (len(x), 4, 1)
        sizes.append(len(x))
        return mixture(x, timestep, None)

    with pytest.raises(asd_policy.DenoiserError, match="two equal calls of the network differ"):
        planner.sample(lambda x, timestep, cond: torch.randn_like(x), SHAPE, 1, CPU)
    rounds = []
    for _ in range(2):
        sizes.clear()
        planner.sample(denoise, SHAPE, 1, CPU, torch.zeros(3, 4, 1))
        assert planner.stats.last is not None
        rounds.append(len(sizes) - max(planner.stats.last.rounds))
    assert rounds == [3, 0]
