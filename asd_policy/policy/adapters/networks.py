"""Live networks whose architecture is known, run by this package's code on the same weights.

A view is a network of `asd_policy.networks` that has the live network's own parameters, and no copies: what happens to
them happens to both. Any other network runs through its own forward.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import BackendError, SpecError
from asd_policy.networks.backends.base import Backend, Job
from asd_policy.networks.backends.torch_compile import TorchCompile
from asd_policy.networks.backends.torch_eager import TorchEager
from asd_policy.networks.denoiser import Denoiser
from asd_policy.networks.dit import Dit, DitConfig, RotaryAttention, modulate
from asd_policy.networks.transformer import DiffusionTransformer, TransformerConfig
from asd_policy.networks.unet import ConditionalUnet1d, SinusoidalEmbedding, UnetConfig, diffusion_policy_name
from asd_policy.policy.adapters.base import check_own, qualified

LOCAL, GLOBAL, VECTOR, TOKENS = "local_cond", "global_cond", "conditioning_vec", "cond"
"""How a network is given its conditioning: as a sequence beside the points, as a vector, which a DiT has another name
for, or as a token for each observation; by the name of the argument."""

_LEROBOT = "lerobot.policies.diffusion.modeling_diffusion"
_PARTS = "diffusion_policy.model.diffusion"
_DP3_PARTS = "diffusion_policy_3d.model.diffusion"


def _parts_of(package: str) -> tuple[str, ...]:
    """Name the classes of the parts of a `ConditionalUnet1D`."""
    names = ("conditional_unet1d.ConditionalUnet1D", "conditional_unet1d.ConditionalResidualBlock1D")
    names += tuple(f"conv1d_components.{name}" for name in ("Conv1dBlock", "Downsample1d", "Upsample1d"))
    return tuple(f"{package}.{name}" for name in (*names, "positional_embedding.SinusoidalPosEmb")) + (_REARRANGE,)


def _named_by_diffusion_policy(name: str) -> str:
    return diffusion_policy_name(f"{name}.").removesuffix(".")


_REARRANGE = "einops.layers.torch.Rearrange"
_UNETS: dict[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    f"{_LEROBOT}.DiffusionConditionalUnet1d": (
        str,
        tuple(
            f"{_LEROBOT}.Diffusion{name}"
            for name in ("ConditionalUnet1d", "ConditionalResidualBlock1d", "Conv1dBlock", "SinusoidalPosEmb")
        ),
    ),
    **{
        f"{package}.conditional_unet1d.ConditionalUnet1D": (_named_by_diffusion_policy, _parts_of(package))
        for package in (_PARTS, _DP3_PARTS)
    },
}
"""Known U-Nets: the name that each gives to a layer of ours, and the classes of their parts."""
_TRANSFORMER = f"{_PARTS}.transformer_for_diffusion.TransformerForDiffusion"
_TRANSFORMER_PARTS = (_TRANSFORMER, f"{_PARTS}.positional_embedding.SinusoidalPosEmb")
_DIT_MODULE = "lerobot.policies.multi_task_dit.modeling_multi_task_dit"
_DIT = f"{_DIT_MODULE}.DiffusionTransformer"
_DIT_PARTS = (
    _DIT,
    *(f"{_DIT_MODULE}.{name}" for name in ("TransformerBlock", "RoPEAttention", "SinusoidalPosEmb")),
    f"{_DIT_MODULE}.RotaryPositionalEmbedding",
)
_ADDS_AN_AXIS = "batch t -> batch t 1"
"""The pattern by which einops gives a modulation the axis of time."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_CALLS = ("forward", "_call_impl", "_wrapped_call_impl", "_compiled_call_impl")  # what a call of a module runs
_OPTIONS = (bool, int, float, str, tuple, type(None), FunctionType, BuiltinFunctionType)
_SAMPLES = 8  # numbers of a tensor that are compared; twice as many at most
_STEPS = (0, 1, 10, 99, 999)  # timesteps at which embeddings are compared


