"""A `Policy` of a live `MultiTaskDiTPolicy`: its plans are LeRobot's own, on its own weights and encoders."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dit_policies import HORIZON, IMAGES, STEPS, VOCABULARY, TinyText, TinyVision, make_dit, require_dit, task_of
from test_docs import BLOCKS
from torch import Tensor

import asd_policy
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.evaluation.states import random_conditioning
from asd_policy.networks.dit import Dit
from asd_policy.policy.observation import ATTENTION_MASK, STATE, TOKENS
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import encode_history
from conftest import observe

CPU = torch.device("cpu")
RANGE = 4.0  # of the actions, in the environment's unit
POLICIES: dict[str, dict[str, Any]] = {
    "no camera": {},
    "one camera, resized": {"cameras": 1, "image_resize_shape": (18, 17)},
    "two cameras, one encoder": {"cameras": 2},
    "two cameras, an encoder each": {"cameras": 2, "use_separate_rgb_encoder_per_camera": True, "n_obs_steps": 3},
}


def processors_of(policy: Any) -> tuple[Any, Any]:
    """LeRobot's own with statistics, and its tokenizer, of which this package needs the step's class alone."""
    from lerobot.policies.multi_task_dit.processor_multi_task_dit import make_multi_task_dit_pre_post_processors
    from lerobot.processor import TokenizerProcessorStep

    statistics: dict[str, dict[str, Tensor]] = {
        STATE: {"min": torch.tensor([-1.0, 0.0, 2.0]), "max": torch.tensor([1.0, 4.0, 3.0])},
        "action": {"min": torch.tensor([-2.0, 0.0]), "max": torch.tensor([2.0, 4.0])},
    }
    for index, name in enumerate(IMAGES):
        colours = torch.linspace(0.3, 0.6, 3)[:, None, None] + 0.1 * index
        statistics[name] = {"mean": colours, "std": colours / 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenizerProcessorStep, "__post_init__", lambda step: setattr(step, "input_tokenizer", None))
        before, after = make_multi_task_dit_pre_post_processors(policy.config, statistics)
    assert any(isinstance(step, TokenizerProcessorStep) for step in before.steps)
    return before, after


def see(policy: Any, seed: int, task: int = 0) -> dict[str, Any]:
    """One observation in the environment's units, as a `Policy` takes it, with a task."""
    numbers = np.random.default_rng(seed)
    frames = {name: numbers.integers(256, size=(20, 18, 3), dtype=np.uint8) for name in policy.config.image_features}
    words = {name: each[0].numpy() for name, each in task_of(1, task).items()}
    return {STATE: numbers.uniform(0, 3, 3).astype(np.float32), **frames, **words}


def as_lerobot(policy: Any, before: Any, seen: dict[str, Any]) -> dict[str, Tensor]:
    """The same as LeRobot's preprocessor hands it on, [1, …]; tokens are those of the observation."""
    batch: dict[str, Tensor] = {STATE: torch.from_numpy(seen[STATE])[None]}
    for name in policy.config.image_features:
        batch[name] = torch.from_numpy(seen[name]).movedim(-1, 0)[None] / 255
    normalizer = next(step for step in before.steps if hasattr(step, "norm_map"))
    batch = normalizer._normalize_observation(batch, inverse=False)
    words = {name: torch.from_numpy(seen[name])[None] for name in (TOKENS, ATTENTION_MASK)}
    return {**batch, **words}


def history_of(seen: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.stack([torch.as_tensor(each[name]) for each in seen])[None] for name in seen[0]}


