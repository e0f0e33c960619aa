"""Chains without noise in parallel: the drafts and rounds of `asd`, with a tolerance in the place of a coupling.

DDIM with η = 0 and Euler's steps of a flow are functions of their start, and two of them have no common covariance to
couple. But predictions change little from step to step, so most drafted steps are nearly right. Those whose guess is
within the tolerance stand (`asd.tolerance`), and a round commits one step more, from the network's own prediction: no
plan takes more calls than the chain has steps. Approximate, unlike `asd`: how far plans are from the sequential ones is
measured in docs/results/without_noise.md.
"""

import math
from dataclasses import dataclass, field, replace

from asd_policy._common.extras import needed
from asd_policy.chain.flow import is_flow
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.chain.tokens import Chain
from asd_policy.errors import SpecError
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.engine import Round
from asd_policy.samplers.asd.other_drafts import check_draft
from asd_policy.samplers.asd.sampler import begin, run_out
from asd_policy.samplers.asd.tolerance import within
from asd_policy.samplers.base import Sampler, Samples, Target, check_count, number
from asd_policy.samplers.ddim import Ddim, OwnDdim, shortened
from asd_policy.samplers.euler import OwnEuler, euler_chain
from asd_policy.samplers.fewsteps import EXTRA, check_diffusion
from asd_policy.samplers.warm_start import WarmStart

LONGEST = 16
"""The most points of a round where the window is left open."""


@dataclass(frozen=True)
class Parallel(Sampler):
    """The sequential plan of a chain without noise to a tolerance, in fewer network calls. Approximate."""

    window: int | None = None
    """Points θ that one network call evaluates per row; 1 is the sequential sampler. None (auto) for all steps of the
    chain, at most `LONGEST`."""
    tol: float = 0.03
    """How far any number of a guess may be from the network's prediction, in units of the samples: for a policy those
    of normalised actions. At 0 plans are the sequential ones up to rounding, and hardly cheaper."""
    draft: str = "warm"
    """Name of the draft, one that does not follow noise."""
    steps: int | None = None
    """Steps of DDIM without noise on the schedule of a chain that adds noise, or of Euler on a flow's. None (auto) for
    the chain as it is, which then must add none."""

    def __post_init__(self) -> None:
        """Check the options that need no chain.

        Raises:
            SpecError: One of them is out of range, or there is no such draft.
        """
        if self.window is not None:
            check_count(f"window={self.window}", self.window)
        if self.steps is not None:
            check_count(f"steps={self.steps}", self.steps)
        if not (math.isfinite(self.tol) and self.tol >= 0):
            raise SpecError(f"tol={number(self.tol)} is not a finite number from 0 up")
        check_draft(self.draft)
        if DRAFTS[self.draft].responds:
            still = ", ".join(name for name, draft in DRAFTS.items() if not draft.responds)
            raise SpecError(f"draft={self.draft} follows a chain's noise, and here is none; there are {still}")

    @property
    def spec(self) -> str:
        """The full spec of this sampler."""
        steps = "" if self.steps is None else f",steps={self.steps}"
        return f"parallel:window={self.window or 'auto'},tol={number(self.tol)},draft={self.draft}{steps}"

    @property
    def exact(self) -> bool:
        """False."""
        return False

    def check(self, chain: GaussianChain) -> None:
        """Refuse a chain that adds noise where no steps are given, and a window longer than the plan."""
        walked = self.walked(chain)
        if self.window is not None:
            check_count(f"window={self.window}", self.window, walked)

    def walked(self, chain: GaussianChain) -> GaussianChain:
        """Find the chain without noise that plans walk.

        Raises:
            SpecError: There is none.
        """
        if self.steps is None:
            if chain.adds_noise:
                raise SpecError(
                    f"{self.spec} is for steps without noise, and those of this chain add noise: asd samples it "
                    "exactly, and with an option such as steps=16 plans are those of ddim:16, or of a flow's euler:16"
                )
            return chain
        if not chain.adds_noise:
            raise SpecError(f"{self.spec} on a chain without noise of {len(chain)} steps: steps= is for one with noise")
        check_count(f"steps={self.steps}", self.steps, chain)
        with needed(self.spec, EXTRA, SpecError):
            if is_flow(chain.config):
                return euler_chain(self.steps, chain)
            check_diffusion(self.spec, chain)
            return shortened(Ddim(self.steps), chain)

    def run(self, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Samples:
        """Do rounds until every row is at the end of the chain."""
        walked = self.walked(target.chain)
        count, window = len(walked), self.window or min(len(walked), LONGEST)
        target = replace(_given_along(target, walked), chain=walked)
        tape = NoiseTape(tape.initial, tape.normals[:, :count], tape.uniforms[:, :count])
        draft = DRAFTS[self.draft]
        last_plan = warm_start.last_plan if draft.starts_from_last_plan else None
        round_ = Round(target, draft, within(self.tol), None, window)
        rounds = begin(round_, (self,), tape, last_plan)
        samples = run_out(rounds, ("parallel", window), target, warm_start)
        rounds.leave()
        return samples


@dataclass(frozen=True)
class OwnParallel(Parallel):
    """The plan of a checkpoint's own scheduler to a tolerance. A `Policy` makes it of `parallel`; no spec names it."""

    own: OwnDdim | OwnEuler = field(default_factory=OwnDdim)
    """The checkpoint's own."""

    def walked(self, chain: GaussianChain) -> GaussianChain:
        """Take the steps of the checkpoint's own scheduler, in the number that is given, if one is."""
        steps = self.steps or self.own.own_steps
        check_count(f"steps={steps}", steps, chain)
        with needed(self.spec, EXTRA, SpecError):
            return replace(self.own, steps=steps).walked(chain)

    def sequential_steps(self, chain: Chain) -> int:
        """Count the calls of the checkpoint's own plan."""
        return self.own.own_steps


def _given_along(target: Target, walked: GaussianChain) -> Target:
    """Pick what is given along the chain at the steps that are walked.

    Raises:
        SpecError: It is not known at some of them.
    """
    inpainting = target.inpainting
    if walked is target.chain or inpainting is None or inpainting.noisy_values is None:
        return target
    places = {timestep: step for step, timestep in enumerate(target.chain.timesteps.tolist())}
    steps = [places.get(timestep, -1) for timestep in walked.timesteps.tolist()]
    if min(steps) < 0:
        raise SpecError(
            f"{len(walked)} steps have timesteps that the chain of {len(places)} leaves out: what is given along the "
            "chain is not known there"
        )
    return replace(target, inpainting=replace(inpainting, noisy_values=inpainting.noisy_values[:, steps]))
