"""The training of a token policy: every token given a random set of the others."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from asd_policy.checkpoints.lerobot.config import DiffusionConfig
from asd_policy.checkpoints.token_folder import TokenPolicyConfig
from asd_policy.networks.token_transformer import TokenTransformer
from training.descent import Descent
from training.episodes import Episodes
from training.trainer import Windows


@dataclass(frozen=True)
class TokenTraining:
    """The numbers that decide what the training of a token policy computes."""

    steps: int
    batch: int
    learning_rate: float
    seed: int
    device: str
    smooth: float
    """Standard deviation of the label's bin [bins]."""


def windows_of(episodes: Episodes, config: TokenPolicyConfig, statistics: dict[str, dict[str, Tensor]]) -> Windows:
    """Lay out the windows of episodes of vectors, normalised to their range."""
    layout = DiffusionConfig(
        input_dims=config.input_dims,
        action_dim=config.action_dim,
        normalization_mapping=dict.fromkeys(("STATE", "ENV", "ACTION"), "MIN_MAX"),
        n_obs_steps=config.n_obs_steps,
        horizon=config.horizon,
    )
    return Windows(episodes, layout, statistics, "cpu")


class TokenTrainer(Descent[TokenTransformer]):
    """Trains a network to predict each unknown token from a random set of known ones (arXiv 2205.13554)."""

    def __init__(self, training: TokenTraining, config: TokenPolicyConfig) -> None:
        """Build everything from the seed."""
        torch.manual_seed(training.seed)
        super().__init__(training, TokenTransformer(config.network))
        self.training = training
        self.chain = config.chain
        bins = torch.arange(config.bins)
        near = -0.5 * ((bins[:, None] - bins) / max(training.smooth, 1e-3)).square()
        self.targets = torch.softmax(near, dim=1)
        """The label's law for each bin [A, A]: a bin and, where labels are smoothed, its neighbours."""

    def update(self, windows: Windows, past: Tensor) -> float:
        """Take one optimiser step on a random batch; return its loss, in nats for each unknown token.

        Args:
            windows: Of the demonstrations.
            past: Conditioning of each of them [W, cond_dim].
        """
        count, generator = self.training.batch, self.generator
        rows = torch.randint(len(windows), (count,), generator=generator)
        tokens = self.chain.encode(windows.actions(rows)).flatten(1)
        length, alphabet = tokens.shape[1], self.chain.alphabet
        # As many known as not: each number of known tokens is equally likely, and so is each set of so many.
        known = torch.randint(length, (count, 1), generator=generator)
        ranks = torch.rand(tokens.shape, generator=generator).argsort(1).argsort(1)
        shown = ranks < known
        x = functional.one_hot(tokens, alphabet).float() * shown[..., None]
        logits = self.network(x, known[:, 0], past[rows])
        losses = functional.cross_entropy(logits.flatten(0, 1), self.targets[tokens.flatten()], reduction="none")
        hidden = (~shown).float()
        loss = (losses.reshape(hidden.shape) * hidden / hidden.sum(1, keepdim=True)).sum() / count
        self.descend(loss)
        return loss.item()
