"""Exact parallel sampling for robot Diffusion Policies by autospeculative decoding (ASD).

The public names are listed once, in `__init__.pyi`. Each is imported when it is asked for (Scientific Python, SPEC 1):
importing torch takes seconds.
"""

import os
from typing import Any

import lazy_loader

from asd_policy._common import deprecated
from asd_policy._common.version import PACKAGE_VERSION

# ONNX Runtime looks up its vendor's telemetry host when it is imported, and keeps a device id in the user's cache. Who
# wants that sets the variable to 0; to be read it has to be there before anything here imports ONNX Runtime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = PACKAGE_VERSION
_load, _, _public = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted([*_public, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]  it reads the stub instead
deprecated.keep_modules()


def __getattr__(name: str) -> Any:
    if name in deprecated.NAMES:
        deprecated.warn_of_old(f"{__name__}.{name}", f"{__name__}.{deprecated.NAMES[name]}")
        return __getattr__(deprecated.NAMES[name])
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, _load(name))


def __dir__() -> list[str]:
    return __all__
