"""A sensor's network as PyTorch runs it, shared by the backends of PyTorch."""

import warnings

import torch
from torch import Tensor, nn

from asd_policy.errors import BackendError
from asd_policy.networks.backends.base import Encode, SensorJob
from asd_policy.networks.backends.film import in_dtype
from asd_policy.networks.backends.precision import full_float32
from asd_policy.networks.backends.torch_network import Weights, checked_module, try_in_dtype
from asd_policy.networks.backends.torch_options import TorchBackend
from asd_policy.networks.recording import Launcher, OutOfDeviceMemory


class TorchSensor:
    """A sensor's network in a dtype. What it saw and its features keep their own dtype."""

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        """Prepare a network, which stays as it is; weights that need another dtype are copied."""
        self._weights = Weights(network)
        self._device = device
        self._dtype = dtype
        self.core: nn.Module = in_dtype(network, dtype)
        """The module, called in the dtype."""
        self.run: Encode = self.core
        """The function that runs it."""

    def __call__(self, seen: Tensor) -> Tensor:
        """Encode what it has seen, normalised, [N, *shape] as features [N, size].

        Raises:
            BackendError: The network's weights were moved or changed after it was prepared.
        """
        self.check()
        return self.compute(seen)

    def check(self) -> None:
        """Refuse weights that were moved or changed, as a call does."""
        self._weights.check()

    def compute(self, seen: Tensor) -> Tensor:
        """Encode without a look at the weights."""
        with torch.inference_mode(), full_float32(self._device):
            return self.run(seen.to(self._dtype)).to(seen.dtype)


class RecordedSensor:
    """A sensor's network whose calls are recorded, one for each power of two of rows, and replayed.

    How many observations are new differs from plan to plan; so few recordings are there before the first one. A network
    that cannot be recorded, or that draws random numbers, which a replay would not draw anew, is called as it is, after
    one warning.
    """

    def __init__(self, sensor: TorchSensor, launcher: Launcher) -> None:
        """Take a network, and what records its calls; nothing is recorded before it is called."""
        self._sensor = sensor
        self._launcher = launcher
        self._plain = False

    def __call__(self, seen: Tensor) -> Tensor:
        """Encode; see `TorchSensor`.

        Raises:
            BackendError: As `TorchSensor`, or there is no room for the recording.
        """
        self.check()  # a replay reads the addresses that were recorded
        rows = len(seen)
        if self._plain or not rows:
            return self._sensor.compute(seen)
        padded = seen
        if spare := (1 << (rows - 1).bit_length()) - rows:
            padded = torch.cat([seen, seen[:1].expand(spare, *seen.shape[1:])])
        key = tuple(padded.shape), padded.dtype
        try:
            recording = self._launcher.keep(key, lambda: _Recording(self._sensor, self._launcher, padded))
        except _NotRecordable as error:
            self._plain = True
            warnings.warn(
                f"the network of a camera or another sensor runs without CUDA graphs, which is slower: {error}",
                stacklevel=2,
            )
            return self._sensor.compute(seen)
        return recording.replay(padded)[:rows]

    def check(self) -> None:
        """Refuse weights that were moved or changed, as a call does."""
        self._sensor.check()


class _NotRecordable(Exception):
    """Why calls of a network cannot be replayed."""


class _Recording:
    """One call over memory of its own."""

    def __init__(self, sensor: TorchSensor, launcher: Launcher, seen: Tensor) -> None:
        before = _random_state(seen.device)
        with torch.inference_mode(False):  # calls outside of it may write there, too
            self._seen = seen.clone()
            self._features = sensor.compute(self._seen).clone()  # an error here is the network's own
        if not torch.equal(_random_state(seen.device), before):
            raise _NotRecordable("it draws random numbers")
        self._launcher = launcher
        try:
            self._launch = launcher.record(lambda: self._features.copy_(sensor.compute(self._seen)))
        except OutOfDeviceMemory:
            raise BackendError(f"the device has no memory for encoding {len(seen)} observations at once") from None
        except RuntimeError as error:  # such as a copy to the host, which CUDA forbids in a capture
            raise _NotRecordable(str(error).strip().partition("\n")[0] or type(error).__name__) from error

    def replay(self, seen: Tensor) -> Tensor:
        """Encode other rows."""
        with self._launcher.queue():
            self._seen.copy_(seen)
            self._launch()
            features = self._features.clone()
        self._launcher.settle()
        return features


def _random_state(device: torch.device) -> Tensor:
    """Read the state of a device's random numbers, on the host."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def torch_sensor(network: Encode, job: SensorJob, backend: TorchBackend) -> TorchSensor:
    """Prepare a sensor's network in a backend's dtype; a dtype other than float32 is tried out.

    Raises:
        BackendError: It is not a module of PyTorch's, not on the job's device, or cannot run in the dtype there.
    """
    sensor = TorchSensor(checked_module(network, job.device, backend), job.device, getattr(torch, backend.dtype))
    nothing = torch.zeros((1, *job.shape), dtype=torch.float32, device=job.device)
    try_in_dtype(lambda: sensor(nothing), job.device, backend)
    return sensor
