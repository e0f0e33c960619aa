"""A `Policy` of a live policy of diffusion_policy, played by stand-ins of the same names and structure."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

import asd_policy
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.deploy.realtime.planner import PolicyPlanner
from asd_policy.deploy.realtime.timebase import VirtualTime
from asd_policy.deploy.serving import RemotePolicy
from asd_policy.deploy.serving.server import Limits, PolicyServer
from asd_policy.evaluation.benchmark import Benchmark, contenders
from asd_policy.evaluation.exactness import law
from asd_policy.evaluation.states import random_conditioning, random_states
from asd_policy.networks.backends import make_backend
from asd_policy.policy.adapters.encoders import random_observations
from asd_policy.policy.adapters.networks import UnknownNetworkError, view_of
from support import live_policies as live
from support.live_policies import KINDS, N_OBS_STEPS, OBS_DIM, ROWS, STEPS, Transformer, Unet, make

CPU = torch.device("cpu")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: Unet(2, 6),
    "unet without scales": lambda: Unet(2, 6, scales=False),
    "unet without conditioning": lambda: Unet(2),
    "transformer": lambda: Transformer(2, 3),
    "transformer that is not causal": lambda: Transformer(2, 3, causal=False),
    "transformer with an encoder": lambda: Transformer(2, 3, encoders=2),
    "transformer without conditioning": lambda: Transformer(2),
    "encoder alone": lambda: Transformer(2, timed=False),
}


def network_of(name: str) -> Any:
    torch.manual_seed(0)
    return live.randomize(NETWORKS[name]())


@pytest.mark.parametrize("name", NETWORKS)
def test_views_compute_the_same_on_the_same_weights(name: str) -> None:
    network = network_of(name)
    view = view_of(network)
    own = {id(each) for each in network.parameters() if each.numel()}
    assert {id(each) for each in view.parameters() if each.numel()} == own
    x, timestep = torch.randn(5, live.HORIZON, 2), torch.tensor([0, 3, 7, 12, 19])
    cond = torch.randn(5, 2, 3) if view.config.cond_dim else None
    if isinstance(network, Unet):
        expected = network(x, timestep, global_cond=None if cond is None else cond.flatten(1))
    else:
        expected = network(x, timestep, cond)
    found = view(x, timestep, torch.empty(5, 0) if cond is None else cond.flatten(1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 0.1


class _Mine(Unet):
    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        """Compute something else."""
        return 2 * super().forward(*arguments, **options)


def _with(name: str, change: Callable[[Any], object]) -> Any:
    network = network_of(name)
    change(network)
    return network


def _set(path: str, value: Any) -> Callable[[Any], object]:
    owner, _, name = path.rpartition(".")
    return lambda network: setattr(network.get_submodule(owner), name, value)


UNKNOWN: dict[str, tuple[Callable[[], Any], str]] = {
    "a class": (lambda: nn.Linear(1, 1), "a Linear is no network that this package knows"),
    "a subclass": (lambda: live.randomize(_Mine(2, 6)), "forward of this _Mine is not .*_Mine overrides it"),
    "a forward": (lambda: _with("unet", _set("final_conv.forward", lambda x: x)), "final_conv has a forward of its"),
    "a hook": (lambda: _with("unet", lambda each: each.register_forward_hook(print)), "the network has hooks"),
    "a layer": (lambda: _with("unet", _set("final_conv.0.block.2", nn.SiLU())), r"block.2 is SiLU\(\), not Mish\(\)"),
    "a layer more": (lambda: _with("unet", lambda each: each.final_conv.append(nn.Tanh())), "has final_conv.2 besides"),
    "padding": (lambda: _with("unet", _set("final_conv.0.block.0.padding_mode", "circular")), "padding_mode=circular"),
    "an embedding": (lambda: _with("unet", lambda each: setattr(each.diffusion_step_encoder[0], "dim", 6)), "embeds"),
    "a pattern": (lambda: _with("unet", _set("mid_modules.0.cond_encoder.2.pattern", "b t -> b 1 t")), "rearranged"),
    "scales": (lambda: _with("unet", _set("mid_modules.0.cond_predict_scale", False)), "modulation scales: False"),
    "local conditioning": (lambda: live.randomize(Unet(2, local_dim=3)), "it has local conditioning"),
    "half precision": (lambda: network_of("unet").half(), "its weights are float16, not float32"),
    "compiled": (lambda: _with("unet", lambda each: each.compile(backend="eager")), "the network is compiled"),
    "a mask": (lambda: _with("transformer", _set("mask", torch.zeros(8, 8))), "its mask is another one"),
    "training": (lambda: network_of("transformer").train(), "drops out: it is in training mode"),
    "activation": (lambda: _with("transformer", _set("decoder.layers.1.activation", torch.relu)), "another activation"),
    "flags": (lambda: _with("transformer", _set("encoder_only", True)), "its flags are not those of its layers"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_networks_have_no_view(name: str) -> None:
    make_network, message = UNKNOWN[name]
    with pytest.raises(UnknownNetworkError, match=message):
        view_of(make_network())


def on_tape(policy: Any, seen: dict[str, Tensor], event: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plan by the library's own loop, along the tape of `tape`."""
    drawn = tape(event)
    draws = iter([drawn.initial, *drawn.normals.unbind(1)])
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "randn", lambda *_, **__: next(draws).clone())
        patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(draws))
        return policy.predict_action(live.theirs(seen))


