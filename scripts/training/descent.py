"""What every training shares: network, optimiser, schedule, running average and random stream, saved together."""

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import gymnasium
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from rich.progress import Progress
from torch import Tensor, nn

from asd_policy._common.files import atomic_file
from asd_policy.evaluation.reports.report import shared_name

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

    def run(
        self,
        out: Path,
        every: tuple[int, int],
        update: Callable[[], float],
        write: Callable[[Path, Mapping[str, Any]], None],
        progress: Progress,
    ) -> None:
        """Take the steps that are left, from the last saved state on, and write the policy.

        Args:
            out: Folder of the policy; state and snapshots are kept beside it until it is written.
            every: Steps between two saved states, and between two snapshots, 0 for none.
            update: Takes a step, and returns its loss.
            write: Writes the policy as it is, with notes on the training.
            progress: Shows the steps.

        Raises:
            SystemExit: As `restore`.
        """
        state, snapshot = (out.with_name(out.name + end) for end in (".training", ".snapshot"))
        if state.exists():
            self.restore(state)
        task = progress.add_task("training", total=self.course.steps, completed=self.step)
        recent: float | None = None
        while self.step < self.course.steps:
            loss = update()
            recent = loss if recent is None else recent + 0.02 * (loss - recent)
            progress.update(task, completed=self.step, description=f"training, loss {recent:.4f}")
            if self.step % every[0] == 0:
                self.save(state)
            if every[1] and self.step % every[1] == 0:
                write(snapshot, self.notes())
        write(out, self.notes())
        state.unlink(missing_ok=True)
        if snapshot.exists():
            shutil.rmtree(snapshot)

    def notes(self) -> dict[str, Any]:
        """Say how far the training is, by which command and with what."""
        schedules = {"schedules": self.schedules} if self.schedules else {}
        return {
            "command": shlex.join(["python", *map(shared_name, sys.argv)]),
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
            "step": self.step,
            **schedules,
        }

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
