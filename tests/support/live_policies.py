"""Small policies with the names and the structure of diffusion_policy's, so that they need not be installed.

Each class has the module and the name of the one that it stands for; what it computes is written here anew.
"""

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, TypeVar

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

ROWS, STEPS = 3, 20
HORIZON, N_OBS_STEPS, N_ACTION_STEPS, ACTION_DIM, OBS_DIM = 8, 2, 4, 2, 3
FRAME = (3, 12, 14)
C = TypeVar("C", bound=type)


def as_if(module: str, name: str) -> Callable[[C], C]:
    """Give a class, and its methods, the module and name of another."""

    def rename(cls: C) -> C:
        cls.__module__, cls.__name__, cls.__qualname__ = module, name, name
        for each in vars(cls).values():
            if isinstance(each, FunctionType):
                each.__module__ = module
        return cls

    return rename


PARTS = "diffusion_policy.model.diffusion"


@as_if(f"{PARTS}.positional_embedding", "SinusoidalPosEmb")
class Embedding(nn.Module):
    """Stands for `SinusoidalPosEmb`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        half = self.dim // 2
        rates = 10_000.0 ** (-torch.arange(half, device=x.device) / (half - 1))
        return torch.cat([(x[:, None] * rates).sin(), (x[:, None] * rates).cos()], dim=-1)


@as_if("einops.layers.torch", "Rearrange")
class AddAxis(nn.Module):
    """Stands for `Rearrange`."""

    pattern = "batch t -> batch t 1"

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        return x[..., None]


@as_if(f"{PARTS}.conv1d_components", "Conv1dBlock")
class Block(nn.Module):
    """Stands for `Conv1dBlock`."""

    def __init__(self, before: int, after: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(before, after, 3, padding=1), nn.GroupNorm(groups, after), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        return self.block(x)


@as_if(f"{PARTS}.conv1d_components", "Downsample1d")
class Down(nn.Module):
    """Stands for `Downsample1d`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        return self.conv(x)


@as_if(f"{PARTS}.conv1d_components", "Upsample1d")
class Up(nn.Module):
    """Stands for `Upsample1d`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(dim, dim, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        return self.conv(x)


@as_if(f"{PARTS}.conditional_unet1d", "ConditionalResidualBlock1D")
class Residual(nn.Module):
    """Stands for `ConditionalResidualBlock1D`."""

    def __init__(self, before: int, after: int, cond: int, scales: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(before, after, 4), Block(after, after, 4)])
        self.cond_predict_scale, self.out_channels = scales, after
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond, after * (1 + scales)), AddAxis())
        self.residual_conv = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Compute it."""
        film = self.cond_encoder(cond)
        hidden = self.blocks[0](x)
        if self.cond_predict_scale:
            scale, shift = film.split(self.out_channels, dim=1)
            hidden = scale * hidden + shift
        else:
            hidden = hidden + film
        return self.blocks[1](hidden) + self.residual_conv(x)