def tape(event: tuple[int, ...]) -> NoiseTape:
    return NoiseTape.draw((ROWS, *event), STEPS, torch.Generator().manual_seed(5), CPU)


@pytest.mark.parametrize("sampler", ["ddpm", "asd:window=1"])
@pytest.mark.parametrize("kind", KINDS)
def test_plans_are_the_librarys_own(kind: str, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make(kind)
    ours = asd_policy.load_policy(policy, sampler)
    seen = live.observations(kind)
    expected = on_tape(policy, seen, ours.event, monkeypatch)
    plan = ours.plan(seen, tape(ours.event))
    largest = float(expected["action_pred"].abs().max())
    torch.testing.assert_close(plan.chunk, expected["action_pred"], rtol=0, atol=1e-4 * largest)
    torch.testing.assert_close(plan.actions, expected["action"], rtol=0, atol=1e-4 * largest)


def test_each_observation_is_encoded_by_itself_once() -> None:
    policy = make()
    ours = asd_policy.load_policy(policy, "asd:window=4")
    policy.obs_encoder.calls[0] = 0
    seen = live.observations("camera")
    plan = ours.plan(seen)
    assert policy.obs_encoder.calls == [ROWS * N_OBS_STEPS]
    recovered = ours.encoder.recover(plan.cond)
    assert list(recovered) == ["pos"]
    torch.testing.assert_close(recovered["pos"], seen["pos"])
    assert ours.encoder.sizes == {"front": live.FEATURES - OBS_DIM, "pos": OBS_DIM}


APART: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "maps": (lambda: live.MapsEncoder(shares=False), ["front", "wrist"]),
    "one map": (lambda: live.MapsEncoder(shares=True), ["front", "wrist"]),
    "cores": (live.CoreEncoder, ["front", "wrist"]),
    "points": (live.PointsEncoder, ["point_cloud", "agent_pos"]),
    "another": (live.ObsEncoder, []),
}


