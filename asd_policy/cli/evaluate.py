"""`asd-policy eval`: is it as good, and is it faster, in closed loop?"""

import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from asd_policy._common.files import write_json
from asd_policy._common.statistics import enough_episodes
from asd_policy.checkpoints import find_format, inspection, load_policy, locate
from asd_policy.checkpoints.tuning import find_tuning
from asd_policy.cli.common import (
    DONE,
    FAILED,
    INTERRUPTED,
    BackendOption,
    check_at_least,
    check_margin,
    print_json,
    progress_bar,
    text_column,
)
from asd_policy.errors import AsdError, RunError, SpecError, one_line
from asd_policy.evaluation import evaluate
from asd_policy.evaluation.comparison import MARGIN
from asd_policy.evaluation.reports import page, report, video
from asd_policy.evaluation.rollout.environments import Env, control_rate, make_env, open_env, step_limit
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.rollout.journal import RESULTS, Found, Journal, find_run
from asd_policy.evaluation.rollout.latencies import Latency, read_latency
from asd_policy.evaluation.rollout.pilots import (
    PILOTS,
    ControlClock,
    check_continuity,
    check_rate,
    clock_record,
    make_pilot,
)
from asd_policy.evaluation.rollout.ray_runner import RayRunner, Recipe, Workers
from asd_policy.evaluation.rollout.runner import Group, LocalRunner, Runner, groups
from asd_policy.evaluation.rollout.vector import make_envs
from asd_policy.networks.backends.torch_eager import TorchEager
from asd_policy.policy.continuity import CONTINUITIES
from asd_policy.policy.episode_state import Pilot
from asd_policy.policy.plan import MEASURED, UNCLOCKED
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.deadline import FALLBACKS, check_deadline

EPISODES = 20
MOST_EPISODES = 1000
"""With `--until-ci`."""


