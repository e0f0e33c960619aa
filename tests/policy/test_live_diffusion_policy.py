"""Live policies of diffusion_policy, played by stand-ins of the same names with the same loop in them."""

import copy
import re
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

import asd_policy
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.evaluation.exactness import mutants
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.networks.transformer import DiffusionTransformer, TransformerConfig
from asd_policy.networks.unet import ConditionalUnet1d, UnetConfig
from asd_policy.policy.adapters.base import AsdStats
from asd_policy.policy.plan import PlanRecord
from asd_policy.policy.tuning import load_tuning
from asd_policy.samplers.asd import autotune as choice
from support import known_laws
from support.live_policies import Looping, TransformerSampling, UnetSampling

HORIZON, ACTION_DIM, OBS_DIM, N_OBS_STEPS = 8, 2, 3, 2
CPU = torch.device("cpu")


def scheduler(**options: Any) -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2", **options)


class StandIn(Looping):
    """A policy whose observation is its features: the encoder counts its calls."""

    asd_stats: AsdStats
    last_plan: PlanRecord | None

    def __init__(self, model: nn.Module, noise_scheduler: Any, told: str | None, width: int, steps: int = 20) -> None:
        """Take the parts, as diffusion_policy's do; `told` is how the model is told the observations, None inpaints."""
        super().__init__()
        self.model, self.noise_scheduler, self.told, self.width = model, noise_scheduler, told, width
        self.num_inference_steps, self.n_action_steps, self.horizon = steps, 4, HORIZON
        self.kwargs: dict[str, Any] = {}
        self.encoded = self.resets = 0

    def reset(self) -> None:
        """Count."""
        self.resets += 1

    def predict_action(self, observation: Tensor) -> Tensor:
        """Plan from observations [B, N_OBS_STEPS, OBS_DIM]."""
        self.encoded += 1
        data = torch.zeros(len(observation), self.horizon, self.width)
        mask = torch.zeros_like(data, dtype=torch.bool)
        told: dict[str, Tensor] = {}
        if self.told is None:
            data[:, :N_OBS_STEPS, ACTION_DIM:] = observation
            mask[:, :N_OBS_STEPS, ACTION_DIM:] = True
        elif self.told == "local_cond":
            told["local_cond"] = torch.zeros(len(observation), self.horizon, OBS_DIM)
            told["local_cond"][:, :N_OBS_STEPS] = observation
        else:
            told[self.told] = observation if self.told == "cond" else observation.flatten(1)
        return self.conditional_sample(data, mask, **told, **self.kwargs)

    conditional_sample: Callable[..., Tensor]


class UnetStandIn(UnetSampling, StandIn):
    """A U-Net policy."""


class TransformerStandIn(TransformerSampling, StandIn):
    """A transformer policy."""


class UnetModel(nn.Module):
    """A network with the arguments of `ConditionalUnet1D`."""

    def __init__(self, width: int, cond_dim: int) -> None:
        """Build it."""
        super().__init__()
        self.unet = ConditionalUnet1d(UnetConfig(width, cond_dim, (8, 16), 3, 4, 8))

    def forward(
        self, sample: Tensor, timestep: Tensor, local_cond: Tensor | None = None, global_cond: Tensor | None = None
    ) -> Tensor:
        """Predict noise."""
        given = local_cond.flatten(1) if local_cond is not None else global_cond
        cond = torch.empty(len(sample), 0) if given is None else given
        return self.unet(sample, timestep.expand(len(sample)), cond)


class TransformerModel(nn.Module):
    """A network with the arguments of `TransformerForDiffusion`."""

    def __init__(self, width: int, cond_dim: int) -> None:
        """Build it."""
        super().__init__()
        config = TransformerConfig(width, width, HORIZON, N_OBS_STEPS, cond_dim, 1, 2, 8, causal_attn=True)
        self.transformer = DiffusionTransformer(config)

    def forward(self, sample: Tensor, timestep: Tensor, cond: Tensor | None = None) -> Tensor:
        """Predict noise."""
        flat = torch.empty(len(sample), 0) if cond is None else cond.flatten(1)
        return self.transformer(sample, timestep.expand(len(sample)), flat)


UNETS = ("UnetLowdim", "UnetImage", "UnetHybridImage", "UnetVideo")
TRANSFORMERS = ("TransformerLowdim", "TransformerHybridImage")
FILES = {
    "UnetLowdim": "unet_lowdim",
    "UnetImage": "unet_image",
    "UnetHybridImage": "unet_hybrid_image",
    "UnetVideo": "unet_video",
    "TransformerLowdim": "transformer_lowdim",
    "TransformerHybridImage": "transformer_hybrid_image",
}
KINDS = [
    *((name, told) for name in UNETS for told in ("global_cond", None)),
    ("UnetLowdim", "local_cond"),
    *((name, told) for name in TRANSFORMERS for told in ("cond", None)),
]


