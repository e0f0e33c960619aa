"""Any denoising function as something to sample from, without a policy around it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy._common.deprecated import warn_of_old
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import Generators, NoiseTape
from asd_policy.errors import ChainError, SpecError
from asd_policy.networks.denoiser import Denoiser, check_on_noise
from asd_policy.policy.law import Law
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.records import SampleResult
from asd_policy.samplers.warm_start import WarmStart, move_on


class _OldKeywords(TypedDict, total=False):
    held: Inpainting | None


class AcceleratedFn:
    """A denoising function, its noise schedule and a sampler: call it for samples.

    What calls have taught makes later ones cheaper and changes no sample's law, see `Experience`.
    """

    def __init__(self, denoise: Denoiser, chain: GaussianChain | Law, sampler: Sampler, device: Device | None) -> None:
        """Put it together; `accelerate_fn` does it from a scheduler, `load_fn` from a checkpoint.

        Args:
            denoise: The network.
            chain: Its noise schedule; or a law, where a checkpoint has two.
            sampler: How to sample.
            device: Where to sample; None for where the conditioning is, else the CPU.

        Raises:
            SpecError: The sampler's options do not fit the chain.
        """
        self.denoise = denoise
        self.law = chain if isinstance(chain, Law) else Law(chain)
        """Whose law samples have."""
        self.sampler = self.law.fitted(sampler)
        self.device = device
        self.reset()

    @property
    def chain(self) -> GaussianChain:
        """The chain of the function's noise schedule."""
        return self.law.gaussian("a denoising function")

    def with_chain(self, chain: str, sampler: Sampler | None = None) -> "AcceleratedFn":
        """Make one of the same function with one of the two laws, see `law.CHAINS`, which has learned nothing.

        Args:
            chain: One of `CHAINS`.
            sampler: How to sample; None for the law's `reference`.

        Raises:
            SpecError: There is no such chain, or the sampler does not fit it.
        """
        law = self.law.turned(chain)
        return AcceleratedFn(self.denoise, law, sampler or law.reference, self.device)

    def reset(self) -> None:
        """Forget the last samples and all that was learned; the next call looks at the function again."""
        self.experience = Experience()
        """What the calls since have taught."""
        self._last: Array | None = None
        self._event: tuple[int, ...] | None = None

    @arrays.uncompiled
    def __call__(
        self,
        shape: Sequence[int],
        cond: Array | None = None,
        generator: Generators = None,
        inpainting: Inpainting | None = None,
        executed: int | None = None,
        **old: Unpack[_OldKeywords],
    ) -> SampleResult:
        """Draw samples. The first call, and one for another event, begins with `reset` and a look at the function.

        Args:
            shape: (B, *event), for action chunks (B, horizon, action_dim).
            cond: What the function is given as conditioning [B, …], or None.
            generator: Source of the noise: one for the batch, one per row, or None for torch's global one.
            inpainting: Coordinates that are given, not sampled.
            executed: In receding-horizon control, how many steps of the last call's samples were executed since: moved
                on by as many, they begin the drafts of these, row by row. None: the two calls are unrelated.
            **old: Keywords of 0.1, for one release.

        Raises:
            DenoiserError: The function's output is misshapen or not finite; where it is looked at also if it is random
                or a row depends on its neighbours.
            SpecError: `executed` does not fit the last call.
            ValueError: The conditioning or the inpainting do not fit `shape`.
        """
        if "held" in old:
            warn_of_old("held=", "inpainting=")
            inpainting = old["held"]
        calls = points = 0
        where = self.device or ("cpu" if cond is None else arrays.device_of(cond))
        if self._event != tuple(shape[1:]):
            self.reset()
            calls, points = check_on_noise(self.denoise, self.chain.timesteps, shape[1:], cond, where)
            self._event = tuple(shape[1:])
        last = None if executed is None else self._moved_on(tuple(shape), executed)
        tape = NoiseTape.draw(shape, len(self.chain), generator, where)
        warm_start = WarmStart(last, self.experience)
        result = self.sampler.sample(
            self.denoise, self.chain, shape, cond, tape, inpainting=inpainting, warm_start=warm_start
        )
        self._last = arrays.copied(result.sample)  # the caller may write into his own
        return replace(result, stats=result.stats.with_trials(calls, points))

    def _moved_on(self, shape: tuple[int, ...], executed: int) -> Array | None:
        """Move the last samples on, to begin the drafts of these; None where there are none."""
        if not 0 <= executed <= shape[1]:
            raise SpecError(f"executed={executed} is not in 0 … {shape[1]}, the steps of a sample")
        if self._last is None:
            return None
        if self._last.shape != shape:
            raise SpecError(f"executed={executed}, but the last call had {len(self._last)} rows, this one {shape[0]}")
        return move_on(self._last, executed)


def accelerate_fn(
    denoise: Denoiser,
    scheduler: Any,
    spec: str | Sampler = "asd",
    num_inference_steps: int | None = None,
    eta: float | None = None,
    device: Device | str | None = None,
) -> AcceleratedFn:
    """Make a sampler of any denoising function.

    Args:
        denoise: Called as `denoise(x, timestep, cond)` with points x [N, *event], their timesteps [N] (int64) and
            conditioning [N, …] or None; returns what the scheduler's `prediction_type` says, in the shape of x. This is
            how a network of diffusers is called, rows being points of several chains at different timesteps; where
            it returns an object, pass `lambda x, t, cond: unet(x, t).sample`.
        scheduler: A diffusers `DDPMScheduler`, a `DDIMScheduler` that adds noise, or the configuration of one; or a
            `GaussianChain`, such as a flow's (`from_flow`) or that of Langevin dynamics (`langevin`).
        spec: A sampler spec such as `asd:window=16`, or a sampler.
        num_inference_steps: Steps of the chain; None for all the training steps.
        eta: DDIM's share of noise, in (0, 1]; None for DDPM.
        device: Where to sample; None for where the conditioning is, else the CPU.

    Raises:
        ChainError: The scheduler does not define a Gaussian chain.
        SpecError: The spec does not exist or does not fit the chain.
    """
    if isinstance(scheduler, GaussianChain):
        if num_inference_steps is not None or eta is not None:
            raise ChainError("num_inference_steps and eta are of a scheduler: a chain has its own")
        chain = scheduler
    else:
        chain = GaussianChain.from_scheduler(scheduler, num_inference_steps, eta)
    return AcceleratedFn(denoise, chain, make_sampler(spec), None if device is None else arrays.find_device(device))
