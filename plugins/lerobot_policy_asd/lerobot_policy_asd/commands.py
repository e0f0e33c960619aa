"""What the running command of LeRobot's says of the work ahead."""

import sys
from pathlib import Path

from lerobot.configs import parser
from lerobot.configs.default import EvalConfig


def robots_of_command() -> int:
    """Count the robots that the running command plans for together: `lerobot-eval`'s environments, else one."""
    if "eval" not in Path(sys.argv[0]).stem:
        return 1
    given = {name: parser.parse_arg(f"eval.{name}") for name in ("n_episodes", "batch_size")}
    try:
        return EvalConfig(**{name: int(value) for name, value in given.items() if value is not None}).batch_size
    except ValueError:  # LeRobot says so better
        return 1
