"""Run a LeRobot command as its script does, and write how long its policy took to load and each plan to make.

    ASD_POLICY_SAMPLER=off python scripts/benchmarks/lerobot_timed.py plans.json lerobot_eval --policy.path=…

The first word is the file to write, the second the module of `lerobot.scripts`. The same stopwatch times LeRobot's own
loop and the package's: it is put around a loaded policy's `predict_action_chunk`, and changes nothing else.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOADERS = {
    "lerobot_eval": ("lerobot.scripts.lerobot_eval", "make_policy"),
    "lerobot_rollout": ("lerobot.rollout.context", "_load_pretrained_policy"),
}
"""Module of `lerobot.scripts` → where it looks up the function that loads its policy."""


class Stopwatch:
    """What is timed, of all policies that are loaded."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.load: list[float] = []
        """How long it took until a policy was ready [s]."""
        self.plans: list[float] = []
        """How long each plan took, in order [s]."""
        self.policy: Any = None
        """The last that was loaded."""

    def watch(self, load: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function that loads a policy, so that it and every plan of the policy are timed."""

        def timed_load(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            self.policy = load(*arguments, **options)
            self.load.append(time.perf_counter() - begun)
            plan = self.policy.predict_action_chunk

            def timed_plan(*arguments: Any, **options: Any) -> Any:
                begun = time.perf_counter()
                actions = plan(*arguments, **options)
                self.plans.append(time.perf_counter() - begun)
                return actions

            self.policy.predict_action_chunk = timed_plan
            return self.policy

        return timed_load

    def report(self) -> dict[str, Any]:
        """Tell the times, and rounds and nfe of each call where the policy counts them."""
        found: dict[str, Any] = {"load_s": self.load, "plans_s": self.plans, "type": self.policy.config.type}
        if stats := getattr(self.policy, "asd_stats", None):
            found |= {"plans": stats.plans, "rounds": stats.rounds, "nfe": stats.nfe}
        return found


def main() -> None:
    """Run the command, then write the file."""
    path, name, *words = sys.argv[1:]
    module, stopwatch = importlib.import_module(f"lerobot.scripts.{name}"), Stopwatch()
    where, loader = LOADERS[name]
    loading = vars(importlib.import_module(where))
    loading[loader] = stopwatch.watch(loading[loader])
    importlib.import_module("lerobot_robot_pusht")
    sys.argv = [name, *words]
    module.main()
    Path(path).write_text(json.dumps(stopwatch.report()))


if __name__ == "__main__":
    main()
