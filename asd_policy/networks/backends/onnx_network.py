"""An open session of ONNX Runtime as a denoiser, for arrays of numpy and tensors of torch alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from asd_policy.errors import DenoiserError
from asd_policy.networks.backends.onnx_session import reason

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch import Tensor

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
    """A network in a session, for points in main memory."""

    def __init__(self, session: "InferenceSession", device: tuple[str, int]) -> None:
        """Take an open session.

        Args:
            session: With the inputs x, timestep and cond and the output prediction.
            device: Kind and index of the device that points are on.
        """
        self.session = session
        self._device = device
        self._shapes = {each.name: tuple(each.shape[1:]) for each in session.get_inputs()}

    def __call__(self, x: Any, timestep: Any, cond: Any, /) -> Any:
        """Predict what the chain's `prediction_type` says.

        Args:
            x: Points [N, *event], a numpy array or a torch tensor.
            timestep: Diffusion timesteps [N], int64, of the same library.
            cond: Conditioning [N, cond_dim], of the same library.

        Returns:
            Predictions [N, *event], float32, of the same library.

        Raises:
            DenoiserError: There is no conditioning, or ONNX Runtime refuses the call.
        """
        if cond is None:
            raise DenoiserError("this network needs conditioning; cond is None")
        if isinstance(x, np.ndarray):
            return self._call_arrays(x, timestep, cond)
        return self._call_tensors(x, timestep, cond)

    def _call_arrays(self, x: Any, timestep: Any, cond: Any) -> Any:
        feed = {
            "x": np.ascontiguousarray(x, np.float32),
            "timestep": np.ascontiguousarray(timestep, np.int64),
            "cond": np.ascontiguousarray(cond, np.float32),
        }
        # Inputs are read where they are; the output is ONNX Runtime's memory, handed over.
        with _refusals():
            return self.session.run(None, feed)[0]

    def _call_tensors(self, x: "Tensor", timestep: "Tensor", cond: "Tensor") -> "Tensor":
        import torch

        inputs = _Inputs(
            x.to(torch.float32).contiguous(), timestep.to(torch.int64).contiguous(), cond.to(torch.float32).contiguous()
        )
        self._check(inputs)
        output = torch.empty_like(inputs.x)
        self._run(inputs, output)
        return output

    def _check(self, inputs: "_Inputs") -> None:
        """Refuse tensors of another dtype, layout or device: the session gets addresses alone."""
        for name, tensor, _ in inputs.bindings():
            found, wanted = tuple(tensor.shape), (len(inputs.x), *self._shapes[name])
            if found != wanted or (tensor.device.type, tensor.device.index or 0) != self._device:
                where = ":".join(map(str, self._device))
                raise DenoiserError(f"{name} has shape {found} on {tensor.device}, not {wanted} on {where}")

    def _run(self, inputs: "_Inputs", output: "Tensor", options: Any = None) -> None:
        """Run the session on tensors' own memory."""
        binding = self.session.io_binding()
        for name, tensor, kind in inputs.bindings():
            binding.bind_input(name, *self._device, kind, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output("prediction", *self._device, np.float32, tuple(output.shape), output.data_ptr())
        with _refusals():
            self.session.run_with_iobinding(binding, options)


@dataclass(frozen=True)
class _Inputs:
    """Contiguous tensors in the network's types."""

    x: "Tensor"
    timestep: "Tensor"
    cond: "Tensor"

    def bindings(self) -> list[tuple[str, "Tensor", Any]]:
        """List name, tensor and NumPy type of each."""
        return [("x", self.x, np.float32), ("timestep", self.timestep, np.int64), ("cond", self.cond, np.float32)]


@dataclass(frozen=True)
class _Graph:
    """The fixed memory that a captured CUDA graph reads and writes, and the graph's number."""

    inputs: _Inputs
    output: "Tensor"
    number: int


class OnnxCudaNetwork(OnnxNetwork):
    """A network in a session of the CUDA or TensorRT provider, for points in a GPU's memory; the host does not wait.

    The session computes in a stream of its own, which graphs need, and which waits for torch's and is waited for.
    """

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
        super().__init__(session, device)
        self._stream = stream
        self._most_points = most_points
        self._most_graphs = most_graphs
        self._graphs: dict[int, _Graph] = {}

    def _call_tensors(self, x: "Tensor", timestep: "Tensor", cond: "Tensor") -> "Tensor":
        import torch

        size = self._most_points
        if size is None or len(x) <= size:
            return super()._call_tensors(x, timestep, cond)
        parts = zip(x.split(size), timestep.split(size), cond.split(size), strict=True)
        return torch.cat([self._call_tensors(*part) for part in parts])

    def _run(self, inputs: _Inputs, output: "Tensor", options: Any = None) -> None:
        import onnxruntime
        import torch

        graph = self._graph(inputs)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(_NO_WAIT, "1")
        if self._most_graphs:
            options.add_run_config_entry(_GRAPH_ID, "-1" if graph is None else str(graph.number))
        current = torch.cuda.current_stream(output.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            if graph is None:
                super()._run(inputs, output, options)
            else:
                for (_, own, _), (_, given, _) in zip(graph.inputs.bindings(), inputs.bindings(), strict=True):
                    own.copy_(given)
                super()._run(graph.inputs, graph.output, options)
                output.copy_(graph.output)
        current.wait_stream(self._stream)

    def _graph(self, inputs: _Inputs) -> _Graph | None:
        """Find the graph for this number of points; make a new one while there are not too many."""
        import torch

        points = len(inputs.x)
        if points not in self._graphs and len(self._graphs) < self._most_graphs:
            with torch.inference_mode(False):  # calls outside of it may write there, too
                own = _Inputs(*(torch.empty_like(tensor) for _, tensor, _ in inputs.bindings()))
                output = torch.empty_like(own.x)
            self._graphs[points] = _Graph(own, output, len(self._graphs) + 1)
        return self._graphs.get(points)
