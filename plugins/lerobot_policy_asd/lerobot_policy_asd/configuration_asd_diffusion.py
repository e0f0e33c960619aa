"""Configuration of the policy type `asd_diffusion`."""

from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

from asd_policy import make_sampler


@PreTrainedConfig.register_subclass("asd_diffusion")
@dataclass
class AsdDiffusionConfig(DiffusionConfig):
    """A LeRobot diffusion policy's configuration, and how to sample."""

    sampler: str = "asd"
    """Spec of a sampler of asd_policy, such as `asd:window=16`."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            SpecError: The sampler does not exist.
        """
        super().__post_init__()
        make_sampler(self.sampler)

    def fill_from(self, checkpoint: DiffusionConfig) -> None:
        """Take a checkpoint's value for each field that still has its default.

        `--policy.type=asd_diffusion --policy.pretrained_path=…` makes a configuration that knows nothing of the
        checkpoint, and LeRobot fills in features of the environment: those are always the checkpoint's.

        Args:
            checkpoint: Of the type `diffusion` or `asd_diffusion`.
        """
        names = {field.name for field in fields(checkpoint)}
        for field in fields(self):
            is_feature = field.name in ("input_features", "output_features")
            if field.name in names and (is_feature or getattr(self, field.name) == _default(field)):
                setattr(self, field.name, getattr(checkpoint, field.name))


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
