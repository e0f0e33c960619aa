"""A flow's checkpoint: its own plans by Euler's steps, and those of the chain with noise."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import asd_policy
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.checkpoints.inspection import inspect
from asd_policy.checkpoints.lerobot.config import DiffusionConfig
from asd_policy.checkpoints.onnx.writing import export_policy
from asd_policy.evaluation.reports.report import laws_of
from asd_policy.networks.backends.onnx_export import export_network
from asd_policy.policy.policy import Policy
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.euler import Euler, OwnEuler, euler_chain
from asd_policy.samplers.inpainting import Inpainting
from support.known_laws import make_tape, short_chain
from support.small_checkpoints import save_random

STEPS = 10


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory, small_config: DiffusionConfig) -> Path:
    """A flow's folder with random weights."""
    config = replace(small_config, noise_scheduler_type="Flow", prediction_type="flow_prediction")
    return save_random(tmp_path_factory.mktemp("flow") / "checkpoint", config)


def plan(policy: Policy, seed: int = 0) -> Tensor:
    cond = torch.linspace(-1, 1, policy.cond_dim)[None]
    generator = torch.Generator().manual_seed(seed)
    return policy.sampler.sample(policy.denoiser, policy.chain, (1, *policy.event), cond, generator).sample


def test_its_own_plan_is_euler(flow: Path) -> None:
    policy = asd_policy.load_policy(flow)
    assert policy.sampler == policy.reference == OwnEuler(STEPS, own_steps=STEPS)
    assert policy.sampler.exact and policy.steps == STEPS and policy.law.runs == "checkpoint"
    x, cond = make_start(policy), torch.linspace(-1, 1, policy.cond_dim)[None]
    found = plan(policy)
    for k in range(STEPS):
        velocity = policy.network(x, torch.tensor([STEPS - 1 - k]), cond)
        x = x - velocity / STEPS
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


def make_start(policy: Policy) -> Tensor:
    return torch.randn((1, *policy.event), generator=torch.Generator().manual_seed(0))


def test_other_numbers_of_steps_are_approximate(flow: Path) -> None:
    policy = asd_policy.load_policy(flow, "euler:4")
    assert policy.sampler.spec == "euler:4" and not policy.sampler.exact
    noisy = asd_policy.load_policy(flow, f"euler:{STEPS}", chain="stochastic")
    assert not noisy.sampler.exact  # of another law than the chain with noise
    torch.testing.assert_close(plan(noisy), plan(asd_policy.load_policy(flow)), rtol=0, atol=0)


@pytest.mark.parametrize("spec", ["ddpm", "asd", "asd:window=4", "paradigms:window=4"])
def test_what_needs_noise_names_the_chain_that_has_it(flow: Path, spec: str) -> None:
    with pytest.raises(asd_policy.SpecError, match=r"plan is euler:10: --chain stochastic, or .* a law of its own"):
        asd_policy.load_policy(flow, spec)
    policy = asd_policy.load_policy(flow, spec, chain="stochastic")
    assert policy.reference == make_sampler("ddpm") and policy.law.runs == "stochastic:eta=1"
    assert plan(policy).isfinite().all()


def test_the_share_of_noise_is_part_of_the_law(flow: Path) -> None:
    half = asd_policy.load_policy(flow, "ddpm", chain="stochastic:eta=0.5")
    whole = half.with_chain("stochastic")
    assert (half.law.runs, whole.law.runs) == ("stochastic:eta=0.5", "stochastic:eta=1")
    assert (half.chain.sigma * 2).tolist() == pytest.approx(whole.chain.sigma.tolist())
    assert plan(half).tolist() != plan(whole).tolist()
    assert whole.with_chain("checkpoint").reference == OwnEuler(STEPS, own_steps=STEPS)
    first, sequential = whole.with_sampler(Asd(1)), whole.with_sampler(make_sampler("ddpm"))
    assert plan(first).tolist() == plan(sequential).tolist()


BAD_CHAINS = [
    ("stochastic:eta=0", "eta=0 adds no noise, so there is nothing to draft and verify"),
    ("stochastic:eta=1.1", r"eta 1.1 is not a number in \[0, 1\]"),
    ("stochastic:eta=nan", r"eta nan is not a number in \[0, 1\]"),
    ("stochastic:eta=x", "eta=x in 'stochastic:eta=x' is not of type float"),
    ("stochastic:et=1", "no option 'et' in .*; stochastic has eta"),
    ("stochastics", "chain 'stochastics' is not one of checkpoint, trained, stochastic"),
    ("trained", "chain 'trained' is the DDPM chain of a diffusion's network, and this one is a flow's"),
]


@pytest.mark.parametrize(("chain", "message"), BAD_CHAINS, ids=[chain for chain, _ in BAD_CHAINS])
def test_chains_that_it_does_not_have(flow: Path, chain: str, message: str) -> None:
    with pytest.raises(asd_policy.SpecError, match=message):
        asd_policy.load_policy(flow, chain=chain)


def test_a_diffusion_has_no_flow(small_checkpoint: Path) -> None:
    with pytest.raises(asd_policy.SpecError, match="chain 'stochastic' is a flow's, and the network of this DDPM"):
        asd_policy.load_policy(small_checkpoint, chain="stochastic")
    with pytest.raises(asd_policy.SpecError, match="euler:5 follows a flow, .* DDPMScheduler: ddim:5 takes few steps"):
        asd_policy.load_policy(small_checkpoint, "euler:5")


