"""What a measurement ran on."""

import os
import platform
from pathlib import Path

import numpy as np

from asd_policy.arrays import NUMPY, Device


def hardware(device: Device) -> str:
    """Return what a device is: the GPU's name, or the CPU's with the number of threads torch uses."""
    if device == NUMPY:
        return f"{_processor()}, {os.cpu_count()} CPUs"
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    return f"{_processor()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads"


def library(device: Device) -> str:
    """Return the library whose arrays a device has, with its version."""
    if device == NUMPY:
        return f"numpy {np.__version__}"
    import torch

    return f"torch {torch.__version__}"


def _processor() -> str:
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux: platform's name stands
    return name