@dataclass(frozen=True)
class EvalCommand:
    """Roll a policy out in an environment with each sampler, on the same seeds, and compare.

    Exit status: 0 done, 1 done, but an episode failed (its environment raised, ended, or returned NaN), 2 bad usage or
    input, 130 interrupted. Episodes are kept in episodes.jsonl as they finish, whatever happens then.
    """

    policy: str
    """Checkpoint: a path, or a Hugging Face Hub id such as owner/name or owner/name@revision."""
    env: str
    """Gymnasium id of the environment, such as asd/Avoid-v0."""
    out: Path
    """Folder for episodes.jsonl, results.json, report.html and videos."""
    samplers: tuple[str, ...] = ("ddpm", "asd")
    """Sampler specs: ddpm | asd | asd:window=16,draft=frozen,verify=reflection, and approximate
    ddim:10 | dpmsolver:10 | paradigms:window=16,tol=0.1."""
    episodes: int | None = None
    """Episodes for each sampler, 20 unless said; with --until-ci the most, 1000 unless said."""
    until_ci: float | None = None
    """Stop when the success interval of every sampler reaches no farther than this to either side, such as 0.05."""
    seed: int = 0
    """Seeds environments and planning noise; equal for all samplers."""
    max_steps: int | None = None
    """Cut an episode after so many control steps, beside the environment's own limit; 1000 unless said where it
    declares none."""
    envs: int = 1
    """Environments that are stepped side by side, each in a process of its own if they are more than one, and planned
    for together. The rounding of a plan can depend on it, nothing else."""
    workers: str | None = None
    """Run episodes on Ray workers, which changes times and nothing else: how many on this machine, ray for one on each
    CPU, or ray://host:port for a cluster. Each computes on one thread."""
    gpus_per_worker: float = 1.0
    """Share of a GPU that each worker is given, where the device is CUDA: 0.25 for four on one GPU."""
    clock: str = UNCLOCKED
    """What the environment does while a plan is made: none, it waits; sync, it goes on, and the robot repeats its last
    action until the plan is there; async, it goes on, and so does the robot with the rest of the last plan."""
    hz: float | None = None
    """Control steps in a second of that clock; the environment's own unless said."""
    latency: str | None = None
    """How long plans take by that clock: measured (what they take here, so no two runs are the same), the default;
    a number of milliseconds; or a file to draw from: one number a line, the episodes.jsonl of a run, or the
    results.json of a bench with one backend."""
    continuity: str = CONTINUITIES[0]
    """With --clock async, what a plan is told of the actions taken while it is made: none; inpaint, they are given to
    it, which is exact on the rest of it; soft, it is drawn to the rest of the last plan too, which is approximate."""
    deadline_ms: float | None = None
    """Have plans that will not be done in so many milliseconds finished by --fallback, which is approximate: they are
    counted."""
    fallback: str = FALLBACKS[0]
    """With --deadline-ms, how: jump, to the network's prediction at the point reached; or last_plan, the rest of the
    plan before."""
    margin: float = MARGIN
    """Difference from ddpm's success rate that would not matter, for the verdict of equivalence."""
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
    """Also write an mp4 of the first episode of each sampler, and one of ddpm beside the fastest exact one."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Evaluate; return the exit status."""
        self._check()
        samplers = list(dict.fromkeys(make_sampler(spec) for spec in self.samplers))
        latency = read_latency(
            MEASURED if self.latency is None else self.latency, [sampler.spec for sampler in samplers]
        )
        found = self._find()
        if self.video:
            if sys.platform == "linux" and "DISPLAY" not in os.environ:
                os.environ.setdefault("MUJOCO_GL", "egl")  # no screen: MuJoCo's default would look for one
            video.check(self.env)
        if self.workers is not None:
            torch.set_num_threads(1)  # as the workers: what is learned here, and recorded, is then theirs too
        policy = load_policy(self.policy, device=self.device, backend=self.backend)
        if self.deadline_ms is not None:
            policy = policy.with_deadline(self.deadline_ms, self.fallback)
        record = report.run_record("eval", self.policy, self.env, self.seed, policy)
        with open_env(self.env, max_steps=self.max_steps) as env:
            limit = step_limit(env, self.max_steps)
            clock = self._clock(env, latency)
            identity = self._identity(policy, record, samplers, clock) | {"max_steps": limit}
            if found is not None:
                found.check_same(identity)
                found.check_plans(len(policy.chain))
                ran = {spec: make_sampler(chosen) for spec, chosen in found.ran.items()}
            else:
                ran = evaluate.settle(policy, env, samplers, self.envs)
            planners = dict(zip(ran, evaluate.prepare(policy, env, list(ran.values()), self.envs), strict=True))
            env_hz = control_rate(env)
        identity["ran"] = {spec: sampler.spec for spec, sampler in ran.items()}
        pilots = {spec: make_pilot(planner, clock, spec) for spec, planner in planners.items()}
        runner = self._runner(planners, pilots, clock)
        journal = Journal.start(self.out, identity, self.overwrite) if found is None else Journal.resume(found)
        if found is None:
            for name in (page.PAGE, video.SIDE_BY_SIDE):
                (self.out / name).unlink(missing_ok=True)  # of a run that was there
        if self.max_steps is None and limit is not None:
            console.print(
                f"{self.env} declares no time limit: an episode that does not end by itself is cut at {limit} "
                "steps (--max-steps)",
                soft_wrap=True,
            )
        tally = Tally(list(ran), found.episodes if found else ())
        cut_short: KeyboardInterrupt | AsdError | None = None
        try:
            with progress_bar(console, text_column("{task.fields[running]}")) as progress:
                task = progress.add_task(self.env, total=self._most * len(samplers), running="")
                for episode in runner.run(self._work(tally)):
                    if not tally.knows(episode):  # some of a group that was cut short are there already
                        journal.add(episode)
                        tally.add(episode)
                        progress.update(task, completed=len(tally.episodes), running=tally.line())
        except (KeyboardInterrupt, AsdError) as stop:
            cut_short = stop
        finally:
            runner.close()
            journal.close()
        count = self._enough(tally) or self._most
        counted = [episode for episode in tally.episodes if episode.index < count]
        complete = len(counted) == count * len(samplers)
        results = {
            **record,
            "episodes": count,
            "until_ci": self.until_ci,
            "torch_device": self.device,
            "envs": self.envs,
            "max_steps": limit,
            "sha256": identity["sha256"],
            "tuning": identity["tuning"],
            "workers": runner.count,
            **clock_record(clock),
            **self._deadline(),
            "env_hz": env_hz,
            "complete": complete,
            "interrupted": cut_short is not None,
            **tally.rates(),
            "samplers": evaluate.summarize(
                ran, counted, len(policy.chain), self.margin, None if clock is None else clock.hz
            ),
        }
        path = self.out / RESULTS
        try:
            write_json(path, results)
        except OSError as error:
            if cut_short is not None:
                raise cut_short from None  # a disk that is full: the journal has said so
            raise RunError(
                f"{path} cannot be written: {error.strerror}; all episodes are kept, and --resume writes it"
            ) from None
        if self.json:
            print_json(results)
        console.print(report.table(results))
        if clock is not None:
            console.print(report.timing_table(results))
            if (note := report.other_rate(results)) is not None:
                console.print(f"note: {note}", soft_wrap=True)
        for line in report.remarks(results):
            console.print(line, soft_wrap=True)
        if cut_short is not None:
            kept = f"{len(counted)} of {count * len(samplers)} episodes are kept in {path}"
            console.print(f"interrupted: {kept}; --resume goes on", soft_wrap=True)
            if counted:
                self._show(console, {}, results)
            if isinstance(cut_short, AsdError):
                raise cut_short
            return INTERRUPTED
        console.print(f"results: {path}", soft_wrap=True)
        self._show(console, pilots, results)
        failed = [episode for episode in counted if episode.error is not None]
        if failed:
            first = f"{failed[0].spec} episode {failed[0].index}: {failed[0].error}"
            console.print(f"{len(failed)} of {len(counted)} episodes failed; {one_line(first)}", soft_wrap=True)
        return FAILED if failed else DONE

    def _show(self, console: Console, pilots: Mapping[str, Pilot], results: dict[str, Any]) -> None:
        """Write videos of the pilots, where they are asked for, and the page."""
        best = page.fastest_exact(results)
        try:
            if self.video and pilots:
                beside = best["spec"] if best else None
                for path in video.record(pilots, self.env, self.seed, self.out, beside, self.max_steps):
                    console.print(f"video: {path}", soft_wrap=True)
        finally:
            console.print(f"page: {page.write(self.out)}", soft_wrap=True)

    @property
    def _most(self) -> int:
        """Episodes for each sampler, at most."""
        return self.episodes or (EPISODES if self.until_ci is None else MOST_EPISODES)

    def _check(self) -> None:
        """Refuse options that are out of range.

        Raises:
            SpecError: They are.
        """
        for name in ("episodes", "envs", "max_steps"):
            if getattr(self, name) is not None:
                check_at_least(name.replace("_", "-"), getattr(self, name), 1)
        check_at_least("seed", self.seed, 0)
        if self.until_ci is not None and not 0 < self.until_ci < 0.5:
            raise SpecError(f"--until-ci {self.until_ci} is not between 0 and 0.5")
        check_deadline(self.deadline_ms, self.fallback)
        if self.deadline_ms is None and self.fallback != FALLBACKS[0]:
            raise SpecError(f"--fallback {self.fallback} is for --deadline-ms; without a deadline no plan is cut")
        check_margin(self.margin)
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

    def _clock(self, env: Env, latency: Latency) -> ControlClock | None:
        """Return how time goes on while plans are made; None where it does not.

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

    def _runner(
        self, planners: Mapping[str, Policy], pilots: Mapping[str, Pilot], clock: ControlClock | None
    ) -> Runner:
        """Return what runs the episodes.

        Raises:
            BackendError: Ray is asked for and does not start.
            EnvError: The environments cannot be made.
        """
        if self.workers is None:
            return LocalRunner(
                pilots, make_envs(partial(make_env, self.env, max_steps=self.max_steps), self.envs), self.seed
            )
        recipe = Recipe.of(self.policy, self.device, planners, self.env, self.envs, self.seed, clock, self.max_steps)
        return RayRunner(Workers.parse(self.workers), recipe, self.gpus_per_worker)

    def _find(self) -> Found | None:
        """Return the run in --out that is to go on, or None to begin one.

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

    def _identity(
        self, policy: Policy, record: dict[str, Any], samplers: Sequence[Sampler], clock: ControlClock | None
    ) -> dict[str, Any]:
        """Return what must be the same for a run to go on: whatever an episode or its times may depend on."""
        path = locate(self.policy)
        files = inspection.files(path, find_format(path)[1])
        tuning = find_tuning(path, policy)
        same = ("policy", "env", "seed", "device", "backend", "dtype", "package", "commit", "torch")
        return {
            **{key: record[key] for key in same},
            "sha256": {each["name"]: each["sha256"] for each in files},
            "tuning": inspection.file_record(tuning.file, tuning.file.name)["sha256"] if tuning else None,
            "envs": self.envs,
            **clock_record(clock),
            **self._deadline(),
            "samplers": [sampler.spec for sampler in samplers],
        }

    def _deadline(self) -> dict[str, Any]:
        """Return what results.json says of when plans have to be there."""
        return {
            "deadline_ms": self.deadline_ms,
            "fallback": None if self.deadline_ms is None else self.fallback,
        }

    def _work(self, tally: "Tally") -> Iterator[Group]:
        """Yield the groups that are not done, until there are episodes enough."""
        for group in groups(tally.specs, self._most, self.envs):
            if self._enough(tally) is not None:
                return
            if not tally.has(group):
                yield group

    def _enough(self, tally: "Tally") -> int | None:
        """Return how many episodes of each sampler were enough; None where they are not yet, or nobody asked."""
        return None if self.until_ci is None else enough_episodes(tally.successes(), self.until_ci, self.envs)