View = ConditionalUnet1d | DiffusionTransformer | Dit
"""A network of this package's on the parameters of a live one."""


class UnknownNetworkError(Exception):
    """A network is none that this package's code computes; the message says what about it is another one."""


def view_of(network: Any) -> View:
    """Make a network of this package on the parameters of a live one.

    Its architecture is read from its modules, and proven: each layer has the type, the options and the place that it
    has in ours, there are no others, and each part's `forward` is that of its class.

    Args:
        network: A `DiffusionConditionalUnet1d` or the `DiffusionTransformer` of a `MultiTaskDiTPolicy` of LeRobot's, a
            `ConditionalUnet1D` without local conditioning of diffusion_policy's or DP3's, or a
            `TransformerForDiffusion` of diffusion_policy's; or what `torch.compile` made of one, which computes the
            same.

    Raises:
        UnknownNetworkError: It is none of these, something in it is another one, or it is not as it was made: it has
            hooks, weights that are not float32, or drops out.
    """
    network = compiled_from(network) or network
    known = _name_of(network)
    if known is None:
        raise UnknownNetworkError(f"a {type(network).__name__} is no network that this package knows")
    _check_state(network)
    try:
        if known == _TRANSFORMER:
            _check_forwards(network, _TRANSFORMER_PARTS)
            return _transformer_view(network)
        if known == _DIT:
            _check_forwards(network, _DIT_PARTS)
            return _dit_view(network)
        name_of, parts = _UNETS[known]
        _check_forwards(network, parts)
        return _unet_view(network, name_of)
    except (AttributeError, IndexError, TypeError, ValueError) as error:  # a structure that is not that of the class
        raise UnknownNetworkError(f"this {type(network).__name__} is not built as one: {error}") from None


def _name_of(network: Any) -> str | None:
    """Find the class of networks that a network is of, by its qualified name; None where it is not known."""
    names = [qualified(cls) for cls in type(network).__mro__]
    return next((name for name in names if name in _UNETS or name in (_TRANSFORMER, _DIT)), None)


def is_compiled(network: Any) -> bool:
    """Tell whether `torch.compile` has made a network of another one."""
    return qualified(type(network)) == "torch._dynamo.eval_frame.OptimizedModule"


def compiled_from(network: Any) -> Any:
    """Find the network that `torch.compile` was given, of one that it made; None of any other.

    Raises:
        UnknownNetworkError: It has hooks of its own, or another forward than the compiler's.
    """
    if not is_compiled(network):
        return None
    inner = network._orig_mod
    if any(vars(network).get(hooks) for hooks in _HOOKS):
        raise UnknownNetworkError("what torch.compile made of it has hooks")
    forward = vars(network).get("forward")
    if getattr(forward, "_torchdynamo_orig_callable", None) not in (inner.__call__, inner.forward):
        raise UnknownNetworkError("what torch.compile made of it has another forward")
    return inner


