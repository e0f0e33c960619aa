"""Convolutions as matrix products on a CPU, for the few points of a sequential call or, compiled, for any number."""

import abc
import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW = 12
"""Points up to which a matrix product is faster. PyTorch's own convolution goes over the weights once for each point,
or reorders them before each call; for few points either costs more than the product itself. The compiler brings what
the product reads into place on the way, and then a product is never slower: see docs/results/network_calls.md."""

Module = TypeVar("Module", bound=nn.Module)
Layer = TypeVar("Layer", nn.Conv1d, nn.ConvTranspose1d)


class FewPoints(nn.Module, abc.ABC, Generic[Layer]):
    """A convolution over time that is one matrix product over all points where they are few."""

    def __init__(self, convolution: Layer, few: int | None) -> None:
        """Wrap a convolution, with its own weights.

        Args:
            convolution: Without groups.
            few: Points of a call up to which it is a product; None for any number.
        """
        super().__init__()
        self.convolution, self.few = convolution, few

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels_in, T] to [N, channels_out, T']."""
        multiplies = self.few is None or len(x) <= self.few
        return self.product(x, self.convolution) if multiplies else self.convolution(x)

    @staticmethod
    @abc.abstractmethod
    def product(x: Tensor, layer: Layer) -> Tensor:
        """Do the same as one matrix product."""


class FewPointsConv(FewPoints[nn.Conv1d]):
    """A convolution without groups and dilation, zero-padded."""

    @staticmethod
    def product(x: Tensor, layer: nn.Conv1d) -> Tensor:
        """Multiply the kernel by all stretches of the input that it covers."""
        (kernel,), (stride,), (padding,) = layer.kernel_size, layer.stride, layer.padding
        assert isinstance(padding, int)
        seen = functional.pad(x, (padding, padding)).unfold(2, kernel, stride)  # [N, channels_in, T', kernel]
        columns = seen.transpose(1, 2).flatten(2).flatten(0, 1)
        product = functional.linear(columns, layer.weight.flatten(1), layer.bias)
        return product.unflatten(0, (len(x), -1)).transpose(1, 2)


class FewPointsTransposed(FewPoints[nn.ConvTranspose1d]):
    """A transposed convolution with kernel 4, stride 2 and padding 1."""

    @staticmethod
    def product(x: Tensor, layer: nn.ConvTranspose1d) -> Tensor:
        """Multiply each point by all taps, and add up those that meet."""
        taps = (x.transpose(1, 2) @ layer.weight.flatten(1)).unflatten(2, (-1, 4))  # [N, T, channels_out, 4]
        # Output 2t gets tap 1 of point t and tap 3 of t − 1; output 2t + 1 gets tap 2 of t and tap 0 of t + 1.
        even = taps[..., 1] + functional.pad(taps[:, :-1, :, 3], (0, 0, 1, 0))
        odd = taps[..., 2] + functional.pad(taps[:, 1:, :, 0], (0, 0, 0, 1))
        out = torch.stack([even, odd], dim=2).flatten(1, 2)  # [N, 2T, channels_out]
        return (out if layer.bias is None else out + layer.bias).transpose(1, 2)


def for_few_points(network: Module, few: int | None) -> Module:
    """Make a network's convolutions fast on few points, see `FewPoints`, on a CPU; weights are shared, not copied."""
    tensors = (*network.parameters(), *network.buffers())
    if any(not tensor.is_cpu for tensor in tensors):
        return network
    shared = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    for module in list(shared.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv1d):
                setattr(module, name, FewPointsConv(child, few))
            elif isinstance(child, nn.ConvTranspose1d):
                setattr(module, name, FewPointsTransposed(child, few))
    return shared