@pytest.mark.parametrize("spec", ["ddim:5", "dpmsolver:5"])
def test_few_steps_of_a_diffusion_are_none_of_a_flow(flow: Path, spec: str) -> None:
    with pytest.raises(asd_policy.SpecError, match=rf"{spec} needs a diffusion's noise schedule, .* euler:n"):
        asd_policy.load_policy(flow, spec, chain="stochastic")


def test_more_steps_than_it_has(flow: Path) -> None:
    with pytest.raises(asd_policy.SpecError, match="euler steps 11 is not in 1 … 10"):
        asd_policy.load_policy(flow, "euler:11")


def test_inspect_says_whose_law_is_exact(flow: Path) -> None:
    said = inspect(str(flow))
    assert said["own_plan"] == "euler:10" and said["prediction_type"] == "flow_prediction" and said["runs_here"]
    assert not said["chain"]["gaussian"] and "a law of its own" in said["chain"]["why"]
    usable = {each["spec"] for each in said["samplers"] if each["usable"]}
    assert usable == {"euler:10", "parallel"} and not said["notes"]
    noisy = inspect(str(flow), "stochastic:eta=0.5")
    assert noisy["chain"]["runs"] == "stochastic:eta=0.5" and noisy["chain"]["gaussian"]
    assert "not that of Euler's steps" in noisy["chain"]["why"]
    assert {each["spec"] for each in noisy["samplers"] if each["usable"] and each["exact"]} == {"ddpm", "asd"}


def test_results_say_which_law_ran() -> None:
    samplers = [{"spec": "ddpm", "reference": True}, {"spec": "asd"}]
    said = laws_of({"chain": "stochastic:eta=1", "samplers": samplers})
    assert said == ["chain stochastic:eta=1: the flow with noise, a law of its own and not that of Euler's steps"]


def test_lerobot_would_refuse_it(flow: Path) -> None:
    """Its diffusion policies know two prediction types and two schedulers: a flow is not taken for one of them."""
    raw = json.loads((flow / "config.json").read_text())
    assert raw["prediction_type"] not in ("epsilon", "sample") and raw["noise_scheduler_type"] not in ("DDPM", "DDIM")


def test_a_contradiction_in_the_configuration_is_named(flow: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in flow.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    raw = json.loads((flow / "config.json").read_text())
    for change, message in (
        (
            {"noise_scheduler_type": "DDPM"},
            "prediction_type 'flow_prediction' .* noise_scheduler_type 'Flow', not 'DDPM'",
        ),
        (
            {"prediction_type": "epsilon"},
            "noise_scheduler_type 'Flow' .* prediction_type 'flow_prediction', not 'epsilon'",
        ),
    ):
        (copy / "config.json").write_text(json.dumps(raw | change))
        with pytest.raises(asd_policy.CheckpointError, match=message):
            asd_policy.load_policy(copy)
    (copy / "config.json").write_text(json.dumps(raw | {"num_inference_steps": 11}))
    with pytest.raises(asd_policy.ChainError, match="steps 11 is not an integer in 1 … 10"):
        asd_policy.load_policy(copy)


def test_values_along_the_chain_need_its_timesteps() -> None:
    chain = GaussianChain.from_flow(12, 1.0)
    tape = make_tape(2, chain, 0)
    mask = torch.zeros((2, 2, 2), dtype=torch.bool)
    mask[:, 0] = True
    given = Inpainting.noised(mask, torch.full((2, 2, 2), 0.3, dtype=torch.float64), chain, tape)

    def network(x: Tensor, time: Tensor, cond: Tensor | None) -> Tensor:
        return x * time.view(-1, 1, 1)

    whole = Euler(12).sample(network, chain, (2, 2, 2), generator=tape, inpainting=given).sample
    assert (whole[:, 0] == 0.3).all()
    with pytest.raises(asd_policy.SpecError, match="euler:5 has other timesteps than the chain of 12 steps"):
        Euler(5).sample(network, chain, (2, 2, 2), generator=tape, inpainting=given)


def test_any_velocity_is_accelerated_on_a_chain() -> None:
    """As docs/guide/flow.md has it: data that are 0.3 everywhere, which every plan ends at."""

    def velocity(x: Tensor, time: Tensor, cond: Tensor | None) -> Tensor:
        return (x - 0.3) / time[:, None, None]

    chain = GaussianChain.from_flow(20, 1.0)
    result = asd_policy.accelerate_fn(velocity, chain, "asd:window=8")((3, 4, 2))
    torch.testing.assert_close(result.sample, torch.full((3, 4, 2), 0.3), rtol=0, atol=1e-5)
    assert max(result.stats.rounds) < 20
    with pytest.raises(asd_policy.ChainError, match="num_inference_steps and eta are of a scheduler"):
        asd_policy.accelerate_fn(velocity, chain, eta=0.5)


def test_no_file_holds_a_flow(flow: Path, tmp_path: Path) -> None:
    policy = asd_policy.load_policy(flow, chain="stochastic")
    with pytest.raises(asd_policy.BackendError, match="this policy is a flow's"):
        export_policy(policy, tmp_path / "flow.onnx", {})
    times = replace(policy.job, chain=GaussianChain.from_flow(STEPS))
    with pytest.raises(asd_policy.BackendError, match="timesteps are integers, and this flow's network gets times"):
        export_network(policy.network, times)


def test_only_a_flow_has_euler_steps() -> None:
    with pytest.raises(asd_policy.SpecError, match="euler:5 follows a flow"):
        euler_chain(5, short_chain())