@dataclass(frozen=True)
class NetworkState:
    """What a view of a network depends on; another state means another view."""

    structure: list[Any]
    """Modules, their classes' methods, hooks, modes, replaced forwards, and the options of layers that are known."""
    tensors: list[Any]
    """Each tensor's address, and how often it was written to; those made in inference mode do not count that."""
    values: Tensor
    """What a look at the tensors' numbers gives, bit for bit: what writes to `.data` is not counted."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, NetworkState)
            and (self.structure, self.tensors) == (other.structure, other.tensors)
            and torch.equal(self.values, other.values)
        )


def state_of(network: Any) -> NetworkState:
    """Look at a network as it is now."""
    if not isinstance(network, nn.Module):
        return NetworkState([network], [], torch.empty(0))
    structure: list[Any] = [torch.nn.modules.module._has_any_global_hook()]
    tensors: list[Any] = []
    floats: list[Tensor] = []
    name = _name_of(getattr(network, "_orig_mod", network))
    known = name is not None  # an unknown one may count its calls in an attribute
    if name == _DIT:
        structure.append(sys.modules[_DIT_MODULE].modulate)  # its blocks call it
    for module in network.modules():
        kind, own = type(module), vars(module)
        structure += (module, kind, kind.forward, kind.__call__, module.training)
        structure += (
            any(own.get(name) for name in _HOOKS),
            *(id(own[name]) if name in own else None for name in _CALLS),
        )
        if known:
            structure += (each for each in own.values() if type(each) in _OPTIONS)
        for each in (*module._parameters.values(), *module._buffers.values()):
            if each is None:
                continue
            tensors.append((id(each), each.data_ptr(), 0 if each.is_inference() else each._version, each.dtype))
            if each.numel() and each.is_floating_point():
                floats.append(each.detach())
    return NetworkState(structure, tensors, _look_at(floats))


def _look_at(tensors: list[Tensor]) -> Tensor:
    """Make of tensors what differs where their numbers do, as bits, so that NaN is equal to itself."""
    if not tensors:
        return torch.empty(0)
    if tensors[0].is_cuda:  # in few kernels: there reading all is cheaper than launching one for each
        return torch.nn.utils.get_total_norm(tensors).float().view(torch.int32)
    with torch.no_grad():
        some = [each.flatten()[:: max(1, each.numel() // _SAMPLES)].float() for each in tensors]
        return torch.cat(some).view(torch.int32)


class OwnForward:
    """A live network through its own forward, as a `Denoiser`."""

    def __init__(self, network: Any, told: str | None, tokens: int = 0, horizon: int = 0) -> None:
        """Wrap a network.

        Args:
            network: Called as `network(x, timestep, told=cond)`.
            told: The argument that it is given its conditioning by; None for none.
            tokens: Observations in a row of the conditioning [N, tokens · dims], where it is given one after the other
                [N, tokens, dims]; 0 where it is given them flat.
            horizon: Steps of a plan, for `LOCAL`: there the observations are those of its first steps.
        """
        self.network, self.told, self.tokens, self.horizon = network, told, tokens, horizon

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Predict at points x [N, *event] and timesteps [N]."""
        if self.told is None or cond is None:
            return self.network(x, timestep)
        if self.tokens:
            cond = cond.unflatten(1, (self.tokens, -1))
        if self.told == LOCAL:
            cond = functional.pad(cond, (0, 0, 0, self.horizon - self.tokens))
        return self.network(x, timestep, **{self.told: cond})


