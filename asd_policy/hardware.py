"""What a measurement ran on."""

import os
import platform
from pathlib import Path

import torch


def hardware(device: torch.device) -> str:
    """Return what a device is: the GPU's name, or the CPU's with the number of threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux: platform's name stands
    return f"{name}, {os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads"