@as_if(f"{PARTS}.conditional_unet1d", "ConditionalUnet1D")
class Unet(nn.Module):
    """Two resolutions, of 8 and 16 channels."""

    def __init__(self, width: int, cond_dim: int = 0, scales: bool = True, local_dim: int = 0) -> None:
        super().__init__()
        cond = 8 + cond_dim
        self.diffusion_step_encoder = nn.Sequential(Embedding(8), nn.Linear(8, 32), nn.Mish(), nn.Linear(32, 8))
        locals_ = [Residual(local_dim, 8, cond, scales) for _ in range(2)] if local_dim else None
        self.local_cond_encoder = None if locals_ is None else nn.ModuleList(locals_)
        self.mid_modules = nn.ModuleList([Residual(16, 16, cond, scales) for _ in range(2)])
        self.down_modules = nn.ModuleList(
            [
                nn.ModuleList([Residual(width, 8, cond, scales), Residual(8, 8, cond, scales), Down(8)]),
                nn.ModuleList([Residual(8, 16, cond, scales), Residual(16, 16, cond, scales), nn.Identity()]),
            ]
        )
        self.up_modules = nn.ModuleList(
            [nn.ModuleList([Residual(32, 8, cond, scales), Residual(8, 8, cond, scales), Up(8)])]
        )
        self.final_conv = nn.Sequential(Block(8, 8, 8), nn.Conv1d(8, width, 1))

    def forward(
        self, sample: Tensor, timestep: Any, local_cond: Tensor | None = None, global_cond: Tensor | None = None
    ) -> Tensor:
        """Compute it."""
        steps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        cond = self.diffusion_step_encoder(steps)
        cond = cond if global_cond is None else torch.cat([cond, global_cond], dim=-1)
        hidden, skips = sample.transpose(1, 2), []
        beside: Any = None
        if local_cond is not None and self.local_cond_encoder is not None:
            beside = self.local_cond_encoder[0](local_cond.transpose(1, 2), cond)
        for first, second, down in self.down_modules:  # pyright: ignore[reportGeneralTypeIssues]  # nested lists
            hidden = first(hidden, cond)
            hidden, beside = hidden if beside is None else hidden + beside, None
            hidden = second(hidden, cond)
            skips.append(hidden)
            hidden = down(hidden)
        for middle in self.mid_modules:
            hidden = middle(hidden, cond)
        for first, second, up in self.up_modules:  # pyright: ignore[reportGeneralTypeIssues]  # as above
            hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = up(second(first(hidden, cond), cond))
        return self.final_conv(hidden).transpose(1, 2)


@as_if(f"{PARTS}.transformer_for_diffusion", "TransformerForDiffusion")
class Transformer(nn.Module):
    """Two layers of width 8, with dropout."""

    mask: Tensor | None
    memory_mask: Tensor | None

    def __init__(
        self, width: int, cond_dim: int = 0, causal: bool = True, timed: bool = True, encoders: int = 0
    ) -> None:
        super().__init__()
        self._dummy_variable = nn.Parameter()
        options: Any = {
            "d_model": 8,
            "nhead": 2,
            "dim_feedforward": 32,
            "dropout": 0.3,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }

        def stack(count: int) -> nn.Module:
            layer = nn.TransformerEncoderLayer(**options)
            return nn.TransformerEncoder(layer, count, enable_nested_tensor=False)

        tokens, seen = HORIZON + (not timed), timed + (N_OBS_STEPS if cond_dim else 0)
        self.input_emb, self.drop = nn.Linear(width, 8), nn.Dropout(0.1)
        self.pos_emb = nn.Parameter(torch.zeros(1, tokens, 8))
        self.time_emb = Embedding(8)
        self.cond_obs_emb = nn.Linear(cond_dim, 8) if cond_dim else None
        self.cond_pos_emb: Any = nn.Parameter(torch.zeros(1, seen, 8)) if timed else None
        mlp = nn.Sequential(nn.Linear(8, 32), nn.Mish(), nn.Linear(32, 8))
        self.encoder: nn.Module = stack(2) if not timed else stack(encoders) if encoders else mlp
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**options), 2) if timed else None
        rows = torch.arange(tokens)[:, None]
        self.mask = self.memory_mask = None
        if causal:
            self.mask = torch.zeros(tokens, tokens).masked_fill(torch.arange(tokens) > rows, -torch.inf)
        if causal and cond_dim:
            self.memory_mask = torch.zeros(tokens, seen).masked_fill(torch.arange(seen) > rows + 1, -torch.inf)
        self.ln_f, self.head = nn.LayerNorm(8), nn.Linear(8, width)
        self.obs_as_cond, self.encoder_only = cond_dim > 0, not timed

    def forward(self, sample: Tensor, timestep: Any, cond: Tensor | None = None) -> Tensor:
        """Compute it."""
        time = self.time_emb(torch.as_tensor(timestep, device=sample.device).expand(len(sample)))[:, None]
        points = self.input_emb(sample)
        if self.decoder is None:
            hidden = self.drop(torch.cat([time, points], dim=1) + self.pos_emb)
            hidden = self.encoder(hidden, mask=self.mask)[:, 1:]
        else:
            seen = time if self.cond_obs_emb is None else torch.cat([time, self.cond_obs_emb(cond)], dim=1)
            memory = self.encoder(self.drop(seen + self.cond_pos_emb))
            hidden = self.drop(points + self.pos_emb[:, : points.shape[1]])
            hidden = self.decoder(hidden, memory, tgt_mask=self.mask, memory_mask=self.memory_mask)
        return self.head(self.ln_f(hidden))