class LiveNetwork:
    """A live network as a backend runs it, for the plans of a policy that is accelerated in place.

    Before each plan it looks at the network: what changed since is followed on torch-eager, and refused where a
    backend that somebody asked for made something of the network that takes long to make.
    """

    def __init__(self, backend: Backend | None) -> None:
        """Run networks on a backend.

        Args:
            backend: None for torch-eager where the architecture is known, or torch-compile where `torch.compile` has
                made the network; for the networks' own forward elsewhere.
        """
        self.backend = backend
        self._runs: Backend = backend or TorchEager()  # what was prepared last
        self.is_another = False
        """Whether the last network that was prepared is another one than before, but for its weights."""
        self._seen: list[Any] | None = None  # its structure
        self._made: tuple[Any, ...] | None = None  # the state, the job and what was prepared for them

    def __getstate__(self) -> dict[str, Any]:
        """Give a copy no more than the backend: what was prepared is of this network."""
        return {"backend": self.backend, "_runs": self._runs, "is_another": False, "_seen": None, "_made": None}

    @property
    def spec(self) -> str:
        """Spec of the backend that runs what is prepared."""
        return self._runs.spec

    def compiles(self, network: Any) -> bool:
        """Tell whether torch-compile will run a network, because `torch.compile` has made it."""
        try:
            return self.backend is None and compiled_from(network) is not None and bool(view_of(network))
        except UnknownNetworkError:
            return False

    def prepare_ahead(self, network: Any, chain: GaussianChain, horizon: int) -> None:
        """Prepare a network before its first plan, where its architecture is known.

        Args:
            network: The policy's own.
            chain: That it is sampled in.
            horizon: Steps of a plan.

        Raises:
            BackendError: The backend cannot run it.
        """
        try:
            view = view_of(network)
        except UnknownNetworkError as reason:
            self._check(reason)
            return
        if self.backend is None and compiled_from(network) is not None:
            return  # a warm-up compiles, once the weights are loaded
        config, device = view.config, next(network.parameters()).device
        if isinstance(config, TransformerConfig):
            job = Job(chain, (horizon, config.input_dim), config.n_obs_steps * config.cond_dim, device)
        else:
            job = Job(chain, (horizon, config.action_dim), config.cond_dim, device)
        self.prepare(network, job, _natural(view))

    def prepare(self, network: Any, job: Job, told: str | None) -> Denoiser | None:
        """Prepare a network, or see that it is prepared.

        Args:
            network: The policy's own.
            job: What it is called for.
            told: As for `OwnForward`.

        Returns:
            A denoiser that takes conditioning [N, cond_dim]; None where the network's own forward is to run.

        Raises:
            BackendError: The backend cannot run it, or the network was changed since.
        """
        state = state_of(network)
        self.is_another = self._seen is not None and self._seen != state.structure
        self._seen = state.structure
        if self.backend is None and torch.is_autocast_enabled(torch.device(job.device).type):
            return None  # the precision is the user's, and ours would round at other places
        call = (told, job.event, job.cond_dim, str(job.device))
        if self._made is not None and self._made[:2] == (state, call):
            return self._made[2]
        slow = self.backend is not None and not isinstance(self.backend, TorchEager)
        if slow and self._made is not None and self._made[0] != state:
            raise BackendError(
                f"the policy's network was changed after {self.spec} was prepared for it: its weights, its "
                "layers, its hooks or its mode; accelerate the policy again"
            )
        self._made = (state, call, self._make(network, job, told))
        return self._made[2]

    def _make(self, network: Any, job: Job, told: str | None) -> Denoiser | None:
        try:
            view = fitting_view(network, told)
        except UnknownNetworkError as reason:
            self._check(reason)
            return None
        if self.backend is None:
            self._runs = TorchEager() if compiled_from(network) is None else TorchCompile()
        return self._runs.prepare(view, job)

    def _check(self, reason: UnknownNetworkError) -> None:
        """Refuse a network of unknown architecture where the backend is not torch-eager."""
        if self.backend is not None and self.backend != TorchEager():
            raise refused(self.backend, reason)


def denoiser_of(network: Any, told: str | None, tokens: int = 0, horizon: int = 0) -> Denoiser:
    """Make a denoiser of a live network: its view where it has one, else its own forward, which torch-eager runs."""
    try:
        return fitting_view(network, told)
    except UnknownNetworkError:
        return OwnForward(network, told, tokens, horizon)


def fitting_view(network: Any, told: str | None) -> View:
    """Make the view of a network that is given its conditioning in one way.

    Raises:
        UnknownNetworkError: There is none, or not for that.
    """
    view = view_of(network)
    if told != _natural(view):
        raise UnknownNetworkError(f"it is given {told or 'no conditioning'}, and reads {_natural(view) or 'none'}")
    return view


def _natural(view: View) -> str | None:
    """How the network of a view is given its conditioning, by the name of the argument."""
    if not view.config.cond_dim:
        return None
    if isinstance(view, Dit):
        return VECTOR
    return TOKENS if isinstance(view, DiffusionTransformer) else GLOBAL


def refused(backend: Backend, reason: UnknownNetworkError) -> BackendError:
    """Explain that a backend runs networks of known architecture alone."""
    return BackendError(
        f"{backend.spec} cannot run the policy's network: {reason}; torch-eager runs it through its own forward"
    )


