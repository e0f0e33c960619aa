"""The measure of long plans: what a response explains, and the motion of the bimanual expert."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from asd_policy._common.arrays import Device
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.samplers.asd.experience import CommittedPaths, Experience
from asd_policy.samplers.asd.response import Response, sines

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scripts import one another, as Python does for the script it runs."""
    monkeypatch.syspath_prepend(ROOT / "scripts/benchmarks")


class _Given(Experience):
    def __init__(self, gain: torch.Tensor) -> None:
        super().__init__(learning=False)
        self.gain = gain

    def response(self, device: Device, dtype: Any, of_force: bool = False) -> Response | None:
        """Give the one it was made of."""
        return Response(sines(4, torch.device("cpu"), torch.float64), self.gain)


@pytest.mark.parametrize("known", [1.0, 0.5, 0.0])
def test_the_energy_missed_is_what_the_gain_does_not_know(known: float) -> None:
    chain, gain = GaussianChain.from_scheduler(DDPMScheduler(10)), 0.3
    tables = chain.tables(torch.device("cpu"), torch.float64)
    generator = torch.Generator().manual_seed(0)
    points, x0_pred = (torch.zeros(3, 10, 8, dtype=torch.float64) for _ in range(2))
    for step in range(9):
        noise = torch.randn(3, 8, generator=generator, dtype=torch.float64)
        points[:, step + 1] = tables.a[step] * x0_pred[:, step] + tables.b[step] * points[:, step] + noise
        x0_pred[:, step + 1] = x0_pred[:, step] + gain * noise
    flags = torch.ones(3, 10, dtype=torch.bool)
    watched = importlib.import_module("trained_rounds").Watched(
        _Given(torch.full((10, 8), known * gain, dtype=torch.float64))
    )
    watched.learn(CommittedPaths(points, x0_pred, torch.full((3,), 10), None, flags, flags), chain, ("", ""), 4)
    np.testing.assert_allclose(watched.missed[0], (1 - known) ** 2 * watched.changed[0], atol=1e-12)
    assert (watched.changed[0] > 0).all()


def test_a_gripper_passes_its_waypoints_and_stays_at_the_last() -> None:
    places = np.array([[0.0, 0.5, 0.3], [0.1, 0.4, 0.1], [0.1, 0.4, 0.2]])
    expert = importlib.import_module("aloha_demonstrations")
    knots = zip((0, 10, 20), places, (0, -60, -60), (0, 1, 0), strict=True)
    poses = expert.follow([expert.Waypoint(*knot) for knot in knots], "y", 25)
    np.testing.assert_allclose(poses[[0, 10, 20], :3], places, atol=1e-12)
    np.testing.assert_allclose(poses[20:], poses[[20]].repeat(5, 0), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(poses[:, 3:7], axis=1), 1)
    np.testing.assert_allclose(poses[10, 3:7], [np.cos(np.pi / 6), 0, -np.sin(np.pi / 6), 0], atol=1e-12)
    assert ((poses[:, 7] >= 0) & (poses[:, 7] <= 1)).all()