class Normalizer(nn.Module):
    """Affine maps by name, as `LinearNormalizer`."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.params_dict = nn.ParameterDict()
        for index, (name, dim) in enumerate(dims.items()):
            self.params_dict[name] = nn.ParameterDict(
                {"scale": torch.full((dim,), 0.5 + index), "offset": torch.linspace(-0.5, 0.2, dim)}
            )

    def map(self, name: str, x: Tensor, inverse: bool = False) -> Tensor:
        """Normalise values, their last axis or all of them, or undo it."""
        params: Any = self.params_dict[name]
        flat = x.reshape(-1, len(params["scale"]))
        flat = (flat - params["offset"]) / params["scale"] if inverse else flat * params["scale"] + params["offset"]
        return flat.reshape(x.shape)

    def normalize(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normalise each feature."""
        return {name: self.map(name, values) for name, values in seen.items()}


class ObsEncoder(nn.Module):
    """One convolution on a camera's frame, and the state beside it; sorted cameras first, as `MultiImageObsEncoder`."""

    def __init__(self) -> None:
        super().__init__()
        self.shape_meta = {"obs": {"pos": {"shape": [OBS_DIM]}, "front": {"shape": list(FRAME), "type": "rgb"}}}
        self.rgb_keys, self.low_dim_keys = ["front"], ["pos"]
        self.conv, self.calls, self.random = nn.Conv2d(3, 2, 3, 3), [0], False

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        """Compute it."""
        frames = seen["front"]
        self.calls[0] += len(frames)
        if self.random:
            frames = torch.stack([each.roll(int(torch.randint(5, ())), -1) for each in frames])
        return torch.cat([self.conv(frames).relu().flatten(1), seen["pos"]], dim=-1)


FEATURES = 2 * 4 * 4 + OBS_DIM
CLOUD = (5, 6)


class Largest(nn.Module):
    """The largest of what a layer makes of each point."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        return self.layer(x).amax(1)


class PointsEncoder(nn.Module):
    """A network for points and one for the state, as `DP3Encoder`."""

    point_cloud_key, state_key, use_imagined_robot = "point_cloud", "agent_pos", False
    point_cloud_shape, state_shape = list(CLOUD), [OBS_DIM]

    def __init__(self) -> None:
        super().__init__()
        self.extractor, self.state_mlp = Largest(), nn.Linear(OBS_DIM, 4)

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        """Compute it."""
        return torch.cat([self.extractor(seen["point_cloud"]), self.state_mlp(seen["agent_pos"])], dim=-1)


def convolution() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 2, 3, 3), nn.Flatten(1))


class MapsEncoder(nn.Module):
    """A model and a transform for each of two cameras, as `MultiImageObsEncoder`; one model for both, if `shares`."""

    def __init__(self, shares: bool) -> None:
        super().__init__()
        camera = {"shape": list(FRAME), "type": "rgb"}
        self.shape_meta = {"obs": {"pos": {"shape": [OBS_DIM]}, "wrist": camera, "front": camera}}
        self.rgb_keys, self.low_dim_keys, self.share_rgb_model = ["front", "wrist"], ["pos"], shares
        self.key_transform_map = nn.ModuleDict({"front": nn.Identity(), "wrist": nn.ZeroPad2d(1)})
        if shares:
            self.key_transform_map["wrist"] = nn.Identity()
        self.key_model_map = nn.ModuleDict({name: convolution() for name in (["rgb"] if shares else self.rgb_keys)})

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        """Compute it."""
        models = {key: self.key_model_map["rgb" if self.share_rgb_model else key] for key in self.rgb_keys}
        frames = [models[key](self.key_transform_map[key](seen[key])) for key in self.rgb_keys]
        return torch.cat([*frames, seen["pos"]], dim=-1)


class Middle(nn.Module):
    """Crops before the network, and adds up after it, as robomimic's randomizers do in their places."""

    def forward_in(self, x: Tensor) -> Tensor:
        """Crop."""
        return x[..., 1:-1, 2:-1]

    def forward_out(self, x: Tensor) -> Tensor:
        """Shift."""
        return x + 0.5


