"""The gymnasium ids of this package: one line per environment or suite."""

from typing import Any, NamedTuple

import gymnasium

OWN_TASKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Avoid": ("asd_envs.own:AvoidEnv", 100, {}),
    "AvoidPixels": (
        "asd_envs.own:AvoidEnv",
        100,
        {"obs_type": "pixels_agent_pos", "displacement": 0.06, "view": ("near", 64)},
    ),
    "Intercept": ("asd_envs.own:InterceptEnv", 80, {}),
    "PushT": ("asd_envs.own:PushTEnv", 300, {}),
}
"""Class, control steps and options of each task of our own, `asd/<name>-v0`."""
# The 50 tasks of Meta-World v3 by their names there, less the version.
METAWORLD_TASKS = (
    "assembly basketball bin-picking box-close button-press button-press-topdown button-press-topdown-wall "
    "button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock "
    "door-open door-unlock drawer-close drawer-open faucet-close faucet-open hammer hand-insert handle-press "
    "handle-press-side handle-pull handle-pull-side lever-pull peg-insert-side peg-unplug-side "
    "pick-out-of-hole pick-place pick-place-wall plate-slide plate-slide-back plate-slide-back-side "
    "plate-slide-side push push-back push-wall reach reach-wall shelf-place soccer stick-pull stick-push "
    "sweep sweep-into window-close window-open"
).split()
FETCH_TASKS = ("Reach", "Push", "Slide", "PickAndPlace")
MAZES = ("UMaze", "Open", "Medium", "Large")
ADROIT_TASKS = ("Door", "Hammer", "Pen", "Relocate")
KITCHEN_TASKS = ("Complete", "Mixed")
PUSHT_OBSERVATIONS = ("state", "keypoints", "pixels")
ROBOSUITE_TASKS = {"Lift": 400, "Can": 400, "Square": 400, "ToolHang": 700, "Transport": 700}
"""Control steps of each, as in robomimic."""
ALOHA_TASKS = ("TransferCube", "Insertion")


class Suite(NamedTuple):
    """Tasks `asd/<name>-<task>-v0` of one adapter, which takes the task's name."""

    name: str
    entry_point: str
    tasks: dict[str, int]
    """Each task's control steps until an episode is truncated."""


SUITES = (
    Suite("MetaWorld", "asd_envs.metaworld:MetaWorldEnv", dict.fromkeys(METAWORLD_TASKS, 400)),
    Suite("Fetch", "asd_envs.fetch:FetchEnv", dict.fromkeys(FETCH_TASKS, 50)),
    Suite("PointMaze", "asd_envs.maze:PointMazeEnv", {"UMaze": 300, "Open": 300, "Medium": 600, "Large": 800}),
    Suite("AntMaze", "asd_envs.maze:AntMazeEnv", {"UMaze": 700, "Open": 700, "Medium": 1000, "Large": 1000}),
    Suite("Adroit", "asd_envs.adroit:AdroitEnv", dict.fromkeys(ADROIT_TASKS, 200)),
    Suite("Kitchen", "asd_envs.kitchen:KitchenEnv", dict.fromkeys(KITCHEN_TASKS, 280)),
    Suite("GymPushT", "asd_envs.gym_pusht:GymPushTEnv", dict.fromkeys(PUSHT_OBSERVATIONS, 300)),
    Suite("Robosuite", "asd_envs.robosuite:RobosuiteEnv", ROBOSUITE_TASKS),
    Suite("Aloha", "asd_envs.aloha:AlohaEnv", dict.fromkeys(ALOHA_TASKS, 300)),
)


def register_all() -> None:
    """Register every environment of this package with gymnasium; a second call changes nothing."""
    if "asd/Avoid-v0" in gymnasium.registry:
        return
    for name, (entry_point, steps, options) in OWN_TASKS.items():
        gymnasium.register(f"asd/{name}-v0", entry_point=entry_point, kwargs=options, max_episode_steps=steps)
    for suite in SUITES:
        for task, steps in suite.tasks.items():
            gymnasium.register(
                f"asd/{suite.name}-{task}-v0",
                entry_point=suite.entry_point,
                kwargs={"task": task},
                max_episode_steps=steps,
            )
