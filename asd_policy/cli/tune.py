"""`asd-policy tune`: measure this device and this policy once, so that `asd` starts with its best setting."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from asd_policy._common.clock import clock_of
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.checkpoints import AUTO, load_policy, locate
from asd_policy.checkpoints.tuning import tuning_file
from asd_policy.cli.advice import busy_note, check_writable, warn_of
from asd_policy.cli.common import DONE, ChainOption, FixedCropOption, check_at_least, print_json, progress_bar
from asd_policy.errors import BackendError, SpecError
from asd_policy.evaluation import benchmark, closed_loop
from asd_policy.evaluation.reports import report
from asd_policy.evaluation.rollout.environments import Env, open_fitting
from asd_policy.evaluation.states import CALIBRATION_PLANS, States, plan_at, random_conditioning, random_states
from asd_policy.networks.backends import Backend, make_backend
from asd_policy.networks.backends.torch_cuda_graph import TorchCudaGraph
from asd_policy.networks.backends.torch_eager import TorchEager
from asd_policy.networks.denoiser import encode
from asd_policy.networks.recording import launcher_of
from asd_policy.policy.law import CHECKPOINT
from asd_policy.policy.policy import Policy
from asd_policy.policy.tuning import save_tuning
from asd_policy.samplers.asd.autotune import DEFAULT, call_seconds, candidates, expected_costs, measure, shortlist
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.asd.trials import Setting, Trial
from asd_policy.samplers.base import Target

_ONE = (1, None, None)  # of an experience's trials: those of `asd`, for one robot
_MOST_TRIED = 256  # plans on a backend


@dataclass(frozen=True)
class TuneCommand:
    """Measure network latency, learn from plans, and keep both with the policy for the sampler `asd`."""

    policy: str
    """Checkpoint: a path, or a Hugging Face Hub id such as owner/name or owner/name@revision."""
    env: str | None = None
    """Gymnasium id: learn in its episodes, and not at random observations in the normalisation's range."""
    plans: int = 64
    """Least number of plans to learn from."""
    seed: int = 0
    """Seeds observations and noise."""
    out: Path | None = None
    """File to write; by default one in the user's cache, where it is found again."""
    chain: ChainOption = CHECKPOINT
    fixed_crop: FixedCropOption = False
    device: str = "cpu"
    """Torch device to plan on."""
    backends: tuple[str, ...] = (TorchEager.name, "onnx", TorchCudaGraph.name)
    """Backend specs to try; those that cannot run here are named and left out."""
    json: bool = False
    """Print the results as one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Measure, learn, choose and write; return the exit status."""
        check_at_least("plans", self.plans, 1)
        check_at_least("seed", self.seed, 0)
        if self.out is not None:
            if self.out.is_dir():
                raise SpecError(f"--out {self.out} is a folder; it names the file to write")
            check_writable(self.out.parent)
        busy = busy_note()
        backends = [make_backend(spec) for spec in dict.fromkeys(self.backends)]
        policy = load_policy(self.policy, device=self.device, chain=self.chain, fixed_crop=self.fixed_crop)
        policy.law.check_gaussian("tune")
        path = self._place()
        with open_fitting(policy, self.env) as env, progress_bar(console) as progress:
            policies, left_out = _prepare(policy, backends, progress.console)
            first = policies[0]
            first.check()
            record = report.run_record("tune", self.policy, self.env, self.seed, first)
            warn_of(progress.console, busy)
            task = progress.add_task("plans", total=self.plans)

            def advance() -> None:
                progress.update(task, completed=min(first.experience.plans, self.plans))

            _learn(first, env, self.plans, self.seed, advance)
            states = _states(first, env, self.seed)
            for each in policies:
                each.experience = first.experience.without_times()
            costs = [_measure(each) for each in policies]
            _try(policies, costs, states, self.seed, progress)
        chosen = min(policies, key=_plan_seconds)
        if path is not None:
            save_tuning(path, chosen.experience, chosen.device, chosen.backend.spec)
        setting = _trial(chosen).best
        results = {
            **record,
            "backend": chosen.backend.spec,
            "dtype": chosen.backend.dtype,
            "sampler": Asd(*setting).spec,
            "plans": first.experience.plans,
            "window": setting.window,
            "expected_speedup": min(map(_sequential_seconds, policies)) / _plan_seconds(chosen),
            "settings": [row for each, own in zip(policies, costs, strict=True) for row in _rows(each, own)],
            "left_out": left_out,
            "file": None if path is None else str(path),
        }
        if self.json:
            print_json(results)
        console.print(report.tuning_table(results))
        console.print(f"best here: {results['sampler']} on {results['backend']}", soft_wrap=True)
        if chosen.backend != policy.backend:
            console.print(f"to run on it: --backend {AUTO}, or load_policy(…, backend={AUTO!r})", soft_wrap=True)
        if path is not None:
            console.print(f"tuning: {path}", soft_wrap=True)
        return DONE

    def _place(self) -> Path | None:
        """Choose the file to write, and make its folder before the work; None where the cache cannot have one.

        Raises:
            OSError: The folder of `--out` cannot be made.
        """
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            return self.out
        try:
            path = tuning_file(locate(self.policy))
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            warnings.warn(f"the tuning will not be kept ({error}): --out names a file for it", stacklevel=2)
            return None
        return path


