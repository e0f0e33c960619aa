"""Measure every sampler on one GPU in one run: networks of 4.6 M, 64 M and 263 M parameters, the last with two cameras.

    PYTHONPATH=. python scripts/gpu_bench.py --out runs/gpu

from the repository's root; where the package is installed, without PYTHONPATH. It needs PyTorch, numpy, safetensors,
array-api-compat and lazy-loader, and the files beside it; no environment and no other package. Results are written as
they come. What the time does not allow, or the machine does not have, is left out, and results.json says so. A second
run with the same --out takes up the networks that the first one has trained.
"""

import argparse
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import gpu_bench_data
import gpu_bench_kernels
import gpu_bench_scene
import gpu_bench_table
import gpu_bench_train
from asd_policy import Policy, load_policy, make_backend, make_sampler
from asd_policy._common import hardware
from asd_policy._common.clock import clock_of
from asd_policy._common.files import write_json
from asd_policy.errors import AsdError
from asd_policy.evaluation.benchmark import Benchmark, Contender, pick, plan
from asd_policy.evaluation.reports import report
from asd_policy.evaluation.states import States
from gpu_bench_plan import FULL, SMOKE, Counting, Part, Subject, Training, describe, fits, slots

DATA = Path(__file__).with_name("gpu_bench_data.npz")
SECONDS = 470.0
"""Of nine minutes, after one to start the machine and to install what is carried."""
GRACE = 10.0
"""Seconds beyond those allowed after which a run is ended wherever it is."""


