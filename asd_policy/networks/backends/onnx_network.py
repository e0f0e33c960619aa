"""Open sessions of ONNX Runtime as a denoiser or a sensor's network, for arrays of numpy and tensors of torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from asd_policy.errors import DenoiserError
from asd_policy.networks.backends.onnx_lowering import MANY
from asd_policy.networks.backends.onnx_session import INPUTS, SENSOR_INPUTS, reason

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch import Tensor

    from asd_policy.networks.backends.film import FilmNetwork

    Tensors = dict[str, Tensor]

_NUMBERS: dict[str, Any] = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
_GRAPH_ID = "gpu_graph_id"  # of a run; -1 for none
_NO_WAIT = "disable_synchronize_execution_providers"


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise what ONNX Runtime raises as a `DenoiserError`."""
    try:
        yield
    except Exception as error:  # its exceptions have no common class but this
        raise DenoiserError(f"ONNX Runtime: {reason(error)}") from None


class OnnxNetwork:
    """A network in sessions, for rows in main memory: a denoiser, or what encodes a sensor."""

    takes_numpy = True
    """Whether it may be called with NumPy's arrays, whatever the library of the samples: a denoiser without it gets
    arrays of that library."""

    def __init__(self, sessions: Sequence["InferenceSession"], device: tuple[str, int]) -> None:
        """Take open sessions.

        Args:
            sessions: One with the inputs and the output of a denoiser, or of a sensor's network; see `onnx_session.py`.
                A second one runs the calls of `MANY` rows and more.
            device: Kind and index of the device that rows are on.
        """
        self.sessions, session = tuple(sessions), sessions[0]
        self._device = device
        found = {each.name: each for each in session.get_inputs()}
        self._kinds = {name: _NUMBERS[kind] for name, kind in (INPUTS | SENSOR_INPUTS).items() if name in found}
        self._shapes = {name: tuple(found[name].shape[1:]) for name in self._kinds}
        (output,) = session.get_outputs()
        self._output, self._event = output.name, tuple(output.shape[1:])

    def __call__(self, *given: Any) -> Any:
        """Predict what the chain's `prediction_type` says, or encode.

        Args:
            *given: Of a denoiser points x [N, *event], diffusion timesteps [N] in int64 and conditioning [N, cond_dim];
                of a sensor's network what it has seen, normalised, [N, *shape]. NumPy's arrays or tensors.

        Returns:
            Predictions [N, *event] or features [N, size], float32, of the same library.

        Raises:
            DenoiserError: There is no conditioning, or ONNX Runtime refuses the call.
        """
        inputs = dict(zip(self._kinds, given, strict=True))
        missing = next((name for name, each in inputs.items() if each is None), None)
        if missing is not None:
            raise DenoiserError(f"this network needs conditioning; {missing} is None")
        return self._call_arrays(inputs) if isinstance(given[0], np.ndarray) else self._call_tensors(inputs)

    def _call_arrays(self, inputs: dict[str, Any]) -> Any:
        feed = {name: np.ascontiguousarray(each, self._kinds[name]) for name, each in inputs.items()}
        session = self.sessions[-1 if len(next(iter(feed.values()))) >= MANY else 0]
        # Inputs are read where they are; the output is ONNX Runtime's memory, handed over.
        with _refusals():
            return session.run(None, feed)[0]

    def _call_tensors(self, inputs: "Tensors") -> "Tensor":
        import torch

        dtypes = {np.float32: torch.float32, np.int64: torch.int64}
        inputs = {name: each.detach().to(dtypes[self._kinds[name]]).contiguous() for name, each in inputs.items()}
        self._check(inputs)
        return self._evaluate(inputs)

    def _check(self, inputs: "Tensors") -> None:
        """Refuse tensors of another layout or device: a session on a GPU gets addresses alone."""
        rows = len(next(iter(inputs.values())))
        for name, tensor in inputs.items():
            found, wanted = tuple(tensor.shape), (rows, *self._shapes[name])
            if found != wanted or (tensor.device.type, tensor.device.index or 0) != self._device:
                where = ":".join(map(str, self._device))
                raise DenoiserError(f"{name} has shape {found} on {tensor.device}, not {wanted} on {where}")

    def _evaluate(self, inputs: "Tensors") -> "Tensor":
        """Run the session on checked tensors, as on arrays: that takes less time than to bind their memory."""
        import torch

        return torch.from_numpy(self._call_arrays({name: tensor.numpy() for name, tensor in inputs.items()}))