class Tally:
    """The episodes of a run so far."""

    def __init__(self, specs: Sequence[str], episodes: Sequence[Episode]) -> None:
        """Begin.

        Args:
            specs: Of the samplers.
            episodes: That the run has from before.
        """
        self.specs = specs
        self.episodes = list(episodes)
        self._known = {(episode.spec, episode.index): episode for episode in episodes}
        self._before = len(episodes)
        self._started = time.perf_counter()

    def knows(self, episode: Episode) -> bool:
        """Return whether the run has an episode."""
        return (episode.spec, episode.index) in self._known

    def add(self, episode: Episode) -> None:
        """Count an episode."""
        self._known[episode.spec, episode.index] = episode
        self.episodes.append(episode)

    def has(self, group: Group) -> bool:
        """Return whether all episodes of a group are there."""
        return all((group.spec, index) in self._known for index in group.indices)

    def successes(self) -> list[list[bool]]:
        """Return for each sampler the successes of its episodes 0, 1, … to the first that is not there."""
        counts = {
            spec: next(index for index in itertools.count() if (spec, index) not in self._known) for spec in self.specs
        }
        return [[self._known[spec, index].success for index in range(count)] for spec, count in counts.items()]

    def rates(self) -> dict[str, float | None]:
        """Return the speed of this process's part of the run, of which there may be none."""
        new, seconds = self.episodes[self._before :], time.perf_counter() - self._started
        return {
            "episodes_per_second": len(new) / seconds if new else None,
            "environment_steps_per_second": sum(episode.steps for episode in new) / seconds if new else None,
        }

    def line(self) -> str:
        """Return the running success of each sampler, and how many plans are made in a second."""
        new, seconds = self.episodes[self._before :], time.perf_counter() - self._started
        rates = []
        for spec in self.specs:
            done = [episode.success for episode in self.episodes if episode.spec == spec]
            if done:
                rates.append(f"{spec} {100 * sum(done) / len(done):.0f} %")
        plans = sum(len(episode.plans) for episode in new)
        return f"{', '.join(rates)}; {plans / seconds:.1f} plans/s"