def make(
    name: str = "UnetLowdim", told: str | None = "global_cond", noise_scheduler: Any = None, **rest: Any
) -> StandIn:
    """Return a stand-in under the name of a class of diffusion_policy."""
    torch.manual_seed(0)
    unet = name in UNETS
    cls = type(f"Diffusion{name}Policy", (UnetStandIn if unet else TransformerStandIn,), {})
    cls.__module__ = f"diffusion_policy.policy.diffusion_{FILES[name]}_policy"
    width = ACTION_DIM + (OBS_DIM if told is None else 0)
    length = {None: 0, "local_cond": HORIZON * OBS_DIM, "cond": OBS_DIM}.get(told, N_OBS_STEPS * OBS_DIM)
    model = (UnetModel if unet else TransformerModel)(width, length)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    made: Any = cls(model, noise_scheduler or scheduler(), told, width, **rest)
    return made.eval().requires_grad_(False)


def observation(rows: int = 3) -> Tensor:
    return torch.randn((rows, N_OBS_STEPS, OBS_DIM), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("name", "told"), KINDS)
def test_window_one_is_its_own_loop(name: str, told: str | None, rows: int) -> None:
    """After the same seed, inpainting or told the observations, whatever the number of robots."""
    policy = make(name, told)
    fast = asd_policy.accelerate(copy.deepcopy(policy), "asd:window=1")
    observed = observation(rows)
    plans: list[Tensor] = []
    for each in (policy, fast):
        torch.manual_seed(0)
        plans.append(each.predict_action(observed))
    own, planned = plans
    torch.testing.assert_close(planned, own, rtol=0, atol=1e-5)
    assert not planned.is_inference()
    assert fast.asd_stats.last is not None
    assert fast.asd_stats.last.rounds == (20,) * rows
    if told is None:
        assert torch.equal(planned[:, :N_OBS_STEPS, ACTION_DIM:], observed)


@pytest.mark.parametrize(("name", "told"), KINDS)
def test_wider_windows_take_fewer_rounds(name: str, told: str | None) -> None:
    policy = asd_policy.accelerate(make(name, told), "asd:window=5")
    for _ in range(3):
        policy.predict_action(observation())
    stats, last = policy.asd_stats, policy.last_plan
    assert stats.last is not None and last is not None
    assert (last.rounds, last.nfe, last.batch) == (stats.last.rounds[0], stats.last.nfe[0], 3)
    assert last.at == 2 * policy.n_action_steps
    policy.reset()
    assert policy.last_plan is None
    assert (stats.plans, stats.steps) == (9, 180)
    assert stats.algorithmic_speedup > 1.2
    assert policy.encoded == 3  # once per plan, whatever the sampler does


class GaussianModel(nn.Module):
    """The exact denoiser of a Gaussian with independent coordinates."""

    def __init__(self) -> None:
        """Build it."""
        super().__init__()
        self.denoiser: MixtureDenoiser = known_laws.gaussian_denoiser()

    def forward(self, sample: Tensor, timestep: Tensor, local_cond: Any = None, global_cond: Any = None) -> Tensor:
        """Predict noise."""
        return self.denoiser(sample.double(), timestep.expand(len(sample))).to(sample.dtype)


def gaussian_policy() -> tuple[StandIn, GaussianChain]:
    chain = known_laws.short_chain()
    noise_scheduler = DDPMScheduler.from_config(dict(chain.config))
    policy = make(noise_scheduler=noise_scheduler, steps=len(chain))
    policy.model, policy.width, policy.horizon = GaussianModel(), 2, 2
    return policy, chain


def p_value(policy: StandIn, chain: GaussianChain, known: Tensor, rows: int = 4000) -> float:
    """Return a p-value for its plans having the law of the sequential loop, where they are not known [2, 2]."""
    data = torch.full((rows, 2, 2), 0.7)
    torch.manual_seed(5)
    plans = policy.conditional_sample(data, known.expand(rows, 2, 2))
    assert (plans[:, known] == 0.7).all()
    mean, deviation = known_laws.gaussian_law(known_laws.gaussian_denoiser(), chain)
    free = ~known.flatten()
    return known_laws.normal_p_value((plans.flatten(1)[:, free] - mean[free]) / deviation[free])


