"""The gymnasium ids of this package: one line per environment."""

import gymnasium

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


def register_all() -> None:
    """Register every environment of this package with gymnasium; a second call changes nothing."""
    if "asd/Avoid-v0" in gymnasium.registry:
        return
    gymnasium.register("asd/Avoid-v0", entry_point="asd_envs.avoid:AvoidEnv", max_episode_steps=100)
    gymnasium.register("asd/PushT-v0", entry_point="asd_envs.pusht:PushTEnv", max_episode_steps=300)
    for task in METAWORLD_TASKS:
        gymnasium.register(
            f"asd/MetaWorld-{task}-v0",
            entry_point="asd_envs.metaworld:MetaWorldEnv",
            kwargs={"task": task},
            max_episode_steps=400,
        )
