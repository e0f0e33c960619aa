"""The seam between PyTorch and NumPy: what the two spell differently, and nothing else.

The samplers are written in what both have in common (operators, indexing, functions of equal name), so that one text
serves a GPU and a board without PyTorch. Annotations say `Array` and are checked as tensors'.
"""

import contextlib
import functools
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ParamSpec, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt

from asd_policy._common import normal
from asd_policy.errors import CheckpointError, SpecError

if TYPE_CHECKING:
    import torch

    Array = torch.Tensor
    Device = torch.device
    Generator = torch.Generator | np.random.Generator
else:
    Array = Device = Generator = Any

P = ParamSpec("P")
R = TypeVar("R")

NUMPY: Any = "numpy"
"""The device of NumPy's arrays; that of a tensor is its `device`."""
SEEDS = 2**64
"""Number of seeds: 0 … 2⁶⁴ − 1."""


def is_numpy(x: Any) -> bool:
    """Return whether this is an array of NumPy's."""
    return isinstance(x, np.ndarray)


def namespace(x: Any) -> Any:
    """Return the module whose functions take an array like this: torch or numpy."""
    if isinstance(x, np.ndarray):
        return np
    import torch

    return torch


def device_of(x: Any) -> Any:
    """Return where an array is."""
    return NUMPY if isinstance(x, np.ndarray) else x.device


def find_device(name: Any) -> Device:
    """Return a device by its name; where PyTorch is not installed, "cpu" means NumPy.

    Raises:
        SpecError: It cannot be used here.
    """
    if name == NUMPY or (name == "cpu" and find_spec("torch") is None):
        return NUMPY
    try:
        import torch

        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"device {str(name)!r} cannot be used here: {reason}") from None
    return device


def on_cpu() -> AbstractContextManager[Any]:
    """Return the context in which tensors are made on the CPU, whatever the user's default device."""
    if find_spec("torch") is None:
        return contextlib.nullcontext()
    import torch

    return torch.device("cpu")


def asarray(values: Any, device: Any, dtype: Any = None) -> Array:
    """Return values as an array on a device.

    Args:
        values: An array of either library, or what makes one.
        device: `NUMPY`, or a torch device.
        dtype: The name of a dtype, such as "float32", or the device's library's own; None for that of the values.
    """
    if device == NUMPY:
        array: Any = to_numpy(values)
        return array if dtype is None else array.astype(dtype, copy=False)
    import torch

    return torch.as_tensor(values, device=device, dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)


FLOATS = ("float16", "bfloat16", "float32", "float64")


def checked_float32(values: Any, name: str) -> Array:
    """Return a tensor from an untrusted file in float32, whatever the user's default dtype.

    Integers, flags and complex numbers are not what networks and their statistics are stored as, and eight bits mean
    nothing without the scales beside them.

    Args:
        values: The tensor.
        name: Where it is, for messages.

    Raises:
        CheckpointError: It is of another dtype than `FLOATS`, or holds what is no finite number in float32.
    """
    if str(values.dtype).removeprefix("torch.") not in FLOATS:
        raise CheckpointError(f"{name} holds {values.dtype}, not floating-point numbers ({', '.join(FLOATS)})")
    numbers = values.float()
    if not bool(numbers.isfinite().all()):
        raise CheckpointError(f"{name} holds NaN or infinity, or numbers beyond float32")
    return numbers


def to_numpy(x: Any) -> npt.NDArray[Any]:
    """Return an array as NumPy's."""
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


def zeros(shape: Sequence[int], like: Any, kind: type | None = None) -> Array:
    """Return zeros where `like` is, of its dtype, or of bool or int (64 bits)."""
    if isinstance(like, np.ndarray):
        zeroed: Any = np.zeros(shape, like.dtype if kind is None else kind)
        return zeroed
    import torch

    kinds = {None: like.dtype, bool: torch.bool, int: torch.int64}
    return torch.zeros(tuple(shape), dtype=kinds[kind], device=like.device)


def arange(count: int, like: Any) -> Array:
    """Return 0 … count − 1, int64, where `like` is."""
    if isinstance(like, np.ndarray):
        counted: Any = np.arange(count)
        return counted
    import torch

    return torch.arange(count, device=like.device)


def cast(x: Any, dtype: Any) -> Array:
    """Return an array in a dtype of its library."""
    cast: Any = x.astype(dtype, copy=False) if isinstance(x, np.ndarray) else x.to(dtype)
    return cast


def double(x: Any) -> Array:
    """Return an array in 64 bits."""
    return cast(x, namespace(x).float64)


def copied(x: Any) -> Array:
    """Return a copy of an array."""
    copy: Any = x.copy() if isinstance(x, np.ndarray) else x.clone()
    return copy


def tiny(x: Any) -> float:
    """Return the smallest normal number of an array's dtype."""
    return float(namespace(x).finfo(x.dtype).tiny)


def is_floating(x: Any) -> bool:
    """Return whether an array has floating-point numbers."""
    return np.issubdtype(x.dtype, np.floating) if isinstance(x, np.ndarray) else x.is_floating_point()