class OnnxFilmNetwork(OnnxNetwork):
    """A network in sessions whose calls get conditioning that is encoded once per plan: an `EncodingDenoiser`."""

    def __init__(self, sessions: Sequence["InferenceSession"], device: tuple[str, int], film: "FilmNetwork") -> None:
        """Take open sessions of an exported film network, and the network, which encodes."""
        super().__init__(sessions, device)
        self._film = film

    def encode(self, cond: "Tensor") -> "Tensor":
        """Encode conditioning [B, cond_dim] once per plan, for the calls: [B, E]."""
        import torch

        with torch.inference_mode():
            return self._film.encode(cond)


@dataclass(frozen=True)
class _Graph:
    """The fixed memory that a captured CUDA graph reads and writes, and the graph's number."""

    inputs: "Tensors"
    output: "Tensor"
    number: int


class OnnxCudaNetwork(OnnxNetwork):
    """A network in a session of the CUDA or TensorRT provider, for rows in a GPU's memory; the host does not wait.

    The session computes in a stream of its own, which graphs need, and which waits for torch's and is waited for.
    """

    takes_numpy = False

    def __init__(
        self,
        session: "InferenceSession",
        device: tuple[str, int],
        stream: Any,
        most_points: int | None,
        most_graphs: int,
    ) -> None:
        """Take an open session.

        Args:
            session: Made with the stream's address as `user_compute_stream`.
            device: As for `OnnxNetwork`.
            stream: A `torch.cuda.Stream`.
            most_points: That one call of the session may have; more are several calls. None for any number.
            most_graphs: CUDA graphs to keep; 0 for a session that was not made to capture any.
        """
        super().__init__([session], device)
        self._stream = stream
        self._most_points = most_points
        self._most_graphs = most_graphs
        self._graphs: dict[int, _Graph] = {}

    def _call_tensors(self, inputs: "Tensors") -> "Tensor":
        import torch

        size = self._most_points
        if size is None or len(next(iter(inputs.values()))) <= size:
            return super()._call_tensors(inputs)
        parts = zip(*(each.split(size) for each in inputs.values()), strict=True)
        return torch.cat([self._call_tensors(dict(zip(inputs, part, strict=True))) for part in parts])

    def _evaluate(self, inputs: "Tensors") -> "Tensor":
        """Run the session on the tensors' own memory."""
        import onnxruntime
        import torch

        first = next(iter(inputs.values()))
        output = torch.empty((len(first), *self._event), dtype=torch.float32, device=first.device)
        graph = self._graph(inputs, output)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(_NO_WAIT, "1")
        if self._most_graphs:
            options.add_run_config_entry(_GRAPH_ID, "-1" if graph is None else str(graph.number))
        current = torch.cuda.current_stream(output.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            if graph is None:
                self._bind_and_run(inputs, output, options)
            else:
                for name, own in graph.inputs.items():
                    own.copy_(inputs[name])
                self._bind_and_run(graph.inputs, graph.output, options)
                output.copy_(graph.output)
        current.wait_stream(self._stream)
        return output

    def _bind_and_run(self, inputs: "Tensors", output: "Tensor", options: Any) -> None:
        binding = self.sessions[0].io_binding()
        for name, tensor in inputs.items():
            binding.bind_input(name, *self._device, self._kinds[name], tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output(self._output, *self._device, np.float32, tuple(output.shape), output.data_ptr())
        with _refusals():
            self.sessions[0].run_with_iobinding(binding, options)

    def _graph(self, inputs: "Tensors", like: "Tensor") -> _Graph | None:
        """Find the graph for this number of rows; make a new one while there are not too many."""
        import torch

        rows = len(like)
        if rows not in self._graphs and len(self._graphs) < self._most_graphs:
            with torch.inference_mode(False):  # calls outside of it may write there, too
                own = {name: torch.empty_like(tensor) for name, tensor in inputs.items()}
                output = torch.empty_like(like)
            self._graphs[rows] = _Graph(own, output, len(self._graphs) + 1)
        return self._graphs.get(rows)
