"""Measure every sampler on one GPU in one run: networks of 4.7 M, 64 M and 250 M trained parameters, K = 100.

    PYTHONPATH=. python scripts/gpu_bench.py --out runs/gpu

from the repository's root; where the package is installed, without PYTHONPATH. It needs PyTorch, numpy, safetensors,
array-api-compat and lazy-loader, and the files beside it; no environment and no other package. What the time does not
allow, or the machine does not have, is left out, and results.json says so. A second run with the same --out takes up
the networks that the first one has trained.
"""

import argparse
import importlib.util
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import gpu_bench_data
import gpu_bench_train
from asd_policy import Policy, load_policy, make_backend, make_sampler
from asd_policy._common import hardware
from asd_policy._common.files import write_json
from asd_policy.errors import AsdError
from asd_policy.evaluation.benchmark import Benchmark, Contender
from asd_policy.evaluation.reports import report
from asd_policy.evaluation.states import States

DATA = Path(__file__).with_name("gpu_bench_data.npz")
FROZEN = "asd:window=32,draft=frozen,verify=reflection"
GRAPH = "torch-cuda-graph"
ENTERED = (
    (GRAPH, ("ddpm", "asd", FROZEN, "ddim:10", "paradigms:window=16,tol=0.1")),
    ("torch-eager", ("ddpm", "asd", "ddim:10")),
    (f"{GRAPH}:dtype=bfloat16", ("ddpm", "asd")),
    ("torch-compile", ("ddpm", "asd")),
)
"""Backends, and the samplers on each. The one that takes longest to prepare comes last, because time may be up
before."""
NEEDS = {"ddim:10": "diffusers"}
"""Packages that samplers need."""
LEAST_SECONDS = 10
"""Left for a part, or it is not begun."""


