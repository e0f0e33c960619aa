"""The coefficients of a flow's chain: Euler's steps along a velocity, with a share η of fresh noise.

A network of flow matching (Lipman et al., arXiv 2210.02747; rectified flow, Liu et al., arXiv 2209.03003) knows points
x = α·x0 + β·ε between data and noise, with α from 0 to 1, and its velocity gives back both: x0_pred and ε_pred. From
levels (α_k, β_k) to the next,

    x_{k+1} = α_{k+1} · x0_pred + √(β_{k+1}² − σ_k²) · ε_pred + σ_k · ξ_k,    σ_k = η β_{k+1} √(1 − ρ_k²),
    ρ_k = α_k β_{k+1} / (α_{k+1} β_k)

which is DDIM's step with noise (Song et al., arXiv 2010.02502, eqs. 12 and 16) at the flow's levels: η = 1 is the
ancestral step of DDPM, η = 0 is Euler's step to the digit. With ε_pred = (x − α_k x0_pred) / β_k it has the form of a
`GaussianChain`, b = √(β_{k+1}² − σ_k²) / β_k and a = α_{k+1} − b α_k. The last step adds no noise.

At η > 0 this is a law of its own. A perfect network's points have the flow's own marginals in the limit of small steps
alone; at the few steps of a robot's plan the law differs from Euler's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy.chain.scheduler_options import INTEGER, MAX_TRAIN_TIMESTEPS, is_a
from asd_policy.errors import ChainError

FLOW = "FlowScheduler"
"""The `_class_name` of a flow in configurations; no class of diffusers, whose schedulers of flows shift their times."""
FLOW_PREDICTION = "flow_prediction"
"""The `prediction_type` of a network that predicts a flow's velocity."""
CONVENTIONS = ("noise", "data", "timestep")
"""What networks call time and velocity. noise: time is 1 at the noise, v = ε − x0, as LeRobot's common/flow_matching.py
has it. data: time is 1 at the data, v = x0 − ε, as multi_task_dit. timestep: v = ε − x0, at integers 0 … T − 1 that
stand for the times 1/T … 1 of "noise", so that a network of a DDPM can learn a flow."""

_MOST_STEPS = 10_000
_NUMBER = (int, float, np.integer, np.floating)


def flow_config(convention: str, sigma_min: float, num_train_timesteps: int | None, eta: float) -> dict[str, Any]:
    """Write the configuration of a flow's chain, with the options that every chain's has."""
    return {
        "_class_name": FLOW,
        "prediction_type": FLOW_PREDICTION,
        "convention": convention,
        "sigma_min": float(sigma_min),
        "num_train_timesteps": num_train_timesteps,
        "eta": float(eta),
        "clip_sample": False,
        "thresholding": False,
    }


def is_flow(config: Mapping[str, Any]) -> bool:
    """Tell whether a chain's configuration is a flow's."""
    return config.get("_class_name") == FLOW


def read_flow(
    steps: int, eta: float, convention: str, sigma_min: float, num_train_timesteps: int | None
) -> dict[str, Any]:
    """Compute the coefficients of a flow's steps, by the names of `GaussianChain`.

    Arguments and errors are those of `GaussianChain.from_flow`.
    """
    check_flow(steps, eta, convention, sigma_min, num_train_timesteps)
    if num_train_timesteps is None:
        timesteps, data = _times(steps, convention)
    else:
        timesteps, data = _integer_times(steps, num_train_timesteps)
    alpha, beta = data, 1 - (1 - sigma_min) * data  # [K + 1]
    ratio = alpha[:-1] * beta[1:] / (alpha[1:] * beta[:-1])  # ρ, 0 … 1
    ratio[-1] = 1.0  # β is 0 at the end, or sigma_min: no noise enters
    # β² − σ² = β² (1 − η² + η² ρ²): near the noise, where σ → β, the difference would lose every digit.
    b = beta[1:] * np.sqrt(1 - eta**2 + (eta * ratio) ** 2) / beta[:-1]
    b[-1] = beta[-1] / beta[-2]
    # x0_pred = (1 − sigma_min) x − β v, for v = ε (1 − sigma_min) − x0; "data" has the opposite sign.
    sign = 1.0 if convention == "data" else -1.0
    return {
        "timesteps": timesteps,
        "a": alpha[1:] - b * alpha[:-1],
        "b": b,
        "sigma": eta * beta[1:] * np.sqrt(1 - ratio**2),
        "output_scale": sign * beta[:-1],
        "input_scale": np.full(steps, 1 - sigma_min),
        "excess": None,
        "unit": beta[1:] * np.sqrt(1 - ratio**2),
    }


def _times(steps: int, convention: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Choose K equal steps: the times that the network gets [K], and how near the data points are, α [K + 1].

    The network's times are numbers of float32, as LeRobot computes them, so that they are the same in every precision.
    """
    data = np.arange(steps + 1) / steps
    if convention == "data":
        given = np.linspace(0, 1, steps + 1, dtype=np.float32)[:-1]
    else:
        given = (1.0 + np.arange(steps) * (-1.0 / steps)).astype(np.float32)
    return given.astype(np.float64), data


def _integer_times(steps: int, train: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Choose K of the T timesteps as evenly as they allow: these [K], falling, and α at them and at the end [K + 1]."""
    falling = np.round(np.linspace(train, 0, steps + 1)).astype(np.int64)
    return falling[:-1] - 1, 1 - falling / train


def check_flow(steps: Any, eta: Any, convention: Any, sigma_min: Any, num_train_timesteps: Any) -> None:
    """Refuse what no flow's chain can have.

    Raises:
        ChainError: One line that names the option, its value and the valid ones.
    """
    if not isinstance(convention, str) or convention not in CONVENTIONS:
        raise ChainError(f"convention {convention!r} is not one of {', '.join(CONVENTIONS)}")
    check_flow_eta(eta)
    if not is_a(sigma_min, _NUMBER) or not 0 <= sigma_min < 1:
        raise ChainError(f"sigma_min {sigma_min!r} is not a number in [0, 1)")
    if sigma_min and convention != "data":
        raise ChainError(f"sigma_min {sigma_min!r} is of the convention 'data'; {convention!r} has none, which is 0")
    if convention == "timestep":
        if not is_a(num_train_timesteps, INTEGER) or not 1 <= num_train_timesteps <= MAX_TRAIN_TIMESTEPS:
            raise ChainError(
                f"num_train_timesteps {num_train_timesteps!r} is not in 1 … {MAX_TRAIN_TIMESTEPS}, as the convention "
                "'timestep' needs"
            )
    elif num_train_timesteps is not None:
        raise ChainError(f"num_train_timesteps is of the convention 'timestep': {convention!r} has times in 0 … 1")
    most = _MOST_STEPS if num_train_timesteps is None else num_train_timesteps
    if not is_a(steps, INTEGER) or not 1 <= steps <= most:
        raise ChainError(f"a flow's number of steps {steps!r} is not an integer in 1 … {most}")


def check_flow_eta(eta: Any) -> None:
    """Refuse a share of noise that is not in [0, 1].

    Raises:
        ChainError: It is so.
    """
    if not is_a(eta, _NUMBER) or not 0 <= eta <= 1:  # not of NaN either
        raise ChainError(f"a flow's eta {eta!r} is not a number in [0, 1]: 0 is Euler's step, above it noise is added")
