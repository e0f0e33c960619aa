"""The description of a checkpoint: its contents, what is exact on it, and what is missing to run it here."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from asd_policy._common.version import PACKAGE_VERSION
from asd_policy.chain.flow import is_flow
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.scheduler_options import unknown_options
from asd_policy.chain.tokens import TokenChain
from asd_policy.checkpoints import Description, Format, find_format, load, locate
from asd_policy.checkpoints.recommendation import measure_parallel
from asd_policy.checkpoints.schedule import Schedule, schedule_of
from asd_policy.checkpoints.tuning import find_tuning
from asd_policy.errors import AsdError, ChainError, SpecError
from asd_policy.policy.law import CHECKPOINT, STOCHASTIC, TRAINED, check_chain
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.policy import Policy
from asd_policy.samplers import OF_STEPS, OF_TOKENS, Sampler, make_sampler
from asd_policy.samplers.ddim import OwnDdim
from asd_policy.samplers.euler import OwnEuler
from asd_policy.samplers.parallel import Parallel

_Law = Schedule | TokenChain | ChainError


def inspect(path: str, chain: str = CHECKPOINT, fixed_crop: bool = False) -> dict[str, Any]:
    """Describe a checkpoint, as the JSON object of `asd-policy inspect`.

    Args:
        path: As for `load_policy`.
        chain: As for `load_policy`.
        fixed_crop: As for `load_policy`.

    Raises:
        CheckpointError: No such path, no known format, or a file is broken that the description needs.
        SpecError: There is no such chain.
    """
    check_chain(chain)
    folder = locate(path)
    name, form = find_format(folder)
    description = form.describe(folder)
    missing: list[str] = []
    policy = None
    try:
        loaded = load(folder, None, "cpu", chain=chain, fixed_crop=fixed_crop)
        policy = loaded if isinstance(loaded, Policy) else None
        law = loaded.law
        schedule: _Law = law.tokens or Schedule(law.gaussian("inspect"), law.own)
        chain = loaded.law.runs
    except AsdError as error:
        missing.append(str(error))
        schedule = _schedule(description)
    tuning = None if policy is None else find_tuning(folder, policy)
    said: dict[str, Any] = {
        "version": 1,
        "command": "inspect",
        "policy": path,
        "path": str(folder),
        "package": PACKAGE_VERSION,
        "format": name,
        **asdict(description),
        "notes": [*description.notes, *_unknown(description, schedule)],
        "ranges": {} if policy is None else {name: _range(map_) for name, map_ in policy.normalization.items()},
        "prediction_type": schedule.chain.config["prediction_type"] if isinstance(schedule, Schedule) else None,
        "chain": {**_describe_chain(schedule, chain), "runs": chain},
        "own_plan": _own_plan(schedule),
        "samplers": [
            _describe_sampler(spec, schedule, chain)
            for spec in (OF_TOKENS if isinstance(schedule, TokenChain) else OF_STEPS)
        ],
        "recommended": None if policy is None else _recommend(policy, folder, fixed_crop),
        "tuning": {"file": str(tuning.file), "plans": tuning.experience.plans} if tuning else None,
        "files": files(folder, form),
        "is_policy": policy is not None,
        "runs_here": not missing,
        "missing": missing,
    }
    return _plain(said)


def _recommend(policy: Policy, folder: Path, fixed_crop: bool) -> dict[str, Any] | None:
    """Measure what pays where the checkpoint's own DDIM runs, on the best device here; None where `asd` is exact."""
    if policy.law.own is None or policy.law.runs != CHECKPOINT:
        return None
    if torch.cuda.is_available():
        loaded = load(folder, None, "cuda", fixed_crop=fixed_crop)
        assert isinstance(loaded, Policy)
        policy = loaded
    return measure_parallel(policy)


def _unknown(said: Description, law: _Law) -> tuple[str, ...]:
    """Name options of the noise scheduler that are not known; tokens have none, and a flow's are this package's own."""
    return () if isinstance(law, TokenChain) or is_flow(said.scheduler) else tuple(unknown_options(said.scheduler))


def _schedule(said: Description) -> Schedule | ChainError:
    """Make the schedule that a checkpoint describes, or explain why there is none."""
    try:
        return schedule_of(said.scheduler, said.num_inference_steps, said.eta)
    except ChainError as error:
        return error


def _own_plan(schedule: _Law) -> str | None:
    """Write the spec of the plan that the checkpoint's own scheduler makes; None where there is none."""
    if isinstance(schedule, ChainError):
        return None
    if isinstance(schedule, TokenChain):
        return make_sampler("tokens").spec
    return make_sampler("ddpm").spec if schedule.own is None else schedule.own.spec


