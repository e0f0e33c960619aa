"""The seam between PyTorch and NumPy, so that the same samplers run on a GPU and on a board without PyTorch.

The samplers use operators, indexing, and the functions of `namespace(x)`, which `array_api_compat` names alike for both
libraries. Here is what the array API lacks: devices that tell NumPy from PyTorch's CPU, arrays like another, special
functions, noise, and PyTorch's contexts. Annotations say `Array`, which a type checker takes for a tensor.
"""

import contextlib
import functools
import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ParamSpec, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt
from array_api_compat import numpy as numpy_functions

from asd_policy._common import normal
from asd_policy._common.extras import install
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
"""The device of NumPy's arrays, which have none of their own; a tensor's is its `device`."""
_FEW = 2**14
"""Numbers for which an operation's own cost matters more than what it does with them."""
SEEDS = 2**64
"""Number of seeds: 0 … 2⁶⁴ − 1."""


def namespace(x: Any) -> Any:
    """Find the functions for an array: the array API's, and the others of its library.

    `array_api_compat.array_namespace` takes five times as long, and every round asks.
    """
    if isinstance(x, np.ndarray):
        return numpy_functions
    return _torch_functions()


@functools.cache
def _torch_functions() -> Any:
    import array_api_compat.torch as torch_functions  # only here: it imports torch

    return torch_functions


@functools.cache
def _torch() -> Any:
    """Import PyTorch. What each plan asks for asks here: an import statement takes as long as ten such calls."""
    import torch

    return torch


def device_of(x: Any) -> Any:
    """Find the device of an array. `array_api_compat.device` says "cpu" for NumPy and for PyTorch's CPU alike."""
    return NUMPY if isinstance(x, np.ndarray) else x.device


def find_device(name: Any) -> Device:
    """Find a device by its name; where PyTorch is not installed, "cpu" means NumPy.

    Raises:
        SpecError: The device cannot be used here.
    """
    if name == NUMPY or (name == "cpu" and find_spec("torch") is None):
        return NUMPY
    try:
        import torch

        device = torch.device(name)
        torch.empty(1, device=device)
    except ModuleNotFoundError as error:
        reason = f"it needs {error.name}: {install('torch')}"
        raise SpecError(f"device {str(name)!r} cannot be used here: {reason}") from None
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"device {str(name)!r} cannot be used here: {reason}") from None
    return device


def on_cpu() -> AbstractContextManager[Any]:
    """Make a context in which new tensors are on the CPU, whatever the user's default device."""
    if find_spec("torch") is None:
        return contextlib.nullcontext()
    import torch

    return torch.device("cpu")


def asarray(values: Any, device: Any, dtype: Any = None) -> Array:
    """Convert values to an array on a device.

    Args:
        values: An array of either library, or anything that one can be made of.
        device: `NUMPY`, or a torch device.
        dtype: A dtype's name, such as "float32", or a dtype of the device's library; None keeps that of the values.
    """
    if device == NUMPY:
        array: Any = to_numpy(values)
        return array if dtype is None else array.astype(dtype, copy=False)
    torch = _torch()
    return torch.as_tensor(values, device=device, dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)


FLOATS = ("float16", "bfloat16", "float32", "float64")


def checked_float32(values: Any, name: str) -> Array:
    """Convert a tensor from an untrusted file to float32, whatever the user's default dtype.

    Integers, booleans and complex numbers are refused, because no network or statistics are stored as these; floats of
    eight bits, because they mean nothing without the scales beside them.

    Args:
        values: The tensor.
        name: Name of the tensor, for messages.

    Raises:
        CheckpointError: The dtype is none of `FLOATS`, or a number is not finite in float32.
    """
    if str(values.dtype).removeprefix("torch.") not in FLOATS:
        raise CheckpointError(f"{name} holds {values.dtype}, not floating-point numbers ({', '.join(FLOATS)})")
    numbers = values.float()
    if not bool(numbers.isfinite().all()):
        raise CheckpointError(f"{name} holds NaN or infinity, or numbers beyond float32")
    return numbers


def to_numpy(x: Any) -> npt.NDArray[Any]:
    """Convert an array to NumPy's."""
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


def zeros(shape: Sequence[int], like: Any, kind: type | None = None) -> Array:
    """Make zeros on the device of `like`, in its dtype, or in bool or int64."""
    if isinstance(like, np.ndarray):
        zeroed: Any = np.zeros(shape, like.dtype if kind is None else kind)
        return zeroed
    torch = _torch()
    kinds = {None: like.dtype, bool: torch.bool, int: torch.int64}
    return torch.zeros(tuple(shape), dtype=kinds[kind], device=like.device)


def empty(shape: Sequence[int], like: Any) -> Array:
    """Make an array of no particular values on the device of `like`, in its dtype."""
    if isinstance(like, np.ndarray):
        made: Any = np.empty(shape, like.dtype)
        return made
    torch = _torch()
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)


