"""Samplers and drafts from outside the package: as objects, and by entry points of other distributions."""

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest
import torch

import asd_policy
from asd_policy import Sampler, accelerate, accelerate_fn, cli, load_fn, load_policy, make_sampler
from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import SpecError
from asd_policy.evaluation.closed_loop import resolve_samplers
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.policy.tuning import _has_draft
from asd_policy.samplers import SAMPLERS
from asd_policy.samplers.asd import other_drafts
from asd_policy.samplers.asd.draft import DRAFTS, Draft, PicardDraft
from asd_policy.samplers.asd.draft import Path as PlanPath
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.base import Samples, Target
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.warm_start import WarmStart
from support import live_policies as live

EVENT = (2, 2)

# A distribution with a sampler and a draft, and with plugins that do not work.
PLUGIN = '''
from dataclasses import dataclass
from asd_policy._common import arrays
from asd_policy.samplers.asd.draft import Draft
from asd_policy.samplers.asd.sampler import Asd

@dataclass(frozen=True)
class Halved(Asd):
    """Windows of half the size."""

    @property
    def spec(self):
        return super().spec.replace("asd:", "halved:")

class Lazy(Draft):
    def known(self, path, rows, steps):
        return arrays.zeros(steps.shape, steps, bool)

lazy = Lazy()
number = 3
'''


class LazyDraft(Draft):
    """The frozen draft without its extra round."""

    def __init__(self, name: str = "", share: float = 1.0) -> None:
        """Keep the options."""
        self.name, self.share = name, share

    def known(self, path: PlanPath, rows: Array, steps: Array) -> Array:
        """Take no earlier prediction."""
        return arrays.zeros(steps.shape, steps, bool)


