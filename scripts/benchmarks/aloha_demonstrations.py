"""Record demonstrations of gym-aloha's bimanual cube transfer into a robomimic file, for `scripts/train.py --data`.

    pip install gym-aloha -c constraints.txt
    MUJOCO_GL=egl python scripts/benchmarks/aloha_demonstrations.py --out runs/aloha.hdf5

The suite has no expert. Here the arms follow waypoints of their grippers in the suite's own end-effector model (task
and stages are those of ACT, arXiv 2304.13705); the joints that this takes are then the targets in
`asd/Aloha-TransferCube-v0`, and episodes that succeed there are kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import numpy.typing as npt
import tyro
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation

from asd_envs.adapter import require  # and so registers the environments

Array = npt.NDArray[np.float64]
REACH, TURN = 0.02, 4.0
"""Standard deviations of what varies between episodes: waypoints in the air [m], the end's time [steps of 50]."""
GRASP, TAKE = np.array([0.006, 0, -0.058]), np.array([0.03, 0, -0.02])
"""Where the right gripper aims beside the cube, and the left one beside where it is brought [m]: arms lag and bend."""
LIFTED = 0.12
"""Height from which the cube is held [m]."""


@dataclass(frozen=True)
class Options:
    """Record demonstrations of gym-aloha's bimanual cube transfer."""

    out: Path
    """The .hdf5 to write."""
    episodes: int = 150
    """Successful episodes to keep."""
    seed: int = 0
    """Of the first episode."""


@dataclass(frozen=True)
class Waypoint:
    """Where a gripper is at a time."""

    time: float
    """In control steps."""
    place: Array
    """Position [3, m]."""
    tilt: float
    """Angle about the arm's axis of grasping [degree]."""
    opening: float
    """0 closed, 1 open."""


def end_effector_model() -> Any:
    """Make the suite's end-effector simulation, without its three images a step."""
    mujoco, control, constants, tasks = (
        require(module, "aloha")
        for module in (
            "dm_control.mujoco",
            "dm_control.rl.control",
            "gym_aloha.constants",
            "gym_aloha.tasks.sim_end_effector",
        )
    )
    model = str(constants.ASSETS_DIR / "bimanual_viperx_end_effector_transfer_cube.xml")
    task = tasks.TransferCubeEndEffectorTask()
    task.get_observation = lambda physics: {"agent_pos": task.get_qpos(physics), "cube": task.get_env_state(physics)}
    physics = mujoco.Physics.from_xml_path(model)
    return control.Environment(physics, task, float("inf"), control_timestep=constants.DT)


def plan(
    cube: Array, start: tuple[Array, Array], rng: np.random.Generator, brought_to: Array | None
) -> tuple[list[Waypoint], list[Waypoint]]:
    """Choose the waypoints of the left and the right gripper.

    Args:
        cube: Where it lies [3].
        start: Where the grippers are, the left one and the right one.
        rng: Of what varies.
        brought_to: Where the right gripper brings the cube [3]; None where that is not known.
    """

    def near(*place: float) -> Array:
        return np.array(place) + REACH * rng.standard_normal(3)

    meet = near(0.0, 0.5, 0.25)
    pace = 1 + TURN / 50 * rng.standard_normal()
    above, down, shut, held, brought, there, grasped, end = pace * np.array([48, 72, 78, 100, 145, 158, 170, 200])
    right = [
        Waypoint(0, start[1], 0, 0),
        Waypoint(above, near(cube[0] + GRASP[0], cube[1], cube[2] + 0.09), -60, 1),
        Waypoint(down, cube + GRASP, -60, 1),
        Waypoint(shut, cube + GRASP, -60, 0),
        Waypoint(held, cube + GRASP, -60, 0),
        Waypoint(brought, meet + [0.05, 0, 0], -60, 0),
        Waypoint(there, meet, -60, 0),
        Waypoint(end, meet, -60, 0),
    ]
    take = (meet if brought_to is None else brought_to) + TAKE
    left = [
        Waypoint(0, start[0], 0, 0),
        Waypoint(above + 10, near(meet[0] - 0.12, meet[1], meet[2] - 0.02), 90, 1),
        Waypoint(brought, take - [0.14, 0, 0], 90, 1),
        Waypoint(grasped, take, 90, 1),
        Waypoint(end, take, 90, 0),
    ]
    return left, right


