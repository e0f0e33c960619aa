"""What the running command of LeRobot's says of the work ahead."""

import sys
from itertools import pairwise
from pathlib import Path

from lerobot.configs import parser
from lerobot.configs.default import EvalConfig


def robots_of_command() -> int:
    """Count the robots that the running command plans for together: `lerobot-eval`'s environments, else one."""
    if "eval" not in Path(sys.argv[0]).stem:
        return 1
    usual = EvalConfig()
    try:
        episodes = int(_said("eval.n_episodes") or usual.n_episodes)
        return EvalConfig(episodes, int(_said("eval.batch_size") or 0) or usual.batch_size).batch_size
    except ValueError:  # LeRobot says so better
        return 1


def _said(option: str) -> str | None:
    """Find an option's value in the command; in two words, too, which LeRobot's 0.4 accepts and does not look for."""
    words = sys.argv[1:]
    return parser.parse_arg(option, [*words, *(f"{one}={other}" for one, other in pairwise(words))])