def _prepare(policy: Policy, backends: Sequence[Backend], console: Console) -> tuple[list[Policy], dict[str, str]]:
    """Put the policy, with nothing learned, on each backend that can run it here, and say why the others cannot.

    Raises:
        BackendError: None can.
    """
    policies, left_out = [], {}
    for backend in backends:
        try:
            policies.append(policy if backend == policy.backend else policy.with_backend(backend))
        except BackendError as error:
            left_out[backend.spec] = str(error)
    if not policies:
        raise BackendError("; ".join(left_out.values()))
    for reason in left_out.values():
        console.print(f"left out: {reason}", soft_wrap=True)
    for each in policies:
        each.experience = Experience()  # of this run alone: latencies of a busier hour must not stay
    return policies, left_out


def _learn(policy: Policy, env: Env | None, plans: int, seed: int, advance: closed_loop.Advance) -> None:
    """Make `plans` plans, with each draft and verifier in turn.

    Plans of the default come first: they teach the response that other drafts use. Only later refusals are counted.
    """
    settings = candidates(len(policy.chain), min(DEFAULT.window, len(policy.chain)))
    turns = [settings[0], *settings]
    for index, setting in enumerate(turns):
        if index == 1:
            policy.experience.judgements.clear()
        policy.sampler = Asd(*setting)
        goal = -(-plans * (index + 1) // len(turns))
        own = seed * len(turns) + index  # drafts would have learned from the same noise
        if env is None:
            _plan_at_random(policy, goal, own, advance)
        else:
            closed_loop.calibrate(policy, env, goal, own, advance)


def _plan_at_random(policy: Policy, plans: int, seed: int, advance: closed_loop.Advance) -> None:
    """Plan one by one at random observations until the experience has `plans` plans."""
    policy.reset(closed_loop.learning_seed(seed))
    for cond in random_conditioning(policy, plans - policy.experience.plans, seed):
        plan_at(cond[None], policy, policy.sampler, policy.experience, policy.generator)
        advance()


def _states(policy: Policy, env: Env | None, seed: int) -> States:
    """Make situations to try settings in, which nothing was learned in."""
    seed = closed_loop.learning_seed(closed_loop.learning_seed(seed))
    if env is None:
        return random_states(policy, CALIBRATION_PLANS, seed)
    planner = policy.with_sampler(Asd(min(DEFAULT.window, len(policy.chain))))
    return closed_loop.collect_states(planner, env, CALIBRATION_PLANS, seed)


def _try(
    policies: Sequence[Policy],
    costs: Sequence[dict[Setting, float]],
    states: States,
    seed: int,
    progress: Progress,
) -> None:
    """Plan on each backend in turn, with the settings that may be the best there and with the sequential sampler."""
    task, clock = progress.add_task("trying", total=_MOST_TRIED), clock_of(policies[0].device)
    for each, own in zip(policies, costs, strict=True):
        each.sampler = Asd()
        each.experience.trials[_ONE] = Trial.of(dict.fromkeys([*shortlist(own), _sequential(own)]))
    for index in range(_MOST_TRIED):
        undecided = [each for each in policies if each.experience.undecided]
        for each in undecided:
            with each.experience.paused():
                benchmark.plan(each, benchmark.pick(states, index, 1), seed + index, clock)
        progress.update(task, completed=index + 1)
        if not undecided:
            break
    progress.update(task, completed=_MOST_TRIED)


def _trial(policy: Policy) -> Trial:
    return policy.experience.trials[_ONE]


def _sequential(settings: Iterable[Setting]) -> Setting:
    return next(setting for setting in settings if setting.window == 1)


def _sequential_seconds(policy: Policy) -> float:
    """Give what a plan took with the sequential sampler [s]."""
    trial = _trial(policy)
    return trial.seconds(_sequential(trial.tried))


def _plan_seconds(policy: Policy) -> float:
    """Give what a plan took with the best setting [s]."""
    return _trial(policy).seconds(_trial(policy).best)


def _rows(policy: Policy, costs: dict[Setting, float]) -> Iterator[dict[str, Any]]:
    """Say of each setting what a plan is expected to cost, and what it did cost where it was tried."""
    for setting, cost in costs.items():
        trial = _trial(policy)
        tried = trial.tried.get(setting)
        yield {
            "backend": policy.backend.spec,
            **setting._asdict(),
            "call_ms": 1e3 * float(call_seconds(policy.experience, np.array([setting.window]))[0]),
            "expected_plan_ms": 1e3 * cost,
            "plans": tried.plans if tried else 0,
            "plan_ms": 1e3 * trial.seconds(setting) if tried and tried.is_timed else None,
        }


def _measure(policy: Policy) -> dict[Setting, float]:
    """Time network and engine for single plans, and expect the time of a plan [s] for each setting."""
    settings = candidates(len(policy.chain))
    cond = random_conditioning(policy, 1, seed=0)
    shape = (1, *policy.event)
    tape = NoiseTape.draw(shape, len(policy.chain), policy.generator, policy.device)
    with torch.inference_mode():
        encoded = encode(policy.denoiser, cond)
        launcher = launcher_of(policy.denoiser)
        target = Target(policy.denoiser, policy.chain, shape, encoded, policy.inpainting(cond), launcher)
        measure(settings, target, tape, policy.experience)
    return expected_costs(settings, policy.experience, 1, len(policy.chain))
