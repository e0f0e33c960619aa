"""What every training shares: network, optimiser, schedule, running average and random stream, saved together."""

from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from asd_policy._common.files import atomic_file

N = TypeVar("N", bound=nn.Module)


class Course(Protocol):
    """The numbers that decide what any training computes: a frozen dataclass of them, and of others."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        ...

    @property
    def learning_rate(self) -> float:
        """Peak of the cosine schedule."""
        ...

    @property
    def seed(self) -> int:
        """Seeds the batches."""
        ...

    @property
    def device(self) -> str:
        """PyTorch's device to train on."""
        ...


class Descent(Generic[N]):
    """Takes optimiser steps on a network, and can be saved and restored between any two."""

    def __init__(self, course: Course, network: N) -> None:
        """Begin; the caller has seeded PyTorch before it made the network."""
        self.course = course
        self.network = network.to(course.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=course.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6, fused=True
        )
        self.schedule = get_scheduler(
            "cosine", self.optimizer, num_warmup_steps=min(500, course.steps // 10), num_training_steps=course.steps
        )
        # The warm-up of Diffusion Policy's own EMA: 1 − (1 + step)^(−3/4).
        self.average = EMAModel(self.network.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75, foreach=True)
        self.generator = torch.Generator().manual_seed(course.seed)
        self.step = 0
        self.schedules: list[dict[str, int]] = []
        """The other schedules that it followed before, and until which step."""

    def descend(self, loss: Tensor) -> None:
        """Take one optimiser step."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.average.step(self.network.parameters())
        self.step += 1

    def averaged(self, part: nn.Module) -> dict[str, Tensor]:
        """Read the running average of a part's weights, in half precision."""
        self.average.store(self.network.parameters())
        self.average.copy_to(self.network.parameters())
        state = {name: _half(value) for name, value in part.state_dict().items()}
        self.average.restore(self.network.parameters())
        return state

    def save(self, path: Path) -> None:
        """Write the training state, atomically."""
        state = {
            "options": dict(vars(self.course)),
            "schedules": self.schedules,
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict(),
            "generator": self.generator.get_state(),
        }
        with atomic_file(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> None:
        """Go on from a saved state, on the schedule of `steps`, which may be another than it was begun with.

        Raises:
            SystemExit: It belongs to a training with other options.
        """
        state = torch.load(path, weights_only=True)
        before, now = state["options"], vars(self.course)
        for name, value in now.items():
            # An option that is newer than the state was then what it is where nothing is said.
            known = before.get(name, getattr(type(self.course), name, None))
            if known != value and (name != "steps" or state["step"] > value):
                raise SystemExit(
                    f"{path} is of a training with {name} {known}, not {value}: remove it first, or say so"
                )
        self.schedules = state["schedules"]
        if before["steps"] != self.course.steps:
            self.schedules = [*self.schedules, {"steps": before["steps"], "until": state["step"]}]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.load_state_dict(state["average"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]


def _half(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float16, copy=True).contiguous()
