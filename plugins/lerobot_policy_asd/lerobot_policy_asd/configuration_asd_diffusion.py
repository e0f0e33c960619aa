"""Configuration of the policy type `asd_diffusion`."""

from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, Self

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig


@PreTrainedConfig.register_subclass("asd_diffusion")
@dataclass
class AsdDiffusionConfig(DiffusionConfig):
    """A LeRobot diffusion policy's configuration, and how to sample."""

    sampler: str = "asd"
    """Spec of a sampler of asd_policy, such as `asd:window=16`; the policy checks that it exists and fits."""
    _said: ClassVar[set[str]]  # of each object; no field of the dataclass, and not saved

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """Note which fields are given explicitly, in Python, a file or on the command line."""
        config = super().__new__(cls)
        vars(config)["_said"] = {*named, *(field.name for field in fields(cls)[: len(values)])}
        return config

    def fill_from(self, checkpoint: DiffusionConfig) -> None:
        """Take a checkpoint's value for each field that was not given.

        `--policy.type=asd_diffusion --policy.pretrained_path=…` makes a configuration that does not know the
        checkpoint. A value that was given wins, even LeRobot's default, and so does one that was changed later. LeRobot
        fills in features of the environment: those are always the checkpoint's.

        Args:
            checkpoint: Of the type `diffusion`.
        """
        for field in fields(checkpoint):
            is_feature = field.name in ("input_features", "output_features")
            unsaid = field.name not in self._said and getattr(self, field.name) == _default(field)
            if is_feature or unsaid:
                setattr(self, field.name, getattr(checkpoint, field.name))


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
