"""`asd/Kitchen-<tasks>-v0`: the Franka kitchen of gymnasium-robotics."""

from typing import Any

from asd_envs.adapter import Array, SuiteEnv, check_task, make_inner, state_space
from asd_envs.registration import KITCHEN_TASKS

_ROBOT_DIM = 18  # positions and velocities of 9 joints come first in the suite's observation
_GOALS = {
    "Complete": ("microwave", "kettle", "light switch", "slide cabinet"),
    "Mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}


class KitchenEnv(SuiteEnv):
    """Four tasks in any order in one kitchen (arXiv 1910.11956, package gymnasium-robotics ≥ 1.4).

    Complete: microwave, kettle, light switch, slide cabinet. Mixed: microwave, kettle, bottom burner, light switch.

    ## Action space: `Box(9)`

    | Index | Action | Min | Max | Unit |
    |---|---|---|---|---|
    | 0 … 6 | joint velocities of the arm | -1 | 1 | 2 rad/s |
    | 7 … 8 | finger velocities | -1 | 1 | 2 m/s |

    ## Observation space: `Dict`; both parts in a row are the suite's observation of 59 numbers

    | Key | Index | Observation | Min | Max | Unit |
    |---|---|---|---|---|---|
    | `agent_pos` | 0 … 8 | joint and finger positions | -inf | inf | rad, m |
    | `agent_pos` | 9 … 17 | their velocities | -inf | inf | rad/s, m/s |
    | `environment_state` | 0 … 20 | burners, switches, doors; pose of the kettle | -inf | inf | rad, m, – |
    | `environment_state` | 21 … 40 | their velocities | -inf | inf | rad/s, m/s |

    The suite adds noise to all of them.

    ## Reward
    The number of tasks completed in this step; each pays once.

    ## Start and end
    Every episode starts alike; the seed draws the noise of the observations. An episode terminates when all four are
    done and is truncated after 280 steps (22.4 s at 12.5 Hz).

    ## Info
    `success` (bool): all four tasks have been done in this episode. `completed` (int): how many have. The p1 … p4
    of Diffusion Policy's table count any of seven tasks and are not reported; its observation has 60 numbers, so
    its kitchen checkpoints do not fit.

    ## Version history
    v0: first version, on the suite's v1.
    """

    def __init__(self, task: str, render_mode: str | None = None) -> None:
        """Build the simulation.

        Args:
            task: One of `KITCHEN_TASKS`.
            render_mode: None, "human" or "rgb_array".

        Raises:
            ValueError: No such task.
            ImportError: The extra `robotics` is not installed.
        """
        check_task(task, KITCHEN_TASKS, "Kitchen")
        options = {"tasks_to_complete": list(_GOALS[task]), "render_mode": render_mode}
        inner = make_inner("gymnasium_robotics", "robotics", "FrankaKitchen-v1", **options)
        (size,) = inner.observation_space["observation"].shape
        super().__init__(inner, state_space(_ROBOT_DIM, size - _ROBOT_DIM))

    def _observe(self, raw: dict[str, Array]) -> dict[str, Array]:
        observation = raw["observation"]
        return {"agent_pos": observation[:_ROBOT_DIM].copy(), "environment_state": observation[_ROBOT_DIM:].copy()}

    def _succeeded(self, raw: dict[str, Array], info: dict[str, Any]) -> bool:
        return len(info["episode_task_completions"]) == len(self.inner.goal)

    def _report(self, info: dict[str, Any]) -> dict[str, Any]:
        return {"completed": len(info["episode_task_completions"])}  # the suite's lists have the order of a set