def find_dropout(network: nn.Module) -> str | None:
    """Name a part of a network that drops out, as it does in training mode; None where none does."""
    for name, module in network.named_modules():
        dropout = module if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0)
        rate = dropout.p if isinstance(dropout, nn.Dropout) else dropout
        if module.training and isinstance(rate, float) and rate > 0:
            return name or "the network"
    return None


def _check_state(network: nn.Module) -> None:
    """Refuse what a view would not do: hooks, other dtypes, dropout."""
    if torch.nn.modules.module._has_any_global_hook():
        raise UnknownNetworkError("PyTorch's global module hooks are set")
    for name, module in network.named_modules():
        if any(vars(module).get(hooks) for hooks in _HOOKS):
            raise UnknownNetworkError(f"{name or 'the network'} has hooks")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise UnknownNetworkError(f"{name or 'the network'} is compiled")
    dropping = find_dropout(network)
    if dropping is not None:
        raise UnknownNetworkError(f"{dropping} drops out: it is in training mode")
    dtypes = {str(each.dtype).removeprefix("torch.") for each in network.parameters()}
    if dtypes != {"float32"}:
        raise UnknownNetworkError(f"its weights are {' and '.join(sorted(dtypes)) or 'none'}, not float32")


def _check_forwards(network: nn.Module, parts: Sequence[str]) -> None:
    """Refuse parts that are not of known classes, or whose `forward` is not that of their class."""
    for name, module in network.named_modules():
        where = name or "the network"
        own = next((each for each in _CALLS[:3] if each in vars(module)), None)
        if own:
            raise UnknownNetworkError(f"{where} has a {own} of its own")
        layer = type(module).__module__.startswith("torch.nn.")  # its options are compared with ours
        try:
            check_own(module, [qualified(type(module))] if layer else parts, ("forward", "__call__", "_call_impl"))
        except SpecError as error:
            raise UnknownNetworkError(f"{where}: {error}") from None


def _unet_view(live: Any, name_of: Callable[[str], str]) -> ConditionalUnet1d:
    """Read the architecture of a U-Net, and put its layers into one of ours."""
    if getattr(live, "local_cond_encoder", None) is not None:
        raise UnknownNetworkError("it has local conditioning")
    unused = [each for each in ("down", "mid", "up") if not getattr(live, f"use_{each}_condition", True)]
    if unused:
        raise UnknownNetworkError(f"its way {unused[0]} is not conditioned")
    layers = dict(live.named_modules())
    first = layers[name_of("down_modules.0.0.conv1.block.0")]
    film = layers["down_modules.0.0.cond_encoder.1"]
    step_dim = live.diffusion_step_encoder[1].in_features
    config = UnetConfig(
        action_dim=live.final_conv[1].out_channels,
        cond_dim=film.in_features - step_dim,
        down_dims=tuple(
            layers[name_of(f"down_modules.{level}.0.conv1.block.0")].out_channels
            for level in range(len(live.down_modules))
        ),
        kernel_size=first.kernel_size[0],
        n_groups=layers[name_of("down_modules.0.0.conv1.block.1")].num_groups,
        diffusion_step_embed_dim=step_dim,
        use_film_scale_modulation=film.out_features == 2 * first.out_channels,
    )
    for block in live.modules():
        if getattr(block, "pattern", _ADDS_AN_AXIS) != _ADDS_AN_AXIS:
            raise UnknownNetworkError(f"its modulation is rearranged: {block.pattern}")
        scaled = getattr(block, "use_film_scale_modulation", getattr(block, "cond_predict_scale", None))
        if getattr(block, "condition_type", "film") not in ("film", "add"):
            raise UnknownNetworkError(f"its condition_type is {block.condition_type}")
        if isinstance(scaled, bool) and scaled != config.use_film_scale_modulation:
            raise UnknownNetworkError(f"its modulation scales: {scaled}, against its weights")
    with torch.device("meta"):
        view = ConditionalUnet1d(config).eval()
    view.diffusion_step_encoder[0] = _embedding(live.diffusion_step_encoder[0], step_dim, first.weight.device)
    _share(view, live, name_of)
    return view


