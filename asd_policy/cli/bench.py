"""`asd-policy bench`: how long does a plan take here, with each sampler on each backend?"""

import contextlib
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from asd_policy._common import hardware
from asd_policy._common.extras import install
from asd_policy._common.files import write_json
from asd_policy.checkpoints import load_policy
from asd_policy.cli.advice import busy_note, hint_at_onnx, warn_of
from asd_policy.cli.common import (
    DONE,
    INTERRUPTED,
    ChainOption,
    FixedCropOption,
    SamplersOption,
    check_at_least,
    check_folder,
    check_specs,
    choose_samplers,
    print_json,
    progress_bar,
)
from asd_policy.errors import AsdError
from asd_policy.evaluation import closed_loop
from asd_policy.evaluation.benchmark import Benchmark, Contender, contenders
from asd_policy.evaluation.reports import bench_report, figures, report
from asd_policy.evaluation.rollout.environments import Env, open_fitting
from asd_policy.evaluation.rollout.journal import RESULTS
from asd_policy.evaluation.states import CALIBRATION_PLANS, States, random_states
from asd_policy.networks.backends import make_backend
from asd_policy.policy.law import CHECKPOINT
from asd_policy.policy.policy import Policy
from asd_policy.samplers.asd.autotune import DEFAULT
from asd_policy.samplers.asd.sampler import Asd

KEPT_EVERY = 30.0
"""Time between writes of what is measured so far [s]: for the end that nothing can answer, as of `kill -9`."""
MAX_STATES = 512
"""Most states that are rolled out; a benchmark of more plans uses them again."""


