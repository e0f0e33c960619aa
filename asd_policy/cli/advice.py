"""What a user should know before a command works for minutes: a place for results, a busy machine, a faster backend."""

import importlib.util
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from asd_policy._common import hardware
from asd_policy.errors import RunError
from asd_policy.networks.backends.torch_eager import TorchEager
from asd_policy.policy.policy import Policy

_ONNX = ("onnxruntime", "onnx", "onnxscript")  # what the backend imports of a PyTorch network
_LOOK = 0.2  # [s] of a machine's work that are looked at
_ALL = 0.75  # share of a CPU's time from which on it is busy


def check_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be written, before the work whose results it is for; nothing is left there.

    Args:
        folder: To write in, or to make: then the folder is looked at in which that would be done.

    Raises:
        RunError: It is none, or cannot be written in.
    """
    try:
        place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:  # a name too long and a folder that may not be entered, too
        raise RunError(f"--out {folder} cannot be written: {error.strerror}") from None


def busy_note() -> str | None:
    """Say that a machine has other work, which whoever measures times should know; None where it has none.

    The load average is of the last minute, and may be of the command before: so the machine is looked at, too.
    """
    threads, cpus, load = torch.get_num_threads(), hardware.cpus(), hardware.load_average()
    if load is None or load < 1:
        return None
    looked = hardware.busy_cpus(_LOOK)
    now = load if looked is None else looked
    if load > cpus and now > _ALL * cpus:
        return f"the load is {load:.1f} on {cpus} CPUs: times will be those of a busy machine"
    others = min(load, now)
    if threads > 1 and others > _ALL and others + threads > cpus:
        return (
            f"PyTorch computes on {threads} threads and the load is {load:.1f} on {cpus} CPUs: threads that wait for "
            "each other are slow on a busy machine; OMP_NUM_THREADS=1 makes it one"
        )
    return None


def warn_of(console: Console, note: str | None) -> None:
    """Print a warning, if there is one."""
    if note is not None:
        console.print(f"warning: {note}", soft_wrap=True)


def onnx_is_installed() -> bool:
    """Look, without importing it, for what runs a PyTorch network by ONNX Runtime."""
    return all(importlib.util.find_spec(name) is not None for name in _ONNX)


def hint_at_onnx(console: Console, policy: Policy, option: str) -> None:
    """Say that ONNX Runtime is installed, where a policy runs on the CPU without it and nobody asked for that.

    Args:
        console: To print on.
        policy: As it will run.
        option: What would use it, such as "--backend onnx".
    """
    if policy.backend != TorchEager() or str(policy.device) != "cpu":
        return
    if onnx_is_installed():
        console.print(
            f"hint: ONNX Runtime is installed and not used; {option} is mostly faster on a CPU, and asd-policy tune "
            "measures it here",
            soft_wrap=True,
        )
