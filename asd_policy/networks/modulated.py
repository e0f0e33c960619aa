"""Networks on which timestep and observations act through linear layers alone, and so can be computed apart."""

import abc
from collections.abc import Sequence

from torch import Tensor, nn


class ModulatedNetwork(nn.Module, abc.ABC):
    """A denoiser whose blocks are scaled and shifted by W·f(concat(time embedding, observations)) + b, f elementwise.

    FiLM (arXiv 1709.07871) and adaptive layer normalisation (arXiv 2212.09748) are of this kind. Nothing else in the
    network depends on the timestep or the observations.
    """

    @property
    @abc.abstractmethod
    def modulators(self) -> list[nn.Linear]:
        """The layers W, b of all blocks, in the order in which these are run."""

    @abc.abstractmethod
    def embed(self, timestep: Tensor) -> Tensor:
        """Embed timesteps [N] as [N, step_dim]; observations follow them in the input of `modulators`."""

    @abc.abstractmethod
    def activate(self, embedding: Tensor) -> Tensor:
        """Apply f to each number of time embeddings or observations [N, …]."""

    @abc.abstractmethod
    def modulated(self, x: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """Predict with given modulations.

        Args:
            x: Noisy action chunks [N, horizon, action_dim].
            modulations: For each of `modulators` what it returns [N, channels].

        Returns:
            Predictions [N, horizon, action_dim].
        """
