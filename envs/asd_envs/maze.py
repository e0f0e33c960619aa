"""`asd/PointMaze-<maze>-v0` and `asd/AntMaze-<maze>-v0`: the mazes of gymnasium-robotics."""

from typing import Any

import numpy as np

from asd_envs.adapter import Array, SuiteEnv, check_task, make_inner, state_space
from asd_envs.registration import MAZES


def _make(agent: str, version: str, maze: str, render_mode: str | None, **options: Any) -> Any:
    """Make the suite's environment of an agent in a maze."""
    check_task(maze, MAZES, f"{agent}Maze")
    # By default the suite goes on after the goal is reached, and an episode's end does not tell success.
    options |= {"render_mode": render_mode, "continuing_task": False}
    return make_inner("gymnasium_robotics", "robotics", f"{agent}Maze_{maze}-{version}", **options)


class _MazeEnv(SuiteEnv):
    """A maze of the suite, whose info tells whether the goal is reached."""

    def _succeeded(self, raw: dict[str, Array], info: dict[str, Any]) -> bool:
        return bool(info["success"])


class PointMazeEnv(_MazeEnv):
    """A ball that is pushed through a maze to a goal (arXiv 2004.07219, package gymnasium-robotics ≥ 1.4).

    ## Action space: `Box(2)`

    | Index | Action | Min | Max | Unit |
    |---|---|---|---|---|
    | 0 … 1 | force in x, y | -1 | 1 | 100 N |

    ## Observation space: `Dict`

    | Key | Index | Observation | Min | Max | Unit |
    |---|---|---|---|---|---|
    | `agent_pos` | 0 … 1 | position | -inf | inf | m |
    | `agent_pos` | 2 … 3 | velocity, cut at ±5 before each step | -inf | inf | m/s |
    | `environment_state` | 0 … 1 | goal position | -inf | inf | m |

    ## Reward
    1 in the step that reaches the goal, else 0.

    ## Start and end
    Start and goal are drawn from the seed, each anywhere in a free cell. An episode terminates at success and is
    truncated after 300 steps in UMaze and Open, 600 in Medium and 800 in Large (100 Hz).

    ## Info
    `success` (bool): within 0.45 m of the goal. `qpos`, `qvel` and others are MuJoCo's.

    ## Version history
    v0: first version, on the suite's v3.
    """

    def __init__(self, task: str, render_mode: str | None = None) -> None:
        """Build the simulation.

        Args:
            task: One of `MAZES`.
            render_mode: None, "human" or "rgb_array".

        Raises:
            ValueError: No such maze.
            ImportError: The extra `robotics` is not installed.
        """
        super().__init__(_make("Point", "v3", task, render_mode), state_space(4, 2))

    def _observe(self, raw: dict[str, Array]) -> dict[str, Array]:
        return {"agent_pos": raw["observation"].copy(), "environment_state": raw["desired_goal"].copy()}


class AntMazeEnv(_MazeEnv):
    """A four-legged ant that walks through a maze to a goal (arXiv 2004.07219, package gymnasium-robotics ≥ 1.4).

    ## Action space: `Box(8)`

    | Index | Action | Min | Max | Unit |
    |---|---|---|---|---|
    | 0 … 7 | torque of hip and ankle of each leg | -1 | 1 | 150 N m |

    ## Observation space: `Dict`; both parts are the 29 numbers of D4RL and the goal

    | Key | Index | Observation | Min | Max | Unit |
    |---|---|---|---|---|---|
    | `agent_pos` | 0 … 2 | torso position | -inf | inf | m |
    | `agent_pos` | 3 … 6 | torso orientation (quaternion) | -inf | inf | – |
    | `agent_pos` | 7 … 14 | joint angles | -inf | inf | rad |
    | `agent_pos` | 15 … 17 | torso velocity | -inf | inf | m/s |
    | `agent_pos` | 18 … 28 | torso and joint angular velocities | -inf | inf | rad/s |
    | `environment_state` | 0 … 1 | goal position | -inf | inf | m |

    ## Reward
    1 in the step that reaches the goal, else 0.

    ## Start and end
    Start and goal are drawn from the seed, each anywhere in a free cell of 4 m; D4RL's fixed goals are not here. An
    episode terminates at success and is truncated after 700 steps in UMaze and Open, else 1000 (20 Hz). An ant
    that has fallen over goes on.

    ## Info
    `success` (bool): within 0.45 m of the goal (D4RL: 0.5 m). Others are MuJoCo's Ant's own.

    ## Version history
    v0: first version, on the suite's v5 without contact forces.
    """

    def __init__(self, task: str, render_mode: str | None = None) -> None:
        """Build the simulation.

        Args:
            task: One of `MAZES`.
            render_mode: None, "human" or "rgb_array".

        Raises:
            ValueError: No such maze.
            ImportError: The extra `robotics` is not installed.
        """
        inner = _make("Ant", "v5", task, render_mode, include_cfrc_ext_in_observation=False)
        super().__init__(inner, state_space(29, 2))

    def _observe(self, raw: dict[str, Array]) -> dict[str, Array]:
        agent = np.concatenate([raw["achieved_goal"], raw["observation"]])
        return {"agent_pos": agent, "environment_state": raw["desired_goal"].copy()}
