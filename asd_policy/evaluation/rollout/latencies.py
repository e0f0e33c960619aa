"""Latencies of plans where the environment does not wait for them: measured, fixed, or drawn from a file."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from asd_policy.errors import RunError, SpecError
from asd_policy.evaluation.rollout.journal import parse_journal
from asd_policy.policy.plan import MEASURED

LONGEST = 1e9
"""Longest latency that may be given [ms]."""


class Latency(Protocol):
    """A law of latencies."""

    @property
    def name(self) -> str:
        """The text that `read_latency` reads it from."""
        ...

    @property
    def sha256(self) -> str | None:
        """Of the file that it was read from; None where there is none."""
        ...

    def draw(self, spec: str, measured: float, rng: np.random.Generator) -> float:
        """Draw the latency of a plan [s].

        Args:
            spec: Of the sampler.
            measured: What the plan took here [s].
            rng: Of one episode.
        """
        ...


@dataclass(frozen=True)
class Measured:
    """What each plan took on this machine."""

    name: str = MEASURED
    sha256: None = None

    def draw(self, spec: str, measured: float, rng: np.random.Generator) -> float:
        """Take what was measured."""
        return measured


@dataclass(frozen=True)
class Fixed:
    """The same for every plan."""

    milliseconds: float
    sha256: None = None

    @property
    def name(self) -> str:
        """The number [ms]."""
        return repr(self.milliseconds).removesuffix(".0")

    def draw(self, spec: str, measured: float, rng: np.random.Generator) -> float:
        """Take the fixed latency."""
        return self.milliseconds / 1e3


@dataclass(frozen=True)
class Empirical:
    """One of those in a file, each as likely as the next: their empirical distribution."""

    name: str
    """Of the file."""
    sha256: str
    """Of its contents."""
    seconds: Mapping[str, tuple[float, ...]]
    """Latencies [s] by the sampler's spec."""

    def draw(self, spec: str, measured: float, rng: np.random.Generator) -> float:
        """Draw one of the sampler's latencies."""
        values = self.seconds[spec]
        return values[rng.integers(len(values))]


def read_latency(text: str, specs: Sequence[str]) -> Latency:
    """Read the law of latencies that `--latency` names.

    Args:
        text: `measured`, a number of milliseconds, or the path of a file. A file is a text with one number of
            milliseconds a line, for all samplers alike; or the episodes.jsonl of a run or the results.json of
            `asd-policy bench`, with what each sampler's plans took there.
        specs: Of the samplers that need latencies.

    Raises:
        SpecError: It is none of these; a latency is negative or no number; the file has none, or none of a sampler.
    """
    if text == MEASURED:
        return Measured()
    try:
        milliseconds = float(text)
    except ValueError:
        return _read_file(text, specs)
    return Fixed(_checked(milliseconds, f"--latency {text}"))


def _read_file(text: str, specs: Sequence[str]) -> Empirical:
    path = Path(text)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(
            f"--latency {text!r} is neither {MEASURED!r}, nor a number of milliseconds, nor a file that can be read: "
            f"{error.strerror}"
        ) from None
    return Empirical(text, hashlib.sha256(content).hexdigest(), _seconds(path, content, specs))


def _seconds(path: Path, content: bytes, specs: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Read the latencies of each sampler from a file [s]."""
    if not content.startswith(b"{"):
        return dict.fromkeys(specs, _of_text(path, content))
    try:
        whole = json.loads(content)
    except ValueError:
        whole = None  # of lines, each of which is JSON
    if isinstance(whole, dict) and "samplers" in whole:
        return _of_bench(path, whole, specs)
    return _of_run(path, content, specs)


def _of_text(path: Path, content: bytes) -> tuple[float, ...]:
    """Read the latencies [s] from a text of milliseconds, one a line."""
    seconds = []
    for number, line in enumerate(content.decode("utf-8-sig", errors="replace").splitlines(), 1):
        if line.strip():
            try:
                value = float(line)
            except ValueError:
                value = math.nan
            seconds.append(_checked(value, f"--latency {path}: line {number}, {line.strip()[:40]!r},") / 1e3)
    if not seconds:
        raise SpecError(f"--latency {path} is empty; it is to have a number of milliseconds in each line")
    return tuple(seconds)


def _of_run(path: Path, content: bytes, specs: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Read what each sampler's plans took in a run [s]."""
    try:
        episodes = parse_journal(path, content).episodes
    except RunError as error:
        raise SpecError(f"--latency {error}") from None
    there: dict[str, list[float]] = {}
    together = max((plan.batch for episode in episodes if episode.spec in specs for plan in episode.plans), default=1)
    if together > 1:
        raise SpecError(
            f"--latency {path}: up to {together} plans were made at once there; measure single ones, with --envs 1"
        )
    for episode in episodes:
        there.setdefault(episode.spec, []).extend(1e3 * plan.seconds for plan in episode.plans)
    return _of_specs(path, there, specs)


def _of_bench(path: Path, results: Mapping[str, Any], specs: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Read what each sampler's plans took in a benchmark [s]."""
    there: dict[str, list[float]] = {}
    backends: dict[str, list[str]] = {}
    try:
        for each in results["samplers"]:
            there[each["spec"]] = [float(value) for value in each["latencies_ms"]]
            backends.setdefault(each["spec"], []).append(each["backend"])
    except (KeyError, TypeError, ValueError):
        raise SpecError(
            f"--latency {path} is no results.json of `asd-policy bench`; those of an `eval` are in episodes.jsonl"
        ) from None
    for spec in specs:
        if len(backends.get(spec, ())) > 1:
            raise SpecError(f"--latency {path} has {spec} on {', '.join(backends[spec])}: bench it with one of them")
    return _of_specs(path, there, specs)


def _of_specs(path: Path, there: Mapping[str, Sequence[float]], specs: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Select the latencies of some samplers, check them, and convert them from milliseconds to seconds."""
    missing = [spec for spec in specs if not there.get(spec)]
    if missing:
        known = ", ".join(spec for spec, values in there.items() if values) or "no sampler"
        raise SpecError(f"--latency {path} has no plans of {', '.join(missing)}; it has those of {known}")
    return {
        spec: tuple(
            _checked(value, f"--latency {path}: a plan of {spec} with {value:g} ms") / 1e3 for value in there[spec]
        )
        for spec in specs
    }


def _checked(milliseconds: float, what: str) -> float:
    """Check a latency, and return it.

    Raises:
        SpecError: It is negative, too long, or no number.
    """
    if not 0 <= milliseconds <= LONGEST:
        raise SpecError(f"{what} is not a number of milliseconds in 0 … {LONGEST:g}")
    return milliseconds
