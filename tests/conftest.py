"""Shared fixtures: a short chain, analytic denoisers, a small random LeRobot folder."""

import contextlib
import importlib
import itertools
import os
import random
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

# Triton's own functions are for its interpreter if they are imported as such, and parts of PyTorch import them.
with mock.patch.dict(os.environ, TRITON_INTERPRET="1"), contextlib.suppress(ImportError):
    importlib.import_module("triton.language")

from asd_policy._common import arrays
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.checkpoints.lerobot.folder import DiffusionConfig
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.policy.observation import ENVIRONMENT_STATE, STATE
from support import known_laws
from support.small_checkpoints import SMALL, camera_config, save_cameras, save_random


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, in the place of the user's."""
    monkeypatch.setenv("ASD_POLICY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def same_noise(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test draws without a seed is the same in each run, whatever ran before it: no test fails by chance."""
    seeds, make_generator = itertools.count(zlib.crc32(request.node.nodeid.encode())), arrays.make_generator

    def seeded(device: Any, seed: Any = None) -> Any:
        return make_generator(device, next(seeds) if seed is None else seed)

    monkeypatch.setattr(arrays, "make_generator", seeded)
    monkeypatch.setattr(arrays, "_numpy_generator", make_generator(arrays.NUMPY, next(seeds)))
    torch.manual_seed(next(seeds))
    np.random.seed(next(seeds))
    random.seed(next(seeds))


@pytest.fixture(scope="session")
def chain() -> GaussianChain:
    """Twelve steps, so coarse that drafts are often wrong."""
    return known_laws.short_chain()


@pytest.fixture(scope="session")
def schedule() -> GaussianChain:
    """Every timestep of the same noise schedule: what networks know, and few-step samplers may ask for."""
    return known_laws.full_chain()


@pytest.fixture(scope="session")
def gaussian() -> MixtureDenoiser:
    """Data from one Gaussian with a standard deviation of its own in each coordinate; events [2, 2]."""
    return known_laws.gaussian_denoiser()


@pytest.fixture(scope="session")
def mixture() -> MixtureDenoiser:
    """Data from three unequal, narrow modes; events [2, 2]."""
    return known_laws.mixture_denoiser()


@pytest.fixture(scope="session")
def small_config() -> DiffusionConfig:
    """A policy of a few thousand parameters for asd/Avoid-v0."""
    return DiffusionConfig(
        input_dims={STATE: 4, ENVIRONMENT_STATE: 3},
        action_dim=2,
        normalization_mapping={"STATE": "MIN_MAX", "ENV": "MEAN_STD", "ACTION": "MIN_MAX"},
        **SMALL,
    )


@pytest.fixture
def checkpoint(tmp_path: Path, small_config: DiffusionConfig) -> Path:
    """A LeRobot folder with random weights."""
    return save_random(tmp_path / "checkpoint", small_config)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory, small_config: DiffusionConfig) -> Path:
    """The same, for all tests that only read it."""
    return save_random(tmp_path_factory.mktemp("small") / "checkpoint", small_config)


@pytest.fixture(scope="session")
def camera_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobot folder with random weights that observes a state and one camera, for tests that only read it."""
    return save_cameras(tmp_path_factory.mktemp("camera") / "checkpoint", camera_config(["observation.image"]))
