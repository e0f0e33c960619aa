"""`asd-policy eval`: is it as good, and is it faster, in closed loop?"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console

from asd_policy._common.files import write_json
from asd_policy.checkpoints import load_policy
from asd_policy.cli.advice import busy_note, hint_at_onnx, warn_of
from asd_policy.cli.common import (
    DONE,
    FAILED,
    INTERRUPTED,
    check_specs,
    choose_samplers,
    print_json,
    progress_bar,
)
from asd_policy.cli.eval_options import EvalOptions
from asd_policy.cli.tally import Tally
from asd_policy.errors import AsdError, RunError, one_line
from asd_policy.evaluation import closed_loop
from asd_policy.evaluation.comparison import kept_episodes
from asd_policy.evaluation.reports import page, report, video
from asd_policy.evaluation.rollout.clocks import ControlClock, clock_record, make_pilot
from asd_policy.evaluation.rollout.environments import control_rate, make_env, open_env, step_limit
from asd_policy.evaluation.rollout.journal import RESULTS, Found, Journal
from asd_policy.evaluation.rollout.latencies import Latency
from asd_policy.evaluation.rollout.ray_runner import RayRunner, Recipe, Workers
from asd_policy.evaluation.rollout.runner import LocalRunner, Runner
from asd_policy.evaluation.rollout.vector import make_envs
from asd_policy.evaluation.summary import summarize_episodes
from asd_policy.policy.episode_state import Pilot
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler


@dataclass(frozen=True)
class Setup:
    """What the episodes of a run are made with."""

    record: dict[str, Any]
    """What results.json says of the run as a whole."""
    identity: dict[str, Any]
    """What must be the same for the run to go on, and what its samplers ran as."""
    reference: Sampler
    """The sequential sampler, which the others are compared with."""
    chain_steps: int
    """Its network calls in a plan, K."""
    clock: ControlClock | None
    """That goes on while plans are made; None where the environment waits."""
    env_hz: float | None
    """The environment's own control frequency, where it declares one."""
    samplers: dict[str, Sampler]
    """The samplers as they run, by the specs that were asked for."""
    planners: dict[str, Policy]
    """The policy with each of them, by the same specs, warmed up."""
    pilots: dict[str, Pilot]
    """The planners by the clock."""


