"""What a policy's configuration says of its plans, whichever its network."""

import math
from dataclasses import dataclass

from asd_policy.checkpoints.diffusion_policy.observed import LOW_DIM
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.errors import CheckpointError
from asd_policy.policy.plan import Horizons


@dataclass(frozen=True)
class Layout:
    """How plans are laid out."""

    action_dim: int
    horizons: Horizons
    inpaints: bool
    """As `ObservationEncoder.inpaints`."""


def read_low_dim_unet(policy: Settings, _: Settings, source: str) -> Layout:
    """Read the layout of `DiffusionUnetLowdimPolicy`.

    Raises:
        CheckpointError: A value is missing, of the wrong kind, or contradicts another; so do all functions here.
    """
    if policy.flag("obs_as_local_cond", False):
        raise CheckpointError(
            f"{source}: obs_as_local_cond, observations as a second input sequence, is not supported; "
            "obs_as_global_cond and inpainting (neither of the two) are"
        )
    conditioned, current = policy.flag("obs_as_global_cond", False), policy.flag("oa_step_convention", False)
    return _layout(policy, policy.count("action_dim"), conditioned, current, source)


def read_low_dim_transformer(policy: Settings, _: Settings, source: str) -> Layout:
    """Read the layout of `DiffusionTransformerLowdimPolicy`."""
    return _layout(policy, policy.count("action_dim"), policy.flag("obs_as_cond", False), True, source)


def read_image_unet(policy: Settings, _: Settings, source: str) -> Layout:
    """Read the layout of a U-Net policy with cameras or clouds."""
    return _layout(policy, _action_dim(policy), policy.flag("obs_as_global_cond", True), True, source)


def read_image_transformer(policy: Settings, _: Settings, source: str) -> Layout:
    """Read the layout of `DiffusionTransformerHybridImagePolicy`."""
    return _layout(policy, _action_dim(policy), policy.flag("obs_as_cond", True), True, source)


def read_umi_unet(policy: Settings, config: Settings, source: str) -> Layout:
    """Read the layout of `DiffusionUnetTimmPolicy`, whose observations and actions have horizons of their own.

    Its first action is the one for the latest observation. How many are executed is the workspace's `n_action_steps`;
    without one, all.
    """
    if not policy.flag("obs_as_global_cond", True):
        raise CheckpointError(f"{source}: obs_as_global_cond is false, which its library refuses, too")
    meta = policy.section("shape_meta")
    obs = meta.section("obs")
    features = [obs.section(name) for name in obs]
    steps = [
        feature.count("horizon", 1) for feature in features
        if feature.text("type", LOW_DIM) != LOW_DIM or not feature.flag("ignore_by_policy", False)
    ]  # fmt: skip
    horizon = meta.section("action").count("horizon")
    executed = config.count("n_action_steps", horizon)
    return _checked(
        Layout(_action_dim(policy), Horizons(max(steps, default=1), horizon, executed, first_action=0), False), source
    )


def _action_dim(policy: Settings) -> int:
    """Read the numbers of an action; DP3's may have an axis for hands."""
    return math.prod(policy.section("shape_meta").section("action").counts("shape", most=2))


def _layout(policy: Settings, action_dim: int, conditioned: bool, current: bool, source: str) -> Layout:
    """Read the layout of plans.

    Args:
        policy: Its configuration.
        action_dim: Numbers of an action.
        conditioned: Whether the observations condition the network; otherwise it inpaints.
        current: Whether execution begins with the action for the latest observation, or with the one after it.
        source: The file, for messages.
    """
    n_obs_steps, n_action_steps = policy.count("n_obs_steps"), policy.count("n_action_steps")
    if policy.flag("pred_action_steps_only", False):
        if not conditioned:
            raise CheckpointError(f"{source}: pred_action_steps_only leaves no room for the observations to inpaint")
        horizons = Horizons(n_obs_steps, n_action_steps, n_action_steps, first_action=0)
    else:
        first = n_obs_steps - 1 if current else n_obs_steps
        horizons = Horizons(n_obs_steps, policy.count("horizon"), n_action_steps, first)
    return _checked(Layout(action_dim, horizons, inpaints=not conditioned), source)


def _checked(layout: Layout, source: str) -> Layout:
    """Refuse to execute actions that a plan does not have."""
    horizons = layout.horizons
    if horizons.executed.stop > horizons.horizon:
        raise CheckpointError(
            f"{source}: n_action_steps {horizons.n_action_steps} from action {horizons.executed.start} on are more "
            f"than the horizon {horizons.horizon} has"
        )
    return layout
