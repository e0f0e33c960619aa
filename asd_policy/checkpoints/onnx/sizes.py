"""How large the tensors of an untrusted ONNX graph get, and what its constants cost, before ONNX Runtime sees it.

ONNX Runtime computes whatever depends on constants alone while it loads, and allocates whatever a graph asks for while
it runs, both without a bound. So the shapes of all tensors are worked out here, for a given number of points, by the
rules of the operators that `asd-policy export` writes (https://onnx.ai/onnx/operators); a graph with others is refused.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]
MOST_VALUES = 256
"""Most numbers of a tensor of integers whose values are followed, because shapes are computed from them."""


@dataclass(frozen=True)
class Node:
    """One operation."""

    kind: str
    """Its operator."""
    inputs: Sequence[str]
    outputs: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Attributes: integers, lists of integers and texts (bytes); others are left out."""


@dataclass(frozen=True)
class Value:
    """A tensor as far as it is known."""

    shape: Shape
    numbers: npt.NDArray[np.int64] | None = None
    """Its values, if they are few and integers."""
    constant: bool = False
    """Whether it follows from constants alone."""


@dataclass(frozen=True)
class Sizes:
    """The size and cost of a graph."""

    peak: int
    """The most numbers that are needed at one time, without weights."""
    folded: int
    """Multiplications, or other operations, on constants alone."""


class UnknownShapeError(ValueError):
    """A shape that these rules cannot compute."""


def sizes(nodes: Sequence[Node], known: Mapping[str, Value]) -> Sizes:
    """Add up the size and cost of a graph; arguments and errors are those of `follow`."""
    last_use = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    alive: dict[str, int] = {}
    folded, peak, now = 0, 0, 0
    for index, (node, inputs, outputs) in enumerate(follow(nodes, known)):
        for name, value in zip(node.outputs, outputs, strict=False):
            alive[name] = math.prod(value.shape)
            now += alive[name]
            folded += _work(node, inputs, alive[name]) if value.constant else 0
        peak = max(peak, now)
        for name in {*node.inputs, *node.outputs}:
            if last_use.get(name, index) == index:
                now -= alive.pop(name, 0)
    return Sizes(peak, folded)


def follow(
    nodes: Sequence[Node], known: Mapping[str, Value]
) -> Iterator[tuple[Node, Sequence[Value], Sequence[Value]]]:
    """Yield each node with its inputs and outputs, as far as they are known.

    Args:
        nodes: In the order in which they run.
        known: Weights and inputs by their names.

    Raises:
        UnknownShapeError: An operator is none that is exported, or its inputs do not fit it.
    """
    values = dict(known)
    for node in nodes:
        if node.kind not in _RULES:
            raise UnknownShapeError(f"the operator {node.kind:.40}, which no exported policy has")
        missing = next((name for name in node.inputs if name and name not in values), None)
        if missing is not None:
            raise UnknownShapeError(f"the tensor {missing:.40}, which is used before it is there")
        inputs = [values[name] if name else Value(()) for name in node.inputs]
        try:
            outputs = _RULES[node.kind](inputs, node.options)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
            shapes = ", ".join(str(list(each.shape)) for each in inputs)
            raise UnknownShapeError(f"an operator {node.kind} that does not fit its inputs {shapes:.80}") from None
        constant = all(each.constant for each in inputs)
        outputs = [replace(each, numbers=_few(each.numbers), constant=constant) for each in outputs]
        values |= zip(node.outputs, outputs, strict=False)
        yield node, inputs, outputs


def _few(numbers: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64] | None:
    """Forget numbers that are too many: gathered again and again, they would fill the memory."""
    return None if numbers is None or numbers.size > MOST_VALUES else numbers


def _work(node: Node, inputs: Sequence[Value], numbers: int) -> int:
    """Estimate how many multiplications a node needs to compute so many numbers."""
    if node.kind in ("MatMul", "Gemm"):
        return numbers * max(inputs[0].shape, default=1)
    if node.kind == "Conv":
        return numbers * math.prod(inputs[1].shape[1:])
    return numbers


