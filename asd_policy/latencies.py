"""How long a plan is taken to take, where the environment does not wait for it: as measured, or as told."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from asd_policy.errors import RunError, SpecError
from asd_policy.journal import parse
from asd_policy.types import MEASURED


class Latency(Protocol):
    """A law of latencies."""

    @property
    def name(self) -> str:
        """As `read_latency` takes it."""
        ...

    @property
    def sha256(self) -> str | None:
        """Of the file it was read from; None where there is none."""
        ...

    def draw(self, spec: str, measured: float, rng: np.random.Generator) -> float:
        """Return the latency of a plan [s].

        Args:
            spec: Of the sampler.
            measured: What the plan took here [s].
            rng: For the plans of one episode.
        """
        ...


@dataclass(frozen=True)
class Measured:
    """What each plan took on this machine."""

    name: str = MEASURED
    sha256: None = None

    def draw(self, spec: str, measured: float, rng: np.random.Generator) -> float:
        """Return what was measured."""
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
        """Return it."""
        return self.milliseconds / 1e3


@dataclass(frozen=True)
class Drawn:
    """Drawn from those of a file, each as likely as the next."""

    name: str
    """Of the file."""
    sha256: str
    """Of its contents."""
    seconds: Mapping[str, tuple[float, ...]]
    """Latencies [s] by the sampler's spec."""

    def draw(self, spec: str, measured: float, rng: np.random.Generator) -> float:
        """Return one of the sampler's."""
        values = self.seconds[spec]
        return values[rng.integers(len(values))]


def read_latency(text: str, specs: Sequence[str]) -> Latency:
    """Return the law that `--latency` names.

    Args:
        text: `measured`, a number of milliseconds, or the path of a file: text with a number of milliseconds in each
            line, for all samplers alike; or the episodes.jsonl of a run, for each sampler what its plans took there.
        specs: Of the samplers that it is for.

    Raises:
        SpecError: It is none of these; a latency is negative or no number; the file has none, or not of a sampler.
    """
    if text == MEASURED:
        return Measured()
    try:
        milliseconds = float(text)
    except ValueError:
        return _read_file(text, specs)
    return Fixed(_checked(milliseconds, f"--latency {text}"))


def _read_file(text: str, specs: Sequence[str]) -> Drawn:
    path = Path(text)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(
            f"--latency {text!r} is neither {MEASURED!r}, nor a number of milliseconds, nor a file that can be read: "
            f"{error.strerror}"
        ) from None
    found = _of_run(path, content, specs) if content.startswith(b"{") else dict.fromkeys(specs, _of_text(path, content))
    return Drawn(text, hashlib.sha256(content).hexdigest(), found)


def _of_text(path: Path, content: bytes) -> tuple[float, ...]:
    """Return the latencies [s] of a text of milliseconds, one a line."""
    seconds = []
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
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
    """Return for each sampler what its plans took in a run [s]."""
    try:
        episodes = parse(path, content).episodes
    except RunError as error:
        raise SpecError(f"--latency {error}") from None
    there: dict[str, list[float]] = {}
    for episode in episodes:
        there.setdefault(episode.spec, []).extend(plan.seconds for plan in episode.plans)
    missing = [spec for spec in specs if not there.get(spec)]
    if missing:
        known = ", ".join(spec for spec, seconds in there.items() if seconds) or "no sampler"
        raise SpecError(f"--latency {path} has no plans of {', '.join(missing)}; it has those of {known}")
    for spec in specs:
        for seconds in there[spec]:
            _checked(1e3 * seconds, f"--latency {path}: a plan of {spec} with {1e3 * seconds:g} ms")
    return {spec: tuple(there[spec]) for spec in specs}


def _checked(milliseconds: float, what: str) -> float:
    """Return a latency.

    Raises:
        SpecError: It is none.
    """
    if not 0 <= milliseconds < math.inf:
        raise SpecError(f"{what} is not a number of milliseconds from 0 on")
    return milliseconds
