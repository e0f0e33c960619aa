"""Autospeculative decoding (arXiv 2505.03983): draft many steps, check them in one batched call, stay exact."""

from dataclasses import dataclass, fields, replace

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import SpecError
from asd_policy.networks.recording import Launcher
from asd_policy.samplers.asd.autotune import DEFAULT, Setting, choose
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.engine import Round, begin, is_compact, learn, respond, steps_of
from asd_policy.samplers.asd.response import Response
from asd_policy.samplers.base import Past, Sampler, Samples, check_count
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.fallback import fall_back, reserve
from asd_policy.samplers.recorded import StaticRounds, shapes
from asd_policy.samplers.target import Target


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
    draft: str | None = None
    """Name of the draft. None (auto) for the best here if the window is auto, else for the default, `response`."""
    verify: str | None = None
    """Name of the coupling. None (auto) for the best here if the window is auto, else for the default, `block`."""

    def __post_init__(self) -> None:
        """Check the options that need no chain, and fill in the defaults beside a window that is given.

        Raises:
            SpecError: One of them does not exist.
        """
        if self.draft is not None and self.draft not in DRAFTS:
            raise SpecError(f"draft={self.draft} is not one of auto, {', '.join(DRAFTS)}")
        if self.verify is not None and self.verify not in VERIFIERS:
            raise SpecError(f"verify={self.verify} is not one of auto, {', '.join(VERIFIERS)}")
        if self.window is not None:
            check_count(f"window={self.window}", self.window)
            # A choice by the clock would make plans differ from run to run, where the user has fixed the window.
            object.__setattr__(self, "draft", self.draft or DEFAULT.draft)
            object.__setattr__(self, "verify", self.verify or DEFAULT.verify)

    @property
    def spec(self) -> str:
        """The full spec of this sampler."""
        options = (f"{field.name}={getattr(self, field.name) or 'auto'}" for field in fields(self))
        return "asd:" + ",".join(options)

    @property
    def exact(self) -> bool:
        """True for every draft and verifier here."""
        return True

    @property
    def learns(self) -> bool:
        """Whether the draft responds to the noise or something is to be chosen."""
        return self.chooses or self.responds

    @property
    def responds(self) -> bool:
        """Whether the draft responds to the noise, or may be chosen to."""
        return self.draft is None or DRAFTS[self.draft].responds

    @property
    def chooses(self) -> bool:
        """Whether the window is auto: with one that is given, draft and verifier are fixed, too."""
        return self.window is None

    def check(self, chain: GaussianChain) -> None:
        """Refuse a window longer than the chain."""
        if self.window is not None:
            check_count(f"window={self.window}", self.window, chain)

    def run(self, target: Target, tape: NoiseTape, past: Past) -> Samples:
        """Do rounds until every row is at the end of the chain."""
        setting = choose(self.window, self.draft, self.verify, target, tape, past.experience)
        # The same numbers to the bit, without the engine; but a deadline cannot cut a chain that is one recording.
        if setting.window == 1 and (target.launcher is None or target.deadline is None):
            return replace(Ddpm().run(target, tape, past), spec=Asd(*setting).spec)
        draft = DRAFTS[setting.draft]
        last_plan = past.last_plan if draft.starts_from_last_plan else None
        response = respond(draft, tape, past.experience)
        if target.launcher is not None:
            return self._replay(target.launcher, target, tape, setting, last_plan, response, past)
        path = begin(target, tape, last_plan)
        round_ = Round(target, draft, VERIFIERS[setting.verify], response, setting.window)
        compact = is_compact(path)
        xp, rows = arrays.namespace(path.x), arrays.arange(len(path.x), path.x)
        going = path.cursor < len(target.chain)
        reserve(target, tape)
        while bool(going.any()) and target.allows(("round", setting)):
            round_(path, xp.nonzero(going)[0] if compact else rows, compact)
            going = path.cursor < len(target.chain)
        cut = xp.nonzero(going)[0]
        if len(cut):
            sample, calls = fall_back(target, lambda: target.predict(path.x[cut], path.cursor[cut], cut), cut, past)
            path.x[cut] = sample.reshape(len(cut), -1)
            path.rounds[cut] += calls
            path.nfe[cut] += calls
        if past.experience is not None:
            learn(past.experience, path, target, setting.pair, self.responds)
        steps = len(target.chain)
        return Samples(
            path.x.reshape(target.shape),
            path.rounds.tolist(),
            path.nfe.tolist(),
            setting.window,
            Asd(*setting).spec,
            refused=steps_of(path.refused[:, :steps]),
            unjudged=steps_of(~path.judged[:, :steps]),
            cut=tuple(cut.tolist()),
        )

    def _replay(
        self,
        launcher: Launcher,
        target: Target,
        tape: NoiseTape,
        setting: Setting,
        last_plan: Array | None,
        response: Response | None,
        past: Past,
    ) -> Samples:
        """Do the rounds by recordings."""
        how = DRAFTS[setting.draft], VERIFIERS[setting.verify], response, setting.window
        key = ("asd", *setting, *shapes(target, tape))
        recorded = launcher.keep(key, lambda: StaticRounds(launcher, target, tape, *how))
        sample, counts = recorded(target, tape, last_plan, response)
        cut = arrays.namespace(counts.cursor).nonzero(counts.cursor < len(target.chain))[0]
        if len(cut):
            rows = arrays.asarray(cut, arrays.device_of(sample))
            finished, calls = fall_back(target, lambda: recorded.jump()[rows], rows, past)
            sample[rows] = finished.reshape(len(cut), -1)
            for counted in (counts.rounds, counts.nfe):
                counted[cut] += arrays.asarray(calls, arrays.device_of(counted))
        if past.experience is not None and past.experience.learning:
            with launcher.queue():
                learn(past.experience, recorded.path, target, setting.pair, self.responds)
            launcher.settle()  # the sums are read, copied and saved outside of the queue
        ran = Asd(recorded.window, *setting.pair).spec
        return Samples(
            sample.reshape(target.shape),
            counts.rounds.tolist(),
            counts.nfe.tolist(),
            recorded.window,
            ran,
            recorded=True,
            refused=steps_of(counts.refused),
            unjudged=steps_of(~counts.judged),
            cut=tuple(cut.tolist()),
        )