@dataclass(frozen=True)
class Counted(Sampler):
    """The sequential sampler under another name."""

    calls: int = 0

    @property
    def spec(self) -> str:
        """The full spec of this sampler."""
        return f"counted:{self.calls}"

    @property
    def exact(self) -> bool:
        """True."""
        return True

    def check(self, chain: GaussianChain) -> None:
        """Take every chain."""

    def run(self, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Samples:
        """Run as `ddpm` does."""
        return replace(Ddpm().run(target, tape, warm_start), spec=self.spec)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Forget after a test what it has registered."""
    with mock.patch.dict(DRAFTS), mock.patch.object(other_drafts, "_given", set()):
        yield


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a distribution with the given lines of entry points on the path."""

    def write(points: str) -> Path:
        site = tmp_path / "site"
        info = site / "other_samplers-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-samplers\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
        (site / "other_samplers.py").write_text(PLUGIN)
        monkeypatch.delitem(sys.modules, "other_samplers", raising=False)
        monkeypatch.syspath_prepend(str(site))
        return site

    return write


@pytest.mark.parametrize("make", [lambda: Counted(3), lambda: Asd(3, LazyDraft())], ids=["sampler", "draft"])
def test_every_door_takes_a_sampler(
    make: Callable[[], Sampler], small_checkpoint: Path, gaussian: MixtureDenoiser
) -> None:
    sampler = make()
    policy = load_policy(small_checkpoint, sampler)
    assert policy.sampler == sampler == accelerate(load_policy(small_checkpoint), sampler).sampler
    policy.select_action({"agent_pos": [0.0] * 4, "environment_state": [0.0] * 3})
    assert policy.plans[0].stats.spec == sampler.spec
    scheduler = {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"}
    assert accelerate_fn(gaussian, scheduler, sampler).sampler == sampler


def test_a_live_policy_takes_a_sampler() -> None:
    policy = live.make("unet, camera")
    accelerate(policy, Counted())
    policy.predict_action(live.theirs(live.observations("unet, camera")))
    assert policy.asd_stats.last is not None and policy.asd_stats.last.spec == "counted:0"
    assert load_policy(asd_policy.restore(policy), Counted()).sampler == Counted()


def test_what_is_no_sampler_is_refused(small_checkpoint: Path) -> None:
    wrong = "is no sampler: give a spec such as 'asd:window=16', or a Sampler"
    for door in (load_policy, load_fn):
        with pytest.raises(SpecError, match=wrong):
            door(small_checkpoint, Counted)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match=wrong):
        accelerate(load_policy(small_checkpoint), Ddpm)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_a_draft_as_an_object_gets_a_name(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """Its specs then mean it, and its plans are those of the same draft under another name."""
    sampler = Asd(4, LazyDraft())
    assert sampler.spec == "asd:window=4,draft=LazyDraft,verify=block"
    assert make_sampler(sampler.spec) == sampler == Asd(4, LazyDraft())
    other = Asd(4, LazyDraft("held", 1.0))
    assert other.spec == "asd:window=4,draft=held,verify=block" and other != sampler
    tape = NoiseTape.draw((6, *EVENT), len(chain), torch.Generator().manual_seed(0))
    plans = [each.sample(mixture, chain, (6, *EVENT), generator=tape) for each in (sampler, other)]
    assert torch.equal(plans[0].sample, plans[1].sample)
    assert plans[0].stats.rounds == plans[1].stats.rounds < (len(chain),) * 6
    assert Asd(4, DRAFTS["picard"]) == Asd(4, "picard")


def test_a_draft_that_differs_needs_a_name_of_its_own() -> None:
    Asd(4, LazyDraft())
    with pytest.raises(SpecError, match="another draft is called 'LazyDraft' already: give this one a `name`"):
        Asd(4, LazyDraft(share=0.5))
    with pytest.raises(SpecError, match="another draft is called 'picard' already"):
        Asd(4, LazyDraft("picard"))
    for name in ("two words", "a,b", "auto", "draft=x"):
        with pytest.raises(SpecError, match=f"a draft cannot be called '{name}' in a spec"):
            Asd(4, LazyDraft(name))


def test_an_attribute_of_its_own_makes_a_known_draft_another(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """Compiled rounds know the class alone, and must not run for it."""
    draft = PicardDraft()
    draft.name = "lazy-picard"
    draft.known = lambda path, rows, steps: arrays.zeros(steps.shape, steps, bool)
    tape = NoiseTape.draw((6, *EVENT), len(chain), torch.Generator().manual_seed(0))
    found, expected = (
        Asd(4, each).sample(mixture, chain, (6, *EVENT), generator=tape) for each in (draft, LazyDraft())
    )
    assert torch.equal(found.sample, expected.sample)


@pytest.mark.parametrize("draft", [LazyDraft(), "picard", None], ids=["object", "name", "auto"])
def test_samplers_are_copied_and_pickled(draft: Draft | str | None) -> None:
    """To a process that has not seen the draft, too."""
    sampler = Asd(None, draft)
    written = pickle.dumps(sampler)
    assert pickle.loads(written) == sampler == copy.deepcopy(sampler)
    if isinstance(draft, Draft):
        DRAFTS.pop("LazyDraft")
        assert pickle.loads(written) == sampler
        assert type(DRAFTS["LazyDraft"]) is LazyDraft


def test_auto_chooses_no_draft_from_outside(small_checkpoint: Path) -> None:
    """But windows for one that is named; what it chose is found again as the spec that ran."""
    sampler = Asd(None, LazyDraft())
    policy = load_policy(small_checkpoint, "asd")
    ran = resolve_samplers(policy, make_env("asd/Avoid-v0"), [sampler, Counted(1), Asd()], 1)
    assert ran["counted:1"] == Counted(1)
    chosen = ran[sampler.spec]
    assert isinstance(chosen, Asd) and chosen.window is not None and chosen.draft == "LazyDraft"
    default = ran[Asd().spec]
    assert isinstance(default, Asd) and default.draft in ("warm", "response")


SAMPLER, DRAFT = "[asd_policy.samplers]\n", "[asd_policy.drafts]\n"


def test_plugins_by_entry_point(
    install: Callable[[str], Path], mixture: MixtureDenoiser, chain: GaussianChain, small_checkpoint: Path
) -> None:
    with pytest.raises(SpecError, match="no sampler 'halved'"):
        make_sampler("halved")
    assert not _has_draft("theirs")
    site = install(f"{SAMPLER}halved = other_samplers:Halved\n{DRAFT}theirs = other_samplers:lazy\n")
    assert make_sampler("halved:window=2").spec == "halved:window=2,draft=response,verify=block"
    with pytest.raises(SpecError, match="no option 'windw' in 'halved:windw=2'"):
        make_sampler("halved:windw=2")
    sampler = make_sampler("asd:window=4,draft=theirs")
    assert sampler.spec == "asd:window=4,draft=theirs,verify=block" and _has_draft("theirs")
    tape = NoiseTape.draw((6, *EVENT), len(chain), torch.Generator().manual_seed(0))
    plans = [each.sample(mixture, chain, (6, *EVENT), generator=tape) for each in (sampler, Asd(4, LazyDraft()))]
    assert torch.equal(plans[0].sample, plans[1].sample)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        f"import pickle; print(pickle.loads({pickle.dumps(sampler)!r}).spec)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sampler.spec
    given = ["verify", "--policy", str(small_checkpoint), "--sampler", "asd:window=4,draft=theirs", "--samples", "16"]
    assert cli.run([*given, "--observations", "1"]) == 0


def test_broken_plugins_are_named(install: Callable[[str], Path]) -> None:
    install(
        f"{SAMPLER}ddpm = other_samplers:Halved\nhalved = other_samplers:Halved\nnone = no_such_module:S\n"
        f"number = other_samplers:number\n{DRAFT}picard = other_samplers:lazy\nnumber = other_samplers:number\n"
    )
    assert isinstance(make_sampler("halved"), Asd)
    assert make_sampler("ddpm") == Ddpm()  # a name of this package stays this package's
    with pytest.raises(SpecError) as error:
        make_sampler("number")
    said = str(error.value)
    assert f"there are {', '.join(SAMPLERS)}, halved;" in said
    assert "the plugin 'none' does not work: no_such_module:S raises ModuleNotFoundError" in said
    assert "the plugin 'number' does not work: other_samplers:number is a int, not a dataclass" in said
    with pytest.raises(SpecError, match="draft=number is not one of auto, .*is a int, not a Draft"):
        make_sampler("asd:draft=number")
    assert type(DRAFTS["picard"]) is PicardDraft


def test_the_documented_draft(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    (block,) = re.findall(r"```python\n(.*?)```", (root / "docs/guide/extending.md").read_text(), re.DOTALL)
    exec(block, {"__name__": "__main__"})
    assert capsys.readouterr().out.startswith("asd:window=8,draft=LazyDraft,verify=block took ")
