"""Groups of episodes as Ray tasks, on workers in processes of their own, on this machine or on many.

Ray places the workers, sends them groups, and brings episodes back. It restarts a worker whose process has died, and
gives it its group again. As an episode depends on nothing but its group, the result is the same.
"""

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from asd_policy._common.extras import needed
from asd_policy.checkpoints import load_policy
from asd_policy.errors import AsdError, BackendError, SpecError
from asd_policy.evaluation.rollout.clocks import ControlClock, make_pilot
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.rollout.ray_local import local_folder, on_loopback, own_token, without_dashboard
from asd_policy.evaluation.rollout.runner import Group, LocalRunner
from asd_policy.evaluation.rollout.vector import make_envs
from asd_policy.policy.law import CHECKPOINT
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.deadline import FALLBACKS

LOCAL = "ray"
"""Stands for workers on this machine, one for each CPU that the process may use."""
REMOTE = "ray://"
"""The beginning of a running cluster's address."""

_RETRIES = 3  # of a group whose worker has died: one that kills its worker each time is given up
_PATIENCE = "120"  # seconds that Ray waits for its first process, on a machine that is busy; by itself 30
_OBJECT_STORE = 100 << 20  # [bytes] experience and episodes are small; Ray would take a third of the memory


@dataclass(frozen=True)
class Workers:
    """Where episodes are run, as `--workers` says."""

    address: str | None
    """Of the cluster, "ray://host:port"; None for this machine."""
    count: int | None
    """How many; None for as many as there is room for."""

    @classmethod
    def parse(cls, text: str) -> "Workers":
        """Read N, `ray` or `ray://host:port`.

        Raises:
            SpecError: It is none of them.
        """
        if text == LOCAL:
            return cls(None, len(os.sched_getaffinity(0)))
        if text.startswith(REMOTE) and len(text) > len(REMOTE):
            return cls(text, None)
        if text.isdecimal() and int(text) > 0:
            return cls(None, int(text))
        raise SpecError(f"--workers {text!r} is not a number from 1 on, {LOCAL} or {REMOTE}host:port")


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to make its pilots and environments."""

    checkpoint: str
    """A path that each worker's machine has, or a Hub id."""
    device: str
    """Torch device, as on a machine whose only GPU is the worker's."""
    backend: str
    """Spec of what runs the network."""
    learned: tuple[tuple[str, Sampler, Experience], ...]
    """For each sampler: its spec in groups, the sampler as it runs, and what its planner learned. Learned once, so that
    all workers plan alike."""
    env: str
    """Gymnasium id."""
    envs: int
    """Environments side by side in each worker."""
    seed: int
    """Of the evaluation."""
    clock: ControlClock | None = None
    """How time goes on while plans are made; None where it does not."""
    deadline_ms: float | None = None
    """Deadline of a plan [ms]; None for no deadline."""
    fallback: str = FALLBACKS[0]
    """How to finish plans that would be later."""
    max_steps: int | None = None
    """As for `make_env`."""
    chain: str = CHECKPOINT
    """As for `load_policy`."""
    fixed_crop: bool = False
    """As for `load_policy`."""

    @classmethod
    def of(
        cls,
        checkpoint: str,
        device: str,
        planners: Mapping[str, Policy],
        env: str,
        envs: int,
        seed: int,
        clock: ControlClock | None = None,
        max_steps: int | None = None,
    ) -> "Recipe":
        """Write the recipe of planners from `prepare_planners`.

        Args:
            checkpoint: What they were loaded from.
            device: Torch device.
            planners: As for `LocalRunner`.
            env: Gymnasium id.
            envs: Episodes in a group.
            seed: Of the evaluation.
            clock: How time goes on while plans are made; None where it does not.
            max_steps: As for `make_env`.
        """
        path, first = Path(checkpoint), next(iter(planners.values()))
        return cls(
            str(path.resolve()) if path.exists() else checkpoint,
            device.partition(":")[0],
            first.backend.spec,
            tuple((spec, planner.sampler, planner.experience) for spec, planner in planners.items()),
            env,
            envs,
            seed,
            clock,
            first.deadline_ms,
            first.fallback,
            max_steps,
            first.law.runs,
            first.encoder.random_crop is not None,
        )

    def cook(self) -> LocalRunner:
        """Make what runs groups in this process.

        Raises:
            AsdError: As `load_policy`, `with_sampler` and `make_envs`.
        """
        policy = load_policy(
            self.checkpoint, device=self.device, backend=self.backend, chain=self.chain, fixed_crop=self.fixed_crop
        )
        policy = policy.with_deadline(self.deadline_ms, self.fallback)
        pilots = {}
        for spec, sampler, experience in self.learned:
            planner = policy.with_sampler(sampler)
            planner.experience = experience
            pilots[spec] = make_pilot(planner, self.clock, spec)
        make = partial(make_env, self.env, max_steps=self.max_steps)
        return LocalRunner(pilots, make_envs(make, self.envs), self.seed)


class RayWorker:
    """A Ray actor: loads the policy once, and keeps it."""

    def __init__(self) -> None:
        self._runner: LocalRunner | None = None

    def run(self, recipe: Recipe, some: Sequence[Group]) -> list[Episode]:
        """Run groups; with none, only get ready.

        Args:
            recipe: The same each time. It comes with the groups, and not with the worker, so that an error of cooking
                it comes back unchanged, and a restarted worker needs nothing from the one before.
            some: The groups.

        Raises:
            AsdError: As `Recipe.cook` and `LocalRunner.run`.
        """
        if self._runner is None:
            torch.set_num_threads(1)
            self._runner = recipe.cook()
        return list(self._runner.run(some))

    def process(self) -> int:
        """Look up the id of the worker's process."""
        return os.getpid()