class Budget:
    """The time of a run."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._end - time.monotonic()

    def slice_of(self, seconds: float) -> Callable[[], bool]:
        """Make a function that tells whether a part of so many seconds that begins now may go on."""
        end = min(time.monotonic() + seconds, self._end)
        return lambda: time.monotonic() < end


class Run:
    """One run: its parts, and the results as they come."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Read the recording, and the checkpoint that it was made with."""
        self.out: Path = options.out
        self.seed: int = options.seed
        self.size = SMOKE if options.smoke else FULL
        self.budget = Budget(options.seconds)
        self.doing = "the beginning"
        self._seconds: float = options.seconds
        self._writing = threading.RLock()
        self.recording = gpu_bench_data.load(options.data)
        self.checkpoint = load_policy(gpu_bench_data.CHECKPOINT, device=options.device)
        device = self.checkpoint.device
        path = gpu_bench_data.CHECKPOINT.relative_to(gpu_bench_data.ROOT)
        self._policies: dict[str, Policy | None] = {}
        self._states: dict[str, States] = {}
        self._contenders: dict[tuple[str, str, str], Contender] = {}
        self._backends: dict[tuple[str, str], Policy] = {}
        self.results: dict[str, Any] = {
            **report.run_record(
                "gpu_bench", str(path), self.recording.notes["environment"], self.seed, self.checkpoint
            ),
            "backend": None,  # each part has several
            "dtype": None,
            "seconds_allowed": options.seconds,
            "versions": hardware.versions(device),
            "float32": hardware.float32_precision(),
            "power_before": hardware.power_state(device),
            "recording": self.recording.notes,
            "training": {},
            "parts": [],
            "kernels": [],
            "skipped": [],
            "warnings": [],
        }

    def go(self) -> bool:
        """Do all steps that the time allows; return whether none failed with an unexpected error."""
        sound = True
        for step in self.size.steps:
            if isinstance(step, Training) and self.folder(step.subject).exists():
                continue
            self.doing = step.name
            if not fits(step, self.budget.left):
                needed = f"{step.prepare:.0f} s are needed to prepare it"
                self.skip(step.name, f"{max(self.budget.left, 0):.0f} s of {self._seconds:.0f} s are left; {needed}")
                continue
            try:
                if isinstance(step, Training):
                    self.train(step)
                elif isinstance(step, Counting):
                    self.count(step)
                else:
                    self.part(step)
            except Exception as error:  # a step that fails must not lose the others' results
                sound = False
                traceback.print_exc()
                self.skip(step.name, f"{type(error).__name__}: {error}")
        self.results["power_after"] = hardware.power_state(self.checkpoint.device)
        self.finish()
        return sound

    def finish(self) -> None:
        """Write what there is."""
        self.results["seconds"] = self._seconds - self.budget.left
        self.save()

    def end(self) -> None:
        """End the process, from another thread: what cannot be interrupted, such as a compilation, took too long."""
        with self._writing:
            self.skip(self.doing, f"{self._seconds + GRACE:.0f} s are up: the run was ended in the middle of it")
            self.finish()
            sys.stdout.flush()
            os._exit(0)

    def folder(self, subject: Subject) -> Path:
        """Name the folder of a network that is trained here."""
        return self.out / f"network-{subject.name.replace(', ', '-').replace(' ', '-')}"

    def train(self, step: Training) -> None:
        """Train a network and write it."""
        seconds = min(step.seconds, self.budget.left - step.prepare)
        say(f"training {step.subject.name} for {seconds:.0f} s")
        gpu_bench_train.train(
            self.checkpoint,
            step.subject,
            self.recording,
            seconds,
            self.folder(step.subject),
            self.seed,
            self.size.observations,
        )

    def policy_of(self, subject: Subject) -> Policy | None:
        """Load a network; None where there is none, which is tried once."""
        if subject.down_dims is None:
            return self.checkpoint
        if subject.name not in self._policies:
            folder = self.folder(subject)
            self._policies[subject.name] = None
            if folder.exists():
                notes = self.results["training"][subject.name] = gpu_bench_train.trained_notes(folder)
                took = f"{notes['train_steps']} steps in {notes['seconds']:.0f} s"
                say(f"{subject.name}: trained for {took}, loss {notes['loss']:.4f}")
                self._policies[subject.name] = load_policy(folder, device=str(self.checkpoint.device))
        return self._policies[subject.name]

    def part(self, step: Part) -> None:
        """Measure samplers against one another."""
        began = time.monotonic()
        policy = self.policy_of(step.subject)
        if policy is None:
            self.skip(step.name, "its network was not trained")
            return
        may_prepare = self.budget.slice_of(2 * step.prepare if step.prepare else step.seconds)
        states, entered = self.states(step.subject, policy), self.contenders(step, policy)
        if not entered:
            return
        warm, measured = states.first(len(states) // 4), states.rows(slice(len(states) // 4, None))
        bench = Benchmark(entered, measured, warm, step.plans, step.batch, self.seed)
        memory = Memory(policy.device, [contender.name for contender in entered])
        bench.warm_up(memory.note, may_prepare, keep_going=True)
        memory.note("", len(entered), 0)
        for contender, error in bench.failed:
            self.skip(f"{step.name}: {contender.name}", f"{type(error).__name__}: {error}")
        if not bench.entered:
            return
        try:
            bench.measure_ceiling()
        except AsdError as error:
            self.skip(f"{step.name}: ceiling", str(error))
        for contender in bench.entered:  # again, as recordings may have made room for those of others
            plan(contender.policy, pick(warm, 0, step.batch), self.seed, clock_of(policy.device))
        bench.measure(lambda doing, done, total: None, self.budget.slice_of(step.seconds))
        found = bench.results()
        for each, contender in zip(found["samplers"], bench.entered, strict=True):
            each["memory_mib"] = memory.grown.get(contender.name)
            each["wall_over_algorithmic"] = each["wall_clock_speedup"] and (
                each["wall_clock_speedup"] / each["algorithmic_speedup"]
            )
        self.results["parts"].append(
            {
                "network": step.subject.name,
                "kind": step.kind,
                **gpu_bench_train.count_parameters(policy),
                "seconds": time.monotonic() - began,
                "peak_mib": memory.peak(),
                **found,
            }
        )
        self.save()
        say(f"{step.name}: {found['plans']} plans each in {time.monotonic() - began:.0f} s; {_power(policy.device)}")
        for each in found["samplers"]:
            say("  " + gpu_bench_table.line(each))

    def count(self, step: Counting) -> None:
        """Count the kernels of all contenders with drafts on a backend, at batch 1."""
        for (name, spec, sampler), contender in self._contenders.items():
            if spec != step.backend or not sampler.startswith("asd") or name not in self._states:
                continue
            if self.budget.left <= 0:
                self.skip(f"{step.name}: {sampler} of {name}", "no time is left")
                continue
            policy, state = contender.policy, self._states[name].first(1)
            try:
                found = gpu_bench_kernels.count(
                    policy,
                    lambda policy=policy, state=state: plan(policy, state, self.seed, clock_of(policy.device)).stats,
                )
            except Exception as error:  # a profiler that does not run here must not lose the rest
                self.skip(f"{step.name}: {sampler} of {name}", f"{type(error).__name__}: {error}")
                continue
            self.results["kernels"].append({"network_name": name, **contender.identity, **found})
            self.save()
            ours, network, unit = (found[key] for key in ("ours", "network", "unit"))
            say(f"{name}, {contender.name}: {ours} {unit} of ours a round, {network} of the network")

    def contenders(self, step: Part, policy: Policy) -> list[Contender]:
        """List what of the entries can run here; each is prepared once for all parts."""
        entered = []
        for spec, samplers in step.entered:
            place = step.subject.name, spec
            try:
                if place not in self._backends:
                    self._backends[place] = policy.with_backend(make_backend(spec))
            except AsdError as error:
                self.skip(f"{step.name}: all on {spec}", str(error))
                continue
            for sampler in samplers:
                key = (*place, sampler)
                if key not in self._contenders:
                    self._contenders[key] = Contender(self._backends[place].with_sampler(make_sampler(sampler)))
                entered.append(self._contenders[key])
        return entered

    def states(self, subject: Subject, policy: Policy) -> States:
        """Make the recorded states, with the plans that this network would have made before them."""
        if subject.name not in self._states:
            recording = self.recording.first_states(self.size.states)
            cond, before = recording.cond, recording.previous
            if subject.frame is not None:
                cond, before = (
                    gpu_bench_scene.look(policy, each, self.checkpoint, subject.frame) for each in (cond, before)
                )
            sequential = policy.with_sampler(policy.reference)  # with many rows it is the fastest
            last_plans = gpu_bench_data.last_plans(sequential, recording, self.seed, before)
            self._states[subject.name] = States(cond.to(policy.device), last_plans, recording.episode)
        return self._states[subject.name]

    def skip(self, what: str, why: str) -> None:
        """Print and record that something was not measured."""
        say(f"skipped: {what}: {why}")
        self.results["skipped"].append({"what": what, "why": why})
        self.save()

    def warn(self, message: Warning | str, *_: Any, **__: Any) -> None:
        """Print and record a warning, such as that something runs in a slower way; once."""
        if (text := str(message)) not in self.results["warnings"]:
            say(f"warning: {text}")
            self.results["warnings"].append(text)

    def save(self) -> None:
        """Write the results so far, and tables of them."""
        with self._writing:
            write_json(self.out / "results.json", self.results)
            (self.out / "tables.md").write_text(gpu_bench_table.tables(self.results))


class Memory:
    """By how much the memory that PyTorch holds on a device grows, for each contender; nothing on a CPU."""

    def __init__(self, device: torch.device, names: list[str]) -> None:
        self._gpu = device if device.type == "cuda" else None
        self._names = names
        self._marks: list[int] = []
        if self._gpu is not None:
            torch.cuda.reset_peak_memory_stats(self._gpu)

    def note(self, doing: str, index: int, total: int) -> None:
        """Note what is held before contender `index` is prepared; say what is being done."""
        if self._gpu is not None:
            torch.cuda.synchronize(self._gpu)
            torch.cuda.empty_cache()  # of what nobody holds any longer
            self._marks.append(torch.cuda.memory_reserved(self._gpu))

    @property
    def grown(self) -> dict[str, float]:
        """MiB that each contender's preparation has added."""
        steps = zip(self._marks, self._marks[1:], strict=False)
        return {name: (after - before) / 2**20 for name, (before, after) in zip(self._names, steps, strict=False)}

    def peak(self) -> float | None:
        """MiB that were in use at once, at most, weights included."""
        return None if self._gpu is None else torch.cuda.max_memory_allocated(self._gpu) / 2**20


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def _power(device: torch.device) -> str:
    return ", ".join(f"{name} {value}" for name, value in hardware.power_state(device).items() if value is not None)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for results.json and the networks")
    parser.add_argument("--device", default="cuda", help="torch device")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long the run may take")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and noise")
    parser.add_argument("--data", type=Path, default=DATA, help="the recording")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and a few plans: does everything run?")
    parser.add_argument("--dry", action="store_true", help="print what would be done when, and do nothing")
    parser.add_argument("--record", action="store_true", help="record --data from the environment, and measure nothing")
    options = parser.parse_args()
    if options.seconds <= 0:
        parser.error(f"--seconds {options.seconds:g} is not above 0")
    if options.seed < 0:
        parser.error(f"--seed {options.seed} is not 0 or more")
    options.refuse = parser.error
    return options


def main() -> None:
    """Record, plan or run."""
    options = read_options()
    if options.record:
        gpu_bench_data.record(options.data, options.seed)
        say(f"wrote {options.data}: {options.data.stat().st_size / 1e6:.2f} MB")
        return
    if options.dry:
        size = SMOKE if options.smoke else FULL
        say(describe(slots(size.steps, options.seconds, lambda subject: False)))
        return
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        os.environ.update(gpu_bench_kernels.WITH_GRAPHS)
        # Compiled code is kept with the networks, for a second run.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((options.out / "compiled").resolve()))
        run = Run(options)
        warnings.showwarning = run.warn
        end = threading.Timer(options.seconds + GRACE, run.end)
        end.daemon = True
        end.start()
        try:
            sound = run.go()
        finally:
            end.cancel()
            end.join()  # Python aborts where a thread wakes up at its very end
        say(f"results: {options.out / 'results.json'}, {options.out / 'tables.md'}")
        raise SystemExit(0 if sound else 1)
    except (AsdError, OSError) as error:
        options.refuse(" ".join(str(error).split()))
    except KeyboardInterrupt:
        say(f"interrupted: finished parts are kept in {options.out / 'results.json'}")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