def _same(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    return [Value(inputs[0].shape, inputs[0].numbers)]


def _shape_alone(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    return [Value(inputs[0].shape)]


def _broadcast(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    return [Value(np.broadcast_shapes(*(each.shape for each in inputs)))]


def _matmul(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    (*left, rows, shared), (*right, other, columns) = (each.shape for each in inputs)
    _expect(shared == other)
    return [Value((*np.broadcast_shapes(tuple(left), tuple(right)), rows, columns))]


def _gemm(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    left, right = (
        each.shape[::-1] if options.get(name, 0) else each.shape
        for each, name in zip(inputs[:2], ("transA", "transB"), strict=True)
    )
    (rows, shared), (other, columns) = left, right
    _expect(shared == other)
    if len(inputs) > 2:
        np.broadcast_shapes(inputs[2].shape, (rows, columns))
    return [Value((rows, columns))]


def _reshape(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    size, wanted = math.prod(inputs[0].shape), _numbers(inputs[1])
    if not options.get("allowzero", 0):
        wanted = [inputs[0].shape[axis] if each == 0 else each for axis, each in enumerate(wanted)]
    _expect(min(wanted, default=0) >= -1 and wanted.count(-1) <= 1)
    rest = math.prod(each for each in wanted if each != -1)
    shape = tuple(size // rest if each == -1 else each for each in wanted)
    _expect(math.prod(shape) == size)
    return [Value(shape, inputs[0].numbers)]


def _unsqueeze(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    axes = _numbers(inputs[1])
    rank = len(inputs[0].shape) + len(axes)
    places, rest = {axis % rank for axis in axes}, iter(inputs[0].shape)
    _expect(len(places) == len(axes))
    return [Value(tuple(1 if axis in places else next(rest) for axis in range(rank)), inputs[0].numbers)]


def _squeeze(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    shape = inputs[0].shape
    places = {axis % len(shape) for axis in _numbers(inputs[1])}
    _expect(all(shape[axis] == 1 for axis in places))
    return [Value(tuple(size for axis, size in enumerate(shape) if axis not in places), inputs[0].numbers)]


def _transpose(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    shape, order = inputs[0].shape, options.get("perm") or range(len(inputs[0].shape))[::-1]
    _expect(sorted(order) == list(range(len(shape))))
    return [Value(tuple(shape[axis] for axis in order))]


def _concat(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    shapes = [list(each.shape) for each in inputs]
    axis = options["axis"] % len(shapes[0])
    total = sum(shape[axis] for shape in shapes)
    others = {tuple(shape[:axis] + shape[axis + 1 :]) for shape in shapes}
    _expect(len(others) == 1)
    numbers = [each.numbers for each in inputs if each.numbers is not None]
    joined = np.concatenate(numbers) if len(numbers) == len(inputs) and total <= MOST_VALUES else None
    return [Value((*shapes[0][:axis], total, *shapes[0][axis + 1 :]), joined)]


def _split(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    shape = inputs[0].shape
    axis = options.get("axis", 0) % len(shape)
    if len(inputs) > 1:
        parts = _numbers(inputs[1])
    else:
        count = options["num_outputs"]
        each = -(-shape[axis] // count)
        parts = [each] * (count - 1) + [shape[axis] - each * (count - 1)]
    _expect(min(parts) >= 0 and sum(parts) == shape[axis])
    return [Value((*shape[:axis], part, *shape[axis + 1 :])) for part in parts]


def _gather(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    shape, axis = inputs[0].shape, options.get("axis", 0) % len(inputs[0].shape)
    numbers = inputs[0].numbers
    if numbers is not None and inputs[1].numbers is not None:
        numbers = np.take(numbers, inputs[1].numbers, axis=axis)
    return [Value((*shape[:axis], *inputs[1].shape, *shape[axis + 1 :]), numbers)]


def _shape(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    shape = np.array(inputs[0].shape, np.int64)[options.get("start", 0) : options.get("end")]
    return [Value(shape.shape, shape)]


def _slice(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    starts, ends = _numbers(inputs[1]), _numbers(inputs[2])
    axes = _numbers(inputs[3]) if len(inputs) > 3 and inputs[3].shape else list(range(len(starts)))
    strides = _numbers(inputs[4]) if len(inputs) > 4 and inputs[4].shape else [1] * len(starts)
    part = [slice(None)] * len(inputs[0].shape)
    for start, end, axis, stride in zip(starts, ends, axes, strides, strict=True):
        part[axis] = slice(start, end, stride)
    sliced = tuple(len(range(*each.indices(size))) for each, size in zip(part, inputs[0].shape, strict=True))
    numbers = inputs[0].numbers
    return [Value(sliced, None if numbers is None else numbers[tuple(part)])]


def _pad(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    shape, pads = inputs[0].shape, _numbers(inputs[1])
    _expect(len(inputs) < 4 and len(pads) == 2 * len(shape))
    padded = tuple(size + pads[axis] + pads[axis + len(shape)] for axis, size in enumerate(shape))
    _expect(min(padded) >= 0)
    return [Value(padded)]


def _convolution(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    shape, kernel = inputs[0].shape, inputs[1].shape
    _expect(shape[1] == kernel[1] * options.get("group", 1) and len(shape) == len(kernel))
    return [Value((shape[0], kernel[0], *_slid(shape[2:], kernel[2:], options)))]


def _pool(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    shape = inputs[0].shape
    return [Value((*shape[:2], *_slid(shape[2:], options["kernel_shape"], options)))]


def _slid(sizes: Sequence[int], kernel: Sequence[int], options: Mapping[str, Any]) -> list[int]:
    """Count the places of a kernel that slides over an image."""
    rank = len(sizes)
    strides, dilations = (options.get(name) or [1] * rank for name in ("strides", "dilations"))
    pads = options.get("pads") or [0] * (2 * rank)
    _expect(len(kernel) == len(strides) == len(dilations) == rank and len(pads) == 2 * rank)
    _expect(options.get("auto_pad", b"NOTSET") == b"NOTSET" and not options.get("ceil_mode", 0))
    _expect(min((*pads, 0)) == 0 and min((*strides, *dilations, *kernel, 1)) == 1)
    places = [
        (sizes[axis] + pads[axis] + pads[axis + rank] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1
        for axis in range(rank)
    ]
    _expect(min(places) > 0)
    return places


def _average_all(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    shape = inputs[0].shape
    return [Value((*shape[:2], *(1 for _ in shape[2:])))]


def _resize(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    shape, wanted = inputs[0].shape, _numbers(inputs[3])
    _expect(len(wanted) == len(shape) and min(wanted) >= 0 and "axes" not in options)
    _expect(options.get("keep_aspect_ratio_policy", b"stretch") == b"stretch")
    return [Value(tuple(wanted))]


def _reduce(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    shape = inputs[0].shape
    axes = _numbers(inputs[1]) if len(inputs) > 1 else options["axes"]
    _expect(bool(axes))
    gone = {axis % len(shape) for axis in axes}
    if options.get("keepdims", 1):
        return [Value(tuple(1 if axis in gone else size for axis, size in enumerate(shape)))]
    return [Value(tuple(size for axis, size in enumerate(shape) if axis not in gone))]


def _expand(inputs: Sequence[Value], options: Mapping[str, Any]) -> list[Value]:
    wanted = _numbers(inputs[1])
    _expect(min(wanted, default=0) >= 0)
    return [Value(np.broadcast_shapes(inputs[0].shape, tuple(wanted)))]


def _numbers(value: Value) -> list[int]:
    """Read the integers that a tensor holds."""
    if value.numbers is None:
        raise ValueError("they are not known")
    return np.atleast_1d(value.numbers).tolist()


def _expect(holds: bool) -> None:
    if not holds:
        raise ValueError("the inputs do not fit")


_Rule = Callable[[Sequence[Value], Mapping[str, Any]], list[Value]]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("Identity", "Cast"), _same),
    **dict.fromkeys(
        (
            "BatchNormalization",
            "Cos",
            "Elu",
            "Erf",
            "Exp",
            "Gelu",
            "InstanceNormalization",
            "LayerNormalization",
            "LeakyRelu",
            "Mish",
            "Relu",
            "Sigmoid",
            "Sin",
            "Softmax",
            "Softplus",
            "Sqrt",
            "Tanh",
        ),
        _shape_alone,
    ),
    **dict.fromkeys(("Add", "Div", "Mul", "Pow", "Sub"), _broadcast),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceSum"), _reduce),
    "Concat": _concat,
    "Conv": _convolution,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
    "GlobalAveragePool": _average_all,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