class RayRunner:
    """Runs groups on Ray workers. Ray's own messages, such as of a worker that died, go to stderr."""

    def __init__(self, workers: Workers, recipe: Recipe, gpus_per_worker: float = 1.0) -> None:
        """Start Ray, or connect to it, and the workers; they have loaded the policy when this returns.

        Args:
            workers: Where, and how many.
            recipe: For each of them.
            gpus_per_worker: Share of a GPU that each is given, where the device is CUDA.

        Raises:
            BackendError: Ray is not installed, does not start, or has no room for a worker.
            AsdError: As `Recipe.cook`.
        """
        self._ray = _import_ray()
        self._open = contextlib.ExitStack()
        atexit.register(self._open.close)  # whatever ends this process, except for a signal that cannot be caught
        try:
            # What Ray prints of workers goes to stdout, which is for results.
            self._open.enter_context(contextlib.redirect_stdout(sys.stderr))
            gpus = gpus_per_worker if recipe.device == "cuda" else 0.0
            self._start(workers)
            count = self._room(workers.count, gpus)
            actor = self._ray.remote(RayWorker).options(
                num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=_RETRIES
            )
            self._recipe = self._ray.put(recipe)
            self._workers = [actor.remote() for _ in range(count)]
            for ready in [worker.run.remote(self._recipe, []) for worker in self._workers]:
                self._result(ready)
        except BaseException:
            self.close()
            raise

    def _start(self, workers: Workers) -> None:
        ray, starting = self._ray, contextlib.ExitStack()
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if workers.address is not None:
            where = {"address": workers.address}
        else:
            folder = self._open.enter_context(local_folder())
            self._open.enter_context(own_token(ray, folder.parent))
            starting.enter_context(without_dashboard(ray))
            self._open.enter_context(on_loopback(ray))
            os.environ.setdefault("RAY_gcs_server_port_wait_time_s", _PATIENCE)
            where = {
                "address": "local",
                "num_cpus": workers.count,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE,
                "_temp_dir": str(folder),
                "_system_config": {
                    # The environments of a worker that was killed must not outlive it.
                    "kill_child_processes_on_worker_exit_with_raylet_subreaper": True,
                    "worker_niceness": 0,  # Ray's 15 is for machines that people work on: plans would take longer
                },
            }
        self._open.callback(ray.shutdown)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGTERM)}
        try:
            with starting:
                ray.init(**where, **options)
            # Ray has the system reap this process's children: how they ended would be lost to all others here. And it
            # aborts at SIGTERM.
            for number, handler in handlers.items():
                signal.signal(number, handler)
        except Exception as error:  # Ray raises whatever its parts raise
            place = workers.address or "on this machine"
            hint = "; a cluster that asks for its token gets it with RAY_AUTH_MODE=token" if workers.address else ""
            raise BackendError(f"Ray does not start {place}: {type(error).__name__}: {error}{hint}") from error

    def _room(self, wanted: int | None, gpus: float) -> int:
        """Count the workers to start: as many as are wanted, or as there is room for.

        Raises:
            BackendError: There is no room for them; they would wait for it for ever.
        """
        has = self._ray.cluster_resources()
        room = int(has.get("CPU", 0))
        if gpus:
            room = min(room, int(has.get("GPU", 0) / gpus))
        if room < (wanted or 1):
            share = f" and {gpus:g} GPUs (--gpus-per-worker)" if gpus else ""
            raise BackendError(
                f"there is no room for {wanted or 1} workers of 1 CPU{share} each: Ray has {has.get('CPU', 0):g} CPUs "
                f"and {has.get('GPU', 0):g} GPUs, for {room} workers"
            )
        return wanted or room

    @property
    def count(self) -> int:
        """Number of workers."""
        return len(self._workers)

    def run(self, groups: Iterable[Group]) -> Iterator[Episode]:
        """Run groups, each on the first worker that is free.

        Raises:
            AsdError: As `RayWorker.run`.
            BackendError: A group's worker died again and again.
        """
        waiting, free, busy = iter(groups), list(self._workers), {}
        while True:
            while free and (group := next(waiting, None)) is not None:
                worker = free.pop()
                busy[worker.run.remote(self._recipe, [group])] = worker
            if not busy:
                return
            (done,), _ = self._ray.wait(list(busy))
            free.append(busy.pop(done))
            yield from self._result(done)

    def _result(self, reference: Any) -> Any:
        """Wait for what a call of a worker returns."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, AsdError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayActorError as error:
            raise BackendError(f"a group's worker died {_RETRIES + 1} times, the last time: {error}") from error

    def processes(self) -> list[int]:
        """List the process ids of the workers."""
        return self._ray.get([worker.process.remote() for worker in self._workers])

    def close(self) -> None:
        """End the workers, and the local cluster with them."""
        atexit.unregister(self._open.close)
        self._open.close()


def _import_ray() -> ModuleType:
    """Import Ray.

    Raises:
        BackendError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's client leaves threads of gRPC behind, whose handlers break whatever is started later, such as ffmpeg.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    with needed("--workers", "ray", BackendError):
        return import_module("ray")
