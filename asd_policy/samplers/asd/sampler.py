"""Autospeculative decoding (ASD, arXiv 2505.03983) with a choice of drafts and verifiers, and its own best setting."""

import time
from collections.abc import Hashable
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import product

import numpy as np

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import SpecError
from asd_policy.networks.denoiser import Denoiser
from asd_policy.networks.recording import launcher_of
from asd_policy.samplers.asd.autotune import DEFAULT, PRIOR_REFUSALS, choose
from asd_policy.samplers.asd.compiled import CompiledRounds, loops_of
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS, Draft
from asd_policy.samplers.asd.engine import Round, response_for
from asd_policy.samplers.asd.experience import CommittedPaths
from asd_policy.samplers.asd.launched.form import compile_round, launches
from asd_policy.samplers.asd.other_drafts import check_draft, portable, register
from asd_policy.samplers.asd.response import sines, turn
from asd_policy.samplers.asd.rounds import EagerRounds, ReplayedRounds, RoundRecording, Rounds
from asd_policy.samplers.asd.trials import Setting
from asd_policy.samplers.base import Sampler, Samples, Target, check_count
from asd_policy.samplers.compiled import ROUNDS, STEPS, load_kernels
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.fallback import fall_back
from asd_policy.samplers.recorded import shapes
from asd_policy.samplers.warm_start import WarmStart