@pytest.mark.parametrize("case", POLICIES)
def test_features_are_lerobots(case: str) -> None:
    """A task that changes holds for all observations of the next plan, as in LeRobot's queues."""
    theirs = make_dit(**POLICIES[case])
    before, after = processors_of(theirs)
    ours = asd_policy.load_policy(theirs, processors=(before, after))
    steps = theirs.config.n_obs_steps
    seen = [see(theirs, index, task=index) for index in range(steps)]
    batches = [theirs._prepare_batch(as_lerobot(theirs, before, each)) for each in seen]
    observed = [name for name in (STATE, "observation.images") if name in batches[0]]
    batch = {name: torch.stack([each[name] for each in batches], dim=1) for name in observed}
    with torch.no_grad():
        expected = theirs.observation_encoder.encode({**batches[-1], **batch})
    cond = encode_history(ours.encoder, history_of(seen), steps, CPU)
    torch.testing.assert_close(cond, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert list(ours.observation_shapes) == [STATE, *theirs.config.image_features, TOKENS, ATTENTION_MASK]
    known = ours.encoder.recover(cond)
    assert list(known) == [STATE]
    torch.testing.assert_close(known[STATE][0, -1], torch.from_numpy(seen[-1][STATE]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", POLICIES)
def test_actions_are_lerobots_in_closed_loop(case: str) -> None:
    """History, queue and noise, over two plans and more, with a task that changes."""
    theirs = make_dit(**POLICIES[case])
    before, after = processors_of(theirs)
    ours = asd_policy.load_policy(theirs, "asd:window=1", processors=(before, after))
    network: Any = ours.network
    assert type(network) is Dit
    assert {id(each) for each in network.parameters()} == {id(each) for each in theirs.noise_predictor.parameters()}
    for step in range(19):
        seen = see(theirs, step, task=step // 5)
        torch.manual_seed(step)
        ours.generator.manual_seed(step)
        expected = theirs.select_action(as_lerobot(theirs, before, seen))
        unnormalizer = next(each for each in after.steps if hasattr(each, "norm_map"))
        expected = unnormalizer._normalize_action(expected, inverse=True)
        action = torch.from_numpy(ours.select_action(seen))
        torch.testing.assert_close(action, expected[0], rtol=0, atol=1e-4 * RANGE)


@pytest.mark.parametrize("sampler", ["ddpm", "asd:window=1"])
def test_plans_are_lerobots_on_one_tape(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = make_dit()
    ours = asd_policy.load_policy(theirs, sampler)
    tape = NoiseTape.draw((1, HORIZON, 2), STEPS, torch.Generator().manual_seed(5), CPU)
    noises: Iterator[Tensor] = iter(tape.normals.unbind(1))
    history = history_of([see(theirs, index) for index in range(2)])
    cond = encode_history(ours.encoder, history, 2, CPU)
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(noises))
        patch.setattr("torch.randn", lambda *_, **__: tape.initial)
        expected = theirs.objective.conditional_sample(theirs.noise_predictor, 1, cond)
    plan = ours.plan(history, torch.Generator().manual_seed(5))
    torch.testing.assert_close(plan.chunk, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("spec", ["torch-replicas:devices=cpu+cpu", "torch-eager:dtype=bfloat16", "onnx"])
def test_backends_run_network_and_cameras(spec: str) -> None:
    """The text stays in float32, whose numbers of tokens half precision has no digits for."""
    theirs = make_dit(1)
    processors = processors_of(theirs)
    history = history_of([see(theirs, index) for index in range(2)])
    plain = asd_policy.load_policy(theirs, "asd:window=1", processors=processors)
    other = asd_policy.load_policy(theirs, "asd:window=1", processors=processors, backend=spec)
    found, expected = (each.plan(history, torch.Generator().manual_seed(1)).chunk for each in (other, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=(0.1 if "bfloat16" in spec else 1e-4) * RANGE)
    text = [encode_history(each.encoder, history, 2, CPU)[:, -16:] for each in (other, plain)]
    assert torch.equal(*text)


def test_what_a_policy_is_for() -> None:
    """Checked, warmed up, at random states, with a window."""
    policy: Policy = asd_policy.load_policy(make_dit(1), "asd:window=6", processors=processors_of(make_dit(1)))
    policy.check()
    assert policy.warm_up(2).calls > 0
    cond = random_conditioning(policy, 4, 0)
    assert cond.shape == (4, policy.cond_dim) and bool(torch.isfinite(cond).all())
    policy.select_action(see(make_dit(1), 0))
    assert policy.last_plan is not None and policy.last_plan.rounds < STEPS


def test_tasks_that_are_none() -> None:
    policy = asd_policy.load_policy(make_dit(), "asd:window=1")
    for name, value in ((TOKENS, VOCABULARY), (TOKENS, 0.5), (TOKENS, -1), (ATTENTION_MASK, 2)):
        policy.reset()
        seen, most = see(make_dit(), 0), 1 if name == ATTENTION_MASK else VOCABULARY - 1
        seen[name] = np.full(6, value, np.float32)
        message = f"{name} has {value:g}, no whole number in 0 … {most}: give"
        with pytest.raises(asd_policy.ObservationError, match=message):
            policy.select_action(seen)
    seen = see(make_dit(), 0)
    del seen[TOKENS]
    with pytest.raises(asd_policy.ObservationError, match=f"no '{TOKENS}'"):
        policy.select_action(seen)


def test_weights_that_change_are_told() -> None:
    for part in ("noise_predictor", "observation_encoder.text_encoder", "observation_encoder.vision_encoder"):
        theirs = make_dit(1)
        policy = asd_policy.load_policy(theirs, processors=processors_of(theirs))
        with torch.no_grad():
            next(theirs.get_submodule(part).parameters()).mul_(2)
        with pytest.raises(asd_policy.BackendError, match="weights were changed after it was prepared"):
            policy.plan(history_of([see(theirs, index) for index in range(2)]))


def test_ddim_plans_its_own_plan_or_the_trained_chain() -> None:
    theirs = make_dit(noise_scheduler_type="DDIM", num_inference_steps=5)
    own = asd_policy.load_policy(theirs)
    assert own.reference.spec == "ddim:5" and own.steps == 5
    with pytest.raises(asd_policy.SpecError, match="asd.* needs a chain of Gaussian steps.*chain='trained'"):
        asd_policy.load_policy(theirs, "asd")
    trained = asd_policy.load_policy(theirs, "asd:window=4", chain="trained")
    assert trained.steps == STEPS
    assert max(trained.plan(history_of([see(theirs, index) for index in range(2)])).stats.rounds) < STEPS


def test_what_would_be_lost_is_refused() -> None:
    module = require_dit()

    def shifted(self: Any, batch: dict[str, Tensor]) -> Tensor:
        """Encode."""
        return module.ObservationEncoder.encode(self, batch) + 1

    policy = make_dit()
    encoder = policy.observation_encoder
    encoder.__class__ = type("ShiftedEncoder", (module.ObservationEncoder,), {"encode": shifted})
    with pytest.raises(asd_policy.SpecError, match="encode of this ShiftedEncoder .* overrides it"):
        asd_policy.load_policy(policy)
    policy = make_dit(1)
    with pytest.raises(
        asd_policy.SpecError, match="frames of .*front are normalised by MEAN_STD outside .*processors="
    ):
        asd_policy.load_policy(policy)
    policy.observation_encoder._apply_preprocessing = lambda images: images[..., :16, :16]
    with pytest.raises(asd_policy.SpecError, match="features of the live policy's are other ones"):
        asd_policy.load_policy(policy, processors=processors_of(policy))
    with pytest.raises(asd_policy.SpecError, match=r"is in training mode \(the policy\): call .eval\(\)"):
        asd_policy.load_policy(make_dit().train())
    policy = make_dit()
    before, after = processors_of(policy)
    before.steps = [*before.steps, type("Scale", (type(before.steps[0]),), {"__module__": "mine"})()]
    with pytest.raises(asd_policy.SpecError, match=r"have a step mine\.Scale.* known are .*TokenizerProcessorStep"):
        asd_policy.load_policy(policy, processors=(before, after))


def test_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks on multi_task_dit: LeRobot loads and we accelerate, and a task's text becomes an observation."""
    module = require_dit()
    monkeypatch.setattr(module, "CLIPVisionModel", TinyVision)
    monkeypatch.setattr(module, "CLIPTextModel", TinyText)
    make_dit().save_pretrained(tmp_path / "DIT")

    class Tokenizer:
        @staticmethod
        def from_pretrained(name: str) -> Any:
            assert name == "openai/clip-vit-base-patch16"
            return Tokenizer()

        def __call__(self, text: str, max_length: int, **options: Any) -> dict[str, Any]:
            assert options == {"padding": "max_length", "truncation": True, "return_tensors": "np"}
            ids = np.array([[ord(each) % VOCABULARY for each in text[:max_length]]])
            return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    monkeypatch.setattr("transformers.AutoTokenizer", Tokenizer)
    monkeypatch.chdir(tmp_path)
    load, words = (block for block in BLOCKS if "dit." in block)
    names: dict[str, Any] = {"asd_policy": asd_policy, "observation": {STATE: np.zeros(3, np.float32)}}
    exec(load, names)
    names["dit"].select_action(observe(names["dit"]))
    planner = asd_policy.load_policy(asd_policy.restore(names["dit"]), "asd:window=4")
    exec(words, names)
    action = planner.select_action(names["observation"])
    assert action.shape == (2,) and np.isfinite(action).all()
