"""The policy type `asd_diffusion`: LeRobot's diffusion policy, accelerated from the start."""

from pathlib import Path
from typing import Any, TypeVar

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors import SafetensorError
from safetensors.torch import load_file

from asd_policy import CheckpointError, SpecError, accelerate
from asd_policy.policy.adapters.base import AsdStats
from asd_policy.policy.law import CHECKPOINT
from lerobot_policy_asd import report
from lerobot_policy_asd.configuration_asd_diffusion import AsdDiffusionConfig
from lerobot_policy_asd.loaded import warm

T = TypeVar("T", bound=PreTrainedPolicy)
_HUB_OPTIONS = ("force_download", "resume_download", "proxies", "token", "cache_dir", "local_files_only", "revision")


class AsdDiffusionPolicy(DiffusionPolicy):
    """A `DiffusionPolicy` that samples with `config.sampler`; networks, weights and processors are the same."""

    config_class = AsdDiffusionConfig
    name = "asd_diffusion"
    config: AsdDiffusionConfig
    asd_stats: AsdStats

    def __init__(self, config: AsdDiffusionConfig, **kwargs: Any) -> None:
        """Build the policy with new weights; `from_pretrained` loads some.

        Raises:
            ChainError: The noise scheduler has no exact acceleration.
            SpecError: The sampler does not fit the noise scheduler.
        """
        super().__init__(config, **kwargs)
        accelerate(self, config.sampler)

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **kwargs: Any
    ) -> "AsdDiffusionPolicy":
        """Load a checkpoint of the type `diffusion` or `asd_diffusion`, and warm up for the first plan.

        Args:
            pretrained_name_or_path: A folder, or a repository on the Hub.
            config: For a `diffusion` checkpoint the fields to change, see `AsdDiffusionConfig.fill_from`;
                for an `asd_diffusion` one the whole configuration. By default the checkpoint's own.
            **kwargs: As for `PreTrainedPolicy.from_pretrained`; `strict` is always true.

        Raises:
            CheckpointError: The checkpoint is of another type, or its tensors are not those of the policy.
            ChainError: Its noise scheduler has no exact acceleration.
            SpecError: The sampler does not fit it, or `config` has none.
        """
        hub = {name: value for name, value in kwargs.items() if name in _HUB_OPTIONS}
        checkpoint = PreTrainedConfig.from_pretrained(pretrained_name_or_path, **hub)
        if not isinstance(checkpoint, DiffusionConfig):
            raise CheckpointError(
                f"{pretrained_name_or_path} is a checkpoint of the type {checkpoint.type!r}; asd_diffusion loads "
                "those of the types 'diffusion' and 'asd_diffusion'"
            )
        plain = not isinstance(checkpoint, AsdDiffusionConfig)
        if config is None:
            config = AsdDiffusionConfig(device=checkpoint.device) if plain else checkpoint
        if not isinstance(config, AsdDiffusionConfig):
            raise SpecError(f"config is a {type(config).__name__}, which has no sampler; give an AsdDiffusionConfig")
        if plain:
            config.fill_from(checkpoint)
        policy = super().from_pretrained(pretrained_name_or_path, config=config, **{**kwargs, "strict": True})
        plan = report.Plan(config.sampler, CHECKPOINT, "--policy.type=diffusion turns it off")
        report.say_accelerated(policy, plan, warm(policy))
        return policy

    @classmethod
    def _load_as_safetensor(cls, model: T, model_file: str, map_location: str, strict: bool) -> T:
        """Load all of the weights, whether or not they or the policy were compiled (`compile_model`).

        Raises:
            CheckpointError: The file cannot be read, or holds other tensors than the policy.
        """
        try:
            found = {_plain(name): tensor for name, tensor in load_file(model_file, map_location).items()}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{model_file} cannot be read: {error}") from None
        own = {_plain(name): tensor for name, tensor in model.state_dict().items()}
        wrong = {
            "lacks": sorted(own.keys() - found.keys()),
            "has, and the policy not,": sorted(found.keys() - own.keys()),
            "has in another shape": [name for name in own if name in found and own[name].shape != found[name].shape],
        }
        said = [f"{what} {_some(names)}" for what, names in wrong.items() if names]
        if said:
            raise CheckpointError(
                f"{model_file} is not of the policy that its configuration describes: it {'; it '.join(said)}"
            )
        for name, tensor in own.items():
            tensor.copy_(found[name])
        return model


def _plain(name: str) -> str:
    """Find a tensor's name in a network that is not compiled."""
    return name.replace("_orig_mod.", "")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
