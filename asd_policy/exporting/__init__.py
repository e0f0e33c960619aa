"""A policy as one ONNX file: `network.py` and `lowering.py` make the graph, `onnx_file.py` the policy."""