def on_host(x: Any) -> Any:
    """Look at an array in the host's memory as NumPy's, without a copy."""
    if isinstance(x, np.ndarray):
        return x
    return x.detach().numpy() if x.requires_grad else x.numpy()


def from_host(values: Any, like: Any) -> Array:
    """Look at an array of NumPy's as one of the library of `like`, which is in the host's memory, without a copy."""
    if isinstance(like, np.ndarray):
        same: Any = values
        return same
    return _torch_functions().from_numpy(values)


def as_like(x: Any, like: Any) -> Array:
    """Look at an array in the host's memory as one of the library of `like`, which is there, too, without a copy."""
    return x if isinstance(x, type(like)) else from_host(on_host(x), like)


def arange(count: int, like: Any) -> Array:
    """Count 0 … count − 1 in int64 on the device of `like`."""
    if isinstance(like, np.ndarray):
        counted: Any = np.arange(count)
        return counted
    torch = _torch()
    return torch.arange(count, device=like.device)


def in_memory_order(x: Any) -> Array:
    """Lay out an array's numbers in the order of its axes: copy it, or return it as it is."""
    ordered: Any = np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x.contiguous()
    return ordered


def copied(x: Any) -> Array:
    """Copy an array, into the order of its axes."""
    copy: Any = x.copy() if isinstance(x, np.ndarray) else x.clone(memory_format=_torch().contiguous_format)
    return copy


def running_maximum(x: Any) -> Array:
    """Compute the running maximum along each row of x [R, n]."""
    highest: Any = np.maximum.accumulate(x, axis=1) if isinstance(x, np.ndarray) else x.cummax(1).values
    return highest


def log_ndtr(x: Any) -> Array:
    """Compute ln Φ, the logarithm of the standard normal CDF, elementwise."""
    if isinstance(x, np.ndarray):
        logarithm: Any = normal.log_cdf(x)
        return logarithm
    import torch

    return torch.special.log_ndtr(x)


def ndtri(p: Any) -> Array:
    """Compute the standard normal quantile, elementwise."""
    if isinstance(p, np.ndarray):
        quantile: Any = normal.quantile(p)
        return quantile
    import torch

    return torch.special.ndtri(p)


def sampling(device: Any) -> AbstractContextManager[Any]:
    """Make the context of a sampler's arithmetic: no gradients, no autocast, no warnings of ∞ · 0, which is masked."""
    if device == NUMPY:
        return np.errstate(all="ignore")
    torch = _torch()
    return _without_autocast(device.type) if torch.is_autocast_enabled(device.type) else torch.inference_mode()


@contextlib.contextmanager
def _without_autocast(kind: str) -> Iterator[None]:
    import torch

    with torch.inference_mode(), torch.autocast(kind, enabled=False):
        yield


class _Uncompiled:
    """A method that is looked up as one which the compiler leaves alone, where there is a compiler in the process.

    A descriptor, and no function around the method: that would be one frame more in each traceback.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        self.disabled: Any = None  # the same, as the compiler leaves it alone; once there is one
        functools.update_wrapper(self, method)  # pyright: ignore[reportArgumentType]  a callable once it is looked up

    def __get__(self, owner: Any, kind: type | None = None) -> Callable[..., Any]:
        compiler: Any = sys.modules.get("torch._dynamo")  # importing it takes seconds, and it is there where it is used
        if compiler and self.disabled is None:
            self.disabled = compiler.disable(self.method)
        method: Any = self.disabled or self.method
        return method.__get__(owner, kind)


def uncompiled(method: Callable[P, R]) -> Callable[P, R]:
    """Make a method that `torch.compile` around its caller leaves as it is, with all that it calls."""
    made: Any = _Uncompiled(method)
    return made


def leave_alone(*functions: Callable[..., Any]) -> None:
    """Have `torch.compile` run the code of functions as it is, where there is a compiler in the process.

    It would find nothing to compile in a function that calls an uncompiled method, and yet take a tenth of a second to
    see that.
    """
    compiler: Any = sys.modules.get("torch._dynamo.decorators")
    skip = getattr(compiler, "skip", None)
    if skip is not None:
        for each in (*functions, _Uncompiled.__get__):
            skip(each)


def no_gradients(device: Any) -> AbstractContextManager[Any]:
    """Make the context for calling a network without gradients."""
    if device == NUMPY:
        return contextlib.nullcontext()
    torch = _torch()
    return torch.inference_mode()


def ordinary(x: Any) -> Array:
    """Make an array writable and usable in a loss: copy it if it was made in `sampling`, else return it as it is."""
    if isinstance(x, np.ndarray) or not x.is_inference():
        same: Any = x
        return same
    return from_host(on_host(x), x) if _is_small(x) else x.clone()


def ambient_autocast(device: Any) -> AbstractContextManager[Any] | None:
    """Make a context that restores the autocast that is on now for a device, for use where it is off; None for none."""
    if device == NUMPY:
        return None
    torch, kind = _torch(), device.type
    if not torch.is_autocast_enabled(kind):
        return None
    # A recording would read cast weights that are kept until the caller's autocast ends, and no longer.
    return torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=kind != "cuda")


def synchronize(device: Any) -> None:
    """Wait until a GPU has done its work; a CPU has done it already."""
    if device != NUMPY and device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def read_seed(seed: SupportsIndex) -> int:
    """Convert a seed of any integer type to Python's int.

    Raises:
        SpecError: The seed is none of 0 … 2⁶⁴ − 1.
    """
    try:
        number = operator.index(seed)
    except Exception:  # a type of the user's may raise anything
        number = -1
    if not 0 <= number < SEEDS:
        raise SpecError(f"seed {seed!r} is not a whole number in 0 … {SEEDS - 1}")
    return number


def make_generator(device: Any, seed: SupportsIndex | None = None) -> Any:
    """Make a source of noise for a device; without a seed, the system chooses one.

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
    """Draw standard normal numbers; without a generator, from the library's global one."""
    if device == NUMPY:
        drawn: Any = _global(generator).standard_normal(shape, dtype or np.float32)
        return drawn
    torch = _torch()
    return torch.randn(tuple(shape), generator=generator, device=device, dtype=dtype or torch.float32)


