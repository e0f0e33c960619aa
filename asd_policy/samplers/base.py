"""What every sampler shares: the call, the tape, the counting."""

import abc
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asd_policy.chain import GaussianChain
from asd_policy.denoiser import Denoiser, MeteredDenoiser, check_finite
from asd_policy.errors import SpecError
from asd_policy.noise import Generators, NoiseTape
from asd_policy.types import SampleResult, SpeculationStats


@dataclass(frozen=True)
class Samples:
    """What a sampler's own loop returns to `Sampler.sample`."""

    sample: Tensor
    """Shape [B, *event]."""
    rounds: list[int]
    """Sequential network calls of each row."""
    nfe: list[int]
    """Network evaluations of each row."""


class Sampler(abc.ABC):
    """A way to sample a chain. Instances hold options only and can be shared."""

    @property
    @abc.abstractmethod
    def spec(self) -> str:
        """The full spec of this sampler, options included: `make_sampler(s.spec)` equals `s`."""

    @property
    @abc.abstractmethod
    def exact(self) -> bool:
        """Whether samples have exactly the law of the sequential sampler of the same chain."""

    @abc.abstractmethod
    def check(self, chain: GaussianChain) -> None:
        """Refuse a chain that the options do not fit.

        Raises:
            SpecError: An option is out of range for this chain.
        """

    @abc.abstractmethod
    def run(self, denoiser: Denoiser, chain: GaussianChain, tape: NoiseTape, cond: Tensor | None) -> Samples:
        """Sample along a tape; called by `sample`, which checks, draws and counts."""

    def sample(
        self,
        denoiser: Denoiser,
        chain: GaussianChain,
        shape: Sequence[int],
        cond: Tensor | None = None,
        generator: Generators = None,
        tape: NoiseTape | None = None,
        device: torch.device | str | None = None,
    ) -> SampleResult:
        """Draw a batch of samples.

        Args:
            denoiser: The network.
            chain: The target law.
            shape: (B, *event), for a policy (B, horizon, action_dim).
            cond: Conditioning [B, …], or None.
            generator: Source of the noise: one for the batch, one per row, or None for torch's global one.
            tape: The noise itself, in place of a generator.
            device: Where to sample; by default where `tape` or `cond` is, else the CPU.

        Returns:
            Samples of `shape` and what they cost.

        Raises:
            SpecError: The sampler's options do not fit the chain.
            DenoiserError: The network's output is misshapen or not finite.
            ValueError: The tape or the conditioning does not fit `shape`.
        """
        start = time.perf_counter()
        self.check(chain)
        if tape is None:
            where = device if device is not None else cond.device if cond is not None else "cpu"
            tape = NoiseTape.draw(shape, len(chain), generator, where)
        if tape.normals.shape != (shape[0], len(chain), *shape[1:]):
            raise ValueError(
                f"the tape has noise of shape {tuple(tape.normals.shape)}, but a batch {tuple(shape)} of "
                f"{len(chain)} steps needs {(shape[0], len(chain), *shape[1:])}"
            )
        if cond is not None and len(cond) != shape[0]:
            raise ValueError(f"conditioning for {len(cond)} rows, but a batch of {shape[0]}")
        metered = MeteredDenoiser(denoiser)
        with torch.inference_mode():
            samples = self.run(metered, chain, tape, cond)
        check_finite(samples.sample)
        return SampleResult(
            samples.sample,
            SpeculationStats(
                steps=len(chain),
                rounds=tuple(samples.rounds),
                nfe=tuple(samples.nfe),
                seconds=time.perf_counter() - start,
                network_seconds=metered.seconds,
            ),
        )


def check_count(name: str, count: int, chain: GaussianChain | None = None) -> None:
    """Refuse a number of points or steps that no chain, or this chain, has.

    Args:
        name: The option and its value, for the message.
        count: The value.
        chain: None before a chain is known.

    Raises:
        SpecError: It is not in 1 … K.
    """
    if count < 1 or (chain is not None and count > len(chain)):
        most = "K" if chain is None else len(chain)
        raise SpecError(f"{name} is not in 1 … {most}, the number of steps of the chain")


def number(value: float) -> str:
    """Write an option's value for a spec: as short as it reads back to the same value, 1 and not 1.0."""
    return repr(value).removesuffix(".0")


def evaluate(
    denoiser: Denoiser,
    chain: GaussianChain,
    point: Tensor,
    steps: Tensor,
    live: Tensor,
    rows: Tensor,
    cond: Tensor | None,
    event: torch.Size,
) -> Tensor:
    """Return x̂0 at the live points of a window by one network call, and zeros elsewhere.

    Args:
        denoiser: The network.
        chain: What it predicts for.
        point: Points, flattened, [R, n, D].
        steps: Indices of their steps [R, n].
        live: Which points are worth computing [R, n].
        rows: The rows of the batch that they belong to [R].
        cond: Conditioning of the batch [B, …], or None.
        event: Shape of a point.

    Returns:
        Predictions [R, n, D].
    """
    tables = chain.tables(point.device, point.dtype)
    which = live.flatten().nonzero().squeeze(1)  # [N] the points worth computing
    x, step = point.flatten(0, 1)[which], steps.flatten()[which]
    owner = rows.repeat_interleave(live.shape[1])[which]
    output = denoiser(x.view(-1, *event), tables.timesteps[step], None if cond is None else cond[owner])
    clean = torch.zeros_like(point).flatten(0, 1)
    clean[which] = chain.predict(x, output.flatten(1), step)
    return clean.view_as(point)
