"""The network that is trained, and the trainer: steps that save and go on."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from asd_policy.checkpoints.lerobot.folder import ACTION, DiffusionConfig, Statistics
from asd_policy.networks.unet import ConditionalUnet1d
from asd_policy.networks.vision import RgbEncoder
from asd_policy.policy.normalisation import Affine, make_affine
from asd_policy.policy.observation import STATE
from asd_policy.policy.sensors import normalize
from training.descent import Descent
from training.episodes import Episodes, window_rows
from training.objectives import corruption_of


@dataclass(frozen=True)
class Training:
    """The numbers that decide what a training computes."""

    steps: int
    batch: int
    draws: int
    encoder_steps: int | None
    learning_rate: float
    seed: int
    bfloat16: bool
    auxiliary: float
    device: str
    objective: str = "diffusion"


class Network(nn.Module):
    """A U-Net, and the encoder of the frames that it is conditioned on."""

    def __init__(self, config: DiffusionConfig, unseen: int = 0) -> None:
        """Build it with random weights, and a linear layer that predicts `unseen` numbers from the frames' features."""
        super().__init__()
        self.unet = ConditionalUnet1d(config.unet)
        vision = config.vision.encoder
        self.encoder = None if vision is None else RgbEncoder(vision)
        self.predict = nn.Linear(config.vision.size, unseen) if unseen else None

    def look(self, frames: Tensor, bfloat16: bool) -> Tensor:
        """Encode normalised frames [N, 3, height, width], of the crop's size where there is one."""
        assert self.encoder is not None  # a policy with cameras has one
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=bfloat16):
            maps = self.encoder.backbone(frames.contiguous(memory_format=torch.channels_last))
        # Places need more digits than bfloat16 has.
        return functional.relu(self.encoder.out(self.encoder.pool(maps.float()).flatten(1)))