def _describe_chain(schedule: _Law, runs: str) -> dict[str, Any]:
    """Tell whether steps can be drafted and verified, and why."""
    if isinstance(schedule, ChainError):
        return {"steps": None, "gaussian": False, "why": str(schedule)}
    if isinstance(schedule, TokenChain):
        why = (
            f"each of its {len(schedule)} steps draws one of {schedule.alphabet} values from a law that the network "
            "gives, so a drafted token can be verified and has the same law"
        )
        return {"steps": len(schedule), "gaussian": False, "why": why}
    chain, own = schedule.chain, schedule.own
    if is_flow(chain.config):
        return _describe_flow(chain, own, runs)
    if own is not None and runs == CHECKPOINT:
        why = (
            f"{own.spec} is its own plan: DDIM without noise, whose steps cannot be verified; with --chain {TRAINED} "
            f"asd is exact, on the DDPM chain of {len(chain)} steps that its network was trained for"
        )
        return {"steps": own.own_steps, "gaussian": False, "why": why}
    why = (
        f"each of the {len(chain)} steps of {chain.config['_class_name']} adds Gaussian noise of a variance that does "
        "not depend on the network, so a drafted step can be verified and has the same law"
    )
    if own is not None:
        why = f"{why}; this is the chain that the network was trained for, and the checkpoint's own plan is {own.spec}"
    return {"steps": len(chain), "gaussian": True, "why": why}


def _describe_flow(chain: GaussianChain, own: OwnDdim | OwnEuler | None, runs: str) -> dict[str, Any]:
    """Tell of a flow whether steps can be drafted and verified, and with respect to which law."""
    if own is not None and runs == CHECKPOINT:
        why = (
            f"{own.spec} is its own plan: Euler's steps along a flow, which add no noise and cannot be verified; with "
            f"--chain {STOCHASTIC} asd is exact, on a chain of {len(chain)} steps with noise, a law of its own"
        )
        return {"steps": own.own_steps, "gaussian": False, "why": why}
    why = (
        f"each of the {len(chain)} steps of the flow adds Gaussian noise, {runs}, so a drafted step can be verified; "
        "the law is that of this chain, its own, and not that of Euler's steps"
    )
    return {"steps": len(chain), "gaussian": True, "why": why}


def _describe_sampler(spec: str, schedule: _Law, runs: str) -> dict[str, Any]:
    """Tell whether a sampler can be used on the chain and keeps its law."""
    sampler = make_sampler(spec)
    if isinstance(schedule, ChainError):
        return {"spec": spec, "usable": False, "exact": sampler.exact, "why": "there is no chain of Gaussian steps"}
    if isinstance(schedule, Schedule) and schedule.own is not None and runs == CHECKPOINT:
        return _describe_on_own(sampler, schedule.own, schedule.chain)
    try:
        sampler.fit(schedule if isinstance(schedule, TokenChain) else schedule.chain)
    except SpecError as error:
        return {"spec": spec, "usable": False, "exact": sampler.exact, "why": str(error)}
    flow = isinstance(schedule, Schedule) and is_flow(schedule.chain.config)
    full = "the law of this chain with noise" if flow else "the law of the full chain"
    why = f"{full}, with any options" if sampler.exact else "another law than that of the full chain"
    return {"spec": spec, "usable": True, "exact": sampler.exact, "why": why}


def _describe_on_own(sampler: Sampler, own: OwnDdim | OwnEuler, chain: GaussianChain) -> dict[str, Any]:
    """Tell whether a sampler can be used where the checkpoint's own scheduler runs."""
    if isinstance(sampler, own.family):
        why = "the checkpoint's own plan; with other numbers of steps another one"
        return {"spec": own.spec, "usable": True, "exact": True, "why": why}
    name = sampler.spec.partition(":")[0]
    if isinstance(sampler, Parallel):
        why = f"the plan of {own.spec} to a tolerance, in fewer calls"
        return {"spec": name, "usable": True, "exact": False, "why": why}
    why = f"only with --chain {STOCHASTIC if isinstance(own, OwnEuler) else TRAINED}"
    try:
        sampler.check(chain)
    except SpecError as error:  # there neither
        why = str(error)
    return {"spec": name, "usable": False, "exact": sampler.exact, "why": why}


def _range(affine: Affine) -> dict[str, list[float]]:
    """Convert the network's −1 and 1 to physical units."""
    ones = torch.ones_like(affine.origin)
    return {"at_minus_one": affine.unnormalize(-ones).tolist(), "at_one": affine.unnormalize(ones).tolist()}


def files(folder: Path, form: Format) -> list[dict[str, Any]]:
    """List name, size and digest of the files that the format reads."""
    return [file_record(path, name) for name, path in form.files(folder).items()]


def file_record(path: Path, name: str) -> dict[str, Any]:
    """Compute name, size and digest of a file."""
    with path.open("rb") as file:
        return {"name": name, "bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _plain(value: Any) -> Any:
    """Convert a value to JSON, which has no NaN; configurations may hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
