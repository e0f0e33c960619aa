"""`asd/MetaWorld-<task>-v0`: the 50 manipulation tasks of Meta-World v3 behind one observation format."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from asd_envs.adapter import Array, check_task, require, state_space, unbounded
from asd_envs.registration import METAWORLD_TASKS
from asd_envs.task import ObsType, check_obs_type

EXTRA = "metaworld"
CAMERA, IMAGE_SIZE = "corner2", 480  # [px]
CAMERA_POSITION = (0.75, 0.075, 0.7)  # [m], nearer than the suite's: LeRobot's, envs/metaworld.py
AGENT_DIM = 4  # hand position and gripper opening come first in Meta-World's observation


class MetaWorldEnv(gymnasium.Env[Any, npt.NDArray[np.floating[Any]]]):
    """One Meta-World task (arXiv 1910.10897, package metaworld ≥ 3.1), its goal observable and drawn anew each episode.

    ## Action space: `Box(4)`

    | Index | Action | Min | Max | Unit |
    |---|---|---|---|---|
    | 0 … 2 | displacement of the hand's target in x, y, z | -1 | 1 | 0.01 m |
    | 3 | gripper effort, closing positive | -1 | 1 | – |

    ## Observation space: `Dict`; both parts in a row are Meta-World's own observation of 39 numbers

    | Key | Index | Observation | Min | Max | Unit |
    |---|---|---|---|---|---|
    | `agent_pos` | 0 … 2 | hand position | -inf | inf | m |
    | `agent_pos` | 3 | gripper opening, 1 = open | -inf | inf | – |
    | `environment_state` | 0 … 6 | first object: position, quaternion | -inf | inf | m, – |
    | `environment_state` | 7 … 13 | second object, zeros where there is none | -inf | inf | m, – |
    | `environment_state` | 14 … 31 | hand, gripper and objects one step earlier | -inf | inf | m, – |
    | `environment_state` | 32 … 34 | goal position | -inf | inf | m |
    | `pixels` | – | the camera `corner2`, [480, 480, 3] uint8 | 0 | 255 | – |

    `obs_type="state"` has the first two keys, `obs_type="pixels_agent_pos"` the first and the last, the camera being
    where LeRobot's `metaworld` has it.

    ## Reward
    Meta-World's dense reward of the task, 0 … 10.

    ## Start and end
    Object and goal positions are drawn by the task's own reset from the seed. An episode terminates at success
    and is truncated after 400 steps (5 s at 80 Hz).

    ## Info
    `success` (bool), and what Meta-World reports (`obj_to_target`, `grasp_success`, …).

    ## Version history
    v0: first version, on Meta-World v3.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 80}

    def __init__(self, task: str, render_mode: str | None = None, obs_type: ObsType = "state") -> None:
        """Build the simulation.

        Args:
            task: One of `METAWORLD_TASKS`.
            render_mode: None, "human" or "rgb_array".
            obs_type: "state" or "pixels_agent_pos", which can be filmed but not shown in a window.

        Raises:
            ValueError: No such task or observation, or a window is asked for beside images.
            ImportError: The extra `metaworld` is not installed.
        """
        check_task(task, METAWORLD_TASKS, "Meta-World")
        self._sees = check_obs_type(obs_type) == "pixels_agent_pos"
        if self._sees and render_mode == "human":
            raise ValueError("render_mode 'human' is for obs_type 'state': Meta-World renders to one place")
        self.task = task
        self.render_mode = render_mode
        make = require("metaworld.env_dict", EXTRA).ALL_V3_ENVIRONMENTS[f"{task}-v3"]
        drawn = self._sees or render_mode == "rgb_array"
        self._env = make(render_mode="rgb_array" if drawn else render_mode, camera_name=CAMERA if drawn else None)
        if self._sees:
            self._env.model.cam_pos[self._env.model.camera(CAMERA).id] = CAMERA_POSITION
        # As Meta-World's own goal-observable classes do, which take no camera: show the goal, …
        self._env._partially_observable = False
        self._env.__dict__.pop("sawyer_observation_space", None)  # cached for the hidden goal
        # … and draw object and goal from the generator that reset(seed=…) seeds, not from a frozen vector.
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        self._env._set_task_called = True
        self.observation_space = state_space(AGENT_DIM, 39 - AGENT_DIM)
        if self._sees:
            image = spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
            self.observation_space = spaces.Dict({"pixels": image, "agent_pos": unbounded(AGENT_DIM)})
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start an episode; a seed fixes where object and goal are."""
        super().reset(seed=seed)
        if seed is not None:
            self._env.seed(seed)
        observation, info = self._env.reset()
        return self._show(observation), {**info, "success": False}

    def step(self, action: npt.NDArray[np.floating[Any]]) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        """Apply one action for 1/80 s."""
        observation, reward, _, truncated, info = self._env.step(np.asarray(action, dtype=np.float32))
        success = bool(info["success"])
        return self._show(observation), float(reward), success, bool(truncated), {**info, "success": success}

    def render(self) -> Any:
        """Draw the window in human mode, else return an image [height, width, 3] uint8."""
        image = self._env.render()
        # Meta-World's corner cameras are mounted upside down.
        return image if image is None else image[::-1, ::-1].copy()

    def close(self) -> None:
        """Close the renderer."""
        self._env.close()

    def _show(self, observation: Array) -> dict[str, npt.NDArray[Any]]:
        agent_pos = observation[:AGENT_DIM].copy()
        if self._sees:
            return {"pixels": self.render(), "agent_pos": agent_pos}
        return {"agent_pos": agent_pos, "environment_state": observation[AGENT_DIM:].copy()}


class MetaWorldExpert:
    """Meta-World's own scripted policy of a task."""

    def __init__(self, task: str) -> None:
        """Look the task's policy up.

        Args:
            task: One of `METAWORLD_TASKS`.
        """
        self._policy = require("metaworld.policies", EXTRA).ENV_POLICY_MAP[f"{task}-v3"]()

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; the scripts keep no state and choose nothing at random."""

    def act(self, observation: dict[str, Array]) -> Array:
        """Run the suite's script, its action clipped to the action space as the environment would."""
        with warnings.catch_warnings():
            # The scripts ask for more than full speed on purpose and are clipped here.
            warnings.filterwarnings("ignore", message="Constant")
            flat = np.concatenate([observation["agent_pos"], observation["environment_state"]])
            return np.clip(self._policy.get_action(flat), -1.0, 1.0)
