"""MuJoCo environments for diffusion policies, registered with gymnasium as `asd/<Name>-v<N>`.

Importing this module registers the ids and imports no simulator. Every environment returns the
observation dictionary of the LeRobot convention (`agent_pos`, `environment_state`), sets `info["success"]` after each
step. `make_expert` has a demonstrator of some.
"""

try:
    from asd_envs.experts import Expert, make_expert
    from asd_envs.registration import METAWORLD_TASKS, register_all
except ModuleNotFoundError as error:
    raise ImportError(f"asd_envs needs {error.name}: pip install 'asd-policy[envs]'") from error

register_all()

__all__ = ["METAWORLD_TASKS", "Expert", "make_expert"]
