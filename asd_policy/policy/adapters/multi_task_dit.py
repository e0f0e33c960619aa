"""LeRobot's `MultiTaskDiTPolicy`, live: `DiffusionObjective.conditional_sample` is the one place where it samples.

Of lerobot 0.6.1 (`lerobot/policies/multi_task_dit/modeling_multi_task_dit.py`). Observation queues, the encoders of
frames and text and the processors are outside it, and stay as they are.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asd_policy._common.arrays import Array
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import ChainError, DenoiserError
from asd_policy.policy.adapters.base import Acceleration, Adapter, LiveParts, Patch, check_own, qualified
from asd_policy.policy.adapters.flow_matching import FlowLoop, check_euler, flow_chain
from asd_policy.policy.adapters.lerobot_sampling import (
    LeRobotSampling,
    check_float32,
    known_network,
    parts_of,
    sampling_patches,
    twin_of,
    who_of,
)
from asd_policy.policy.law import CHECKPOINT, STOCHASTIC, stochastic_of
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import ATTENTION_MASK, STATE, TOKENS
from asd_policy.policy.plan import Horizons
from asd_policy.policy.sensors import Sensor, SensorEncoder

if TYPE_CHECKING:
    from torch import nn

    from asd_policy.policy.adapters.tasks import TaskEncoder

_MODULE = "lerobot.policies.multi_task_dit.modeling_multi_task_dit"
_OBJECTIVE, _FLOW = f"{_MODULE}.DiffusionObjective", f"{_MODULE}.FlowMatchingObjective"


class _Sampling(LeRobotSampling):
    """The objective has the loop, and is given the network; the policy's `_generate_actions` encodes and samples."""

    known = (f"{_MODULE}.MultiTaskDiTPolicy",)
    loops = (_OBJECTIVE,)

    @staticmethod
    def loop_of(policy: Any) -> Any:
        """Find the objective."""
        return policy.objective

    @staticmethod
    def denoiser_of(policy: Any) -> Any:
        """Find the DiT."""
        return policy.noise_predictor

    @staticmethod
    def planning_of(policy: Any) -> tuple[Any, str]:
        """Find what encodes and samples."""
        return policy, "_generate_actions"

    @staticmethod
    def run_loop(policy: Any, network: Any, cond: Array) -> Array:
        """Run the loop of the objective."""
        return twin_of(policy.objective).conditional_sample(network, len(cond), cond)

    def conditional_sample(self, model: "nn.Module", batch_size: int, conditioning_vec: Array) -> Array:
        """Sample plans [batch_size, horizon, action_dim] given observations [batch_size, cond_dim]; see `sample`.

        Raises:
            DenoiserError: The network drops out, in training mode; and see `sample`.
        """
        from asd_policy.policy.adapters.networks import find_dropout

        dropping = find_dropout(model)
        if dropping is not None:
            raise DenoiserError(
                f"{dropping} of the policy's {type(model).__name__} drops out: it is in training mode; call .eval() "
                "before it plans"
            )
        objective = self.policy.objective
        shape = (batch_size, objective.horizon, objective.action_dim)
        return self.sample(model, shape, "conditioning_vec", conditioning_vec)

    def observe_nothing(self, robots: int) -> dict[str, Array]:
        """Make a batch as for every policy, with a task of which each token is 0."""
        batch = super().observe_nothing(robots)
        tokens = batch["observation.state"].new_zeros((robots, self.policy.config.tokenizer_max_length)).long()
        return {**batch, TOKENS: tokens, ATTENTION_MASK: tokens == 0}


class _FlowSampling(_Sampling):
    """The same where the objective is a flow: a chain with noise in the place of its own loop."""

    loops = (_FLOW,)
    needed = ("_euler_integrate",)

    @classmethod
    def chain_and_loop(cls, policy: Any, law: str) -> tuple[GaussianChain, FlowLoop]:
        """Make the chain with noise, and look at the loop whose place a sampler is to take."""
        denoiser, noise = policy.noise_predictor, stochastic_of(law)
        assert noise is not None  # `_check` saw to it
        chain, loop = flow_chain(policy, noise), FlowLoop(policy.objective, cls.loops)
        check_float32(denoiser)
        device = next(denoiser.parameters()).device
        check_euler(policy, lambda denoise: known_network(denoise, device), device, who_of(policy))
        return chain, loop


def _check(policy: Any, law: str = CHECKPOINT) -> type[_Sampling]:
    """Refuse a policy that does not sample a chain, or in a way of its own; return the methods that fit it.

    Args:
        policy: The live one.
        law: One of `CHAINS`; a flow has a chain of Gaussian steps where `STOCHASTIC` is asked for, and else none.
    """
    objective, kind = getattr(policy, "objective", None), _Sampling
    if any(qualified(cls) == _FLOW for cls in type(objective).__mro__):
        if stochastic_of(law) is None:
            raise ChainError(
                f"this {type(policy).__name__} has the objective flow_matching, whose plans solve an equation without "
                "noise: there is nothing to draft and verify; the objective diffusion is what can be accelerated as it "
                f"is, and asd_policy.accelerate(policy, chain={STOCHASTIC!r}) samples this flow with noise, which has "
                "a law of its own"
            )
        kind = _FlowSampling
    parts_of(policy, kind)
    check_own(objective, kind.loops, ("conditional_sample",))
    check_own(policy, ADAPTER.classes, ("_generate_actions",))
    return kind