@dataclass(frozen=True)
class EvalCommand(EvalOptions):
    """Roll a policy out in an environment with each sampler, on the same seeds, and compare.

    Exit status: 0 done, 1 done, but an episode failed (its environment raised, ended, or returned NaN), 2 bad usage or
    input, 130 interrupted. Episodes are kept in episodes.jsonl as they finish, whatever happens then.
    """

    def run(self, console: Console) -> int:
        """Evaluate; return the exit status."""
        self.check()
        check_specs(self.samplers)
        found = self.find_run()
        if self.video:
            self._check_video()
        busy = busy_note()
        policy = self._load()
        samplers = choose_samplers(policy, self.samplers)
        setup = self._set_up(policy, samplers, self.read_latency(samplers), found)
        runner = self._make_runner(setup)
        journal = self._open_journal(setup, found)
        self._tell_limit(console, setup)
        self._advise(console, policy, busy)
        earlier = found.episodes if found else ()
        tally = Tally(list(setup.samplers), earlier, self.most, self.envs, self.until_ci, self._least(found))
        if tally.wanted > self.most:
            console.print(f"--episodes {self.most}: the run has {tally.wanted}, and keeps them", soft_wrap=True)
        stop = self._run_episodes(console, runner, journal, tally)
        results = self._sum_up(setup, tally, runner.count, stop is not None)
        self._write(results, stop)
        if self.json:
            print_json(results)
        self._print_tables(console, setup, results)
        if stop is not None:
            return self._end_early(console, tally, results, stop)
        return self._end(console, setup, tally, results)

    def _check_video(self) -> None:
        """Refuse an environment that cannot be filmed here.

        Raises:
            EnvError: It cannot.
        """
        video.check_video(self.env)

    def _load(self) -> Policy:
        """Load the policy.

        Raises:
            AsdError: It cannot be loaded, or the deadline does not fit it.
        """
        if self.workers is not None:
            torch.set_num_threads(1)  # as the workers: what is learned here, and recorded, is then theirs too
        policy = load_policy(
            self.policy, device=self.device, backend=self.backend, chain=self.chain, fixed_crop=self.fixed_crop
        )
        return policy if self.deadline_ms is None else policy.with_deadline(self.deadline_ms, self.fallback)

    def _set_up(self, policy: Policy, samplers: Sequence[Sampler], latency: Latency, found: Found | None) -> Setup:
        """Look at the environment, and get every sampler ready.

        Args:
            policy: As loaded.
            samplers: As they were asked for.
            latency: The law of latencies.
            found: The run that goes on; None where one begins.

        Raises:
            AsdError: Something does not fit, or `found` is another run.
        """
        record = report.run_record("eval", self.policy, self.env, self.seed, policy)
        with open_env(self.env, max_steps=self.max_steps) as env:
            clock = self.make_clock(env, latency)
            identity = self.identify(policy, record, samplers, clock) | {"max_steps": step_limit(env, self.max_steps)}
            if found is not None:
                found.check_same(identity)
                found.check_plans(len(policy.job.chain))
                ran = {spec: make_sampler(chosen) for spec, chosen in found.ran.items()}
            else:
                ran = closed_loop.resolve_samplers(policy, env, samplers, self.envs)
            prepared = closed_loop.prepare_planners(policy, env, list(ran.values()), self.envs)
            planners = dict(zip(ran, prepared, strict=True))
            env_hz = control_rate(env)
        ran = {spec: planner.sampler for spec, planner in planners.items()}
        identity["ran"] = {spec: sampler.spec for spec, sampler in ran.items()}
        pilots = {spec: make_pilot(planner, clock, spec) for spec, planner in planners.items()}
        return Setup(record, identity, policy.reference, policy.steps, clock, env_hz, ran, planners, pilots)

    def _make_runner(self, setup: Setup) -> Runner:
        """Make what runs the episodes: in this process, or on Ray workers.

        Raises:
            BackendError: Ray is asked for and does not start.
            EnvError: The environments cannot be made.
        """
        if self.workers is None:
            make = partial(make_env, self.env, max_steps=self.max_steps)
            return LocalRunner(setup.pilots, make_envs(make, self.envs), self.seed)
        recipe = Recipe.of(
            self.policy, self.device, setup.planners, self.env, self.envs, self.seed, setup.clock, self.max_steps
        )
        return RayRunner(Workers.parse(self.workers), recipe, self.gpus_per_worker)

    def _open_journal(self, setup: Setup, found: Found | None) -> Journal:
        """Open the journal of the run that goes on, or start one.

        Raises:
            RunError: It cannot be written, or another process is writing it.
        """
        if found is not None:
            return Journal.resume(found)
        journal = Journal.start(self.out, setup.identity, self.overwrite)
        for name in (page.PAGE, video.SIDE_BY_SIDE):
            (self.out / name).unlink(missing_ok=True)  # of a run that was there
        return journal

    def _tell_limit(self, console: Console, setup: Setup) -> None:
        """Say where episodes are cut, if neither the user nor the environment did."""
        limit = setup.identity["max_steps"]
        if self.max_steps is None and limit is not None:
            console.print(
                f"{self.env} declares no time limit: an episode that does not end by itself is cut at {limit} "
                "steps (--max-steps)",
                soft_wrap=True,
            )

    def _advise(self, console: Console, policy: Policy, busy: str | None) -> None:
        """Say what would make times better, or more to be believed."""
        warn_of(console, busy)
        if self.backend is None:
            hint_at_onnx(console, policy, "--backend onnx")

    def _least(self, found: Found | None) -> int:
        """Count the episodes of each sampler that a run has and keeps, whatever was asked for.

        With `--until-ci` a run may have more than the interval needs, of groups that were under way: they do not count.
        """
        if found is None:
            return 0
        if self.until_ci is None:
            return max((episode.index + 1 for episode in found.episodes), default=0)
        return kept_episodes(self.out)

    def _run_episodes(
        self, console: Console, runner: Runner, journal: Journal, tally: Tally
    ) -> KeyboardInterrupt | AsdError | None:
        """Run what is not done yet, and keep each episode as it finishes; return what cut it short, if anything did."""
        try:
            with progress_bar(console) as progress:
                task = progress.add_task(self.env, total=tally.most)
                for episode in runner.run(tally.work()):
                    if episode not in tally:  # some of a group that was cut short are there already
                        journal.add(episode)
                        tally.add(episode)
                        progress.update(task, completed=len(tally.episodes), description=tally.line())
        except (KeyboardInterrupt, AsdError) as stop:
            return stop
        finally:
            runner.close()
            journal.close()
        return None

    def _sum_up(self, setup: Setup, tally: Tally, workers: int, interrupted: bool) -> dict[str, Any]:
        """Build the results.json object of what has finished."""
        counted, clock = tally.counted(), setup.clock
        return {
            **setup.record,
            "episodes": tally.wanted,
            "until_ci": self.until_ci,
            "torch_device": self.device,
            "envs": self.envs,
            "max_steps": setup.identity["max_steps"],
            "sha256": setup.identity["sha256"],
            "tuning": setup.identity["tuning"],
            "workers": workers,
            **clock_record(clock),
            **self.deadline_record(),
            "env_hz": setup.env_hz,
            "complete": len(counted) == tally.goal,
            "interrupted": interrupted,
            **tally.rates(),
            "samplers": summarize_episodes(
                setup.samplers,
                counted,
                setup.chain_steps,
                self.margin,
                None if clock is None else clock.hz,
                setup.reference.spec,
            ),
        }

    def _write(self, results: dict[str, Any], stop: BaseException | None) -> None:
        """Write results.json.

        Raises:
            RunError: It cannot be written; or what had cut the run short before.
        """
        path = self.out / RESULTS
        try:
            write_json(path, results)
        except OSError as error:
            if stop is not None:
                raise stop from None  # a disk that is full: the journal has said so
            raise RunError(
                f"{path} cannot be written: {error.strerror}; all episodes are kept, and --resume writes it"
            ) from None

    def _print_tables(self, console: Console, setup: Setup, results: dict[str, Any]) -> None:
        """Print the results as tables, and what is to be said under them."""
        console.print(report.table(results))
        if setup.clock is not None:
            console.print(report.timing_table(results))
            if (note := report.other_rate(results)) is not None:
                console.print(f"note: {note}", soft_wrap=True)
        for line in report.remarks(results):
            console.print(line, soft_wrap=True)

    def _end_early(
        self, console: Console, tally: Tally, results: dict[str, Any], stop: KeyboardInterrupt | AsdError
    ) -> int:
        """Say what is kept of a run that was cut short, and return the exit status of an interrupt.

        Raises:
            AsdError: The error that has cut it short.
        """
        counted = tally.counted()
        kept = f"{len(counted)} of {tally.goal} episodes are kept in {self.out / RESULTS}"
        console.print(f"interrupted: {kept}; --resume goes on", soft_wrap=True)
        if counted:
            self._write_page(console, None, results)
        if isinstance(stop, AsdError):
            raise stop
        return INTERRUPTED

    def _end(self, console: Console, setup: Setup, tally: Tally, results: dict[str, Any]) -> int:
        """Say where the results are, write the page, and return the exit status: whether an episode failed."""
        console.print(f"results: {self.out / RESULTS}", soft_wrap=True)
        self._write_page(console, setup, results)
        counted = tally.counted()
        failed = [episode for episode in counted if episode.error is not None]
        if failed:
            first = f"{failed[0].spec} episode {failed[0].index}: {failed[0].error}"
            console.print(f"{len(failed)} of {len(counted)} episodes failed; {one_line(first)}", soft_wrap=True)
        return FAILED if failed else DONE

    def _write_page(self, console: Console, setup: Setup | None, results: dict[str, Any]) -> None:
        """Write the videos that are asked for, if the run is whole, and the page."""
        try:
            if self.video and setup is not None:
                shapes = next(iter(setup.planners.values())).observation_shapes
                filmed = (self.env, self.seed, self.out, page.shown_beside(results), self.max_steps, shapes)
                for path in video.record(setup.pilots, *filmed):
                    console.print(f"video: {path}", soft_wrap=True)
        finally:
            console.print(f"page: {page.write(self.out)}", soft_wrap=True)
