"""One-dimensional convolutions as matrix products, for ONNX Runtime on a CPU.

ONNX Runtime convolves the samples of a batch one after the other, each time reading all the weights for a matrix
product that is only `horizon` wide: a batch costs as much as its rows. Here activations are kept as [N, T, C], the taps
of a convolution are gathered side by side, and all time steps of all rows go into one product
[N·T, taps·C_in] × [taps·C_in, C_out]. Where there are time steps and channels enough, fewer products do (`winograd`).
docs/results/onnx.md has the times. Mish is written with one exponential, because ONNX Runtime's Softplus is not
vectorised.

Other nodes stay as they are, between transpositions.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from asd_policy.networks.backends.onnx_exported import ExportedModel, Weights
from asd_policy.networks.backends.winograd import ONE, OUTPUTS, POINTS, Floats, make_filter

if TYPE_CHECKING:
    import onnx

MANY = 6
"""Points of a call from which on a form of the graph pays that takes longer for fewer."""
NARROW_GROUP, MANY_STEPS = 16, 8
"""Groups of at most so many channels and at least so many steps are normalised where they are: to transpose them takes
longer in a call of several points, as what lies together is short."""
BLOCK = 16
"""Most time steps that are filtered together: sums over more of them cost more than the products that they save."""
_FEWEST_ROWS, _FEWEST_PRODUCTS = 16, 3 * 2**16
"""Rows [N·T] and products of a tap for which it pays to have fewer of those, in exchange for more weights."""


def lower(exported: ExportedModel, points: int) -> ExportedModel:
    """Rewrite a model's graph.

    Args:
        exported: As `torch.onnx.export` makes it, with the shapes of its values; the first dimension of activations is
            the batch, the only one that may be unknown. It stays as it is.
        points: The fewest N of a call that the graph is to be fast for; it is right for any number. For 0 it has the
            fewest weights.
    """
    model = exported.copied().model
    return ExportedModel(model, _Lowering(model.graph, exported.weights, points).run())


class _Lowering:
    """Nodes of a graph, rewritten one by one in their order.

    A value of three dimensions exists in its own layout [N, C, T], as a twin in the layout [N, T, C], or both; a
    missing one is made by a transposition when it is needed.
    """

    def __init__(self, graph: "onnx.GraphProto", weights: Weights, points: int) -> None:
        self._graph, self._points = graph, points
        self._constants = dict(weights)
        values = (*graph.input, *graph.value_info, *graph.output)
        self._shapes = {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in values}
        self._shapes |= {name: list(value.shape) for name, value in self._constants.items()}
        self._made_by = {name: node for node in graph.node for name in node.output}
        self._plain = {each.name for each in graph.input} | self._constants.keys()
        self._twins: dict[str, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._added: dict[str, npt.NDArray[Any]] = {}
        self._absorbed: set[str] = set()  # outputs that another node's rewriting has made already

    def run(self) -> Weights:
        """Replace the graph's nodes; return the weights that they read."""
        known: dict[str, Callable[[onnx.NodeProto], bool]] = {
            "Conv": self._convolution,
            "ConvTranspose": self._transposed_convolution,
            "InstanceNormalization": self._normalization,
            "Mish": self._mish,
            "Add": self._elementwise,
            "Mul": self._elementwise,
            "Concat": self._concat,
            "Transpose": self._transpose,
        }
        for node in self._graph.node:
            if node.output[0] not in self._absorbed and not known.get(node.op_type, self._keep)(node):
                self._keep(node)
        for output in self._graph.output:
            self._own(output.name)
        return self._sweep()

    # Layouts.

    def _own(self, name: str) -> str:
        """Name a value in its own layout, transposed back if need be."""
        if name in self._twins and name not in self._plain:
            self._plain.add(name)
            self._emit("Transpose", [self._twins[name]], name, perm=[0, 2, 1])
        return name

    def _twin(self, name: str) -> str:
        """Name a value as [N, T, C], transposed if need be."""
        if name not in self._twins:
            _, channels, steps = self._shapes[name]
            if steps == 1:  # nothing is out of place
                self._twins[name] = self._emit("Reshape", [name, self._integers([-1, 1, channels])], f"{name}_ntc")
            else:
                self._twins[name] = self._emit("Transpose", [name], f"{name}_ntc", perm=[0, 2, 1])
        return self._twins[name]

    def _is_sequence(self, name: str) -> bool:
        """Tell whether a value has three dimensions, with none but the batch unknown."""
        shape = self._shapes.get(name, [])
        return name not in self._constants and len(shape) == 3 and all(shape[1:])

    # Nodes. Each returns whether it was rewritten.

    def _keep(self, node: "onnx.NodeProto") -> bool:
        for name in node.input:
            self._own(name)
        self._nodes.append(node)
        self._plain.update(node.output)
        return True

    def _convolution(self, node: "onnx.NodeProto") -> bool:
        found = self._kernel(node)
        if found is None:
            return False
        kernel, bias, stride, pads = found
        taps, steps = kernel.shape[2], self._shapes[node.output[0]][2]
        if stride == 1 and taps in POINTS and self._is_filtered(kernel, steps):
            self._filter(node, kernel, bias, pads, steps)
            return True
        offsets = np.arange(taps) - pads[0]
        table = stride * np.arange(steps)[:, None] + offsets
        weight = kernel.transpose(2, 1, 0).reshape(-1, kernel.shape[0])
        self._product(node, table, weight, bias, steps)
        return True

    def _transposed_convolution(self, node: "onnx.NodeProto") -> bool:
        """y[s·t + r] = Σ_d x[t + d] · w[r + p − s·d]: a convolution with s·C_out channels, s steps in each."""
        found = self._kernel(node)
        if found is None:
            return False
        kernel, bias, stride, (before, _) = found
        channels_in, channels_out, taps = kernel.shape
        steps = self._shapes[node.input[0]][2]
        if self._shapes[node.output[0]][2] != stride * steps:
            return False
        phases = np.arange(stride)
        first, last = -((taps - 1 - before) // stride), (stride - 1 + before) // stride
        offsets = np.arange(first, last + 1)
        weight = np.zeros((len(offsets), channels_in, stride, channels_out), np.float32)
        for row, offset in enumerate(offsets):
            for phase in phases:
                tap = phase + before - stride * offset
                if 0 <= tap < taps:
                    weight[row, :, phase] = kernel[:, :, tap]
        table = np.arange(steps)[:, None] + offsets
        self._product(node, table, weight.reshape(-1, stride * channels_out), np.tile(bias, stride), stride * steps)
        return True

    def _kernel(self, node: "onnx.NodeProto") -> tuple[Floats, Floats, int, list[int]] | None:
        """Read kernel, bias, stride and padding of a convolution, if it is a plain one along one dimension."""
        options = _options(node)
        source, kernel, *bias = (*node.input,)
        plain = (
            self._is_sequence(source)
            and self._is_sequence(node.output[0])
            and all(name in self._constants for name in (kernel, *bias))
            and options.get("auto_pad", b"NOTSET") == b"NOTSET"
            and options.get("group", 1) == 1
            and options.get("dilations", [1]) == [1]
            and options.get("output_padding", [0]) == [0]
            and not options.get("output_shape")
        )
        if not plain:
            return None
        weight = self._constants[kernel]
        channels = weight.shape[1 if node.op_type == "ConvTranspose" else 0]
        offset = self._constants[bias[0]] if bias else np.zeros(channels, np.float32)
        return weight, offset, options.get("strides", [1])[0], options.get("pads", [0, 0])

    def _product(
        self, node: "onnx.NodeProto", table: npt.NDArray[np.int64], weight: Floats, bias: Floats, steps: int
    ) -> None:
        """Gather the time steps that `table` [T, taps] names, zeros outside, and multiply by `weight`."""
        name = node.output[0]
        shape = self._shapes[node.input[0]]
        value = self._twin(node.input[0])
        # A kernel may be longer than what it slides over: these taps meet zeros only.
        met = ((table >= 0) & (table < shape[2])).any(axis=0)
        if not met.all():
            weight = weight.reshape(table.shape[1], -1, weight.shape[1])[met].reshape(-1, weight.shape[1])
            table = table[:, met]
        if not np.array_equal(table, np.arange(shape[2])[:, None]):
            before, after = max(0, -int(table.min())), max(0, int(table.max()) - shape[2] + 1)
            if before or after:
                value = self._emit("Pad", [value, self._integers([0, before, 0, 0, after, 0])], f"{name}_padded")
            value = self._emit("Gather", [value, self._integers(table + before)], f"{name}_taps", axis=1)
        rows = self._emit("Reshape", [value, self._integers([-1, len(weight)])], f"{name}_rows")
        weights = self._constant(np.ascontiguousarray(weight), f"{name}_weight")
        product = self._emit("Gemm", [rows, weights, self._constant(bias, f"{name}_bias")], f"{name}_product")
        whole = self._integers([-1, steps, weight.shape[1] * len(table) // steps])
        self._twins[name] = self._emit("Reshape", [product, whole], f"{name}_ntc")

    def _is_filtered(self, kernel: Floats, steps: int) -> bool:
        """Tell whether a convolution of stride 1 is faster in parts."""
        rows = self._points * steps
        whole = OUTPUTS <= steps and (steps <= BLOCK or steps % BLOCK == 0)
        return whole and rows >= _FEWEST_ROWS and rows * kernel.shape[0] * kernel.shape[1] >= _FEWEST_PRODUCTS

    def _filter(self, node: "onnx.NodeProto", kernel: Floats, bias: Floats, pads: list[int], steps: int) -> None:
        """Filter blocks of time steps with the products of `winograd`."""
        name, value = node.output[0], self._twin(node.input[0])
        block, inputs, first = min(steps, BLOCK), self._shapes[node.input[0]][2], -pads[0]
        if steps > block:
            value = self._emit("Pad", [value, self._integers([0, pads[0], 0, 0, pads[1], 0])], f"{name}_padded")
            inputs, first = block + kernel.shape[2] - 1, 0
            table = self._integers(np.arange(0, steps, block)[:, None] + np.arange(inputs))
            value = self._emit("Gather", [value, table], f"{name}_blocks", axis=1)
            value = self._emit("Reshape", [value, self._integers([-1, inputs, kernel.shape[1]])], f"{name}_rows")
        parts = make_filter(kernel, inputs, block, first)
        products, tiles, _ = parts.before.shape
        before = self._constant(parts.before.reshape(-1, inputs), f"{name}_before")
        sums = self._emit("MatMul", [before, value], f"{name}_sums")
        each = [f"{name}_sum_{index}" for index in range(products)]
        self._emit("Split", [sums, self._integers([tiles] * products)], *each, axis=1)
        for index, weight in enumerate(parts.weights):
            weights = self._constant(np.ascontiguousarray(weight), f"{name}_weight_{index}")
            each[index] = self._emit("MatMul", [each[index], weights], f"{name}_product_{index}")
        each[ONE] = self._emit("Add", [each[ONE], self._constant(bias, f"{name}_bias")], f"{name}_shifted")
        together = self._emit("Concat", each, f"{name}_products", axis=1)
        after = self._constant(parts.after.reshape(block, -1), f"{name}_after")
        made = self._emit("MatMul", [after, together], f"{name}_filtered" if steps > block else f"{name}_ntc")
        if steps > block:
            made = self._emit("Reshape", [made, self._integers([-1, steps, kernel.shape[0]])], f"{name}_ntc")
        self._twins[name] = made

    def _normalization(self, node: "onnx.NodeProto") -> bool:
        """Group normalisation, which is exported as one of instances [N, groups, C / groups · T], reshaped."""
        before = self._made_by.get(node.input[0])
        after = [each for each in self._graph.node if node.output[0] in each.input]
        if before is None or before.op_type != "Reshape" or len(after) != 1 or after[0].op_type != "Reshape":
            return False
        source, target = before.input[0], after[0].output[0]
        like = self._made_by.get(after[0].input[1])
        if not self._is_sequence(source) or like is None or (like.op_type, *like.input) != ("Shape", source):
            return False
        split, shape = self._shapes.get(node.input[0], []), self._shapes[source]
        (_, channels, steps), groups = shape, split[1] if len(split) > 1 else 0
        if not groups:
            return False
        self._shapes[target] = shape
        self._absorbed.add(target)
        name, width = node.output[0], channels // groups
        if width <= NARROW_GROUP and steps >= MANY_STEPS and self._is_plain(node):
            self._normalize_by_products(source, target, groups, _options(node).get("epsilon", 1e-5))
            return True

        def reshape(value: str, dims: list[int], suffix: str) -> str:
            return self._emit("Reshape", [value, self._integers([-1, *dims])], f"{name}_{suffix}")

        value = reshape(self._twin(source), [steps, groups, width], "split")
        value = self._emit("Transpose", [value], f"{name}_grouped", perm=[0, 2, 1, 3])
        value = reshape(value, [groups, steps * width], "groups")
        value = self._emit("InstanceNormalization", [value, *node.input[1:]], f"{name}_normal", like=node)
        value = reshape(value, [groups, steps, width], "unsplit")
        value = self._emit("Transpose", [value], f"{name}_ungrouped", perm=[0, 2, 1, 3])
        self._twins[target] = reshape(value, [steps, channels], "ntc")
        return True

    def _is_plain(self, node: "onnx.NodeProto") -> bool:
        """Tell whether a normalisation neither scales nor shifts what it has normalised; other nodes do that."""
        scale, shift = (self._constants.get(name) for name in node.input[1:])
        return scale is not None and shift is not None and bool((scale == 1).all() and (shift == 0).all())

    def _normalize_by_products(self, source: str, target: str, groups: int, epsilon: float) -> None:
        """Normalise groups of channels where they are, and scale them by the constant that follows, if one does.

        Their moments are taken over time first, and then over a group's channels by a product with a narrow matrix.
        """
        channels, value = self._shapes[source][1], self._twin(source)
        member = np.kron(np.eye(groups, dtype=np.float32), np.ones((1, channels // groups), np.float32))  # [G, C]
        kind = f"of_{groups}_groups_of_{channels // groups}"
        mean = self._constant(np.ascontiguousarray(member.T) * np.float32(groups / channels), f"means_{kind}")
        spread = self._constant(member, f"members_{kind}")
        scaled = self._scaling_of(target)
        if scaled is not None:
            target, scale = scaled
            member = member * scale
            self._shapes[target] = self._shapes[source]
            self._absorbed.add(target)

        def grouped(of: str, suffix: str) -> str:
            over_time = self._emit("ReduceMean", [of, self._integers([1])], f"{target}_{suffix}_of_channels")
            return self._emit("MatMul", [over_time, mean], f"{target}_{suffix}")

        centre = self._emit("MatMul", [grouped(value, "mean"), spread], f"{target}_centre")
        moved = self._emit("Sub", [value, centre], f"{target}_centred")
        variance = grouped(self._emit("Mul", [moved, moved], f"{target}_squared"), "variance")
        variance = self._emit("Add", [variance, self._constant(np.array(epsilon, np.float32))], f"{target}_safe")
        one, deviation = self._constant(np.array(1, np.float32)), self._emit("Sqrt", [variance], f"{target}_deviation")
        gain = self._emit("Div", [one, deviation], f"{target}_gain")
        gain = self._emit("MatMul", [gain, self._constant(member, f"{target}_scales")], f"{target}_gains")
        self._twins[target] = self._emit("Mul", [moved, gain], f"{target}_ntc")

    def _scaling_of(self, name: str) -> tuple[str, Floats] | None:
        """Find the node that does no more than to scale each channel of a value by a constant: its output, and that."""
        readers = [each for each in self._graph.node if name in each.input]
        if len(readers) != 1 or readers[0].op_type != "Mul":
            return None
        constants = [self._constants[each] for each in readers[0].input if each in self._constants]
        channels = self._shapes[name][1]
        if len(constants) != 1 or constants[0].shape not in ((channels, 1), (1, channels, 1)):
            return None
        return readers[0].output[0], constants[0].reshape(channels)

    def _mish(self, node: "onnx.NodeProto") -> bool:
        """Mish(x) = x tanh(log(1 + eˣ)) = x / (1 + 2 / (e (e + 2))) with e = eˣ; right also where e is 0 or ∞."""
        source, name = node.input[0], node.output[0]
        sequence = source in self._twins
        value = self._twins[source] if sequence else source
        one, two = (self._constant(np.array(number, np.float32)) for number in (1, 2))
        power = self._emit("Exp", [value], f"{name}_exp")
        more = self._emit("Add", [power, two], f"{name}_more")
        product = self._emit("Mul", [power, more], f"{name}_square")
        ratio = self._emit("Div", [two, product], f"{name}_ratio")
        divisor = self._emit("Add", [ratio, one], f"{name}_divisor")
        self._emit("Div", [value, divisor], f"{name}_ntc" if sequence else name)
        if sequence:
            self._twins[name] = f"{name}_ntc"
        else:
            self._plain.add(name)
        return True

    def _elementwise(self, node: "onnx.NodeProto") -> bool:
        constants = [name for name in node.input if name in self._constants]
        sequences = [name for name in node.input if self._is_sequence(name)]
        if len(constants) + len(sequences) < len(node.input) or not any(name in self._twins for name in sequences):
            return False
        turned = {name: self._constant(_turn(self._constants[name])) for name in constants}
        turned |= {name: self._twin(name) for name in sequences}
        name = node.output[0]
        shapes = [self._shapes[each][1:] for each in sequences]
        self._shapes[name] = [0, *(max(sizes) for sizes in zip(*shapes, strict=True))]
        self._twins[name] = self._emit(node.op_type, [turned[each] for each in node.input], f"{name}_ntc")
        return True

    def _concat(self, node: "onnx.NodeProto") -> bool:
        if _options(node)["axis"] != 1 or not all(name in self._twins for name in node.input):
            return False
        values = [self._twins[name] for name in node.input]
        self._twins[node.output[0]] = self._emit("Concat", values, f"{node.output[0]}_ntc", axis=2)
        return True

    def _transpose(self, node: "onnx.NodeProto") -> bool:
        source, name = node.input[0], node.output[0]
        if _options(node).get("perm") != [0, 2, 1] or not self._is_sequence(source):
            return False
        if source in self._plain:
            self._twins[name] = source  # this layout is the twin of what it is turned into
        else:
            self._emit("Identity", [self._twins[source]], name)
            self._plain.add(name)
        return True

    # Building.

    def _emit(
        self, kind: str, inputs: list[str], *outputs: str, like: "onnx.NodeProto | None" = None, **options: Any
    ) -> str:
        """Add a node; return the name of its first output."""
        from onnx import helper

        node = helper.make_node(kind, inputs, outputs, **options)
        if like is not None:
            node.attribute.extend(like.attribute)
        self._nodes.append(node)
        return outputs[0]

    def _constant(self, value: npt.NDArray[Any], name: str | None = None) -> str:
        """Add a constant; equal ones without a name of their own are one."""
        name = name or f"const_{value.dtype}_{'x'.join(map(str, value.shape))}_{value.tobytes().hex()}"
        self._added.setdefault(name, value)
        return name

    def _integers(self, values: npt.ArrayLike) -> str:
        """Add integers, of the one type that shapes, pads and indices may have."""
        return self._constant(np.array(values, dtype=np.int64))

    def _sweep(self) -> Weights:
        """Put the new nodes that lead to an output into the graph; return the constants that they read."""
        needed = {each.name for each in self._graph.output}
        kept = []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        del self._graph.node[:], self._graph.value_info[:]
        self._graph.node.extend(kept[::-1])
        return {name: value for name, value in (self._constants | self._added).items() if name in needed}


def _options(node: "onnx.NodeProto") -> dict[str, Any]:
    """Read a node's attributes."""
    from onnx.helper import get_attribute_value

    return {each.name: get_attribute_value(each) for each in node.attribute}


def _turn(constant: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Turn `constant`, which broadcasts over [N, C, T], into one that broadcasts over [N, T, C]."""
    return np.ascontiguousarray(np.atleast_2d(constant).swapaxes(-1, -2))
