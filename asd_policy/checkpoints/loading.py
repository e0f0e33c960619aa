"""Load a checkpoint as a policy, or as something to sample from, with its tuning."""

import math
from pathlib import Path
from typing import Any

from asd_policy._common.arrays import find_device, on_cpu
from asd_policy._common.extras import needed
from asd_policy.checkpoints.formats import find_format, locate
from asd_policy.checkpoints.tuning import find_tuning
from asd_policy.errors import CheckpointError, SpecError
from asd_policy.networks.backends import make_backend
from asd_policy.policy.function import AcceleratedFn
from asd_policy.policy.law import CHECKPOINT, check_chain
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.ddpm import Ddpm

AUTO = "auto"
"""The spec of the backend that was measured to be the fastest here."""
MAX_PLAN = 2**27  # random numbers; half a gigabyte


def load_policy(
    path: str | Path | Any,
    sampler: str | Sampler | None = None,
    device: str | None = None,
    backend: str | None = None,
    chain: str = CHECKPOINT,
    fixed_crop: bool = False,
    processors: Any = None,
) -> Policy:
    """Load a policy from a checkpoint, with its tuning if `asd-policy tune` has left one there.

    Of a live policy of another library it makes one that plans on the same weights, see `live.policy_of`.

    Args:
        path: A checkpoint of one of `FORMATS`, or a Hugging Face Hub id `owner/name` or `owner/name@revision`; or a
            live policy of a class in `ADAPTERS`, in eval mode, on whose own weights this one plans.
        sampler: Spec of the sampler to plan with, or the sampler; `accelerate` changes it. None for the sequential one:
            `ddpm`, or the file's own `ddim:n` where its scheduler is DDIM without noise and `chain` is "checkpoint".
        device: A torch device such as "cpu" or "cuda"; None for the CPU, or a live policy's own.
        backend: Spec of what runs the network; None for `torch-eager`, or `onnx` for an exported file; "auto" for the
            one that `asd-policy tune` found best here.
        chain: "checkpoint" runs the policy's own scheduler, "trained" the DDPM chain that its network was trained for.
            They differ where the scheduler is DDIM without noise: only on the latter is `asd` exact.
        fixed_crop: Crop frames in the middle where the checkpoint's library crops them at random when it plans. Plans
            then have another law than the library's; False refuses such a checkpoint.
        processors: Of a live LeRobot policy since 0.4, whose normalisation is outside of it: its preprocessor and
            postprocessor. With them the policy speaks the environment's units, without them the live policy's own.

    Raises:
        BackendError: The backend cannot run here, or not this network.
        CheckpointError: No such path, no known format, a checkpoint that is broken, or one that is no policy.
        ChainError: Its noise scheduler cannot be sampled here.
        SpecError: The sampler, the device or the chain does not exist, or the sampler does not fit the policy; or a
            live object is of no known class, in training mode, or does something that would be lost.
    """
    if not isinstance(path, str | Path):
        with needed("a live policy", "torch"):
            from asd_policy.checkpoints.live import policy_of

        return policy_of(path, sampler, device, backend, chain, processors)
    if processors is not None:
        raise SpecError("processors are those of a live policy; a checkpoint has its own")
    loaded = load(locate(path), sampler, device or "cpu", backend, chain, fixed_crop)
    if not isinstance(loaded, Policy):
        raise CheckpointError(
            f"{path} is no policy: it does not say which numbers are observations and which are actions, nor how they "
            "are normalised; asd_policy.load_fn samples from it"
        )
    return loaded


def load_fn(
    path: str | Path, sampler: str | Sampler | None = None, device: str = "cpu", chain: str = CHECKPOINT
) -> AcceleratedFn:
    """Load a checkpoint that is no policy, a network and its noise schedule, as something to sample from.

    Args:
        path: As for `load_policy`.
        sampler: Spec of the sampler, or the sampler; None for `asd`, or the file's own `ddim:n` where that runs.
        device: A torch device such as "cpu" or "cuda".
        chain: As for `load_policy`.

    Raises:
        CheckpointError: No such path, no known format, a checkpoint that is broken, or one that is a policy.
        ChainError: Its noise scheduler cannot be sampled here.
        SpecError: The sampler or the device does not exist, or the sampler does not fit the schedule.
    """
    loaded = load(locate(path), sampler, device, chain=chain)
    if isinstance(loaded, Policy):
        raise CheckpointError(f"{path} is a policy: asd_policy.load_policy loads it")
    if sampler is None and loaded.sampler == Ddpm():
        return loaded.with_chain(chain, make_sampler("asd"))
    return loaded


def load(
    path: Path,
    sampler: str | Sampler | None,
    device: str,
    backend: str | None = None,
    chain: str = CHECKPOINT,
    fixed_crop: bool = False,
) -> Policy | AcceleratedFn:
    """Load what a checkpoint on this machine holds; a policy with its tuning, if there is one.

    Arguments are those of `load_policy`.

    Raises:
        BackendError: The backend cannot run here, or not this network.
        CheckpointError: No such path, no known format, or a checkpoint that is broken.
        ChainError: Its noise scheduler cannot be sampled here.
        SpecError: The sampler or the device does not exist, or the sampler does not fit the schedule.
    """
    wanted = None if backend in (None, AUTO) else make_backend(backend)  # before the work, if it is misspelt
    check_chain(chain)
    planner = make_sampler(sampler or "ddpm")
    form = find_format(path)[1]
    with on_cpu():
        # With the sampler that fits every chain: whether the one that is wanted does, depends on the law that runs.
        loaded = form.load(path, make_sampler(form.reference), find_device(device))
    if not isinstance(loaded, Policy):
        return loaded.with_chain(chain, None if sampler is None else planner)
    _check_size(loaded)
    if loaded.encoder.random_crop and not fixed_crop:
        raise CheckpointError(
            f"{path}: {loaded.encoder.random_crop}; plans with the crop in the middle have another law: --fixed-crop, "
            "or load_policy(…, fixed_crop=True), makes those"
        )
    loaded = loaded.with_chain(chain, None if sampler is None else planner)
    tuned = None
    if (tuning := find_tuning(path, loaded)) is not None:
        loaded.experience, tuned = tuning.experience, tuning.backend
    if backend == AUTO:
        if tuned is None:
            raise SpecError(f"backend {AUTO!r} is what `asd-policy tune` finds best; it has not run for {path} here")
        wanted = make_backend(tuned)
    known = loaded.experience
    if wanted is not None and wanted != loaded.backend:
        loaded = loaded.with_backend(wanted)
    loaded.experience = known if loaded.backend.spec == tuned else known.without_times()
    return loaded


def _check_size(policy: Policy) -> None:
    """Refuse a policy whose plans need more memory than a configuration should be trusted with."""
    steps = len(policy.law.chain)
    numbers = steps * math.prod(policy.event)
    if numbers > MAX_PLAN:
        raise CheckpointError(
            f"a plan of {policy.event[0]} × {policy.event[1]} numbers in {steps} steps needs "
            f"{numbers} random numbers; {MAX_PLAN} are the most that a checkpoint may ask for"
        )
