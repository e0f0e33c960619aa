"""The one place where LeRobot is changed: what it loads is handed to `loaded.accelerate_loaded`."""

import functools
import logging
import sys
from pathlib import Path
from typing import Any

from lerobot.policies.pretrained import PreTrainedPolicy

NAME = "from_pretrained"
_TRAINING = "lerobot_train"
log = logging.getLogger("lerobot_policy_asd")


def install() -> None:
    """Have LeRobot's policies accelerated once they are loaded; a second call changes nothing.

    `PreTrainedPolicy.from_pretrained` is what every command of LeRobot loads a policy by, whatever else is in between.
    """
    own = vars(PreTrainedPolicy).get(NAME)
    if not isinstance(own, classmethod):
        log.warning("policies run unchanged: PreTrainedPolicy.%s of this LeRobot is not as known", NAME)
        return
    load = own.__func__
    if is_hook(load):
        return

    @functools.wraps(load)
    def from_pretrained(cls: type[PreTrainedPolicy], *given: Any, **options: Any) -> PreTrainedPolicy:
        policy = load(cls, *given, **options)
        if not in_training():
            from lerobot_policy_asd.loaded import accelerate_loaded

            source = given[0] if given else options.get("pretrained_name_or_path")
            accelerate_loaded(policy, source, options.get("revision"))
        return policy

    setattr(from_pretrained, _MARK, True)
    setattr(PreTrainedPolicy, NAME, classmethod(from_pretrained))


_MARK = "_asd_hook"


def is_hook(function: Any) -> bool:
    """Tell whether a function is the one that `install` has put in its place."""
    return _MARK in vars(function)


def in_training() -> bool:
    """Tell whether this process is `lerobot-train`: nothing of it is touched, nor its evaluations."""
    main = sys.modules.get("__main__")
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    names = [Path(file or "").stem, (spec.name if spec else "").rpartition(".")[2]]
    return f"lerobot.scripts.{_TRAINING}" in sys.modules or _TRAINING in names