@pytest.mark.parametrize("name", APART)
def test_known_encoders_are_taken_apart(name: str) -> None:
    """One network for each feature, so that backends run them; the features are the same."""
    own, sensors = APART[name]
    torch.manual_seed(0)
    encoder = live.randomize(own())
    policy = make("dp3, cloud" if name == "points" else "unet, camera")
    policy.obs_encoder = encoder
    if name not in ("points", "another"):
        policy.normalizer = live.Normalizer({"front": 1, "wrist": 1, "pos": OBS_DIM, "action": 2})
        shapes = {"front": live.FRAME, "wrist": live.FRAME, "pos": (OBS_DIM,)}
        features = encoder({key: torch.zeros(1, *shape) for key, shape in shapes.items()}).shape[1]
        policy.model = live.randomize(Unet(2, N_OBS_STEPS * features))
    ours = asd_policy.load_policy(policy.eval())
    assert list(getattr(ours.encoder, "sensors", ())) == sensors
    seen = random_observations(ours.observation_shapes, 3)
    values = policy.normalizer.normalize(live.theirs(seen))
    values = {key: each[..., :3] if key == "point_cloud" else each for key, each in values.items()}
    expected = encoder(values)
    found = ours.encoder.look(seen, CPU)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_changed_encoder_is_noticed() -> None:
    """Features that were kept are of the old weights."""
    for kind in ("unet, camera", "dp3, cloud"):
        policy = make(kind)
        ours = asd_policy.load_policy(policy)
        seen = live.observations(kind)
        before = ours.plan(seen, torch.Generator().manual_seed(0)).chunk
        next(policy.obs_encoder.parameters()).mul_(2)
        with pytest.raises(
            asd_policy.BackendError, match=r"weights were changed.* policy.with_backend\(policy.backend\)"
        ):
            ours.plan(seen)
        with pytest.raises(asd_policy.BackendError, match="weights were changed"):
            ours.encoder.check()
        after = ours.with_backend(ours.backend).plan(seen, torch.Generator().manual_seed(0)).chunk
        assert not torch.equal(before, after)


def test_frames_of_both_forms_are_the_same() -> None:
    ours = asd_policy.load_policy(make(), "asd:window=1")
    seen = live.observations("camera")
    plans = [ours.plan(each, torch.Generator().manual_seed(0)).chunk for each in (seen, live.theirs(seen))]
    torch.testing.assert_close(*plans, rtol=0, atol=1e-5)
    wrong = {name: values[0, 0].numpy() for name, values in seen.items()} | {"front": np.zeros((3, 12, 14), np.uint8)}
    with pytest.raises(asd_policy.ObservationError, match=r"'front' is uint8 \(3, 12, 14\), not uint8 \(12, 14, 3\)"):
        ours.select_action(wrong)


def test_random_crops_are_refused_for_a_live_encoder() -> None:
    policy = make()
    policy.obs_encoder.random = True
    state = torch.get_rng_state()
    message = (
        "crops or changes frames at random.* cannot be fixed here, not by fixed_crop either.* asd_policy.accelerate"
    )
    with pytest.raises(asd_policy.SpecError, match=message):
        asd_policy.load_policy(policy)
    assert torch.equal(torch.get_rng_state(), state)
    asd_policy.accelerate(policy, "asd:window=4")  # its library's law
    policy.predict_action(live.theirs(live.observations("camera")))


def ddim(steps: int = 5, **kwargs: Any) -> Any:
    policy = make(
        noise_scheduler=DDIMScheduler(num_train_timesteps=STEPS, beta_schedule="squaredcos_cap_v2"), steps=steps
    )
    policy.kwargs = kwargs
    return policy


