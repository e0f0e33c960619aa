"""Is a sampler's law the sequential one on this policy? Draw plans of both, watch the steps of one, and test."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy._common import arrays
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.evaluation.closed_loop import prepare_planners, run_episode
from asd_policy.evaluation.exactness.checks import (
    Array,
    Check,
    bonferroni,
    detectable_effects,
    detectable_moves,
    energy_check,
    marginal_check,
    mode_check,
    noiseless_check,
    residual_checks,
    residual_steps,
    whiten,
)
from asd_policy.evaluation.exactness.token_steps import token_checks
from asd_policy.evaluation.rollout.environments import Env
from asd_policy.evaluation.states import TRIAL_PLANS, plan_at
from asd_policy.networks.denoiser import Denoiser, encode
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, as_it_ran, make_sampler
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.warm_start import WarmStart

CALIBRATION = 16  # plans at each observation that a sampler learns from before it is watched
BATCH = 64  # plans sampled at once
PATHS = 1024  # plans whose steps are kept, at most: 100 steps of 32 numbers take 100 MB
NOISELESS_TOLERANCE = 1e-3  # in normalised actions; the rounding of a network in half precision stays below


@dataclass(frozen=True)
class PlanSample:
    """Plans that one sampler drew."""

    plans: Array
    """Normalised plans [O, N, D]: N at each of O observations."""
    checks: list[Check]
    """Of the steps that led to them; empty where these are not the chain's, or were not watched."""