@dataclass(frozen=True)
class Asd(Sampler):
    """Speculative sampling of a chain by its own predictions; the law is that of the sequential sampler.

    A round rolls the drafted chain out over a window of points, evaluates the network on all of them at once, and
    keeps the longest run of drafted steps that the verifier lets stand, and one step more: the first that does not
    stand, drawn from its target, or the last of the window, which needs no draft. Each row of a batch has a cursor of
    its own.
    """

    window: int | None = None
    """Points θ that one network call evaluates per row; 1 is the sequential sampler. None (auto) for the best here."""
    draft: str | Draft | None = None
    """Name of the draft, or a `Draft` of your own, which gets one. None (auto) for the best here if the window is auto,
    else for the default, `response`."""
    verify: str | None = None
    """Name of the coupling. None (auto) for the best here if the window is auto, else for the default, `block`."""

    def __post_init__(self) -> None:
        """Check the options that need no chain, and fill in the defaults beside a window that is given.

        Raises:
            SpecError: One of them does not exist.
        """
        if isinstance(self.draft, Draft):
            object.__setattr__(self, "draft", register(self.draft))
        elif self.draft is not None:
            check_draft(self.draft)
        if self.verify is not None and self.verify not in VERIFIERS:
            raise SpecError(f"verify={self.verify} is not one of auto, {', '.join(VERIFIERS)}")
        if self.window is not None:
            check_count(f"window={self.window}", self.window)
            # A choice by the clock would make plans differ from run to run, where the user has fixed the window.
            object.__setattr__(self, "draft", self.draft or DEFAULT.draft)
            object.__setattr__(self, "verify", self.verify or DEFAULT.verify)

    def __reduce__(self) -> tuple[type["Asd"], tuple[int | None, str | Draft | None, str | None]]:
        return Asd, (self.window, portable(self.draft_name), self.verify)

    @property
    def draft_name(self) -> str | None:
        """Name of the draft; None (auto) for the best here."""
        assert not isinstance(self.draft, Draft)  # `__post_init__` has given it a name
        return self.draft

    @property
    def spec(self) -> str:
        """The full spec of this sampler."""
        options = (f"{field.name}={getattr(self, field.name) or 'auto'}" for field in fields(self))
        return "asd:" + ",".join(options)

    @property
    def exact(self) -> bool:
        """True for every draft and verifier here; of a draft from elsewhere `asd-policy verify` finds out."""
        return True

    @property
    def learns(self) -> bool:
        """Whether the draft responds to the noise or something is to be chosen."""
        return self.chooses or self.responds

    @property
    def responds(self) -> bool:
        """Whether the draft responds to the noise, or may be chosen to."""
        return self.draft_name is None or DRAFTS[self.draft_name].responds

    @property
    def chooses(self) -> bool:
        """Whether the window is auto: with one that is given, draft and verifier are fixed, too."""
        return self.window is None

    def check(self, chain: GaussianChain) -> None:
        """Refuse a window longer than the chain, and a chain whose steps add no noise."""
        if len(chain) > 1 and not chain.adds_noise:
            raise SpecError(
                f"{self.spec} needs steps that add noise, and those of this chain add none (eta=0): ddpm walks it, "
                "parallel does so in fewer rounds, approximately, and an eta above 0 makes a chain of another law, "
                "which asd samples exactly"
            )
        if self.window is not None:
            check_count(f"window={self.window}", self.window, chain)

    def prepare(self, device: Device) -> None:
        """Have the rounds' loops compiled, or read from the disk, where plans are made in the host's memory."""
        if arrays.is_host(device):
            load_kernels(ROUNDS)
            load_kernels(STEPS)

    def prepare_recordings(self, denoiser: Denoiser, chain: GaussianChain, event: tuple[int, ...]) -> None:
        """Compile the kernels of the rounds that may be chosen, or read them from the disk."""
        launcher = launcher_of(denoiser)
        if launcher is not None and launches(launcher.device):
            drafts = [self.draft_name] if self.draft_name else dict.fromkeys(draft for draft, _ in PRIOR_REFUSALS)
            with launcher.queue():
                for draft, verify in product(drafts, [self.verify] if self.verify else VERIFIERS):
                    compile_round(denoiser, chain, event, launcher.device, (DRAFTS[draft], VERIFIERS[verify]))

    def run(self, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Samples:
        """Choose a setting, do rounds until every row is at the end of the chain, and learn from what they cost."""
        experience = warm_start.experience
        setting = choose(self.window, self.draft_name, self.verify, target, tape, experience)
        start = time.perf_counter()
        rounds = None
        try:
            # The same numbers to the bit, without the rounds; but a deadline cannot cut a chain that is one recording.
            if setting.window == 1 and (target.launcher is None or target.deadline is None):
                samples = replace(Ddpm().run(target, tape, warm_start), spec=_spec_of(*setting))
            else:
                rounds = _begin(setting, target, tape, warm_start)
                spec = _spec_of(rounds.window, *setting.pair)
                samples = run_out(rounds, ("round", setting), target, warm_start, spec)
        except Exception as error:
            if experience is not None:
                experience.lose(setting, len(tape.initial), arrays.is_out_of_memory(error))
            raise
        if experience is not None:
            experience.note(setting, samples.costs, time.perf_counter() - start)
        if rounds is not None:
            self._learn(rounds, target, setting, warm_start)
            rounds.leave()
        return samples

    def _learn(self, rounds: Rounds, target: Target, setting: Setting, warm_start: WarmStart) -> None:
        """Add the plans' committed paths to the experience of their policy."""
        experience = warm_start.experience
        if experience is None or not experience.learning:
            return
        with rounds.learning():
            path, steps = rounds.path, len(target.chain)
            points, x0_pred = path.points[:, :steps], path.x0_pred[:, :steps]
            if self.responds and not DRAFTS[setting.draft].responds:  # the others' are in that basis
                inverse = sines(target.shape[1], arrays.device_of(path.x), path.x.dtype).T
                points, x0_pred = turn(inverse, points), turn(inverse, x0_pred)
            counts, given = path.counts(), target.inpainting
            free = None if given is None else ~given.mask.reshape(len(path.x), -1)
            committed = CommittedPaths(points, x0_pred, counts.cursor, free, counts.judged, counts.refused)
            horizon = target.shape[1] if self.responds else None
            experience.learn(committed, target.chain, setting.pair, horizon)


@cache
def _spec_of(window: int, draft: str, verify: str) -> str:
    """Write the full spec of a sampler that has nothing to choose; each plan asks."""
    return Asd(window, draft, verify).spec


def _begin(setting: Setting, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Rounds:
    """Begin the rounds of a batch of plans with a setting."""
    draft, verifier = DRAFTS[setting.draft], VERIFIERS[setting.verify]
    # In Langevin dynamics what is guessed is a force, of which the last plan says nothing.
    starts = draft.starts_from_last_plan and target.chain.predicts_sample
    last_plan = warm_start.last_plan if starts else None
    response = response_for(draft, target.chain, tape, warm_start.experience)
    return begin(Round(target, draft, verifier, response, setting.window), ("asd", *setting), tape, last_plan)


def begin(round_: Round, key: tuple[Hashable, ...], tape: NoiseTape, last_plan: Array | None) -> Rounds:
    """Begin the rounds of a batch of plans, as replays where the network's calls can be recorded.

    Args:
        round_: With the target.
        key: What tells its recording from those of other rounds, beside shapes.
        tape: The plans' noise.
        last_plan: The first guess of x̂0 [B, *event]; None for zeros.
    """
    target, launcher = round_.target, round_.target.launcher
    if launcher is None:
        loops = loops_of(round_, tape)
        return EagerRounds(round_, tape, last_plan) if loops is None else CompiledRounds(round_, tape, last_plan, loops)
    recording = launcher.keep((*key, *shapes(target, tape)), lambda: RoundRecording(launcher, round_, tape))
    return ReplayedRounds(recording, round_, tape, last_plan)


def run_out(rounds: Rounds, work: Hashable, target: Target, warm_start: WarmStart, spec: str | None = None) -> Samples:
    """Do rounds until every row is at the end of the chain, or the deadline's fallback has to finish it.

    Args:
        rounds: As `begin` gives them.
        work: What a round is to the deadline, see `Deadline.allows`.
        target: Of the rounds.
        warm_start: For the fallback.
        spec: Of the sampler with what it chose, as in `Samples`.
    """
    with rounds.queue():
        while (advance := rounds.next()) is not None and target.allows(work):
            advance()
        x, counts = rounds.result()
    unfinished = [row for row, cursor in enumerate(counts.cursor.tolist()) if cursor < len(target.chain)]
    jumped: dict[int, int] = {}
    if unfinished:
        x = arrays.as_like(x, rounds.path.x)
        rows = arrays.asarray(np.array(unfinished), arrays.device_of(x))
        sample, calls = fall_back(target, lambda: rounds.jump(rows), rows, warm_start)
        x[rows] = sample.reshape(len(rows), -1)
        jumped = dict(zip(rows.tolist(), calls.tolist(), strict=True))
    return Samples(x.reshape(target.shape), counts.costs(rounds.window, jumped), spec, rounds.recorded)
