"""Modulated networks that compute their conditioning once: of timesteps at loading, of observations per plan."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from asd_policy.errors import DenoiserError
from asd_policy.networks.backends.base import Job
from asd_policy.networks.dit import Dit
from asd_policy.networks.modulated import ModulatedNetwork
from asd_policy.networks.unet import ConditionalUnet1d

TABLE_BYTES = 2**28
"""Most memory that the table of timesteps may take, with the memory to compute it. For 1000 timesteps of LeRobot's
default network, which has a gigabyte of weights, that is 120 MB."""

Module = TypeVar("Module", bound=nn.Module)


class FilmNetwork(nn.Module):
    """A `ModulatedNetwork` with the same output, called with encoded observations.

    Each block is conditioned on W·f(concat(time embedding, observations)) + b. f, which is Mish or SiLU, works on each
    number by itself, so this is W_t·f(time embedding) + b, a row of a table, plus W_c·f(observations), the same for
    all points of a plan.
    """

    table: Tensor | None
    projection: Tensor

    def __init__(self, network: ModulatedNetwork, timesteps: int | None, dtype: torch.dtype) -> None:
        """Compute the table.

        Args:
            network: Stays as it is. Its weights are shared, not copied, where it has the dtype already.
            timesteps: How many there are T; they are 0 … T − 1. Where a table of them would be larger than
                `TABLE_BYTES`, their part is computed in each call; so it is for None, where they are times of a flow.
            dtype: To compute in.
        """
        super().__init__()
        layers = network.modulators
        self._sizes = [len(layer.weight) for layer in layers]
        with torch.no_grad():
            step_dim = network.embed(torch.zeros(1, dtype=torch.int64, device=layers[0].weight.device)).shape[1]
            projection = torch.cat([layer.weight[:, step_dim:] for layer in layers])  # W_c of all blocks [E, cond_dim]
            self.register_buffer("projection", projection.to(dtype))
            self.network = in_dtype(network, dtype)
            # Computing a row takes ten times the length of a time embedding, most of it in its perceptron.
            small = (
                timesteps is not None
                and timesteps * (sum(self._sizes) + 10 * step_dim) * projection.itemsize <= TABLE_BYTES
            )
            every = torch.arange(timesteps if timesteps and small else 0, device=projection.device)
            # Computed in the network's own precision, and rounded once.
            self.register_buffer("table", _of_timesteps(network, every).to(dtype) if small else None)

    @property
    def encoded_dim(self) -> int:
        """Length E of what `encode` returns of an observation; 0 where the network reads none."""
        return len(self.projection) if self.projection.shape[1] else 0

    def encode(self, cond: Tensor) -> Tensor:
        """Compute the part of observations [B, cond_dim] for all blocks [B, E]; [B, 0] where the network reads none."""
        if not self.projection.shape[1]:
            return cond[:, :0]
        return functional.linear(self.network.activate(cond.to(self.projection.dtype)), self.projection)

    def forward(self, x: Tensor, timestep: Tensor, encoded: Tensor | None) -> Tensor:
        """Predict as the network does.

        Args:
            x: Noisy action chunks [N, horizon, action_dim].
            timestep: Diffusion timesteps [N] in 0 … T − 1.
            encoded: What `encode` returned, for each point that of its plan [N, E]; None where cond_dim is 0.

        Raises:
            DenoiserError: That is not what `encode` returns.
        """
        if self.table is None:
            film = _of_timesteps(self.network, timestep)
        else:
            film = self.table.index_select(0, timestep)  # unlike indexing, refuses what is out of range, below 0 too
        if self.projection.shape[1]:
            if encoded is None or encoded.shape[1:] != film.shape[1:]:
                shape = None if encoded is None else tuple(encoded.shape)
                raise DenoiserError(f"the conditioning has shape {shape}, not that of `encode`, (N, {film.shape[1]})")
            film = film + encoded
        return self.network.modulated(x, film.split(self._sizes, dim=1))


def film_of(network: object, job: Job, dtype: torch.dtype) -> FilmNetwork | None:
    """Make the network of a job compute its conditioning once; None where it is no `ModulatedNetwork` of ours."""
    # A subclass may have a forward of its own.
    if isinstance(network, ModulatedNetwork) and type(network) in (ConditionalUnet1d, Dit):
        return FilmNetwork(network, job.chain.config["num_train_timesteps"], dtype)  # None for a flow's times
    return None


def in_dtype(network: Module, dtype: torch.dtype) -> Module:
    """Convert a network's weights to a dtype: the network itself if they have it already, else a copy."""
    tensors = (*network.parameters(), *network.buffers())
    if all(tensor.dtype == dtype for tensor in tensors if tensor.is_floating_point()):
        return network
    return copy.deepcopy(network).to(dtype)


def _of_timesteps(network: ModulatedNetwork, timestep: Tensor) -> Tensor:
    """Compute the part of timesteps [N] for all blocks, W_t·f(time embedding) + b, [N, E]."""
    embedding = network.activate(network.embed(timestep))
    step_dim, layers = embedding.shape[1], network.modulators
    return torch.cat([functional.linear(embedding, each.weight[:, :step_dim], each.bias) for each in layers], dim=1)