def test_ddim_has_two_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ddim()
    own = asd_policy.load_policy(policy)
    assert own.reference.spec == "ddim:5"
    seen = live.observations("camera")
    expected = on_tape(policy, seen, own.event, monkeypatch)["action_pred"]
    plan = own.plan(seen, tape(own.event))
    torch.testing.assert_close(plan.chunk, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    with pytest.raises(asd_policy.SpecError, match="asd:window=4.* needs a chain of Gaussian steps"):
        asd_policy.load_policy(policy, "asd:window=4")
    trained = asd_policy.load_policy(policy, "asd:window=4", chain="trained")
    assert len(trained.chain) == trained.steps == STEPS
    assert max(trained.plan(seen).stats.rounds) < STEPS
    noisy = asd_policy.load_policy(ddim(10, eta=1.0), "asd:window=4")
    assert (noisy.law.own, len(noisy.chain)) == (None, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda policy: policy.train(), r"is in training mode \(the policy\): call .eval\(\)"),
        (lambda policy: policy.obs_encoder.train(), r"is in training mode \(obs_encoder\)"),
        (lambda policy: policy.double(), "weights of this DiffusionUnetImagePolicy are torch.float64 on cpu"),
        (lambda policy: asd_policy.accelerate(policy), "is accelerated in place: asd_policy.restore it"),
        (lambda policy: setattr(policy, "predict_action", print), "predict_action of this .*attribute of that name"),
        (
            lambda policy: policy.normalizer.params_dict.pop("pos"),
            "the normaliser knows no 'pos', only 'front', 'action'",
        ),
        (lambda policy: policy.normalizer.params_dict["pos"]["scale"].zero_(), "'pos' has a scale of 0"),
        (lambda policy: delattr(policy.obs_encoder, "shape_meta"), "ObsEncoder .*no obs_shapes.* no shape_meta"),
        (
            lambda policy: setattr(policy.normalizer, "normalize", lambda seen: {n: 2 * v for n, v in seen.items()}),
            "the normalised values of 'front' of the live policy's are other ones",
        ),
    ],
)
def test_what_cannot_be_a_policy(change: Callable[[Any], object], message: str) -> None:
    policy = make()
    change(policy)
    with pytest.raises(asd_policy.SpecError, match=message):
        asd_policy.load_policy(policy)


def test_arguments_that_do_not_fit(checkpoint: Path) -> None:
    policy = make()
    video = live.UnetVideo(live.randomize(Unet(2, 6)), {}, live.scheduler(), STEPS).eval()
    with pytest.raises(asd_policy.SpecError, match="DiffusionUnetVideoPolicy encodes its last observations together"):
        asd_policy.load_policy(video)
    with pytest.raises(asd_policy.SpecError, match="processors are LeRobot's"):
        asd_policy.load_policy(policy, processors=(1, 2))
    with pytest.raises(asd_policy.SpecError, match="processors are those of a live policy"):
        asd_policy.load_policy(checkpoint, processors=(1, 2))
    with pytest.raises(asd_policy.SpecError, match="this is a Policy already"):
        asd_policy.load_policy(asd_policy.load_policy(checkpoint))
    with pytest.raises(asd_policy.SpecError, match="cannot make a Policy of a object"):
        asd_policy.load_policy(object())
    with pytest.raises(asd_policy.SpecError, match="is on cpu: leave device out, or move the policy to meta first"):
        asd_policy.load_policy(policy, device="meta")
    with pytest.raises(asd_policy.SpecError, match="no backend 'fast'"):
        asd_policy.load_policy(policy, backend="fast")
    with pytest.raises(asd_policy.SpecError, match="chain 'own' is not one of checkpoint, trained"):
        asd_policy.load_policy(policy, chain="own")


