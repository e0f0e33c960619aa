"""`asd/Robosuite-<task>-v0`: the robosuite tasks of robomimic and Diffusion Policy, with their low-dimensional keys."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from asd_envs.adapter import Array, check_task, require, unbounded
from asd_envs.registration import ROBOSUITE_TASKS

# The suite's name of a task, its number of arms, the length of its object state.
_TASKS = {
    "Lift": ("Lift", 1, 10),
    "Can": ("PickPlaceCan", 1, 14),
    "Square": ("NutAssemblySquare", 1, 14),
    "ToolHang": ("ToolHang", 1, 44),
    "Transport": ("TwoArmTransport", 2, 41),
}
_OF_AN_ARM = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
OBJECT = "object"


class RobosuiteEnv(gymnasium.Env[Any, npt.NDArray[np.floating[Any]]]):
    """One manipulation task of robomimic (arXiv 2108.03298, package robosuite ≥ 1.5) on Panda arms.

    The controller is that of robomimic's data sets: `OSC_POSE`, displacements, in the world's frame, 20 Hz.

    ## Action space: `Box(7)`, in Transport `Box(14)`, the second arm's after the first's

    | Index | Action | Min | Max | Unit |
    |---|---|---|---|---|
    | 0 … 2 | displacement of the hand's target in x, y, z | -1 | 1 | 0.05 m |
    | 3 … 5 | rotation of the hand's target (axis-angle) | -1 | 1 | 0.5 rad |
    | 6 | gripper, closing positive | -1 | 1 | – |

    ## Observation space: `Dict`; the same numbers under the names that policies of each library know

    | Key | Index | Observation | Min | Max | Unit |
    |---|---|---|---|---|---|
    | `object` | Lift 0 … 9 | cube: position, quaternion; cube seen from the gripper | -inf | inf | m, – |
    | `object` | Can, Square 0 … 13 | object: position, quaternion; both seen from the hand | -inf | inf | m, – |
    | `object` | ToolHang 0 … 43 | base, frame, tool: 14 numbers each as for Can; assembled, hung | -inf | inf | m, – |
    | `object` | Transport 0 … 40 | payload, trash, lid, bins; in bins?; seen from the grippers | -inf | inf | m, – |
    | `robot0_eef_pos` | 0 … 2 | hand position | -inf | inf | m |
    | `robot0_eef_quat` | 0 … 3 | hand orientation (quaternion x, y, z, w) | -inf | inf | – |
    | `robot0_gripper_qpos` | 0 … 1 | finger positions | -inf | inf | m |
    | `robot1_…` | | the second arm in Transport | -inf | inf | m, – |
    | `obs` | all | `object` and the arms' keys in this order: Diffusion Policy's vector | -inf | inf | m, – |
    | `agent_pos` | all | the arms' keys | -inf | inf | m, – |
    | `environment_state` | all | `object` | -inf | inf | m, – |

    ## Reward
    The suite's sparse one: 1 in a step in which the task is solved, else 0.

    ## Start and end
    Objects and arm are placed from the seed, by a full reset of the suite (a second or more). An episode terminates at
    success and is truncated after 400 steps, in ToolHang and Transport after 700 (20 and 35 s).

    ## Info
    `success` (bool): the suite's own criterion.

    ## Version history
    v0: first version, on robosuite 1.5. Data sets recorded on earlier versions had other dynamics.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, task: str, render_mode: str | None = None) -> None:
        """Build the simulation.

        Args:
            task: One of `ROBOSUITE_TASKS`.
            render_mode: None or "rgb_array".

        Raises:
            ValueError: No such task.
            ImportError: The extra `robosuite` is not installed.
        """
        check_task(task, ROBOSUITE_TASKS, "Robosuite")
        suite = require("robosuite", "robosuite")
        # At every reset it warns of limbs that a Panda lacks, and of optional parts that are not used here.
        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        name, arms, size = _TASKS[task]
        controller = suite.load_composite_controller_config(robot="Panda")
        controller["body_parts"]["right"]["input_ref_frame"] = "world"
        self.render_mode = render_mode
        self.inner = suite.make(
            name,
            robots=["Panda"] * arms,
            controller_configs=controller,
            control_freq=self.metadata["render_fps"],
            reward_shaping=False,
            ignore_done=True,  # gymnasium ends the episode
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=render_mode == "rgb_array",
        )
        self._proprioception = {f"robot{i}_{key}": dim for i in range(arms) for key, dim in _OF_AN_ARM.items()}
        agent = sum(self._proprioception.values())
        dims = {OBJECT: size, **self._proprioception, "obs": size + agent}
        dims |= {"agent_pos": agent, "environment_state": size}
        self.observation_space = spaces.Dict({key: unbounded(dim) for key, dim in dims.items()})
        low, high = self.inner.action_spec
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start an episode; a seed fixes where arm and objects are."""
        super().reset(seed=seed)
        with _global_numpy(int(self.np_random.integers(2**32))):
            raw = self.inner.reset()
        return self._observe(raw), {"success": bool(self.inner._check_success())}

    def step(self, action: npt.NDArray[np.floating[Any]]) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        """Apply one action for 1/20 s."""
        raw, reward, _, _ = self.inner.step(np.asarray(action, np.float64))
        success = bool(self.inner._check_success())
        return self._observe(raw), float(reward), success, False, {"success": success}

    def _observe(self, raw: dict[str, Any]) -> dict[str, Array]:
        parts = {OBJECT: np.array(raw["object-state"], np.float64)}
        parts |= {key: np.array(raw[key], np.float64) for key in self._proprioception}
        whole = np.concatenate(list(parts.values()))
        size = len(parts[OBJECT])
        return {**parts, "obs": whole, "agent_pos": whole[size:].copy(), "environment_state": whole[:size].copy()}

    def render(self) -> Any:
        """Render an image [480, 480, 3] uint8."""
        return self.inner.sim.render(camera_name="agentview", width=480, height=480)[::-1].copy()

    def close(self) -> None:
        """Close the simulation."""
        self.inner.close()


@contextlib.contextmanager
def _global_numpy(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which the suite places things, and leave it as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
