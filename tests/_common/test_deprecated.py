"""Names of 0.1: each still does what it did, and says by a DeprecationWarning what it is called now."""

import importlib
import sys
from typing import Any

import pytest
import torch

import asd_policy
from asd_policy._common.deprecated import MODULES, NAMES
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.samplers import make_sampler
from asd_policy.samplers.deadline import Budget
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.warm_start import WarmStart
from support.known_laws import EVENT, make_tape

ROWS = 3


@pytest.mark.parametrize(("old", "new"), NAMES.items())
def test_public_names(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"asd_policy\.{old} is of asd_policy 0.1 and will go: use .*{new}"):
        found = getattr(asd_policy, old)
    assert found is getattr(asd_policy, new)
    assert old not in asd_policy.__all__


@pytest.mark.parametrize(("old", "new"), MODULES.items())
def test_modules(old: str, new: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is of asd_policy 0.1 and will go: use {new}"):
        found = importlib.import_module(old)
    real = importlib.import_module(new)
    public = [name for name in vars(real) if not name.startswith("_")]
    assert all(getattr(found, name) is getattr(real, name) for name in public)


def test_modules_inside_them() -> None:
    with pytest.warns(DeprecationWarning):
        from asd_policy.realtime.timebase import VirtualTime  # pyright: ignore[reportMissingImports]  an old path
    from asd_policy.deploy.realtime import timebase

    assert VirtualTime is timebase.VirtualTime
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("asd_policy.realtime.no_such_module")


def test_the_keywords_of_sample(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    sampler, tape, shape = make_sampler("asd:window=4,draft=warm"), make_tape(ROWS, chain, 1), (ROWS, *EVENT)
    mask = torch.eye(2, dtype=torch.bool).expand(shape)
    given, known = Inpainting(mask, torch.full(shape, 0.3).double()), WarmStart(torch.full(shape, 0.1).double())
    budget = Budget(deadline_ms=1e6)
    new = sampler.sample(mixture, chain, shape, None, tape, given, known, budget).sample
    old: dict[str, Any] = {"tape": tape, "held": given, "past": known, "deadline_ms": 1e6, "fallback": "jump"}
    with pytest.warns(
        DeprecationWarning, match="sample's tape, held, past, deadline_ms, fallback is of asd_policy 0.1"
    ):
        assert torch.equal(sampler.sample(mixture, chain, shape, **old).sample, new)
    drawn = sampler.sample(lambda x, t, c: x, chain, shape, generator=torch.Generator().manual_seed(1)).sample
    with pytest.warns(DeprecationWarning):
        options: dict[str, Any] = {"device": "cpu", "generator": torch.Generator().manual_seed(1)}
        assert torch.equal(sampler.sample(lambda x, t, c: x, chain, shape, **options).sample, drawn)
    mixed = {name: value for name, value in old.items() if name != "held"}
    with pytest.warns(DeprecationWarning):
        assert torch.equal(sampler.sample(mixture, chain, shape, inpainting=given, **mixed).sample, new)
    for name, value in {"inpainting": given, "warm_start": known, "budget": budget}.items():
        both: dict[str, Any] = {name: value, **old}
        with pytest.raises(TypeError, match=f"got both '{name}' and "):
            sampler.sample(mixture, chain, shape, **both)
    misspelt: dict[str, Any] = {"tapes": tape}
    with pytest.raises(TypeError, match="unexpected keyword argument 'tapes'"):
        sampler.sample(mixture, chain, shape, **misspelt)


def test_the_keyword_of_accelerated_functions(mixture: MixtureDenoiser) -> None:
    scheduler = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}
    shape = (ROWS, 2, 2)
    given = Inpainting(torch.eye(2, dtype=torch.bool).expand(shape), torch.full(shape, 0.3))
    samples = []
    for name in ("inpainting", "held"):
        fn = asd_policy.accelerate_fn(lambda x, t, c: 0.3 * x, scheduler, "asd:window=4", 12)
        options: dict[str, Any] = {name: given, "generator": torch.Generator().manual_seed(0)}
        if name == "held":
            with pytest.warns(DeprecationWarning, match="held= is of asd_policy 0.1 and will go: use inpainting="):
                samples.append(fn(shape, **options).sample)
        else:
            samples.append(fn(shape, **options).sample)
    assert torch.equal(*samples)