def _transformer_view(live: Any) -> DiffusionTransformer:
    """Read the architecture of a transformer, and put its layers into one of ours."""
    stack = live.encoder.layers if live.decoder is None else live.decoder.layers
    conditioned = live.cond_obs_emb is not None
    timed = live.decoder is not None
    config = TransformerConfig(
        input_dim=live.input_emb.in_features,
        output_dim=live.head.out_features,
        horizon=live.pos_emb.shape[1] - (0 if timed else 1),
        n_obs_steps=live.cond_pos_emb.shape[1] - 1 if conditioned else 0,
        cond_dim=live.cond_obs_emb.in_features if conditioned else 0,
        n_layer=len(stack),
        n_head=stack[0].self_attn.num_heads,
        n_emb=live.input_emb.out_features,
        causal_attn=live.mask is not None,
        time_as_cond=timed,
        n_cond_layers=len(live.encoder.layers) if timed and isinstance(live.encoder, nn.TransformerEncoder) else 0,
    )
    if (live.obs_as_cond, live.encoder_only) != (conditioned, not timed):
        raise UnknownNetworkError("its flags are not those of its layers")
    with torch.device("meta"):
        view = DiffusionTransformer(config).eval()
    small = {"input_dim": 1, "output_dim": 1, "cond_dim": int(conditioned), "n_layer": 1, "n_head": 1, "n_emb": 4}
    with torch.random.fork_rng([]):  # a plan may be under way, with a seed
        masks = DiffusionTransformer(replace(config, **small, n_cond_layers=0))  # the same masks, the rest is small
    for name in ("mask", "memory_mask"):
        own, expected = getattr(live, name), getattr(masks, name)
        if (own is None) != (expected is None) or (own is not None and not torch.equal(own.cpu(), expected)):
            raise UnknownNetworkError(f"its {name} is another one")
        setattr(view, name, own)
    view.time_emb = _embedding(live.time_emb, config.n_emb, live.pos_emb.device)
    for name, layer in live.named_modules():
        if isinstance(layer, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) and not (
            layer.norm_first and layer.activation is functional.gelu
        ):
            raise UnknownNetworkError(f"{name} is not normalised first, or has another activation than gelu")
    _share(view, live, str)
    return view


def _dit_view(live: Any) -> Dit:
    """Read the architecture of a DiT of LeRobot's, and put its layers into one of ours."""
    blocks = list(live.transformer_blocks)
    first, positions = blocks[0], live.pos_embedding
    config = DitConfig(
        action_dim=live.input_proj.in_features,
        cond_dim=first.adaLN_modulation[1].in_features - live.time_mlp[1].in_features,
        horizon=live.horizon,
        hidden_dim=live.input_proj.out_features,
        num_layers=len(blocks),
        num_heads=first.attn.num_heads if first.use_rope else first.multihead_attn.num_heads,
        timestep_embed_dim=live.time_mlp[1].in_features,
        use_positional_encoding=positions is not None,
        use_rope=first.use_rope,
        rope_base=first.attn.rope.base if first.use_rope else DitConfig.rope_base,
    )
    problem = config.problem(live.horizon)
    if problem is not None:
        raise UnknownNetworkError(problem)
    if any(block.use_rope != config.use_rope for block in blocks):
        raise UnknownNetworkError("its blocks attend in different ways")
    values = torch.linspace(-2, 2, 24).reshape(3, 2, 4)
    if not torch.equal(sys.modules[_DIT_MODULE].modulate(*values), modulate(*values)):
        raise UnknownNetworkError(f"{_DIT_MODULE}.modulate is another one")
    device = live.input_proj.weight.device
    with torch.device("meta"):
        view = Dit(config).eval()
    view.time_mlp[0] = _embedding(live.time_mlp[0], config.timestep_embed_dim, device)
    if config.use_rope:
        rotary = _rotary(config).to(device)
        for own, block in zip(blocks, view.blocks, strict=True):
            _check_rotations(own.attn, rotary, config)
            block.attn._buffers.update(rotary._buffers)
    _share(view, live, str)
    return view