NOTHING, CORNER = torch.zeros(2, 2, dtype=torch.bool), torch.tensor([[False, True], [False, False]])


@pytest.mark.parametrize("spec", ["asd:window=4", "asd:window=6,draft=picard,verify=reflection"])
@pytest.mark.parametrize("known", [NOTHING, CORNER], ids=["nothing", "a coordinate"])
def test_law_is_that_of_its_own_loop(known: Tensor, spec: str) -> None:
    policy, chain = gaussian_policy()
    own = p_value(policy, chain, known)
    asd_policy.accelerate(policy, spec)
    assert own > 1e-3
    assert p_value(policy, chain, known) > 1e-3
    with mutants.mutated("accept-always"):
        assert p_value(policy, chain, known) < 1e-6


def test_restored_policies_are_as_they_were() -> None:
    policy = make()
    before = set(vars(policy))
    assert asd_policy.accelerate(policy, "asd:window=4") is policy
    policy.reset()
    assert policy.resets == 1
    assert set(policy.state_dict()) == set(make().state_dict())
    asd_policy.restore(policy)
    assert set(vars(policy)) == before
    policy.predict_action(observation())


def test_the_documented_policy(capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[2] / "docs/guide/checkpoints.md").read_text()
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if "ema_model" in block)
    policy = make()
    names = {"asd_policy": asd_policy, "workspace": SimpleNamespace(ema_model=policy), "obs_dict": observation()}
    exec(block, names)
    assert float(capsys.readouterr().out) >= 1
    assert "conditional_sample" not in vars(policy)


def test_subclasses_are_known_and_others_are_not() -> None:
    policy = make()
    policy.__class__ = type("Mine", (type(policy),), {})
    asd_policy.accelerate(policy, "asd:window=4")
    policy.__class__ = StandIn
    with pytest.raises(asd_policy.SpecError, match="cannot accelerate a StandIn.*diffusion_policy's U-Net policies"):
        asd_policy.accelerate(policy, "asd")


def test_batches_may_change_and_episodes_begin_anew() -> None:
    policy = asd_policy.accelerate(make(), "asd:window=4")
    for rows in (2, 5, 1):
        assert policy.predict_action(observation(rows)).shape == (rows, HORIZON, ACTION_DIM)
        policy.reset()
    assert policy.asd_stats.plans == 8


def test_changes_after_acceleration_are_named() -> None:
    policy = asd_policy.accelerate(make(), "asd:window=4")
    policy.num_inference_steps = 10
    with pytest.raises(asd_policy.ChainError, match="accelerated with 20 inference steps, it now has 10; accelerate"):
        policy.predict_action(observation())
    policy.num_inference_steps = 20
    policy.kwargs = {"eta": 0.5}
    with pytest.raises(
        asd_policy.ChainError, match="options of the scheduler's step were {} at accelerate; accelerate"
    ):
        policy.predict_action(observation())


