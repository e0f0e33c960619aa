"""The options of `asd-policy eval`: what they mean, which go together, and what follows from them alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asd_policy.checkpoints import find_format, inspection, locate
from asd_policy.checkpoints.tuning import find_tuning
from asd_policy.cli.common import (
    BackendOption,
    ChainOption,
    FixedCropOption,
    SamplersOption,
    check_at_least,
    check_margin,
)
from asd_policy.errors import RunError, SpecError
from asd_policy.evaluation.comparison import MARGIN
from asd_policy.evaluation.equivalence import MOST_PAIRS, USUAL_DISCORDANCE, pairs_needed
from asd_policy.evaluation.rollout.clocks import PILOTS, ControlClock, check_continuity, check_rate, clock_record
from asd_policy.evaluation.rollout.environments import Env, control_rate
from asd_policy.evaluation.rollout.journal import RESULTS, Found, find_run
from asd_policy.evaluation.rollout.latencies import Latency, read_latency
from asd_policy.evaluation.rollout.ray_runner import Workers
from asd_policy.networks.backends.torch_eager import TorchEager
from asd_policy.policy.continuity import CONTINUITIES
from asd_policy.policy.law import CHECKPOINT
from asd_policy.policy.plan import MEASURED, UNCLOCKED
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler
from asd_policy.samplers.deadline import FALLBACKS, check_deadline

MOST_EPISODES = 1000
"""With `--until-ci`."""


def episodes_for(margin: float) -> int:
    """Choose the number of episodes that can show equivalence within a margin.

    Raises:
        SpecError: It is so small that none can.
    """
    needed = pairs_needed(USUAL_DISCORDANCE, margin)
    if needed is None:
        raise SpecError(f"--margin {margin:g} takes more than {MOST_PAIRS:,} episodes to show: give --episodes")
    return needed


@dataclass(frozen=True)
class EvalOptions:
    """What a user can say to `asd-policy eval`."""

    policy: str
    """Checkpoint: a path, or a Hugging Face Hub id such as owner/name or owner/name@revision."""
    env: str
    """Gymnasium id of the environment, such as asd/Avoid-v0."""
    out: Path
    """Folder for episodes.jsonl, results.json, report.html and videos."""
    samplers: SamplersOption = ()
    episodes: int | None = None
    """Episodes for each sampler; by default so many as show that success is ddpm's within --margin, with a probability
    of 80 % where it is and one pair in twenty differs: 71 for 0.1, 213 for 0.05. With --until-ci the most, 1000 by
    default."""
    until_ci: float | None = None
    """Stop when the 95 % interval of every sampler's success rate reaches at most this far to either side, such as
    0.05."""
    seed: int = 0
    """Seeds environments and planning noise; equal for all samplers."""
    max_steps: int | None = None
    """Cut an episode after this many control steps, beside the environment's own limit; by default 1000 where it
    declares none."""
    envs: int = 1
    """Environments that are stepped side by side and planned for together; more than one run in a process each. Only
    the rounding of a plan can depend on it."""
    workers: str | None = None
    """Run episodes on Ray workers, which changes times and nothing else: a number of workers on this machine, ray for
    one on each CPU, or ray://host:port for a cluster. Each worker computes on one thread."""
    gpus_per_worker: float = 1.0
    """Share of a GPU for each worker, where the device is CUDA: 0.25 puts four workers on one GPU."""
    clock: str = UNCLOCKED
    """What the environment does while a plan is made. none: it waits. sync: it goes on, and the robot repeats its last
    action until the plan is there. async: it goes on, and the robot takes the rest of the last plan."""
    hz: float | None = None
    """Control steps in a second of that clock; the environment's own rate by default."""
    latency: str | None = None
    """How long a plan takes by that clock: measured, the default (what it takes here, so no two runs are the same); a
    number of milliseconds; or a file to draw from: one number a line, the episodes.jsonl of a run, or the results.json
    of a bench with one backend."""
    continuity: str = CONTINUITIES[0]
    """With --clock async, how a plan takes up the actions that are executed while it is made. none: it ignores them.
    inpaint: it is given them, and what follows them is exact. soft: it is also pulled towards the rest of the last
    plan, which is approximate."""
    deadline_ms: float | None = None
    """Finish a plan by --fallback where it would take longer than so many milliseconds. Such plans are approximate, and
    counted."""
    fallback: str = FALLBACKS[0]
    """With --deadline-ms, how to finish a plan. jump: take the network's prediction at the point reached. last_plan:
    take the rest of the plan before."""
    margin: float = MARGIN
    """Difference from ddpm's success rate that would not matter, for the test of equivalence."""
    chain: ChainOption = CHECKPOINT
    fixed_crop: FixedCropOption = False
    device: str = "cpu"
    """Torch device to plan on."""
    backend: BackendOption = TorchEager.name
    resume: bool = False
    """Go on with the run in --out, if there is one, without losing or repeating an episode."""
    overwrite: bool = False
    """Replace the run in --out."""
    json: bool = False
    """Print the results as one JSON object on stdout."""
    video: bool = False
    """Also write an mp4 of the first episode of each sampler, and one of ddpm beside the fastest exact sampler."""
    debug: bool = False
    """Show the traceback of an error."""

    @property
    def most(self) -> int:
        """Episodes for each sampler, at most."""
        return self.episodes or (episodes_for(self.margin) if self.until_ci is None else MOST_EPISODES)

    def check(self) -> None:
        """Refuse options that are out of range, or that do not go together.

        Raises:
            SpecError: Some are so.
        """
        for name in ("episodes", "envs", "max_steps"):
            if getattr(self, name) is not None:
                check_at_least(name.replace("_", "-"), getattr(self, name), 1)
        check_at_least("seed", self.seed, 0)
        if self.until_ci is not None and not 0 < self.until_ci < 0.5:
            raise SpecError(f"--until-ci {self.until_ci} is not between 0 and 0.5")
        self._check_deadline()
        check_margin(self.margin)
        if self.episodes is None and self.until_ci is None:
            episodes_for(self.margin)  # refuses what no number can show, before anything is loaded
        self._check_clock()
        if self.deadline_ms is not None and self.latency not in (None, MEASURED):
            raise SpecError(
                f"--deadline-ms cuts plans by what they take here, --latency {self.latency} counts another time: give "
                "one of them"
            )
        if self.workers is not None:
            Workers.parse(self.workers)
        if not (0 < self.gpus_per_worker <= 1 or self.gpus_per_worker.is_integer() and self.gpus_per_worker > 1):
            raise SpecError(
                f"--gpus-per-worker {self.gpus_per_worker:g} is neither a share in 0 … 1 nor a whole number"
            )
        if self.resume and self.overwrite:
            raise SpecError("--resume goes on with the run in --out and --overwrite replaces it: give one of them")

    def _check_deadline(self) -> None:
        check_deadline(self.deadline_ms, self.fallback)
        if self.deadline_ms is None and self.fallback != FALLBACKS[0]:
            raise SpecError(f"--fallback {self.fallback} is for --deadline-ms; without a deadline no plan is cut")

    def _check_clock(self) -> None:
        if self.clock not in (UNCLOCKED, *PILOTS):
            raise SpecError(f"--clock {self.clock!r} is not one of {', '.join((UNCLOCKED, *PILOTS))}")
        if self.hz is not None:
            check_rate(self.hz)
        check_continuity(self.continuity, self.clock)
        given = [name for name in ("hz", "latency") if getattr(self, name) is not None]
        if given and self.clock == UNCLOCKED:
            raise SpecError(
                f"--{given[0]} is for --clock sync or async; without a clock the environment waits for plans"
            )

    def read_latency(self, samplers: Sequence[Sampler]) -> Latency:
        """Read the law of latencies that `--latency` names.

        Raises:
            SpecError: It names none, or has none for a sampler.
        """
        return read_latency(MEASURED if self.latency is None else self.latency, [sampler.spec for sampler in samplers])

    def make_clock(self, env: Env, latency: Latency) -> ControlClock | None:
        """Make the clock that goes on while plans are made; None where the environment waits.

        Raises:
            SpecError: Nobody says how many control steps there are in a second.
        """
        if self.clock == UNCLOCKED:
            return None
        hz = self.hz or control_rate(env)
        if hz is None:
            raise SpecError(
                f"{self.env} does not tell its control frequency, which --clock {self.clock} needs: give --hz"
            )
        return ControlClock(self.clock, hz, latency, self.continuity)

    def find_run(self) -> Found | None:
        """Find the run in `--out` that is to go on; None to begin one.

        Raises:
            RunError: There is one, and nothing was said about it; or it is damaged.
        """
        if self.overwrite:
            return None
        found = find_run(self.out)
        if found is None and (self.out / RESULTS).exists():
            raise RunError(f"{self.out} holds the {RESULTS} of another run: --overwrite it, or name another --out")
        if found is not None and not self.resume:
            raise RunError(f"{self.out} holds a run: --resume goes on with it, --overwrite replaces it")
        return found

    def identify(
        self, policy: Policy, record: dict[str, Any], samplers: Sequence[Sampler], clock: ControlClock | None
    ) -> dict[str, Any]:
        """List what must be the same for a run to go on: whatever an episode or its times may depend on.

        Args:
            policy: As loaded.
            record: From `run_record`.
            samplers: As they were asked for.
            clock: That goes on while plans are made.
        """
        path = locate(self.policy)
        files = inspection.files(path, find_format(path)[1])
        tuning = find_tuning(path, policy)
        same = (
            "policy",
            "chain",
            "fixed_crop",
            "env",
            "seed",
            "device",
            "backend",
            "dtype",
            "package",
            "commit",
            "torch",
        )
        return {
            **{key: record[key] for key in same},
            "sha256": {each["name"]: each["sha256"] for each in files},
            "tuning": inspection.file_record(tuning.file, tuning.file.name)["sha256"] if tuning else None,
            "envs": self.envs,
            **clock_record(clock),
            **self.deadline_record(),
            "samplers": [sampler.spec for sampler in samplers],
        }

    def deadline_record(self) -> dict[str, Any]:
        """List the deadline as results.json has it."""
        return {
            "deadline_ms": self.deadline_ms,
            "fallback": None if self.deadline_ms is None else self.fallback,
        }
