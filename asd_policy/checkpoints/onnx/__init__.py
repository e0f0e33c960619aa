"""Policies as ONNX files: written, and read as untrusted input."""