class CoreEncoder(nn.Module):
    """A network, a randomizer and an activation, in the order of `obs_shapes`, as robomimic's `ObservationEncoder`."""

    def __init__(self) -> None:
        super().__init__()
        self.obs_shapes = {"pos": [OBS_DIM], "front": list(FRAME), "wrist": list(FRAME)}
        networks = {"pos": None, "front": convolution(), "wrist": convolution()}
        self.obs_nets = nn.ModuleDict(networks)  # None, too, as there
        self.obs_randomizers: dict[str, Any] = {"pos": None, "front": Middle(), "wrist": None}
        self.activation = nn.ReLU()

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        """Compute it."""
        parts = []
        for name in self.obs_shapes:
            x, randomizer, network = seen[name], self.obs_randomizers[name], self.obs_nets[name]
            x = x if randomizer is None else randomizer.forward_in(x)
            x = x if network is None else self.activation(network(x))
            x = x if randomizer is None else randomizer.forward_out(x)
            parts.append(x.flatten(1))
        return torch.cat(parts, dim=-1)


class Looping(nn.Module):
    """The one loop of diffusion_policy's policies."""

    model: nn.Module
    noise_scheduler: Any
    num_inference_steps: int

    def loop(self, data: Tensor, mask: Tensor, told: dict[str, Any], generator: Any, options: dict[str, Any]) -> Tensor:
        """Sample one step after the other."""
        trajectory = torch.randn(data.shape, generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for timestep in self.noise_scheduler.timesteps:
            trajectory[mask] = data[mask]
            output = self.model(trajectory, timestep, **told)
            step = self.noise_scheduler.step(output, timestep, trajectory, generator=generator, **options)
            trajectory = step.prev_sample
        trajectory[mask] = data[mask]
        return trajectory


class UnetSampling(Looping):
    """The signature of U-Net policies."""

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        generator: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Sample, by the signature of those policies."""
        told = {"local_cond": local_cond, "global_cond": global_cond}
        return self.loop(condition_data, condition_mask, told, generator, kwargs)


class TransformerSampling(Looping):
    """The signature of transformer policies."""

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        cond: Tensor | None = None,
        generator: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Sample, by the signature of those policies."""
        return self.loop(condition_data, condition_mask, {"cond": cond}, generator, kwargs)


class Base(Looping):
    """What the policies share: the steps around the loop."""

    def __init__(self, model: nn.Module, dims: Mapping[str, int], scheduler: Any, steps: int) -> None:
        super().__init__()
        self.model = model
        self.normalizer = Normalizer({**dims, "action": ACTION_DIM})
        self.noise_scheduler, self.num_inference_steps, self.kwargs = scheduler, steps, dict[str, Any]()
        self.horizon, self.n_obs_steps, self.n_action_steps = HORIZON, N_OBS_STEPS, N_ACTION_STEPS
        self.action_dim = ACTION_DIM

    def reset(self) -> None:
        """Begin an episode."""

    def plan(self, features: Tensor, first: int) -> dict[str, Tensor]:
        """Plan from features [B, N_OBS_STEPS, F]; `first` is the action to begin with."""
        local, wide = getattr(self, "obs_as_local_cond", False), getattr(self, "obs_as_global_cond", False)
        tokens, rows = getattr(self, "obs_as_cond", False), len(features)
        steps = self.n_action_steps if getattr(self, "pred_action_steps_only", False) else self.horizon
        width = ACTION_DIM + (0 if local or wide or tokens else features.shape[-1])
        data = torch.zeros(rows, steps, width)
        mask = torch.zeros_like(data, dtype=torch.bool)
        told: dict[str, Tensor] = {}
        if local:
            told["local_cond"] = nn.functional.pad(features, (0, 0, 0, steps - N_OBS_STEPS))
        elif wide:
            told["global_cond"] = features.flatten(1)
        elif tokens:
            told["cond"] = features
        else:
            data[:, :N_OBS_STEPS, ACTION_DIM:] = features
            mask[:, :N_OBS_STEPS, ACTION_DIM:] = True
        sample: Any = self
        chunk = sample.conditional_sample(data, mask, **told, **self.kwargs)
        chunk = self.normalizer.map("action", chunk[..., :ACTION_DIM], inverse=True)
        first = 0 if steps != self.horizon else first
        return {"action_pred": chunk, "action": chunk[:, first : first + self.n_action_steps]}


class UnetBase(UnetSampling, Base):
    """A U-Net policy."""


class TransformerBase(TransformerSampling, Base):
    """A transformer policy."""


def lowdim(policy: Any, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plan from the one vector of a low-dimensional policy."""
    current = getattr(policy, "oa_step_convention", True)
    return policy.plan(policy.normalizer.map("obs", seen["obs"]), N_OBS_STEPS - 1 if current else N_OBS_STEPS)


def image(policy: Any, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plan through the encoder of a policy with cameras."""
    flat = {name: values.flatten(0, 1) for name, values in policy.normalizer.normalize(seen).items()}
    return policy.plan(policy.obs_encoder(flat).unflatten(0, (-1, N_OBS_STEPS)), N_OBS_STEPS - 1)


MODULES = "diffusion_policy.policy"


@as_if(f"{MODULES}.diffusion_unet_lowdim_policy", "DiffusionUnetLowdimPolicy")
class UnetLowdim(UnetBase):
    """Stands for `DiffusionUnetLowdimPolicy`."""

    obs_as_local_cond = obs_as_global_cond = pred_action_steps_only = oa_step_convention = False
    obs_dim = OBS_DIM

    def predict_action(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Plan."""
        return lowdim(self, seen)


@as_if(f"{MODULES}.diffusion_transformer_lowdim_policy", "DiffusionTransformerLowdimPolicy")
class TransformerLowdim(TransformerBase):
    """Stands for `DiffusionTransformerLowdimPolicy`."""

    obs_as_cond = pred_action_steps_only = False
    obs_dim = OBS_DIM

    def predict_action(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Plan."""
        return lowdim(self, seen)


@as_if(f"{MODULES}.diffusion_unet_image_policy", "DiffusionUnetImagePolicy")
class UnetImage(UnetBase):
    """Stands for `DiffusionUnetImagePolicy`."""

    obs_as_global_cond = False
    obs_encoder: ObsEncoder

    def predict_action(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Plan."""
        return image(self, seen)


@as_if(f"{MODULES}.diffusion_transformer_hybrid_image_policy", "DiffusionTransformerHybridImagePolicy")
class TransformerHybrid(TransformerBase):
    """Stands for `DiffusionTransformerHybridImagePolicy`."""

    obs_as_cond = pred_action_steps_only = False
    obs_encoder: ObsEncoder

    def predict_action(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Plan."""
        return image(self, seen)


@as_if(f"{MODULES}.diffusion_unet_video_policy", "DiffusionUnetVideoPolicy")
class UnetVideo(UnetBase):
    """Stands for `DiffusionUnetVideoPolicy`."""

    def predict_action(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Plan."""
        return self.plan(seen["video"], 0)


@as_if("diffusion_policy_3d.policy.dp3", "DP3")
class Dp3(Base):
    """Stands for `DP3`, which gives its scheduler's step nothing."""

    obs_as_global_cond, use_pc_color, condition_type = True, False, "film"
    obs_encoder: PointsEncoder

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        condition_data_pc: Any = None,
        condition_mask_pc: Any = None,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        generator: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Sample, by the signature of that policy."""
        return self.loop(condition_data, condition_mask, {"global_cond": global_cond}, None, {})

    def predict_action(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Plan."""
        normal = self.normalizer.normalize(seen)
        flat = {name: values.flatten(0, 1) for name, values in normal.items()}
        flat["point_cloud"] = flat["point_cloud"][..., :3]
        return self.plan(self.obs_encoder(flat).unflatten(0, (-1, N_OBS_STEPS)), N_OBS_STEPS - 1)


KINDS: dict[str, tuple[type[Base], str, dict[str, bool]]] = {
    "unet, global": (UnetLowdim, "global_cond", {"obs_as_global_cond": True, "oa_step_convention": True}),
    "unet, next action": (UnetLowdim, "global_cond", {"obs_as_global_cond": True}),
    "unet, actions only": (UnetLowdim, "global_cond", {"obs_as_global_cond": True, "pred_action_steps_only": True}),
    "unet, local": (UnetLowdim, "local_cond", {"obs_as_local_cond": True}),
    "unet, inpainting": (UnetLowdim, "", {}),
    "unet, camera": (UnetImage, "global_cond", {"obs_as_global_cond": True}),
    "unet, camera, inpainting": (UnetImage, "", {}),
    "transformer": (TransformerLowdim, "cond", {"obs_as_cond": True}),
    "transformer, inpainting": (TransformerLowdim, "", {}),
    "transformer, camera": (TransformerHybrid, "cond", {"obs_as_cond": True}),
    "dp3, cloud": (Dp3, "global_cond", {}),
}
"""Policies by what they are told: class, argument of the network, flags."""


def randomize(network: Any) -> Any:
    """Give a network weights with which all of it counts; return it in eval mode."""
    for parameter in network.parameters():
        if parameter.numel():
            nn.init.normal_(parameter, std=0.3)
    return network.eval().requires_grad_(False)


def scheduler(**options: Any) -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=STEPS, beta_schedule="squaredcos_cap_v2", **options)


def make(kind: str = "unet, camera", noise_scheduler: Any = None, steps: int = STEPS) -> Any:
    """Return a policy of a kind, with the same random weights each time."""
    torch.manual_seed(0)
    cls, argument, flags = KINDS[kind]
    sees = cls in (UnetImage, TransformerHybrid)
    features = FEATURES if sees else 11 if cls is Dp3 else OBS_DIM
    width = ACTION_DIM + (0 if argument else features)
    if issubclass(cls, TransformerBase):
        model: nn.Module = Transformer(width, features if argument else 0)
    elif argument == "local_cond":
        model = Unet(width, local_dim=features)
    else:
        model = Unet(width, N_OBS_STEPS * features if argument else 0)
    dims = {"front": 1, "pos": OBS_DIM} if sees else {"obs": OBS_DIM}
    dims = {"point_cloud": CLOUD[1], "agent_pos": OBS_DIM} if cls is Dp3 else dims
    policy: Any = cls(randomize(model), dims, noise_scheduler or scheduler(), steps)
    for name, value in flags.items():
        setattr(policy, name, value)
    if sees:
        policy.obs_encoder = randomize(ObsEncoder())
    elif cls is Dp3:
        policy.obs_encoder = randomize(PointsEncoder())
    return policy.eval().requires_grad_(False)


def observations(kind: str, rows: int = ROWS, seed: int = 1) -> dict[str, Tensor]:
    """Observations [rows, N_OBS_STEPS, …] as this package takes them, frames uint8."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.rand((rows, N_OBS_STEPS, OBS_DIM), generator=generator)
    if "cloud" in kind:
        return {"point_cloud": torch.rand((rows, N_OBS_STEPS, *CLOUD), generator=generator), "agent_pos": vector}
    if "camera" not in kind:
        return {"obs": vector}
    size = (rows, N_OBS_STEPS, *FRAME[1:], 3)
    return {"front": torch.randint(256, size, generator=generator, dtype=torch.uint8), "pos": vector}


def theirs(seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same as the library's policies take it, frames as floats with the colours first."""
    return {
        name: values.moveaxis(-1, -3) / 255 if values.dtype == torch.uint8 else values for name, values in seen.items()
    }