def test_other_networks_run_through_their_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch-eager; other backends say why they do not."""
    policy = make()
    policy.model.final_conv.append(nn.Tanh().eval())
    ours = asd_policy.load_policy(policy, "asd:window=1")
    seen = live.observations("camera")
    expected = on_tape(policy, seen, ours.event, monkeypatch)["action_pred"]
    found = ours.plan(seen, tape(ours.event)).chunk
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    message = (
        "torch-replicas.* cannot run the policy's network: it has final_conv.2 besides; torch-eager runs it through"
    )
    with pytest.raises(asd_policy.BackendError, match=message):
        asd_policy.accelerate(policy, backend="torch-replicas:devices=cpu")
    assert not hasattr(policy, "asd_stats")
    with pytest.raises(asd_policy.BackendError):
        asd_policy.load_policy(policy, backend="onnx")
    asd_policy.accelerate(policy, "asd:window=4", backend="torch-eager")
    policy.predict_action(live.theirs(seen))


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("unet, inpainting", "onnx"),
        ("unet, camera", "torch-replicas:devices=cpu+cpu"),
        ("transformer", "torch-replicas:devices=cpu+cpu"),
    ],
)
def test_backends_run_live_networks(kind: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "onnx":
        pytest.importorskip("onnxscript")
    policy = make(kind)
    seen = live.observations(kind)
    ours = asd_policy.load_policy(policy, "asd:window=1", backend=backend)
    expected = on_tape(policy, seen, ours.event, monkeypatch)["action_pred"]
    plan = ours.plan(seen, tape(ours.event))
    torch.testing.assert_close(plan.chunk, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    asd_policy.accelerate(policy, "asd:window=1", backend=backend)
    torch.manual_seed(0)
    fast = policy.predict_action(live.theirs(seen))["action_pred"]
    torch.manual_seed(0)
    own = asd_policy.restore(policy).predict_action(live.theirs(seen))["action_pred"]
    torch.testing.assert_close(fast, own, rtol=0, atol=1e-3 * float(own.abs().max()))


def halve(policy: Any) -> None:
    policy.model.load_state_dict({name: 0.5 * each for name, each in policy.model.state_dict().items()})


def assign(policy: Any) -> None:
    state = {name: 0.5 * each for name, each in policy.model.state_dict().items()}
    policy.model.load_state_dict(state, assign=True)


@pytest.mark.parametrize("change", [halve, assign])
@pytest.mark.parametrize("kind", ["unet, camera", "transformer"])
def test_changed_weights_are_noticed(kind: str, change: Callable[[Any], None]) -> None:
    """In place they are followed; a `Policy`, and a backend that is slow to prepare, says that they changed."""
    policy, seen = make(kind), live.observations(kind)
    ours = asd_policy.load_policy(policy)
    fast: Any = asd_policy.accelerate(copy.deepcopy(policy), "asd:window=1")
    slow: Any = asd_policy.accelerate(copy.deepcopy(policy), "asd:window=1", backend="torch-replicas:devices=cpu")

    def plan(policy: Any) -> Tensor:
        torch.manual_seed(0)
        return policy.predict_action(live.theirs(seen))["action_pred"]

    before = plan(fast)
    assert torch.equal(before, plan(slow))
    for each in (policy, fast, slow):
        change(each)
    expected = plan(policy)
    assert float((before - expected).abs().max()) > 1e-2
    torch.testing.assert_close(plan(fast), expected, rtol=0, atol=1e-4)
    with pytest.raises(asd_policy.BackendError, match="weights were changed after it was prepared"):
        ours.plan(seen)
    with pytest.raises(asd_policy.BackendError, match="network was changed after torch-replicas.* accelerate .* again"):
        plan(slow)
    torch.testing.assert_close(plan(asd_policy.accelerate(slow, "asd:window=1")), expected, rtol=0, atol=1e-4)


def test_copies_have_a_network_of_their_own() -> None:
    policy: Any = asd_policy.accelerate(make("unet, global"), "asd:window=1", deadline_ms=60_000)
    seen = live.theirs(live.observations("unet, global"))
    policy.predict_action(seen)
    other: Any = copy.deepcopy(policy)
    halve(other)
    plans = []
    for each in (policy, other):
        torch.manual_seed(0)
        plans.append(each.predict_action(seen)["action_pred"])
    assert not torch.equal(*plans)
    assert (policy.asd_stats.plans, other.asd_stats.plans) == (2 * ROWS, 2 * ROWS)
    asd_policy.restore(other)
    assert "predict_action" not in vars(other)


def test_dp3_is_accelerated_in_place() -> None:
    policy: Any = make("dp3, cloud")
    policy.kwargs = {"eta": 0.3}  # which it takes, and makes nothing of
    seen = live.observations("dp3, cloud")
    plans = []
    fast: Any = asd_policy.accelerate(copy.deepcopy(policy), "asd:window=1")
    for each in (policy, fast):
        torch.manual_seed(0)
        plans.append(each.predict_action(seen)["action_pred"])
    torch.testing.assert_close(*plans, rtol=0, atol=1e-4)
    assert fast.asd_stats.last.rounds == (STEPS,) * ROWS


def test_preparing_a_network_draws_no_random_numbers() -> None:
    """What is prepared anew in a plan is so between the seed and its noise."""
    for name in NETWORKS:
        network = network_of(name)
        state = torch.get_rng_state()
        view_of(network)
        assert torch.equal(torch.get_rng_state(), state)


def test_a_deadline_counts_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    policy: Any = asd_policy.accelerate(make(), "asd:window=2", deadline_ms=60_000)
    seen = live.theirs(live.observations("camera"))
    policy.predict_action(seen)
    assert policy.asd_stats.last.cut == (False,) * ROWS
    asd_policy.accelerate(policy, "asd:window=2", deadline_ms=250)
    asd_policy.warm_up(policy, observation=seen)
    policy.obs_encoder.register_forward_pre_hook(lambda *_: time.sleep(0.3))
    policy.predict_action(seen)
    assert policy.asd_stats.last.cut == (True,) * ROWS
    asd_policy.restore(policy)
    assert "predict_action" not in vars(policy)
    with pytest.raises(asd_policy.SpecError, match="deadline_ms=0 is not a positive number"):
        asd_policy.accelerate(policy, deadline_ms=0)


def test_a_policy_is_accelerated_alike(checkpoint: Path) -> None:
    policy = asd_policy.load_policy(checkpoint)
    fast = asd_policy.accelerate(policy, "asd:window=2", backend="torch-replicas:devices=cpu", deadline_ms=70_000)
    assert (fast.backend.spec, fast.deadline_ms) == ("torch-replicas:devices=cpu", 70_000)
    assert (policy.backend.spec, policy.deadline_ms) == ("torch-eager", None)
    again = asd_policy.accelerate(fast, "ddpm")
    assert (again.backend, again.deadline_ms) == (fast.backend, 70_000)
    with pytest.raises(asd_policy.BackendError, match="torch-cuda-graph needs a CUDA GPU"):
        asd_policy.accelerate(policy, backend="torch-cuda-graph")


def test_it_is_benchmarked_and_its_law_is_tested() -> None:
    ours = asd_policy.load_policy(make())
    sampler = asd_policy.make_sampler("asd:window=4,draft=picard,verify=reflection")
    entered = contenders(ours, [asd_policy.make_sampler("ddpm"), sampler], [make_backend("torch-eager")])
    states = random_states(ours, 2, 0)
    bench = Benchmark(entered, states, states, 2)
    bench.warm_up(lambda *_: None)
    bench.measure(lambda *_: None)
    measured = bench.results()["samplers"]
    assert {each["spec"] for each in measured} == {"ddpm", sampler.spec}
    assert all(each["stages_ms"]["encode"] > 0 for each in measured)
    conds = random_conditioning(ours, 2, 0)
    drawn = law.draw_plans(ours, sampler, conds, 64, 1, True, lambda _: None)
    reference = law.draw_plans(ours, law.reference_sampler(), conds, 64, 2, False, lambda _: None)
    assert law.compare_laws(drawn, reference, 0.001, 3)["holds"]


def test_it_serves_and_controls() -> None:
    ours = asd_policy.load_policy(make(), "asd:window=4,draft=picard,verify=reflection")
    seen = {name: values[0, 0].numpy() for name, values in live.observations("camera").items()}
    actions: list[Any] = []
    options = asd_policy.LoopOptions(ticks=12, patience=60.0)
    asd_policy.ControlLoop(PolicyPlanner(ours), lambda: seen, actions.append, 50.0, options, VirtualTime(0.001)).run()
    assert len(actions) > 8 and np.isfinite(np.stack(actions)).all()
    bounded = ours.with_deadline(60_000)
    bounded.reset(0)
    assert bounded.select_action(seen).shape == (2,)
    lowdim = asd_policy.load_policy(make("unet, global"), "asd:window=4,draft=picard,verify=reflection")
    server = PolicyServer(lowdim, Limits(max_batch=2))
    try:
        with RemotePolicy(f"127.0.0.1:{server.start()}") as remote:
            remote.reset(seed=3)
            lowdim.reset(seed=3)
            assert np.isfinite(remote.select_action(np.zeros(OBS_DIM))).all()
    finally:
        server.stop()
