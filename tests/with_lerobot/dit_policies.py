"""Small `MultiTaskDiTPolicy` objects with random weights; no weights of CLIP are needed, nor its tokenizer."""

from typing import Any

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from torch import Tensor, nn

IMAGES = ("observation.images.front", "observation.images.wrist")
STEPS, TOKENS, VOCABULARY, HORIZON = 12, 6, 50, 16
"""Of a chain, of a task, in the text encoder's vocabulary, of a plan."""


def require_dit() -> Any:
    """LeRobot's module, or a skip of the test with the reason."""
    return pytest.importorskip(
        "lerobot.policies.multi_task_dit.modeling_multi_task_dit", reason="this lerobot has no multi_task_dit"
    )


SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class TinyVision:
    """Stands for CLIP's vision model where LeRobot loads a trained one."""

    @staticmethod
    def from_pretrained(_: str) -> nn.Module:
        """Make one with random weights."""
        from transformers import CLIPVisionConfig, CLIPVisionModel

        frames: dict[str, Any] = {"image_size": 16, "patch_size": 8}  # its type does not know the fields
        return CLIPVisionModel(CLIPVisionConfig(**SIZES, **frames))


class TinyText:
    """Stands for CLIP's text model there."""

    @staticmethod
    def from_pretrained(_: str) -> nn.Module:
        """Make one with random weights."""
        from transformers import CLIPTextConfig, CLIPTextModel

        words: dict[str, Any] = {"vocab_size": VOCABULARY, "eos_token_id": VOCABULARY - 1}
        words["max_position_embeddings"] = TOKENS
        return CLIPTextModel(CLIPTextConfig(**SIZES, **words))


def make_dit(cameras: int = 0, **changes: Any) -> Any:
    """A policy of a few thousand parameters, in eval mode, whose observations count."""
    module = require_dit()
    from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig

    frames = {name: PolicyFeature(FeatureType.VISUAL, (3, 20, 18)) for name in IMAGES[:cameras]}
    values: dict[str, Any] = {
        "input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (3,)), **frames},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (2,))},
        "num_train_timesteps": STEPS,
        "horizon": HORIZON,
        "n_action_steps": 8,
        "hidden_dim": 16,
        "num_layers": 2,
        "num_heads": 2,
        "timestep_embed_dim": 8,
        "image_crop_shape": (16, 16),
        "tokenizer_max_length": TOKENS,
        "device": "cpu",
        **changes,
    }
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CLIPVisionModel", TinyVision)
        patch.setattr(module, "CLIPTextModel", TinyText)
        policy = module.MultiTaskDiTPolicy(MultiTaskDiTConfig(**values)).eval()
    for block in policy.noise_predictor.transformer_blocks:  # which begin at zero, and let nothing through
        nn.init.normal_(block.adaLN_modulation[1].weight, std=0.3)
    return policy


def task_of(rows: int, seed: int = 0) -> dict[str, Tensor]:
    """A task at random, as LeRobot's tokenizer makes it of a text: the same in each row, padded."""
    tokens = torch.randint(VOCABULARY - 1, (1, TOKENS), generator=torch.Generator().manual_seed(seed))
    tokens[0, TOKENS - 2 :] = VOCABULARY - 1
    read = torch.arange(TOKENS)[None] < TOKENS - 1
    return {
        "observation.language.tokens": tokens.repeat(rows, 1),
        "observation.language.attention_mask": read.repeat(rows, 1),
    }


def condition_dit(policy: Any, batch: int = 1, seed: int = 0) -> Tensor:
    """What the network is told of observations [batch, cond_dim], at random."""
    dims = policy.observation_encoder.conditioning_dim
    return 2 * torch.rand((batch, dims), generator=torch.Generator().manual_seed(seed)) - 1
