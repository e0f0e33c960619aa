"""`asd-policy verify`: is this sampler's law the sequential one, on this checkpoint?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from torch import Tensor

from asd_policy._common.files import write_json
from asd_policy.checkpoints import load_policy
from asd_policy.cli.advice import hint_at_onnx
from asd_policy.cli.common import (
    DIFFERS,
    DONE,
    BackendOption,
    ChainOption,
    FixedCropOption,
    check_at_least,
    check_folder,
    print_json,
    progress_bar,
)
from asd_policy.errors import SpecError
from asd_policy.evaluation.exactness import law
from asd_policy.evaluation.reports import report
from asd_policy.evaluation.rollout.environments import open_env
from asd_policy.evaluation.states import random_conditioning
from asd_policy.policy.law import CHECKPOINT
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler


@dataclass(frozen=True)
class VerifyCommand:
    """Test whether a sampler has the sequential law on a policy: exit status 0 if no difference is found, else 1."""

    policy: str
    """Checkpoint: a path, or a Hugging Face Hub id such as owner/name or owner/name@revision."""
    sampler: str | None = None
    """Spec of the sampler to test: by default asd, or tokens:window=16 for a policy of tokens; an approximate one such
    as ddim:10 should fail."""
    samples: int = 256
    """Plans to draw with it, and with the sequential one, at each observation; 16 to 4096."""
    observations: int = 4
    """Observations to plan at."""
    env: str | None = None
    """Gymnasium id: take the observations from its episodes, and not at random from the normalisation's range."""
    alpha: float = 0.01
    """Probability of a false alarm, over all tests together. With 0.01 in place of 0.05, the smallest difference that
    the tests detect is a fifth larger, but a failure is worth believing."""
    seed: int = 0
    """Seeds observations, noise and permutations."""
    out: Path | None = None
    """Folder for results.json, which replaces one of an earlier verify."""
    chain: ChainOption = CHECKPOINT
    fixed_crop: FixedCropOption = False
    device: str = "cpu"
    """Torch device to plan on."""
    backend: BackendOption = None
    json: bool = False
    """Print the results as one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Draw and test; return the exit status."""
        if not 16 <= self.samples <= 4096:
            raise SpecError(f"--samples {self.samples} is not in 16 … 4096")
        check_at_least("observations", self.observations, 1)
        if not 0 < self.alpha < 1:
            raise SpecError(f"--alpha {self.alpha} is not between 0 and 1")
        check_at_least("seed", self.seed, 0)
        wanted = None if self.sampler is None else make_sampler(self.sampler)  # before the work, if it is misspelt
        if self.out is not None:
            check_folder(self.out, "verify")
        # With the sampler, which is refused if it does not fit, before the network is prepared for a backend.
        policy = load_policy(self.policy, wanted, self.device, self.backend, self.chain, self.fixed_crop)
        if policy.law.tokens is None:
            policy.law.check_gaussian("verify")
        sampler = wanted or policy.law.fast or policy.reference
        sampler.fit(policy.law.chain)
        policy.check()
        record = report.run_record("verify", self.policy, self.env, self.seed, policy)
        states, noise, reference_noise, tests = (
            int(word) for word in np.random.SeedSequence(self.seed).generate_state(4)
        )
        conds, source = self._observe(policy, sampler, states)
        if self.backend is None:
            hint_at_onnx(console, policy, "--backend onnx")
        sampler = law.resolve_for_one_plan(policy, sampler, conds)
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)  # now, so that no work is lost if it fails
        with progress_bar(console) as progress:
            task = progress.add_task(sampler.spec, total=2 * self.observations * self.samples)

            def advance(count: int) -> None:
                progress.advance(task, count)

            drawn = law.draw_plans(policy, sampler, conds, self.samples, noise, True, advance)
            sequential = policy.reference
            progress.update(task, description=sequential.spec)
            reference = law.draw_plans(policy, sequential, conds, self.samples, reference_noise, False, advance)
            progress.update(task, description="tests")
            outcome = law.compare_laws(drawn, reference, self.alpha, tests)
        results = {
            **record,
            "sampler": sampler.spec,
            "exact": sampler.exact,
            "steps": policy.steps,
            "samples": self.samples,
            "observations": self.observations,
            "observations_from": source,
            **outcome,
        }
        if self.out is not None:
            write_json(self.out / "results.json", results)
        if self.json:
            print_json(results)
        console.print(report.verification_table(results))
        console.print(report.verdict(results), soft_wrap=True)
        return DONE if results["holds"] else DIFFERS

    def _observe(self, policy: Policy, sampler: Sampler, seed: int) -> tuple[Tensor, str]:
        """Make the conditioning of observations [O, cond_dim] to plan at, and say where they are from."""
        if self.env is None:
            return random_conditioning(policy, self.observations, seed), "random in the normalisation's range"
        with open_env(self.env) as env:
            return (
                law.closed_loop_conditioning(policy, env, sampler, self.observations, seed),
                f"episodes of {self.env}",
            )