def _patches(policy: Any, wanted: Acceleration) -> list[Patch]:
    kind = _check(policy, wanted.chain)
    return sampling_patches(policy, wanted, kind, policy.noise_predictor)


def _parts(policy: Any, processors: Any) -> LiveParts:
    """Take a policy apart; its conditioning is compared with what LeRobot's own method makes."""
    from asd_policy.policy.adapters.networks import VECTOR, denoiser_of
    from asd_policy.policy.adapters.processors import ACTION, TOKENIZER, live_normalization

    _check(policy)
    check_own(policy, ADAPTER.classes, ("select_action", "predict_action_chunk", "_prepare_batch"))
    check_own(policy.observation_encoder, (f"{_MODULE}.ObservationEncoder",), ("encode",))
    config, objective = policy.config, policy.objective
    cameras = {name: tuple(feature.shape) for name, feature in config.image_features.items()}
    shapes = {STATE: tuple(config.robot_state_feature.shape), **cameras}
    action = tuple(config.action_feature.shape)
    maps = live_normalization(policy, processors, {**shapes, ACTION: action}, (TOKENIZER,))
    device = next(policy.noise_predictor.parameters()).device
    maps = {name: each.to(device) for name, each in maps.items()}
    encoder = _encoder(policy, {STATE: maps[STATE], **{name: maps[name] for name in cameras}}, cameras)
    _check_conditioning(policy, encoder)
    return LiveParts(
        denoiser_of(policy.noise_predictor, VECTOR),
        encoder,
        maps[ACTION],
        Horizons(config.n_obs_steps, config.horizon, config.n_action_steps),
        objective.noise_scheduler,
        objective.num_inference_steps,
    )


def _encoder(policy: Any, maps: Mapping[str, Affine], cameras: Mapping[str, tuple[int, ...]]) -> "TaskEncoder":
    """Make an encoder of the live one's parts: for each camera CLIP on the frame, resized and cropped."""
    from torch import nn

    from asd_policy.networks.backends.torch_network import Weights
    from asd_policy.policy.adapters.tasks import TaskEncoder

    live, text = policy.observation_encoder, policy.observation_encoder.text_encoder
    before = [*([live.resize] if live.do_resize else []), *([live.center_crop] if live.do_crop else [])]
    networks = [live.vision_encoder] * len(cameras) if live.vision_encoders is None else list(live.vision_encoders)
    made: dict[int, nn.Module] = {}
    features: dict[str, Affine | Sensor] = dict(maps)
    for (name, shape), network in zip(cameras.items(), networks if cameras else [], strict=True):
        sees = made.setdefault(id(network), nn.Sequential(*before, network, nn.Flatten(1)).eval())
        features[name] = Sensor(shape, maps[name], sees, network.embed_dim)
    size, vocabulary = text.projection.out_features, text.text_encoder.config.vocab_size
    length, device = policy.config.tokenizer_max_length, text.projection.weight.device
    return TaskEncoder(SensorEncoder(features), text, length, size, vocabulary, Weights(text), device)


def _check_conditioning(policy: Any, encoder: "TaskEncoder") -> None:
    """Compare the conditioning of histories with LeRobot's own: the order of features and steps, the task's place.

    Raises:
        SpecError: It is another one, or not the same each time.
    """
    import torch

    from asd_policy.policy.adapters.encoders import check_encoder, check_same, normalized, random_observations

    steps, rows, device = policy.config.n_obs_steps, 2, encoder.device
    numbers = torch.arange(rows * steps, device=device)[:, None] + 7 * torch.arange(encoder.length, device=device)
    tokens = (numbers % encoder.vocabulary).unflatten(0, (rows, steps))
    mask = (torch.arange(encoder.length, device=device) < encoder.length - 1).expand(tokens.shape)
    single = random_observations(encoder.seen.shapes, rows * steps)
    values = normalized(single, encoder.seen.normalization, device)
    history = {name: each.unflatten(0, (rows, steps)) for name, each in values.items()}

    def own(seen: dict[str, Array]) -> Array:
        batch = {STATE: seen[STATE], TOKENS: seen[TOKENS], ATTENTION_MASK: seen[ATTENTION_MASK]}
        frames = [seen[name] for name in seen if name not in batch]
        if frames:
            batch["observation.images"] = torch.stack(frames, dim=-4)
        return policy.observation_encoder.encode(batch)

    theirs = check_encoder(own, {**history, TOKENS: tokens[:, -1], ATTENTION_MASK: mask[:, -1]})
    task = {TOKENS: tokens.flatten(0, 1), ATTENTION_MASK: mask.flatten(0, 1)}
    features = encoder.look({**single, **task}, device)
    check_same(encoder.join(features.unflatten(0, (rows, steps))), theirs, "the features")


ADAPTER = Adapter(_Sampling.known, _patches, _parts)
