"""Accelerate a policy that LeRobot has loaded, or leave it as it is and say why."""

import sys
from pathlib import Path
from typing import Any

import lerobot.policies.factory as factory
from lerobot.policies.pretrained import PreTrainedPolicy

import asd_policy
from asd_policy import AsdError, CheckpointError
from asd_policy.policy.adapters import find_adapter, is_accelerated
from asd_policy.policy.adapters.lerobot_sampling import tested_lerobot
from asd_policy.policy.law import TRAINED
from asd_policy.samplers.records import WarmUp
from lerobot_policy_asd import hook, report
from lerobot_policy_asd.commands import robots_of_command
from lerobot_policy_asd.settings import CHAIN, OFF, SAMPLER, Settings, read_settings
from lerobot_policy_asd.weights import missing_tensors

_FAST_ON_CUDA = "torch-cuda-graph"
_LEARNED_PLANS = 16


def accelerate_loaded(policy: PreTrainedPolicy, source: Any, revision: str | None) -> None:
    """Make a loaded policy plan as the environment variables say, and warm it up; write one line.

    What does not fit runs unchanged, in LeRobot's own loop. What was asked for by a variable and cannot be had ends
    LeRobot's command.

    Args:
        policy: In evaluation mode, on its device.
        source: Folder or Hub id that it was loaded from.
        revision: On the Hub.

    Raises:
        AsdError: A variable names what does not exist, or what does not fit the policy. In a command of LeRobot's it
            is `SystemExit` with the same line.
    """
    if is_accelerated(policy) or not _is_known(policy):
        return
    try:
        settings = read_settings()
        if settings.sampler == OFF:
            report.log.info("%s policy in LeRobot's own loop, as %s=%s says", policy.name, SAMPLER, OFF)
            return
        reason = _ddim(policy, settings) or _stranger(policy, source, revision, settings)
        reason = reason or _accelerate(policy, settings)
    except AsdError as error:
        if Path(sys.argv[0]).stem.startswith("lerobot"):
            raise SystemExit(f"lerobot_policy_asd: {error}") from None
        raise
    if reason is not None:
        report.log.warning("%s policy runs unchanged, in LeRobot's own loop: %s", policy.name, reason)


def _is_known(policy: PreTrainedPolicy) -> bool:
    try:
        find_adapter(policy)
    except AsdError:
        return False
    return True


def _ddim(policy: Any, settings: Settings) -> str | None:
    """Say how a policy that is configured to add no noise could be accelerated; None for other policies."""
    config = policy.config
    is_ddim = getattr(config, "objective", "diffusion") == "diffusion" and config.noise_scheduler_type == "DDIM"
    if settings.chain == TRAINED or not is_ddim:
        return None
    return (
        f"DDIM adds no noise, so there is nothing to draft and verify; {CHAIN}={TRAINED} samples the DDPM chain that "
        "it was trained for"
    )


def _stranger(policy: Any, source: Any, revision: str | None, settings: Settings) -> str | None:
    """Name what else has a hand in this policy; None for nothing, or where the user has asked all the same.

    Raises:
        CheckpointError: Some of its weights are random, and the user has asked for a sampler.
    """
    if policy.config.use_peft:
        return "PEFT puts an adapter on it after it is loaded"
    missing = missing_tensors(policy, source, revision)
    if missing:
        reason = f"{source} lacks {len(missing)} of its tensors, random now, such as {missing[0]}"
        if settings.asked:
            raise CheckpointError(f"{reason}; {', '.join(settings.asked)} is for policies that are whole")
        return reason
    return None if settings.asked else _other_package()


def _other_package() -> str | None:
    """Name another package that changes how LeRobot makes policies; None if there is none."""
    for name, found in (
        ("PreTrainedPolicy.from_pretrained", vars(PreTrainedPolicy)[hook.NAME].__func__),
        ("get_policy_class", factory.get_policy_class),
        ("make_policy", factory.make_policy),
    ):
        module = getattr(found, "__globals__", {}).get("__name__", type(found).__module__)
        if module.partition(".")[0] not in ("lerobot", "lerobot_policy_asd"):
            return f"{module} has changed LeRobot's {name}, too; {SAMPLER}=asd accelerates it all the same"
    return None


def _accelerate(policy: Any, settings: Settings) -> str | None:
    """Accelerate and warm up a policy, and say so; where it does not fit, give the reason.

    Raises:
        AsdError: What the user has asked for does not fit, and without it the policy would.
    """
    note = _left_out(policy.config, settings)
    try:
        if settings.backend is None and _is_on_cuda(policy):
            try:
                warm_ups = _warm(policy, settings, _FAST_ON_CUDA)
            except Exception as error:  # whatever it is, the same plans are to be had without graphs
                warm_ups = _warm(policy, settings, None)
                note += f", without CUDA graphs ({_line(error)})"
        else:
            warm_ups = _warm(policy, settings, settings.backend)
    except AsdError as error:
        if settings.asked and _fits_without(policy, settings):
            raise
        return str(error)
    except Exception as error:  # LeRobot's internals may be others than those known here
        return f"{_line(error)} ({tested_lerobot()})"
    plan = report.Plan(settings.sampler, settings.chain, f"{SAMPLER}={OFF} turns it off", note)
    report.say_accelerated(policy, plan, warm_ups)
    return None


def _is_on_cuda(policy: Any) -> bool:
    return next(policy.parameters()).is_cuda


def _warm(policy: Any, settings: Settings, backend: str | None) -> dict[int, WarmUp]:
    """Accelerate a policy and warm it up; undo it on an error."""
    asd_policy.accelerate(policy, settings.sampler, backend=backend, chain=settings.chain)
    try:
        return warm(policy)
    except BaseException:
        asd_policy.restore(policy)
        raise


def warm(policy: Any) -> dict[int, WarmUp]:
    """Warm an accelerated policy up for one robot, and for as many as the command has; return what each found.

    Raises:
        DenoiserError: As `asd_policy.warm_up`.
    """
    counts = sorted({1, robots_of_command()})
    return {robots: asd_policy.warm_up(policy, robots, learn=_LEARNED_PLANS, compare=True) for robots in counts}


def _left_out(config: Any, settings: Settings) -> str:
    """Note that a policy's chain leaves out steps of the one that it was trained for."""
    steps, trained = config.num_inference_steps, config.num_train_timesteps
    if settings.chain == TRAINED or steps in (None, trained):
        return ""
    return f", in {steps} of the {trained} steps that it was trained for ({CHAIN}={TRAINED} takes them all)"


def _fits_without(policy: Any, settings: Settings) -> bool:
    """Tell whether the policy could be accelerated if the user had asked for less."""
    try:
        asd_policy.restore(asd_policy.accelerate(policy, "asd", chain=settings.chain))
    except AsdError:
        return False
    return True


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