def slots(x: Any) -> Sequence[Array]:
    """Return the entries of x [R, n, …] along its second axis, n views [R, …]."""
    views: Any = np.moveaxis(x, 1, 0) if isinstance(x, np.ndarray) else x.unbind(1)
    return views


def where_true(mask: Any) -> Array:
    """Return the indices at which a mask [n] is true."""
    found: Any = np.flatnonzero(mask) if isinstance(mask, np.ndarray) else mask.nonzero().squeeze(1)
    return found


def take_along(x: Any, index: Any) -> Array:
    """Return the entries of x [R, n] at places index [R, m] of each row."""
    taken: Any = np.take_along_axis(x, index, 1) if isinstance(x, np.ndarray) else x.gather(1, index)
    return taken


def running_maximum(x: Any) -> Array:
    """Return the largest entry so far in each row of x [R, n]."""
    highest: Any = np.maximum.accumulate(x, axis=1) if isinstance(x, np.ndarray) else x.cummax(1).values
    return highest


def log_ndtr(x: Any) -> Array:
    """Return ln Φ, the logarithm of the standard normal's CDF, elementwise."""
    if isinstance(x, np.ndarray):
        logarithm: Any = normal.log_ndtr(x)
        return logarithm
    import torch

    return torch.special.log_ndtr(x)


def ndtri(p: Any) -> Array:
    """Return the standard normal's quantile, elementwise."""
    if isinstance(p, np.ndarray):
        quantile: Any = normal.ndtri(p)
        return quantile
    import torch

    return torch.special.ndtri(p)


@contextlib.contextmanager
def sampling(device: Any) -> Iterator[None]:
    """Enter the context of a sampler's arithmetic: no gradients, no autocast, no warning where ∞ · 0 is masked."""
    if device == NUMPY:
        with np.errstate(all="ignore"):
            yield
        return
    import torch

    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


class _Uncompiled:
    """A method that is looked up as one which the compiler leaves alone, where there is a compiler in the process.

    A descriptor, and no function around the method: that would be one frame more in each traceback.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        functools.update_wrapper(self, method)  # pyright: ignore[reportArgumentType]  a callable once it is looked up

    def __get__(self, owner: Any, kind: type | None = None) -> Callable[..., Any]:
        compiler: Any = sys.modules.get("torch._dynamo")  # importing it takes seconds, and it is there where it is used
        method: Any = compiler.disable(self.method) if compiler else self.method
        return method.__get__(owner, kind)


def uncompiled(method: Callable[P, R]) -> Callable[P, R]:
    """Make a method that `torch.compile` around its caller leaves as it is, with all that it calls."""
    made: Any = _Uncompiled(method)
    return made


def no_gradients(device: Any) -> AbstractContextManager[Any]:
    """Return the context for calling a network whose gradients nobody wants."""
    if device == NUMPY:
        return contextlib.nullcontext()
    import torch

    return torch.inference_mode()


def ordinary(x: Any) -> Array:
    """Return an array that may be written into and be part of a loss: a copy of what `sampling` has made."""
    made: Any = x if isinstance(x, np.ndarray) or not x.is_inference() else x.clone()
    return made


def ambient_autocast(device: Any) -> AbstractContextManager[Any]:
    """Return a context with the autocast that is on now for a device, to enter again where it is off."""
    if device == NUMPY:
        return contextlib.nullcontext()
    import torch

    kind = device.type
    return torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))


def synchronize(device: Any) -> None:
    """Wait for a device that works on its own."""
    if device != NUMPY and device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def read_seed(seed: SupportsIndex) -> int:
    """Return a seed of any integer type as Python's.

    Raises:
        SpecError: It is none of 0 … 2⁶⁴ − 1.
    """
    try:
        number = operator.index(seed)
    except Exception:  # whatever what is no number raises
        number = -1
    if not 0 <= number < SEEDS:
        raise SpecError(f"seed {seed!r} is not a whole number in 0 … {SEEDS - 1}")
    return number


def make_generator(device: Any, seed: SupportsIndex | None = None) -> Any:
    """Return a source of noise for a device; None for a seed that the system makes up.

    Raises:
        SpecError: The seed is none of 0 … 2⁶⁴ − 1.
    """
    seed = None if seed is None else read_seed(seed)
    if device == NUMPY:
        return np.random.default_rng(seed)
    import torch

    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def normals(shape: Sequence[int], generator: Any, device: Any, dtype: Any = None) -> Array:
    """Return standard normal numbers; of None for a generator the library's global one."""
    if device == NUMPY:
        drawn: Any = _global(generator).standard_normal(shape, dtype or np.float32)
        return drawn
    import torch

    return torch.randn(tuple(shape), generator=generator, device=device, dtype=dtype or torch.float32)


def uniforms(shape: Sequence[int], generator: Any, device: Any, dtype: Any = None) -> Array:
    """Return numbers that are uniform in [0, 1); of None for a generator the library's global one."""
    if device == NUMPY:
        drawn: Any = _global(generator).random(shape, dtype or np.float32)
        return drawn
    import torch

    return torch.rand(tuple(shape), generator=generator, device=device, dtype=dtype or torch.float32)


_numpy_generator = np.random.default_rng()


def _global(generator: Any) -> np.random.Generator:
    return _numpy_generator if generator is None else generator