def test_ddim_in_the_chain_of_training() -> None:
    """In place: the policy's own loop with a DDPM scheduler of the same betas."""

    def plan(policy: StandIn) -> Tensor:
        torch.manual_seed(1)
        return policy.predict_action(observation())

    expected = plan(make())
    policy = make(noise_scheduler=DDIMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2"), steps=10)
    asd_policy.accelerate(policy, "asd:window=1", chain="trained")
    torch.testing.assert_close(plan(policy), expected, rtol=0, atol=1e-5)


def test_two_kinds_of_conditioning_are_refused() -> None:
    policy = asd_policy.accelerate(make(), "asd:window=4")
    data = torch.zeros(1, HORIZON, ACTION_DIM)
    with pytest.raises(asd_policy.ObservationError, match="told local_cond and global_cond; one of them is supported"):
        policy.conditional_sample(data, data.bool(), torch.zeros(1, HORIZON, 3), torch.zeros(1, 6))


def test_ddim_needs_noise() -> None:
    ddim = DDIMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2")
    policy = make(noise_scheduler=ddim, steps=10)
    with pytest.raises(asd_policy.ChainError, match="DDIMScheduler with eta=0"):
        asd_policy.accelerate(policy, "asd")
    policy.kwargs = {"eta": 1.0}
    plan = asd_policy.accelerate(policy, "asd:window=4").predict_action(observation())
    assert plan.shape == (3, HORIZON, ACTION_DIM)


class OldScheduler(DDPMScheduler):
    """Steps from t to t − 1 whatever the number of steps, as diffusers 0.11 does."""

    def previous_timestep(self, timestep: Any) -> Any:
        """Return t − 1."""
        return timestep - 1


def test_schedulers_that_step_otherwise_are_refused() -> None:
    OldScheduler.__name__ = "DDPMScheduler"
    old = OldScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2")
    asd_policy.accelerate(make(noise_scheduler=old), "asd:window=4")
    with pytest.raises(asd_policy.ChainError, match="does not step as its configuration says in 10 of 20 timesteps"):
        asd_policy.accelerate(make(noise_scheduler=old, steps=10), "asd:window=4")


def _halve(_: Any, __: Any, output: Tensor) -> Tensor:
    return 0.5 * output


def _drop_out(_: Any, __: Any, output: Tensor) -> Tensor:
    return nn.functional.dropout(output, 0.5)


def test_random_networks_are_refused() -> None:
    policy = make()
    policy.model.register_forward_hook(_drop_out)
    asd_policy.accelerate(policy, "asd:window=4")
    with pytest.raises(asd_policy.DenoiserError, match="two equal calls of the network differ"):
        policy.predict_action(observation())


def clamped(self: StandIn, *arguments: Any, **options: Any) -> Tensor:
    return type(self).__mro__[1].conditional_sample(self, *arguments, **options).clamp(-0.1, 0.1)


def test_a_sampling_method_of_somebody_elses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clamp for safety, say: the sampler would take its place, and nobody would know."""
    policy = make()
    known = type(policy)
    policy.__class__ = type("Safe", (known,), {"conditional_sample": clamped, "__module__": "mine"})
    message = (
        "conditional_sample of this Safe is not diffusion_policy.policy.diffusion_unet_lowdim_policy."
        "DiffusionUnetLowdimPolicy's own: mine.Safe overrides it"
    )
    with pytest.raises(asd_policy.SpecError, match=re.escape(message)):
        asd_policy.accelerate(policy)
    assert policy.predict_action(observation()).abs().max() <= 0.1
    policy.__class__ = type("Safe", (type("Mixin", (), {"conditional_sample": clamped}), known), {})
    with pytest.raises(asd_policy.SpecError, match="test_live_diffusion_policy.Mixin overrides it"):
        asd_policy.accelerate(policy)
    policy.__class__ = known
    policy.conditional_sample = policy.conditional_sample
    with pytest.raises(asd_policy.SpecError, match="own: the object has an attribute of that name"):
        asd_policy.accelerate(policy)
    del policy.conditional_sample
    monkeypatch.setattr(known, "conditional_sample", types.FunctionType(clamped.__code__, {"__name__": "mine"}), False)
    with pytest.raises(asd_policy.SpecError, match="it was replaced in the class, by mine.clamped"):
        asd_policy.accelerate(policy)


def test_a_step_of_somebody_elses_is_refused() -> None:
    policy = make()
    step = policy.noise_scheduler.step
    policy.noise_scheduler.step = lambda *given, **options: step(*given, **options)
    with pytest.raises(asd_policy.SpecError, match="step of this DDPMScheduler .*attribute of that name"):
        asd_policy.accelerate(policy)
    del policy.noise_scheduler.step

    class Guided(DDPMScheduler):
        def previous_timestep(self, timestep: Any) -> Any:
            return 0

    Guided.__name__ = "DDPMScheduler"
    policy.noise_scheduler = Guided(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2")
    with pytest.raises(asd_policy.ChainError, match="does not step as its configuration says"):
        asd_policy.accelerate(policy)


def test_what_replaced_the_sampler_is_not_lost() -> None:
    policy = asd_policy.accelerate(make(), "asd:window=4")
    ours = policy.conditional_sample
    policy.conditional_sample = lambda *given, **options: ours(*given, **options).clamp(-0.1, 0.1)
    for again in (asd_policy.restore, asd_policy.accelerate):
        with pytest.raises(asd_policy.SpecError, match="conditional_sample of this .* was changed after accelerate"):
            again(policy)
    assert policy.predict_action(observation()).abs().max() <= 0.1
    policy.conditional_sample = ours
    asd_policy.restore(policy)
    assert "conditional_sample" not in vars(policy)


def test_hooks_and_other_networks_are_the_policys_own() -> None:
    """They are called, whoever samples."""
    policy = make()
    policy.model.register_forward_hook(_halve)
    plans = []
    for each in (policy, asd_policy.accelerate(copy.deepcopy(policy), "asd:window=1")):
        torch.manual_seed(0)
        plans.append(each.predict_action(observation()))
    torch.testing.assert_close(*plans, rtol=0, atol=1e-5)


def test_the_compiler_stays_out_of_the_sampler() -> None:
    """`torch.compile` around what calls it: the plans are the same, and what is compiled is the policy's own."""
    graphs: list[Any] = []

    def compiled(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    policy, plans = asd_policy.accelerate(make(), "asd:window=5"), []
    other = asd_policy.accelerate(make(), "asd:window=5")
    own: Any = policy.predict_action
    policy.predict_action = torch.compile(own, backend=compiled)
    for seed in range(3):
        for each in (policy, other):
            torch.manual_seed(seed)
            plans.append(each.predict_action(observation()))
        assert torch.equal(*plans[-2:])
    assert policy.asd_stats.last is not None
    assert policy.asd_stats.last.rounds == other.asd_stats.last.rounds  # pyright: ignore[reportOptionalMemberAccess]
    called = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert graphs and not any("conv" in name or "linear" in name for name in called)


@pytest.mark.parametrize(("name", "told"), KINDS)
def test_a_warm_up_leaves_nothing_for_the_first_plan(name: str, told: str | None) -> None:
    """And changes nothing else: neither random numbers, nor what is learned, nor which plans are counted."""
    policy, calls = asd_policy.accelerate(make(name, told), "asd"), []
    policy.model.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))
    state = torch.get_rng_state()
    warm = asd_policy.warm_up(policy, observation=observation(2))
    assert torch.equal(torch.get_rng_state(), state)
    stats = policy.asd_stats
    assert (stats.plans, stats.last) == (0, None)
    assert (warm.calls, warm.points) == (stats.trial_calls, stats.trial_points) == (len(calls), sum(calls))
    calls.clear()
    policy.predict_action(observation(2))
    assert stats.last is not None
    assert (stats.plans, stats.trial_calls) == (2, warm.calls)
    assert (max(stats.last.rounds), sum(stats.last.nfe)) == (len(calls), sum(calls))


