"""Names of 0.1 that have others now. Each is kept for one release, with a DeprecationWarning."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

NAMES = {"Committed": "Prefix", "Held": "Inpainting", "Past": "WarmStart"}
"""Public names of the package: the old one, and the new one."""
MODULES = {
    "asd_policy.adapters": "asd_policy.policy.adapters",
    "asd_policy.backends": "asd_policy.networks.backends",
    "asd_policy.models": "asd_policy.networks",
    "asd_policy.normalize": "asd_policy.policy.normalisation",
    "asd_policy.realtime": "asd_policy.deploy.realtime",
    "asd_policy.serving": "asd_policy.deploy.serving",
}
"""Modules that documents of 0.1 name, with those inside them: the old path, and the new one."""


def warn_of_old(old: str, new: str) -> None:
    """Warn the caller's caller that an old name was used."""
    warnings.warn(f"{old} is of asd_policy 0.1 and will go: use {new}", DeprecationWarning, stacklevel=3)


class _OldModules(MetaPathFinder, Loader):
    """Finds `MODULES` where nothing else has: modules with the names of the new ones in them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        known = any(fullname == old or fullname.startswith(f"{old}.") for old in MODULES)
        return ModuleSpec(fullname, self, is_package=True) if known else None

    def exec_module(self, module: ModuleType) -> None:
        old = next(old for old in MODULES if module.__name__ == old or module.__name__.startswith(f"{old}."))
        new = MODULES[old] + module.__name__.removeprefix(old)
        real = import_module(new)
        warnings.warn(
            f"{module.__name__} is of asd_policy 0.1 and will go: use {new}", DeprecationWarning, stacklevel=2
        )
        vars(module).update({name: value for name, value in vars(real).items() if not name.startswith("__")})


def keep_modules() -> None:
    """Have the old modules found."""
    sys.meta_path.append(_OldModules())