def normals_in_turn(count: int, shape: Sequence[int], generator: Any, device: Any, dtype: Any = None) -> Array:
    """Draw standard normal numbers as `count` calls of `normals` would, one after the other: [count, *shape].

    In one call where the library then draws the same numbers: NumPy always, PyTorch on a CPU in sixteens.
    """
    at_once = device == NUMPY or (is_host(device) and math.prod(shape) % 16 == 0)
    if at_once:
        return normals((count, *shape), generator, device, dtype)
    drawn = [normals(shape, generator, device, dtype) for _ in range(count)]
    return namespace(drawn[0]).stack(drawn)


def is_host(device: Any) -> bool:
    """Tell whether a device's memory is the host's."""
    return device == NUMPY or (device.partition(":")[0] if isinstance(device, str) else device.type) == "cpu"


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that there was no memory left."""
    torch = sys.modules.get("torch")  # what was not imported has raised nothing
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


def has_known_precision(x: Any) -> bool:
    """Tell whether an array's numbers are float32 or float64."""
    return _is_known(x.dtype)


@functools.cache
def _is_known(dtype: Any) -> bool:
    return str(dtype).rpartition(".")[2] in ("float32", "float64")


def is_finite(x: Any) -> bool:
    """Tell whether no number of an array is NaN or infinite; waits for the device."""
    seen = in_numpy(x)
    if not isinstance(seen, np.ndarray):
        return bool(x.isfinite().all())
    # What the method `all` does, without what is Python's in it.
    return bool(np.logical_and.reduce(np.isfinite(seen), axis=None))


def in_a_row(parts: Sequence[Any]) -> Array:
    """Concatenate arrays of one library and place along their last axis."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        row: Any = np.concatenate(parts, axis=-1)
        return row
    if all(map(_is_small, parts)):
        return from_host(np.concatenate([on_host(part) for part in parts], axis=-1), parts[0])
    return _torch().cat(tuple(parts), dim=-1)


def repeated(row: Any, count: int) -> Array:
    """Repeat a row [1, …] to [count, …], in the order of its axes."""
    if isinstance(row, np.ndarray):
        rows: Any = row.repeat(count, axis=0)
        return rows
    return row.expand(count, *row.shape[1:]).contiguous()


def in_numpy(x: Any) -> Any:
    """Look at an array of few numbers in the host's memory as NumPy's; at one of another kind as it is.

    Between two calls of a network, which leave nothing of Python in the processor's caches, an operation of PyTorch
    takes several times as long as one of NumPy. The numbers are the same.
    """
    return on_host(x) if isinstance(x, np.ndarray) or _is_small(x) else x


def _is_small(x: Array) -> bool:
    """Tell whether a tensor of few numbers is in the host's memory, of a type that NumPy has, and has no gradient."""
    return x.is_cpu and x.numel() <= _FEW and x.element_size() >= 4 and not x.requires_grad


def uniforms(shape: Sequence[int], generator: Any, device: Any, dtype: Any = None) -> Array:
    """Draw uniform numbers in [0, 1); without a generator, from the library's global one."""
    if device == NUMPY:
        drawn: Any = _global(generator).random(shape, dtype or np.float32)
        return drawn
    torch = _torch()
    return torch.rand(tuple(shape), generator=generator, device=device, dtype=dtype or torch.float32)


_numpy_generator = np.random.default_rng()


def _global(generator: Any) -> np.random.Generator:
    return _numpy_generator if generator is None else generator