def follow(waypoints: list[Waypoint], axis: str, steps: int) -> Array:
    """Interpolate waypoints without overshooting to poses [steps, 8]: position, quaternion (w first), opening."""
    knots = np.array([[*point.place, point.tilt, point.opening] for point in waypoints])
    path = PchipInterpolator([point.time for point in waypoints], knots)(np.arange(steps).clip(max=waypoints[-1].time))
    turned = Rotation.from_euler(axis, path[:, 3:4], degrees=True).as_quat()[:, [3, 0, 1, 2]]
    return np.concatenate([path[:, :3], turned, path[:, 4:]], axis=1)


def joints(simulation: Any, seed: int, cube: Array, brought_to: Array | None) -> tuple[Array, Array]:
    """Move the grippers along waypoints in the end-effector model.

    Args:
        simulation: The model.
        seed: Of what varies between episodes.
        cube: Its pose [7].
        brought_to: As for `plan`.

    Returns:
        Joint targets [T, 14], and where the cube is when the grippers should have met [3].
    """
    simulation.reset()
    simulation.physics.named.data.qpos["red_box_joint"] = cube
    simulation.physics.forward()
    start = (simulation.physics.data.mocap_pos[0].copy(), simulation.physics.data.mocap_pos[1].copy())
    rng = np.random.default_rng(seed)
    left, right = plan(cube[:3] * [1, 1, 0] + [0, 0, 0.05], start, rng, brought_to)
    there, steps = int(right[-2].time), int(right[-1].time)
    found, met = [], cube[:3]
    for step, poses in enumerate(zip(follow(left, "x", steps), follow(right, "y", steps), strict=True)):
        observed = simulation.step(np.concatenate(poses)).observation
        target = observed["agent_pos"].copy()
        target[[6, 13]] = poses[0][7], poses[1][7]  # a gripper that holds the cube is more open than it wants to be
        found.append(target)
        if step == there:
            met = observed["cube"][:3].copy()
    return np.array(found), met


def record(env: gymnasium.Env[Any, Any], simulation: Any, seed: int) -> dict[str, Array] | None:
    """Record an episode; None where it fails."""
    observation, info = env.reset(seed=seed)
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    cube = observation["environment_state"]
    _, met = joints(simulation, seed, cube, None)
    if met[2] < LIFTED:
        return None
    seen: list[dict[str, Array]] = []
    for action in joints(simulation, seed, cube, met)[0]:
        bounded = np.clip(action, space.low, space.high).astype(np.float32)
        seen.append({**observation, "actions": bounded})
        observation, _, terminated, truncated, info = env.step(bounded)
        if terminated or truncated:
            break
    return {key: np.stack([step[key] for step in seen]) for key in seen[0]} if info["success"] else None


def main() -> None:
    """Record the episodes and write the file."""
    options = tyro.cli(Options, description=__doc__)
    env = gymnasium.make("asd/Aloha-TransferCube-v0")
    simulation = end_effector_model()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    kept, seed = 0, options.seed
    with h5py.File(options.out, "w") as file:
        while kept < options.episodes:
            episode = record(env, simulation, seed)
            seed += 1
            if episode is not None:
                group = file.create_group(f"data/demo_{kept}")
                group["actions"] = episode.pop("actions")
                for name, values in episode.items():
                    group[f"obs/{name}"] = values.astype(np.float32)
                kept += 1
                file.flush()
            print(f"\r{kept} of {seed - options.seed} succeeded", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
