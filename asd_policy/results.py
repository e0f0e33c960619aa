"""Reading back the results.json of `asd-policy eval`."""

import json
from pathlib import Path
from typing import Any

from asd_policy.errors import RunError
from asd_policy.journal import RESULTS

_RUN = {"policy", "env", "seed", "episodes", "device", "backend", "dtype", "package", "commit", "torch", "started",
        "samplers"}  # fmt: skip
_SAMPLER = {"spec", "exact", "steps", "window", "episodes", "success_rate", "success_ci95", "modes", "mode_entropy",
            "plans", "rounds_mean", "nfe_mean", "algorithmic_speedup", "wall_clock_speedup", "overhead_fraction",
            "latency_ms"}  # fmt: skip


def read_results(path: Path) -> dict[str, Any]:
    """Return the results.json of an evaluation.

    Args:
        path: The file, or its folder.

    Raises:
        RunError: It is not there, or not what `asd-policy eval` of this version writes.
    """
    path = path / RESULTS if path.is_dir() else path
    try:
        results = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"there is no {path}: give the --out of an asd-policy eval") from None
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}") from None
    said = {key: results.get(key) for key in ("version", "command")} if isinstance(results, dict) else None
    if said != {"version": 1, "command": "eval"}:
        raise RunError(f"{path} is not a {RESULTS} of asd-policy eval, version 1: it says {said}")
    missing = _RUN - results.keys()
    for each in results.get("samplers", []):
        missing |= _SAMPLER - each.keys()
    if missing:
        raise RunError(f"{path} lacks {', '.join(sorted(missing))}: run asd-policy eval again")
    if not results["samplers"]:
        raise RunError(f"{path} has no sampler: no episode had finished")
    return results