class PathRecorder:
    """A denoiser that remembers where a sampler evaluated it, and so which path each row took.

    The sampler need not cooperate: each row's conditioning carries the row's number in one more entry, which is removed
    before the network sees it. All that is assumed is what every speculative sampler of a chain does: it evaluates
    points of a step until one is accepted, so that the last point evaluated is the committed one.
    """

    def __init__(
        self, denoiser: Denoiser, chain: GaussianChain, rows: int, dim: int, free: Tensor | None = None
    ) -> None:
        """Begin a batch.

        Args:
            denoiser: The network.
            chain: Whose steps to recognise, by their timesteps.
            rows: Plans in the batch B.
            dim: Numbers in a plan D, as far as they are sampled.
            free: Which numbers of an event those are, in a row; None for all.
        """
        self._free = slice(None) if free is None else free
        self._denoiser = denoiser
        self._chain = chain
        self._step_of = {timestep: step for step, timestep in enumerate(chain.timesteps.tolist())}
        self._furthest = np.full(rows, -1)  # [B] the last step that a row's latest call evaluated
        nowhere = np.full((rows, len(chain), dim), np.nan)
        self.points = nowhere.copy()
        """The last point evaluated at each step [B, K, D]; NaN where there was none."""
        self.predictions = nowhere.copy()
        """x̂0 there."""
        self.earlier = nowhere.copy()
        """The latest x̂0 from before that call, for that step or, if it is new, for the last step before it."""
        self.start = nowhere.copy()
        """x̂0 at the row's first point of that call."""

    def tag(self, cond: Tensor) -> Tensor:
        """Append each row's number to conditioning [B, C]: [B, C + 1]."""
        return torch.cat([cond, torch.arange(len(cond), device=cond.device).to(cond.dtype)[:, None]], dim=1)

    def encode(self, cond: Tensor) -> Tensor:
        """Encode tagged conditioning [B, C + 1] where the network encodes it, and tag it again [B, E + 1]."""
        # Joined in the wider precision of the two: bfloat16 counts to 256 and no further.
        return torch.cat([encode(self._denoiser, cond[:, :-1]), cond[:, -1:]], dim=1)

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Evaluate the network on N points with tagged conditioning, and remember the points."""
        assert cond is not None  # a policy always has some
        output = self._denoiser(x, timestep, cond[:, :-1])
        if output.shape == x.shape:  # otherwise the sampler is about to refuse it
            self._remember(x.flatten(1), timestep, cond[:, -1], output.to(x.dtype).flatten(1))
        return output

    def _remember(self, x: Tensor, timestep: Tensor, row: Tensor, output: Tensor) -> None:
        steps = np.array([self._step_of.get(value, -1) for value in timestep.tolist()])
        known = torch.as_tensor(steps >= 0, device=x.device)  # a sampler of another chain may have other timesteps
        steps, rows = steps[steps >= 0], row[known].long().cpu().numpy()
        index = torch.as_tensor(steps, device=x.device)
        x0_pred = self._chain.predict(x[known], output[known], index)
        before = np.minimum(steps, self._furthest[rows])
        self.earlier[rows, steps] = np.where(before[:, None] >= 0, self.predictions[rows, before], np.nan)
        self.points[rows, steps] = x[known][:, self._free].cpu().numpy()
        self.predictions[rows, steps] = x0_pred[:, self._free].cpu().numpy()
        first, last = np.full((2, len(self._furthest)), [[len(self._chain)], [-1]])
        np.minimum.at(first, rows, steps)
        np.maximum.at(last, rows, steps)
        self.start[rows, steps] = self.predictions[rows, first[rows]]
        self._furthest = np.where(last >= 0, last, self._furthest)


def closed_loop_conditioning(policy: Policy, env: Env, sampler: Sampler, count: int, seed: int) -> Tensor:
    """Collect conditioning [count, C], from a random moment of planning in each of `count` episodes.

    Args:
        policy: That acts.
        env: The environment.
        sampler: Plans the episodes, so that the states are those it will meet in use.
        count: Of observations.
        seed: Of the episodes and the moments.

    Raises:
        AsdError: Policy and environment do not fit, or the network failed.
    """
    rng = np.random.default_rng(seed)
    (planner,) = prepare_planners(policy, env, [sampler])
    conds = []
    for index in range(count):
        run_episode(planner, env, index, seed)
        conds.append(planner.plans[rng.integers(len(planner.plans))].cond)
    return torch.cat(conds)


def resolve_for_one_plan(policy: Policy, sampler: Sampler, conds: Tensor) -> Sampler:
    """Let a sampler choose the settings left to it for a single plan, as in use, and not for a large batch."""
    if not isinstance(sampler, Asd):
        return sampler
    experience = policy.experience.copy()
    for plan in range(TRIAL_PLANS):
        plan_at(conds[plan % len(conds)][None], policy, sampler, experience, policy.generator)
        if not experience.undecided:
            break
    experience.freeze()
    # Not what the last of these ran with, which was there to be tried.
    settled = plan_at(conds[:1], policy, sampler, experience, policy.generator)
    return as_it_ran(sampler, settled.stats.spec)


def draw_plans(
    policy: Policy,
    sampler: Sampler,
    conds: Tensor,
    count: int,
    seed: int,
    watch: bool,
    advance: Callable[[int], object],
) -> PlanSample:
    """Draw plans at each observation, and check the steps that led to them.

    Args:
        policy: With the network.
        sampler: That plans.
        conds: Conditioning [O, C].
        count: Plans N for each.
        seed: Of the noise.
        watch: Whether to check the steps too.
        advance: Called with the number of plans that were drawn.

    Raises:
        AsdError: The sampler does not fit the chain, or the network failed.
    """
    chain, generator = policy.law.chain, arrays.make_generator(policy.device, seed)
    of_tokens = policy.law.tokens is not None  # whose steps are seen in the plan itself
    free = _free(policy, conds)
    dim = int(free.sum())
    pasts = _pasts(policy, sampler, conds, generator)
    recorders: list[tuple[PathRecorder, Array]] = []
    plans: list[Array] = []
    for cond, past in zip(conds, pasts, strict=True):
        watched = 0
        for start in range(0, count, BATCH):
            rows = min(BATCH, count - start)
            batch = cond.expand(rows, -1)
            held, shape = policy.inpainting(batch), (rows, *policy.event)
            if watch and not of_tokens and watched + rows <= max(BATCH, PATHS // len(conds)):
                recorder = PathRecorder(policy.denoiser, policy.chain, rows, dim, free)
                result = sampler.sample(
                    recorder, chain, shape, recorder.tag(batch), generator, inpainting=held, warm_start=past(rows)
                )
                recorders.append((recorder, result.sample.flatten(1)[:, free].cpu().double().numpy()))
                watched += rows
            else:
                result = sampler.sample(
                    policy.denoiser, chain, shape, batch, generator, inpainting=held, warm_start=past(rows)
                )
            plans.append(result.sample.flatten(1)[:, free].cpu().double().numpy())
            advance(rows)
    drawn = np.concatenate(plans).reshape(len(conds), count, -1)
    if of_tokens:
        return PlanSample(drawn, token_checks(policy, conds, drawn, seed) if watch else [])
    return PlanSample(drawn, step_checks(policy.chain, recorders))


def _pasts(
    policy: Policy, sampler: Sampler, conds: Tensor, generator: torch.Generator
) -> list[Callable[[int], WarmStart]]:
    """Make for each observation the warm start that a batch of plans there has: as much as in use.

    The last plan is one at that observation. What a sampler learns, it has learned from plans at all observations.
    """
    if not sampler.learns:
        return [lambda rows: WarmStart()] * len(conds)
    experience = policy.experience.copy()
    last_plans = [
        plan_at(batch, policy, sampler, experience, generator).sample
        for batch in conds.unsqueeze(1).expand(-1, CALIBRATION, -1)
    ]
    experience.freeze()
    return [partial(_past, experience, last_plan) for last_plan in last_plans]


def _free(policy: Policy, conds: Tensor) -> Tensor:
    """Mark which numbers of a flattened plan are sampled, and not given [D]."""
    held = policy.inpainting(conds[:1])
    mask = conds.new_zeros((1, *policy.event), dtype=torch.bool) if held is None else held.mask
    return ~mask[0].flatten()


def _past(experience: Experience, last_plans: Tensor, rows: int) -> WarmStart:
    return WarmStart(last_plans[torch.arange(rows, device=last_plans.device) % len(last_plans)], experience)


def step_checks(chain: GaussianChain, recorded: list[tuple[PathRecorder, Array]]) -> list[Check]:
    """Check the steps that recorders saw, each with the plans they led to [B, D]; no checks without steps."""
    if not recorded:
        return []
    recorders = [recorder for recorder, _ in recorded]
    predictions = np.concatenate([recorder.predictions for recorder in recorders])
    if np.isnan(predictions).any():
        return []  # it leaves steps of the chain out
    points = np.concatenate([np.concatenate([r.points, plans[:, None]], axis=1) for r, plans in recorded])
    guesses = {
        "earlier prediction": np.concatenate([recorder.earlier for recorder in recorders]),
        "window's start": np.concatenate([recorder.start for recorder in recorders]),
    }
    coefficients = (chain.a, chain.b, chain.sigma)
    return [
        *residual_checks(residual_steps(points, predictions, *coefficients, guesses)),
        noiseless_check(points, predictions, *coefficients, NOISELESS_TOLERANCE),
    ]


def compare_laws(drawn: PlanSample, reference: PlanSample, alpha: float, seed: int) -> dict[str, Any]:
    """Test one law against the other, and build what results.json says of it.

    Args:
        drawn: By the sampler in question, watched.
        reference: By the sequential sampler, at the same observations.
        alpha: Family-wise level.
        seed: Of permutations and power.
    """
    of_modes = mode_check(drawn.plans, reference.plans, seed)
    on_plans = [
        energy_check(drawn.plans, reference.plans, seed),
        replace(
            energy_check(*whiten(drawn.plans, reference.plans), seed),
            name="energy distance, whitened",
        ),
        marginal_check(drawn.plans, reference.plans),
        *([of_modes] if of_modes else []),
    ]
    checks = [*on_plans, *drawn.checks]
    decision = bonferroni(checks, alpha)
    return {
        **asdict(decision),
        "alpha": alpha,
        "checks": [
            {"name": check.name, "of": "plans" if check in on_plans else "steps", "p_value": check.p_value,
             "effects": check.effects}
            for check in checks
        ],
        "steps_tested": bool(drawn.checks),
        "detectable": {
            "energy distance": detectable_moves(drawn.plans, reference.plans, decision.level, seed),
            **detectable_effects(checks, decision.level),
        },
    }  # fmt: skip


def reference_sampler() -> Sampler:
    """Make the sequential sampler, whose law is the target."""
    return make_sampler("ddpm")
