"""The hardware and software that a measurement ran on."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy._common.arrays import NUMPY, Device


def hardware(device: Device) -> str:
    """Describe a device: the GPU's name, or the CPU's with the number of threads that torch uses."""
    if device == NUMPY:
        return f"{_processor()}, {os.cpu_count()} CPUs"
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    return f"{_processor()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads"


def library(device: Device) -> str:
    """Name the library whose arrays a device has, with its version."""
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


_GPU_STATE = ("pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu")
_CPU_STATE = ("scaling_governor", "scaling_cur_freq", "scaling_max_freq")
_PACKAGES = ("numpy", "torch", "triton", "onnxruntime", "onnxruntime-gpu", "diffusers")


def versions(device: Device) -> dict[str, str | None]:
    """List the versions of what a measurement's speed depends on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if (torch := sys.modules.get("torch")) is not None:  # its own version names the build; the metadata may not
        found["torch"] = torch.__version__
    if device != NUMPY and device.type == "cuda":
        import torch

        driver = _nvidia_smi(device, ("driver_version",)) or {"driver_version": None}
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
        found["driver"] = driver["driver_version"]
    return found


def cpus() -> int:
    """Count the CPUs of the machine."""
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Read the host's load average over the last minute; None where the system has none."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def busy_cpus(seconds: float) -> float | None:
    """Look for a while how many CPUs of the machine are at work; None where the system does not say.

    Args:
        seconds: How long to look [s]; the caller sleeps meanwhile.
    """
    before, start = _worked(), time.monotonic()
    if before is None:
        return None
    time.sleep(seconds)
    after = _worked()
    return None if after is None else (after - before) / (time.monotonic() - start)


def _worked() -> float | None:
    """Read the time that all CPUs have worked since the system started [s]."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, _idle, _waiting, *rest = map(int, fields)
    except (OSError, ValueError):
        return None  # not Linux
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def power_state(device: Device) -> dict[str, Any]:
    """Read what decides how fast a device runs just now; None for what cannot be read.

    For a CPU the governor and frequencies [kHz] of its first core; for a GPU clocks [MHz], power [W] and temperature
    [°C] from nvidia-smi. For both the host's load average over a minute, and the CPUs that may be used.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    state: dict[str, Any] = {"load": load_average(), "usable_cpus": affinity and len(affinity(0))}
    if device != NUMPY and device.type == "cuda":
        return state | (_nvidia_smi(device, _GPU_STATE) or dict.fromkeys(_GPU_STATE))
    for name in _CPU_STATE:
        path = Path("/sys/devices/system/cpu/cpu0/cpufreq") / name
        try:
            state[name] = path.read_text().strip()
        except OSError:
            state[name] = None  # virtual machines have no such file
    return state


def float32_precision() -> dict[str, str | bool]:
    """Report to what PyTorch may round float32 in a GPU's matrix products and convolutions: TensorFloat-32 or not."""
    import torch

    return {"matmul": torch.get_float32_matmul_precision(), "convolution_tf32": torch.backends.cudnn.allow_tf32}


def _nvidia_smi(device: Device, fields: tuple[str, ...]) -> dict[str, str] | None:
    """Ask nvidia-smi about a GPU; None where it is not installed or does not answer."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    command = ["nvidia-smi", f"--id=GPU-{properties.uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    values = done.stdout.strip().split(", ")
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else None