def _rotary(config: DitConfig) -> RotaryAttention:
    """Make the tables of angles, in an attention of one head that is otherwise of no use."""
    dims = config.hidden_dim // config.num_heads
    with torch.random.fork_rng([]):  # a plan may be under way, with a seed
        return RotaryAttention(replace(config, hidden_dim=dims, num_heads=1))


def _check_rotations(live: Any, rotary: RotaryAttention, config: DitConfig) -> None:
    """Refuse attention whose queries and keys are turned in another way, or split into other heads."""
    dims = config.hidden_dim // config.num_heads
    sizes = (live.num_heads, live.head_dim, live.hidden_size)
    query = torch.linspace(-1, 1, config.horizon * dims, device=rotary.cos.device).reshape(1, 1, config.horizon, dims)
    with torch.inference_mode():
        turned = live.rope(query, 0.5 * query)
        pair = (rotary.rotate(query), rotary.rotate(0.5 * query))
    same = all(torch.allclose(one, other, rtol=0, atol=1e-5) for one, other in zip(turned, pair, strict=True))
    if sizes != (config.num_heads, dims, config.hidden_dim) or not same:
        raise UnknownNetworkError("it turns queries and keys in another way")


def _embedding(live: nn.Module, dim: int, device: torch.device) -> SinusoidalEmbedding:
    """Make the embedding of timesteps of a view, after a comparison with the live network's."""
    embedding, steps = SinusoidalEmbedding(dim), torch.tensor(_STEPS)
    with torch.inference_mode():
        own, expected = live(steps), embedding(steps)
    if own.shape != expected.shape or not torch.allclose(own, expected, rtol=0, atol=1e-4):
        raise UnknownNetworkError("it embeds timesteps in another way")
    return embedding.to(device)


def _share(view: nn.Module, live: nn.Module, name_of: Callable[[str], str]) -> None:
    """Give a view's layers the parameters of the live network's, whose types and options are to be the same.

    They share the dictionaries of parameters: one that is replaced is replaced in both.
    """
    theirs, shared = dict(live.named_modules()), set[str]()
    for name, layer in view.named_modules():
        if not _computes(layer):
            continue
        found = next((each for each in (name_of(name), name) if each in theirs), None)
        own = None if found is None else theirs[found]
        if found is None or own is None or _signature(own, name) != _signature(layer, name):
            is_ = "missing" if own is None else f"{type(own).__name__}({own.extra_repr()})"
            raise UnknownNetworkError(f"{name_of(name)} is {is_}, not {type(layer).__name__}({layer.extra_repr()})")
        shared.add(found)
        layer._parameters = own._parameters
    more = [name for name, layer in theirs.items() if name not in shared and _computes(layer)]
    if more:
        raise UnknownNetworkError(f"it has {more[0]} besides")


def _computes(layer: nn.Module) -> bool:
    """Tell whether a module has weights, or is one of PyTorch's layers; dropout is looked at elsewhere."""
    if any(each is not None and each.numel() for each in layer._parameters.values()):
        return True
    leaf = not any(True for _ in layer.children())
    return leaf and type(layer).__module__.startswith("torch.nn.") and not isinstance(layer, nn.Identity | nn.Dropout)


def _signature(layer: nn.Module, name: str) -> tuple[Any, ...]:
    """Type, options and tensors' shapes of a layer; of the network itself, which has no name, the latter alone."""
    shapes = {key: tuple(each.shape) for key, each in layer._parameters.items() if each is not None and each.numel()}
    attention = ("embed_dim", "num_heads", "batch_first", "add_zero_attn", "bias_k", "bias_v", "kdim", "vdim")
    options = [getattr(layer, key) for key in attention] if isinstance(layer, nn.MultiheadAttention) else []
    return (type(layer) if name else None), (layer.extra_repr() if name else None), shapes, options