@dataclass(frozen=True)
class BenchCommand:
    """Measure how long a plan takes with each sampler on each backend, interleaved, and what limits it."""

    policy: str
    """Checkpoint: a path, or a Hugging Face Hub id such as owner/name or owner/name@revision."""
    out: Path
    """Folder for results.json, which replaces one of an earlier bench, and the plots."""
    env: str | None = None
    """Gymnasium id: plan at observations from its episodes, as in use, and not at random ones in the normalisation's
    range. How many drafts asd accepts depends on it."""
    samplers: SamplersOption = ()
    backends: tuple[str, ...] = ()
    """Backend specs, such as torch-eager; the checkpoint's own by default. Speedups are against ddpm on the fastest."""
    plans: int = 50
    """Plans of each sampler on each backend."""
    batch: int = 1
    """Plans that are sampled together."""
    windows: tuple[int, ...] = ()
    """Also measure asd, or tokens, with each of these windows, such as 1 2 4 8 16, for the plot of speedup against
    window."""
    seed: int = 0
    """Seeds observations and noise; equal for all samplers."""
    chain: ChainOption = CHECKPOINT
    fixed_crop: FixedCropOption = False
    device: str = "cpu"
    """Torch device to plan on."""
    json: bool = False
    """Print the results as one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Measure; return the exit status."""
        for name in ("plans", "batch"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("seed", self.seed, 0)
        check_specs(self.samplers)
        backends = [make_backend(spec) for spec in self.backends]
        check_folder(self.out, "bench")
        busy = busy_note()
        policy = load_policy(self.policy, device=self.device, chain=self.chain, fixed_crop=self.fixed_crop)
        policy.check()
        fast = policy.law.fast or Asd()
        samplers = choose_samplers(policy, self.samplers) + [replace(fast, window=window) for window in self.windows]
        with open_fitting(policy, self.env) as env:
            entered = contenders(policy, samplers, backends or [policy.backend])
            with console.status("looking for states"):
                states, calibration = self._states(policy, env)
        self.out.mkdir(parents=True, exist_ok=True)  # now, so that no work is lost if it fails
        warn_of(console, busy)
        if not self.backends:
            hint_at_onnx(console, policy, "--backends torch-eager onnx")
        bench = Benchmark(entered, states, calibration, self.plans, self.batch, self.seed)
        path, record = self.out / RESULTS, self._record(policy, entered)
        cut_short = self._measure(console, bench, path, record)
        power = {"power_after": hardware.power_state(policy.device)}
        results = {**record, **power, "interrupted": cut_short is not None, **bench.results()}
        if bench.rounds or not path.exists():
            write_json(path, results)
        else:  # of an earlier bench, whose plans are more than none
            path = None
        if self.json:
            print_json(results)
        self._tell(console, results)
        if cut_short is None:
            console.print(f"results: {path}", soft_wrap=True)
            return DONE
        kept = f"are kept in {path}" if path else f"are there; {self.out} keeps the results of before"
        console.print(f"interrupted: {results['plans']} of {self.plans} plans {kept}", soft_wrap=True)
        if isinstance(cut_short, AsdError):
            raise cut_short
        return INTERRUPTED

    def _record(self, policy: Policy, entered: Sequence[Contender]) -> dict[str, Any]:
        """Build what results.json says of the run as a whole, before anything is measured."""
        specs = list(dict.fromkeys(contender.policy.backend.spec for contender in entered))
        dtypes = {contender.policy.backend.dtype for contender in entered}
        return report.run_record("bench", self.policy, self.env, self.seed, policy) | {
            "episodes": None,
            "backend": specs[0] if len(specs) == 1 else None,
            "dtype": dtypes.pop() if len(dtypes) == 1 else None,
            "backends": specs,
            "states_from": "random" if self.env is None else f"episodes of {self.env}",
            "versions": hardware.versions(policy.device),
            "float32": hardware.float32_precision(),
            "power_before": hardware.power_state(policy.device),
        }

    def _measure(
        self, console: Console, bench: Benchmark, path: Path, record: dict[str, Any]
    ) -> KeyboardInterrupt | AsdError | None:
        """Measure, keeping now and then what is there; return what cut it short, if anything did."""
        kept_at = time.monotonic()
        try:
            with progress_bar(console) as progress:
                task = progress.add_task("")

                def advance(doing: str, done: int, total: int) -> None:
                    nonlocal kept_at
                    progress.update(task, description=doing, completed=done, total=total)
                    if bench.rounds and time.monotonic() > kept_at + KEPT_EVERY:
                        with contextlib.suppress(OSError):  # the write at the end says what is wrong
                            write_json(path, {**record, "interrupted": True, **bench.results()})
                        kept_at = time.monotonic()

                ceiling = bench.measure_ceiling(advance)
                progress.console.print(bench_report.ceiling_table(ceiling.record()))
                bench.warm_up(advance)
                bench.measure(advance)
        except (KeyboardInterrupt, AsdError) as stop:
            return stop
        return None

    def _states(self, policy: Policy, env: Env | None) -> tuple[States, States]:
        """Make states to measure in, and others to warm up in."""
        count, calibration = min(MAX_STATES, self.plans * self.batch), CALIBRATION_PLANS
        learning_seed = closed_loop.learning_seed(self.seed)
        if env is None:
            other = random_states(policy, calibration, learning_seed)
            return random_states(policy, count, self.seed), other
        fast = policy.law.fast or policy.reference
        if isinstance(fast, Asd):  # in a setting that leaves nothing to choose
            fast = Asd(min(DEFAULT.window, policy.steps))
        planner = policy.with_sampler(fast)
        other = closed_loop.collect_states(planner, env, calibration, learning_seed)
        planner.experience.freeze()
        return closed_loop.collect_states(planner, env, count, self.seed), other

    def _tell(self, console: Console, results: dict[str, Any]) -> None:
        """Show the tables, and draw the plots."""
        if not results["samplers"]:
            return
        console.print(bench_report.latency_table(results))
        for line in report.choices(results):
            console.print(line, soft_wrap=True)
        console.print(bench_report.stages_table(results))
        if importlib.util.find_spec("matplotlib") is None:
            console.print(f"no plots: they need matplotlib; {install('plots')}")
            return
        drawn = figures.draw_all(results, (), self.out, "svg")
        for plot in drawn.files:
            console.print(f"plot: {plot}", soft_wrap=True)
        for line in drawn.left_out:
            console.print(line, soft_wrap=True)