@dataclass(frozen=True)
class Subject:
    """A network to measure."""

    name: str
    down_dims: tuple[int, ...] | None
    """None for the bundled checkpoint."""
    training_share: float = 0.0
    """Of the time, if it has to be trained."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    subjects: tuple[Subject, ...]
    batches: dict[int, int]
    """Batches, and their weights in the sharing of time: single plans are what robots make."""
    plans: int
    """Of each contender, at most."""
    states: int
    """Of the recording, at most; a quarter of them to warm up in."""
    entered: tuple[tuple[str, tuple[str, ...]], ...] = ENTERED


FULL = Size(
    # The largest comes last, because it is the least needed if time runs out.
    (
        Subject("64M", (256, 512, 1024), 0.22),
        Subject("4.6M", None),
        Subject("250M", (512, 1024, 2048), 0.13),
    ),
    {1: 4, 8: 1, 64: 1},
    200,
    512,
)
SMOKE = Size(
    (Subject("smoke", (16, 32), 0.005),),
    {4: 1},
    2,
    32,
    (("torch-eager", ("ddpm", "asd:window=16", FROZEN, "ddim:10")), (GRAPH, ("ddpm",))),
)


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
        self._seconds: float = options.seconds
        self.recording = gpu_bench_data.load(options.data)
        self.checkpoint = load_policy(gpu_bench_data.CHECKPOINT, device=options.device)
        device = self.checkpoint.device
        path = gpu_bench_data.CHECKPOINT.relative_to(gpu_bench_data.ROOT)
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
            "skipped": [],
        }

    def go(self) -> bool:
        """Run all parts that the time allows; return whether none failed with an unexpected error."""
        parts = [(subject, batch) for subject in self.size.subjects for batch in self.size.batches]
        sound = True
        policies: dict[str, Policy | None] = {}
        for index, (subject, batch) in enumerate(parts):
            what = f"{subject.name} at batch {batch}"
            if self.budget.left < LEAST_SECONDS:
                self.skip(what, f"{self.budget.left:.0f} s of {self._seconds:.0f} s are left")
                continue
            try:
                if subject.name not in policies:
                    policies[subject.name] = None  # not tried again where it fails
                    policies[subject.name] = self.policy_of(subject)
                policy = policies[subject.name]
                if policy is None:
                    self.skip(what, "its network could not be made")
                    continue
                self.part(subject, policy, batch, self.share_of(parts[index:]))
            except Exception as error:  # a part that fails must not lose the others' results
                sound = False
                traceback.print_exc()
                self.skip(what, f"{type(error).__name__}: {error}")
        self.results["power_after"] = hardware.power_state(self.checkpoint.device)
        self.results["seconds"] = self._seconds - self.budget.left
        self.save()
        return sound

    def share_of(self, parts: Sequence[tuple[Subject, int]]) -> float:
        """Compute the seconds that the first of the parts still to come may take: its share of what trainings leave."""
        to_train = {subject for subject, _ in parts if subject.training_share and not self.folder(subject).exists()}
        training = self._seconds * sum(subject.training_share for subject in to_train)
        weights = [self.size.batches[batch] for _, batch in parts]
        return max(self.budget.left - training, 0) * weights[0] / sum(weights)

    def folder(self, subject: Subject) -> Path:
        """Name the folder of a network that is trained here."""
        return self.out / f"network-{subject.name}"

    def policy_of(self, subject: Subject) -> Policy:
        """Load or train a network, and make its policy."""
        if subject.down_dims is None:
            return self.checkpoint
        folder = self.folder(subject)
        if not folder.exists():
            seconds = min(self._seconds * subject.training_share, self.budget.left)
            say(f"training {subject.name} for {seconds:.0f} s")
            gpu_bench_train.train(self.checkpoint, subject.down_dims, self.recording, seconds, folder, self.seed)
        notes = json.loads((folder / "training.json").read_text())
        self.results["training"][subject.name] = notes
        self.save()
        say(f"{subject.name}: {notes['train_steps']} steps in {notes['seconds']:.0f} s, loss {notes['loss']:.4f}")
        return load_policy(folder, device=str(self.checkpoint.device))

    def part(self, subject: Subject, policy: Policy, batch: int, seconds: float) -> None:
        """Measure one network at one batch in so many seconds, or a little more."""
        began = time.monotonic()
        may_warm_up, may_go_on = self.budget.slice_of(seconds / 2), self.budget.slice_of(seconds)
        what = f"{subject.name} at batch {batch}"
        entered = self.contenders(policy, what)
        if not entered:
            return
        states = self.states(policy)
        warm, measured = states.first(len(states) // 4), states.rows(slice(len(states) // 4, None))
        bench = Benchmark(entered, measured, warm, self.size.plans, batch, self.seed)
        bench.warm_up(lambda doing, done, total: say(f"{what}: {doing}"), may_warm_up, keep_going=True)
        for contender, error in bench.failed:
            self.skip(f"{what}: {contender.name}", str(error))
        if not bench.entered:
            return
        try:
            bench.measure_ceiling()
        except AsdError as error:
            self.skip(f"{what}: ceiling", str(error))
        bench.measure(lambda doing, done, total: None, may_go_on)
        found = bench.results()
        parameters = sum(weight.numel() for weight in _parameters(policy))
        self.results["parts"].append(
            {"network": subject.name, "parameters": parameters, "seconds": time.monotonic() - began, **found}
        )
        self.save()
        say(f"{what}: {found['plans']} plans each in {time.monotonic() - began:.0f} s; {_power(policy.device)}")
        for each in found["samplers"]:
            say("  " + line(each))

    def contenders(self, policy: Policy, what: str) -> list[Contender]:
        """List what of the entries can run here."""
        entered = []
        for spec, samplers in self.size.entered:
            try:
                running = policy.with_backend(make_backend(spec))
            except AsdError as error:
                self.skip(f"{what}: all on {spec}", str(error))
                continue
            for sampler in samplers:
                package = NEEDS.get(sampler)
                if package and importlib.util.find_spec(package) is None:
                    self.skip(f"{what}: {sampler} on {spec}", f"the package {package} is not installed")
                else:
                    entered.append(Contender(running.with_sampler(make_sampler(sampler))))
        return entered

    def states(self, policy: Policy) -> States:
        """Make the recorded states, with the plans that this network would have made before them."""
        recording = self.recording.first_states(self.size.states)
        last_plans = gpu_bench_data.last_plans(policy, recording, self.seed)
        return States(recording.cond.to(policy.device), last_plans, recording.episode)

    def skip(self, what: str, why: str) -> None:
        """Print and record that something was not measured."""
        say(f"skipped: {what}: {why}")
        self.results["skipped"].append({"what": what, "why": why})
        self.save()

    def save(self) -> None:
        """Write the results so far."""
        write_json(self.out / "results.json", self.results)


def line(each: dict[str, Any]) -> str:
    """Format one contender's results in a line."""
    latency, interval = each["latency_ms"], each["wall_clock_speedup_ci95"]
    percentiles = " / ".join(f"{latency[key]:.3g}" for key in ("p50", "p95", "p99", "max"))
    speedup = "" if each["wall_clock_speedup"] is None else f", {each['wall_clock_speedup']:.2f}×"
    reach = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
    eager = "" if each["speedup_over_eager"] is None else f", {each['speedup_over_eager']:.2f}× eager"
    return (
        f"{each['spec']} on {each['backend']}: p50 / p95 / p99 / max {percentiles} ms{speedup}{reach}{eager}, "
        f"{each['algorithmic_speedup']:.1f}× by rounds, {100 * each['overhead_fraction']:.0f} % outside the network"
    )


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def _parameters(policy: Policy) -> list[torch.Tensor]:
    network = policy.network
    assert isinstance(network, torch.nn.Module)  # all networks here are
    return list(network.parameters())


def _power(device: torch.device) -> str:
    return ", ".join(f"{name} {value}" for name, value in hardware.power_state(device).items() if value is not None)


def main() -> None:
    """Read the command line; record or run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for results.json and the networks")
    parser.add_argument("--device", default="cuda", help="torch device")
    parser.add_argument("--seconds", type=float, default=480, help="how long the run may take, about")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and noise")
    parser.add_argument("--data", type=Path, default=DATA, help="the recording")
    parser.add_argument("--smoke", action="store_true", help="a tiny network and a few plans: does everything run?")
    parser.add_argument("--record", action="store_true", help="record --data from the environment, and measure nothing")
    options = parser.parse_args()
    if options.seconds <= 0:
        parser.error(f"--seconds {options.seconds:g} is not above 0")
    if options.seed < 0:
        parser.error(f"--seed {options.seed} is not 0 or more")
    if options.record:
        gpu_bench_data.record(options.data, options.seed)
        say(f"wrote {options.data}: {options.data.stat().st_size / 1e6:.2f} MB")
        return
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        run = Run(options)
        sound = run.go()
    except (AsdError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        say(f"interrupted: finished parts are kept in {options.out / 'results.json'}")
        raise SystemExit(130) from None
    say(f"results: {options.out / 'results.json'}")
    raise SystemExit(0 if sound else 1)


if __name__ == "__main__":
    main()
