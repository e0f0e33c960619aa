"""The precision of a network: dtypes, and float32 without TensorFloat-32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import backends

from asd_policy.networks.backends.base import DTYPES

# Where PyTorch keeps the precision of float32, by kind of device; none of them before torch 2.9.
_PLACES: dict[str, list[Any]] = {
    kind: [getattr(owner, name) for owner, name in places if hasattr(getattr(owner, name, None), "fp32_precision")]
    for kind, places in {
        "cpu": [(backends.mkldnn, "matmul"), (backends.mkldnn, "conv")],
        "cuda": [(backends.cuda, "matmul"), (backends.cudnn, "conv"), (backends.cudnn, "rnn")],
    }.items()
}
_FULL = ("none", "ieee")


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute float32 in float32, not in TensorFloat-32 or bfloat16; afterwards restore the user's settings.

    By default PyTorch convolves in TensorFloat-32 on a GPU, with three digits.
    """
    old, here = _old_settings(), _PLACES.get(device.type, [])
    # The CPU has no TensorFloat-32 to convolve in, so that one of the old settings does not concern it.
    settled = old is None or old == ("highest", old[1] and device.type == "cpu")
    if settled and all(place.fp32_precision in _FULL for place in here):
        yield
        return
    # All of them, because the old settings write to those of every device.
    places = [(place, place.fp32_precision) for each in _PLACES.values() for place in each]
    try:
        if old is not None:
            torch.set_float32_matmul_precision("highest")
            backends.cudnn.allow_tf32 = False
        for place in here:
            place.fp32_precision = "ieee"
        yield
    finally:
        if old is not None:
            torch.set_float32_matmul_precision(old[0])
            backends.cudnn.allow_tf32 = old[1]
        for place, value in places:
            place.fp32_precision = value


def _old_settings() -> tuple[str, bool] | None:
    """Read the settings of matrix products and convolutions as before torch 2.9; None where the new ones rule."""
    try:
        return torch.get_float32_matmul_precision(), bool(backends.cudnn.allow_tf32)
    except RuntimeError:  # the user set the new ones, and PyTorch refuses to translate
        return None


def computable(device: torch.device) -> list[str]:
    """List the `DTYPES` in which a device can compute convolution, normalisation and activation."""
    found = []
    for name in DTYPES:
        dtype = getattr(torch, name)
        layers = torch.nn.Sequential(torch.nn.Conv1d(8, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.Mish())
        try:
            with torch.inference_mode():
                layers.to(device, dtype)(torch.zeros((1, 8, 8), device=device, dtype=dtype))
        except (RuntimeError, TypeError):  # MPS refuses a dtype with a TypeError
            continue
        found.append(name)
    return found
