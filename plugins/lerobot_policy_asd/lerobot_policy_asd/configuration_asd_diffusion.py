"""Configuration of the policy type `asd_diffusion`."""

from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig


@PreTrainedConfig.register_subclass("asd_diffusion")
@dataclass
class AsdDiffusionConfig(DiffusionConfig):
    """A LeRobot diffusion policy's configuration, and how to sample."""

    sampler: str = "asd"
    """Spec of a sampler of asd_policy, such as `asd:window=16`; the policy looks whether there is one, and it fits."""

    def fill_from(self, checkpoint: DiffusionConfig) -> None:
        """Take a checkpoint's value for each field that still has its default.

        `--policy.type=asd_diffusion --policy.pretrained_path=…` makes a configuration that knows nothing of the
        checkpoint, and LeRobot fills in features of the environment: those are always the checkpoint's.

        Args:
            checkpoint: Of the type `diffusion`.
        """
        for field in fields(checkpoint):
            is_feature = field.name in ("input_features", "output_features")
            if is_feature or getattr(self, field.name) == _default(field):
                setattr(self, field.name, getattr(checkpoint, field.name))


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
