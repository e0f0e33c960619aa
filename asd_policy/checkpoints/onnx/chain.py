"""Check that a stored chain is the one of the scheduler's configuration beside it."""

from importlib.util import find_spec

import numpy as np

from asd_policy.chain.gaussian import GaussianChain

_ROUNDING = 1e-4  # relative; versions of PyTorch differ by ulps of float32, which near ᾱ = 1 are many of 1 − ᾱ
_CLOSE = 1e-2  # of relations that float32 keeps only roughly
_SCHEDULE = ("timesteps", "a", "b", "sigma", "output_scale", "input_scale", "excess")


def contradiction(chain: GaussianChain) -> str | None:
    """Explain where a chain's numbers contradict its configuration; None where they do not.

    With PyTorch the numbers are computed again; without it, only what holds for every schedule is checked.

    Raises:
        ChainError: The configuration makes no chain.
    """
    return _against_scheduler(chain) if find_spec("torch") else _against_theory(chain)


def _against_scheduler(chain: GaussianChain) -> str | None:
    derived = GaussianChain.from_scheduler(chain.config, len(chain), _eta(chain))
    for name in _SCHEDULE:
        found, expected = getattr(chain, name), getattr(derived, name)
        if found is None or expected is None:
            if found is not expected:
                return f"{name} is {'missing' if found is None else 'there'}"
            continue
        wrong = np.flatnonzero(~np.isclose(found, expected, rtol=_ROUNDING, atol=_ROUNDING * np.abs(expected).max()))
        if len(wrong):
            step = wrong[0]
            return f"{name} is {found[step]:.6g} at step {step}, not {expected[step]:.6g}"
    return None


def _eta(chain: GaussianChain) -> float | None:
    """Compute DDIM's η, to which σ is proportional; None for DDPM."""
    if chain.config["_class_name"] != "DDIMScheduler":
        return None
    half = GaussianChain.from_scheduler(chain.config, len(chain), 0.5).sigma
    largest = int(half.argmax())
    return min(1.0, max(1e-6, 0.5 * float(chain.sigma[largest] / half[largest])))


def _against_theory(chain: GaussianChain) -> str | None:
    if (np.diff(chain.timesteps) >= 0).any():
        return "its timesteps do not fall"
    for name in ("a", "b", "sigma"):
        if (getattr(chain, name)[:-1] <= 0).any() or getattr(chain, name)[-1] < 0:
            return f"{name} is not above 0"
    scales = chain.input_scale, chain.output_scale
    prediction = chain.config["prediction_type"]
    # √ᾱ and √(1 − ᾱ) are a point on the unit circle, and the mean of a step from √ᾱ_k x0 is √ᾱ_{k+1} x0.
    if prediction == "sample":
        return None if (scales[0] == 0).all() and (scales[1] == 1).all() else "its scales are not 0 and 1"
    signal = 1 / scales[0] if prediction == "epsilon" else scales[0]
    noise = -scales[1] * (signal if prediction == "epsilon" else 1)
    if not np.allclose(signal**2 + noise**2, 1, atol=_CLOSE) or (noise < 0).any():
        return "its scales are not those of a signal and its noise"
    after = chain.a[:-1] + chain.b[:-1] * signal[:-1]
    if chain.excess is None and not np.allclose(after, signal[1:], atol=_CLOSE):
        return "its steps do not lead from one noise level to the next"
    return None