class Windows:
    """All windows of episodes, normalised when a batch of them is asked for."""

    def __init__(self, episodes: Episodes, config: DiffusionConfig, statistics: Statistics, device: str) -> None:
        """Lay out the windows."""
        self.config, self.device = config, device
        self.maps: dict[str, Affine] = {}
        for name in episodes.features:
            measured = {key: value.flatten() for key, value in statistics[name].items()}
            dim = len(measured["min"])
            self.maps[name] = make_affine(config.mode_of(name), measured, name, dim)
        self.vectors = {
            name: self.maps[name].normalize(episodes.features[name])
            for name in episodes.features if name not in config.vision.cameras
        }  # fmt: skip
        self.frames = {name: episodes.features[name] for name in config.vision.cameras}
        self.seen: dict[str, Tensor] = {}
        """Features of each camera's frames [T, size], once the encoder learns no more."""
        self.unseen = None
        if episodes.unseen is not None:
            low, high = episodes.unseen.amin(0), episodes.unseen.amax(0)
            self.unseen = 2 * (episodes.unseen - low) / (high - low).clamp(min=1e-6) - 1
        self.past, self.chunk = window_rows(episodes.lengths, config.n_obs_steps, config.horizon)

    def __len__(self) -> int:
        return len(self.past)

    def actions(self, rows: Tensor) -> Tensor:
        """Look up normalised action chunks [B, horizon, action_dim]."""
        return self.vectors[ACTION][self.chunk[rows]].to(self.device)

    def conditioning(
        self, rows: Tensor, network: Network, generator: torch.Generator, bfloat16: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Encode histories in LeRobot's order: the robot's state, its cameras, the environment's state.

        Returns:
            Conditioning [B, C], and in it the features of frames [B, n_obs_steps, F]; None without cameras.
        """
        past = self.past[rows]
        parts = {name: self.vectors[name][past].to(self.device) for name in self.config.input_dims}
        seen = [self._look(name, past, network, generator, bfloat16) for name in self.frames]
        first = [parts.pop(STATE)] if STATE in parts else []
        cond = torch.cat([*first, *seen, *parts.values()], dim=-1).flatten(1)
        return cond, torch.cat(seen, dim=-1) if seen else None

    def encode(self, network: Network) -> None:
        """Encode every frame once, for all steps that follow; of what is cropped, the middle."""
        assert network.encoder is not None  # a policy with cameras has one
        with torch.no_grad():
            for name, frames in self.frames.items():
                parts = [network.encoder(self._normalized(name, part)) for part in frames.split(64)]
                self.seen[name] = torch.cat(parts)

    def _look(self, name: str, past: Tensor, network: Network, generator: torch.Generator, bfloat16: bool) -> Tensor:
        """Encode the frames of histories [B, n_obs_steps] as [B, n_obs_steps, size]."""
        if name in self.seen:
            return self.seen[name][past]
        frames = self._normalized(name, self.frames[name][past.flatten()])
        encoder = self.config.vision.encoder
        if encoder is not None and encoder.crop_shape is not None:
            frames = random_crop(frames, encoder.crop_shape, generator)
        return network.look(frames, bfloat16).unflatten(0, past.shape)

    def _normalized(self, name: str, frames: Tensor) -> Tensor:
        """Bring frames [N, height, width, 3] in the form that the encoder takes, normalised [N, 3, height, width]."""
        return normalize(frames.to(self.device), self.maps[name].to(torch.device(self.device)))


def random_crop(frames: Tensor, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Crop all frames at one random place, as LeRobot does while it trains."""
    top, left = (
        int(torch.randint(have - want + 1, (), generator=generator))
        for have, want in zip(frames.shape[-2:], shape, strict=True)
    )
    return frames[..., top : top + shape[0], left : left + shape[1]]


class Trainer(Descent[Network]):
    """The training of a diffusion policy."""

    def __init__(self, training: Training, config: DiffusionConfig, unseen: int = 0) -> None:
        """Build everything from the seed; `unseen` as for `Network`."""
        torch.manual_seed(training.seed)
        super().__init__(training, Network(config, unseen))
        self.training = training
        self.corrupt, self.timesteps = corruption_of(config), config.num_train_timesteps

    def update(self, windows: Windows) -> float:
        """Take one optimiser step on a random batch; return its loss.

        Each observation is encoded once, and several noises are drawn for its actions. When the encoder has learned,
        there is an observation for each noise.
        """
        options = self.training
        done = options.encoder_steps is not None and self.step >= options.encoder_steps
        if done and windows.frames and not windows.seen:
            self._keep_encoder(windows)
        batch, draws = (options.batch * options.draws, 1) if windows.seen else (options.batch, options.draws)
        rows = torch.randint(len(windows), (batch,), generator=self.generator)
        cond, seen = windows.conditioning(rows, self.network, self.generator, options.bfloat16)
        cond = cond.repeat_interleave(draws, 0)
        clean = windows.actions(rows).repeat_interleave(draws, 0)
        noise = torch.randn(clean.shape, generator=self.generator).to(options.device)
        timesteps = torch.randint(self.timesteps, (len(clean),), generator=self.generator).to(options.device)
        noisy, expected = self.corrupt(clean, noise, timesteps)
        loss = functional.mse_loss(self.network.unet(noisy, timesteps, cond), expected)
        total = loss
        if self.network.predict is not None and seen is not None and windows.unseen is not None and not windows.seen:
            unseen = windows.unseen[windows.past[rows]].to(options.device)
            total = loss + options.auxiliary * functional.mse_loss(self.network.predict(seen), unseen)
        self.descend(total)
        return loss.item()

    def _keep_encoder(self, windows: Windows) -> None:
        """Let the encoder learn no more: it is its running average, in the precision in which it is stored."""
        named = zip(self.network.named_parameters(), self.average.shadow_params, strict=True)
        with torch.no_grad():
            for (name, weight), mean in named:
                if name.startswith("encoder."):
                    mean.copy_(mean.half())
                    weight.copy_(mean)
                    weight.requires_grad_(False)
        windows.encode(self.network)

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Read the running average of the U-Net's weights and of the encoder's, in half precision."""
        encoder = self.network.encoder
        return self.averaged(self.network.unet), None if encoder is None else self.averaged(encoder)
