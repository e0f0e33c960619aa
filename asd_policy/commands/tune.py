"""`asd-policy tune`: measure this device and this policy once, so that `asd` starts with its best setting."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from asd_policy import evaluate, report
from asd_policy.backends.torch_eager import TorchEager
from asd_policy.checkpoints import load_policy, locate
from asd_policy.commands.common import DONE, BackendOption, check_at_least, progress_bar
from asd_policy.denoiser import encode
from asd_policy.experience import Experience
from asd_policy.noise import NoiseTape
from asd_policy.policy import Policy
from asd_policy.samplers.asd import Asd
from asd_policy.samplers.base import Past
from asd_policy.samplers.choice import DEFAULT, Setting, candidates, expected_costs, measure
from asd_policy.samplers.target import Target
from asd_policy.states import random_conditioning
from asd_policy.tuning import save_tuning, tuning_file


@dataclass(frozen=True)
class TuneCommand:
    """Measure network latency and what plans teach, and keep both with the policy for the sampler `asd`."""

    policy: str
    """Checkpoint: a path, or a Hugging Face Hub id such as owner/name or owner/name@revision."""
    env: str | None = None
    """Gymnasium id: learn in its episodes, and not at observations at random in the normalisation's range."""
    plans: int = 64
    """Plans to learn from, or a few more."""
    seed: int = 0
    """Seeds observations and noise."""
    out: Path | None = None
    """File to write; by default one in the user's cache, where it is found again."""
    device: str = "cpu"
    """Torch device to plan on."""
    backend: BackendOption = TorchEager.name
    json: bool = False
    """Print the results as one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Measure, learn, choose and write; return the exit status."""
        check_at_least("plans", self.plans, 1)
        check_at_least("seed", self.seed, 0)
        policy = load_policy(self.policy, device=self.device, backend=self.backend)
        steps = len(policy.chain)
        policy.experience = Experience()  # of this run alone: latencies of a busier hour must not stay
        policy.check()
        record = report.run_record("tune", self.policy, self.env, self.seed, policy)
        with _open(policy, self.env) as env, progress_bar(console) as progress:
            task = progress.add_task("plans", total=self.plans)

            def advance() -> None:
                progress.update(task, completed=min(policy.experience.plans, self.plans))

            # Each draft and verifier has its share; those that respond last, when they can.
            pairs = candidates(steps, min(DEFAULT.window, steps))[::-1]
            for index, setting in enumerate(pairs):
                policy.sampler = Asd(*setting)
                goal = -(-self.plans * (index + 1) // len(pairs))
                seed = self.seed * len(pairs) + index  # the same noise twice would be known to drafts the second time
                if env is None:
                    _plan_at_random(policy, goal, seed, advance)
                else:
                    evaluate.calibrate(policy, env, goal, seed, advance)
        settings = candidates(steps)
        _measure(policy, settings)
        costs = expected_costs(settings, policy.experience, 1, steps)
        best = min(settings, key=lambda setting: costs[setting])
        sequential = costs[settings[0]]
        path = self.out or tuning_file(locate(self.policy))
        save_tuning(path, policy.experience, policy.device, policy.backend.spec)
        results = {
            **record,
            "sampler": Asd(*best).spec,
            "plans": policy.experience.plans,
            "window": best.window,
            "expected_speedup": sequential / costs[best],
            "settings": [
                {
                    **setting._asdict(),
                    "call_ms": 1e3 * policy.experience.latency[setting.window],
                    "expected_plan_ms": 1e3 * cost,
                }
                for setting, cost in costs.items()
            ],
            "file": str(path),
        }
        if self.json:
            print(json.dumps(results))
        console.print(report.tuning_table(results))
        console.print(f"tuning: {path}", soft_wrap=True)
        return DONE


@contextmanager
def _open(policy: Policy, env_id: str | None) -> Iterator[evaluate.Env | None]:
    """Yield the environment, if one is named and fits, and close it at the end."""
    if env_id is None:
        yield None
        return
    env = evaluate.make_env(env_id)
    try:
        evaluate.check_fit(policy, env)
        yield env
    finally:
        env.close()


def _plan_at_random(policy: Policy, plans: int, seed: int, advance: evaluate.Advance) -> None:
    """Plan one by one at random observations until the experience has so many plans."""
    policy.reset(evaluate.learning_seed(seed))
    for cond in random_conditioning(policy, plans - policy.experience.plans, seed):
        batch, past = cond.unsqueeze(0), Past(None, policy.experience)
        policy.sampler.sample(
            policy.denoiser,
            policy.chain,
            (1, *policy.event),
            batch,
            policy.generator,
            held=policy.held(batch),
            past=past,
        )
        advance()


def _measure(policy: Policy, settings: Sequence[Setting]) -> None:
    """Time network and engine for single plans."""
    cond = random_conditioning(policy, 1, seed=0)
    shape = (1, *policy.event)
    tape = NoiseTape.draw(shape, len(policy.chain), policy.generator, policy.device)
    with torch.inference_mode():
        encoded = encode(policy.denoiser, cond)
        target = Target(policy.denoiser, policy.chain, shape, encoded, policy.held(cond))
        measure(settings, target, tape, policy.experience)
