"""An ONNX model with its weights beside it: they may have gigabytes, and in a protocol buffer each step copies them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

Weights = Mapping[str, npt.NDArray[Any]]
"""Constants of a graph by name."""
_SMALL = 1024
"""Bytes of the weights that are written into the graph for a session, too: what infers shapes has to read some."""


@dataclass(frozen=True)
class ExportedModel:
    """A model as it was exported. Where the network's weights are used as they are, they are its own memory."""

    model: "onnx.ModelProto"
    """Without weights."""
    weights: Weights
    """Those that its graph reads."""

    @property
    def size(self) -> int:
        """Length of a file with all of it [bytes], nearly."""
        return self.model.ByteSize() + sum(each.nbytes for each in self.weights.values())

    def whole(self) -> "onnx.ModelProto":
        """Copy it to a model with its weights inside.

        Raises:
            ValueError: It is too large for a protocol buffer, which has 2 GiB at most.
        """
        from onnx import numpy_helper

        whole = self.copied().model
        for name, value in self.weights.items():
            whole.graph.initializer.append(numpy_helper.from_array(value, name))
        return whole

    def referring(self) -> tuple[bytes, dict[str, npt.NDArray[np.uint8]]]:
        """Write the model so that it names its weights, as if they were files.

        Returns:
            The content, and the bytes of each of those files by name, without a copy.
        """
        from onnx import StringStringEntryProto, TensorProto, helper, numpy_helper

        model, files = self.copied().model, {}
        for name, value in self.weights.items():
            if value.nbytes <= _SMALL:
                model.graph.initializer.append(numpy_helper.from_array(value, name))
                continue
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            weight = TensorProto(name=name, data_type=kind, dims=value.shape, data_location=TensorProto.EXTERNAL)
            file = f"weight {len(files)}"
            place = {"location": file, "offset": "0", "length": str(value.nbytes)}
            weight.external_data.extend(StringStringEntryProto(key=key, value=text) for key, text in place.items())
            model.graph.initializer.append(weight)
            files[file] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        return model.SerializeToString(), files

    def copied(self) -> "ExportedModel":
        """Copy the graph; the weights stay where they are."""
        model = type(self.model)()
        model.CopyFrom(self.model)
        return ExportedModel(model, self.weights)