def test_calls_of_a_cold_first_plan_are_counted() -> None:
    policy, calls = asd_policy.accelerate(make(), "asd"), []
    policy.model.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))
    policy.predict_action(observation(1))
    stats = policy.asd_stats.last
    assert stats is not None
    assert (stats.all_calls, stats.all_points) == (len(calls), sum(calls))
    assert policy.asd_stats.trial_calls == stats.trial_calls >= 9


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[StandIn], int]:
    """Returns how often a policy's network is timed until its first plan is there."""
    windows: list[int] = []
    time_call = choice._time_call

    def spy(target: Any, initial: Tensor, window: int) -> float:
        windows.append(window)
        return time_call(target, initial, window)

    def timed(policy: StandIn) -> int:
        windows.clear()
        asd_policy.warm_up(asd_policy.accelerate(policy, "asd"), observation=observation(1))
        count = len(windows)
        policy.predict_action(observation(1))
        assert len(windows) == count
        return count

    monkeypatch.setattr(choice, "_time_call", spy)
    return timed


def test_times_are_kept_by_the_weights(own_cache: Path, timed: Callable[[StandIn], int]) -> None:
    """In the user's cache, as `tune` keeps those of checkpoints; what plans have taught is not kept."""
    assert timed(make()) == 3
    policy = make()
    assert timed(policy) == 0
    for _ in range(4):
        policy.predict_action(observation(1))
        policy.reset()
    (file,) = own_cache.rglob("*.safetensors")
    known, backend = load_tuning(file, GaussianChain.from_scheduler(scheduler()), (HORIZON, ACTION_DIM), CPU)
    assert backend == "live" and known.latency and known.plans == 0 and not known.moments and not known.judgements
    changed = make()
    nn.init.zeros_(next(changed.model.parameters()))
    assert timed(changed) == 3
    assert timed(make(steps=10)) == 3
    file.write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="times are measured anew: .* cannot be read"):
        assert timed(make()) == 3
    assert timed(make()) == 0


def test_a_cache_that_cannot_be_written_stops_nothing(
    timed: Callable[[StandIn], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ASD_POLICY_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="what was measured is not kept: .*"):
        assert timed(make()) == 3


def test_warm_ups_that_cannot_be() -> None:
    policy = make()
    with pytest.raises(
        asd_policy.SpecError, match="DiffusionUnetLowdimPolicy is not accelerated: it has nothing to warm"
    ):
        asd_policy.warm_up(policy, observation=observation())
    asd_policy.accelerate(policy)
    with pytest.raises(asd_policy.SpecError, match="the warm-up of a .* takes observation, not robots"):
        asd_policy.warm_up(policy, 2)
    with pytest.raises(asd_policy.SpecError, match="is in training mode: call .eval"):
        asd_policy.warm_up(policy.train(), observation=observation())
