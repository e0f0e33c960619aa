"""The description of a checkpoint: its contents, what is exact on it, and what is missing to run it here."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from asd_policy._common.version import PACKAGE_VERSION
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.scheduler_options import unknown_options
from asd_policy.checkpoints import Description, Format, find_format, load, locate
from asd_policy.checkpoints.tuning import find_tuning
from asd_policy.errors import AsdError, ChainError, SpecError
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.policy import Policy
from asd_policy.samplers import SAMPLERS, make_sampler


def inspect(path: str) -> dict[str, Any]:
    """Describe a checkpoint, as the JSON object of `asd-policy inspect`.

    Args:
        path: As for `load_policy`.

    Raises:
        CheckpointError: No such path, no known format, or a file is broken that the description needs.
    """
    folder = locate(path)
    name, form = find_format(folder)
    description = form.describe(folder)
    missing: list[str] = []
    policy = None
    try:
        loaded = load(folder, "ddpm", "cpu")
        policy = loaded if isinstance(loaded, Policy) else None
        chain: GaussianChain | ChainError = loaded.chain
    except AsdError as error:
        missing.append(str(error))
        chain = _chain(description)
    tuning = None if policy is None else find_tuning(folder, policy)
    said: dict[str, Any] = {
        "version": 1,
        "command": "inspect",
        "policy": path,
        "path": str(folder),
        "package": PACKAGE_VERSION,
        "format": name,
        **asdict(description),
        "notes": [*description.notes, *unknown_options(description.scheduler)],
        "ranges": {} if policy is None else {name: _range(map_) for name, map_ in policy.normalization.items()},
        "prediction_type": chain.config["prediction_type"] if isinstance(chain, GaussianChain) else None,
        "chain": _describe_chain(chain),
        "samplers": [_describe_sampler(spec, chain) for spec in SAMPLERS],
        "tuning": {"file": str(tuning.file), "plans": tuning.experience.plans} if tuning else None,
        "files": files(folder, form),
        "is_policy": policy is not None,
        "runs_here": not missing,
        "missing": missing,
    }
    return _plain(said)


def _chain(said: Description) -> GaussianChain | ChainError:
    """Make the chain that a checkpoint describes, or explain why there is none."""
    try:
        return GaussianChain.from_scheduler(said.scheduler, said.num_inference_steps, said.eta)
    except ChainError as error:
        return error


def _describe_chain(chain: GaussianChain | ChainError) -> dict[str, Any]:
    """Tell whether steps can be drafted and verified, and why."""
    if isinstance(chain, ChainError):
        return {"steps": None, "gaussian": False, "why": str(chain)}
    why = (
        f"each of the {len(chain)} steps of {chain.config['_class_name']} adds Gaussian noise of a variance that does "
        "not depend on the network, so a drafted step can be verified and has the same law"
    )
    return {"steps": len(chain), "gaussian": True, "why": why}


def _describe_sampler(spec: str, chain: GaussianChain | ChainError) -> dict[str, Any]:
    """Tell whether a sampler can be used on the chain and keeps its law."""
    sampler = make_sampler(spec)
    if isinstance(chain, ChainError):
        return {"spec": spec, "usable": False, "exact": sampler.exact, "why": "there is no chain of Gaussian steps"}
    try:
        sampler.check(chain)
    except SpecError as error:
        return {"spec": spec, "usable": False, "exact": sampler.exact, "why": str(error)}
    why = "the law of the full chain, with any options" if sampler.exact else "another law than that of the full chain"
    return {"spec": spec, "usable": True, "exact": sampler.exact, "why": why}


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
