"""LeRobot's `MultiTaskDiTPolicy` with the objective flow_matching, live: its flow with noise, the chain `stochastic`.

Its own loop, `FlowMatchingObjective.conditional_sample`, takes Euler's steps without noise, or those of a Runge-Kutta
method: there is nothing to draft and verify. The chain with noise has a law of its own, so it is only what runs where
the user has asked for it by name.
"""

import copy
from typing import Any

from asd_policy._common.arrays import Array, Device
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import ChainError
from asd_policy.networks.denoiser import Denoiser
from asd_policy.policy.adapters.base import check_own
from asd_policy.policy.adapters.guard import AGAIN, check_sampling
from asd_policy.policy.law import Stochastic

CONVENTION = "data"
"""Time is 1 at the data, and the velocity leads there; see `chain.flow.CONVENTIONS`."""
_PACE = 5.0  # a network whose outputs at time t and 1 − t are unlike


class FlowLoop:
    """A live policy's own loop along a flow, as it was when a sampler took its place."""

    def __init__(self, objective: Any, known: tuple[str, ...]) -> None:
        """Look at a loop.

        Args:
            objective: The object that samples.
            known: Qualified names of classes whose loop is known.

        Raises:
            SpecError: A method that samples is not its class's own.
        """
        check_own(objective, known, ("conditional_sample", "_euler_integrate"))
        self._known, self._state = known, _state(objective)

    @property
    def steps(self) -> int:
        """Network calls of Euler's steps."""
        return int(self._state["num_integration_steps"])

    def check(self, owner: Any) -> None:
        """Refuse a loop that has become another one; called before each plan.

        Raises:
            ChainError: It has another number of steps or another path.
            SpecError: A method was replaced.
        """
        check_own(owner, self._known, ("conditional_sample", "_euler_integrate"), ("conditional_sample",))
        for name, value in _state(owner).items():
            if value != self._state[name]:
                raise ChainError(
                    f"the policy was accelerated with {name} {self._state[name]!r}, it now has {value!r}; {AGAIN}"
                )


def _state(objective: Any) -> dict[str, Any]:
    return {name: getattr(objective.config, name) for name in ("num_integration_steps", "sigma_min")}


def flow_chain(policy: Any, noise: Stochastic) -> GaussianChain:
    """Make the chain with noise of a policy's flow.

    Raises:
        ChainError: Its configuration is out of range.
    """
    config = policy.config
    return GaussianChain.from_flow(config.num_integration_steps, noise.eta, CONVENTION, float(config.sigma_min))


def check_euler(policy: Any, network: Any, device: Device, who: str) -> None:
    """Refuse a policy whose Euler steps are not those of the chain without noise: its time or velocity is another one.

    Args:
        policy: The live one.
        network: Makes a module of a denoiser, in the place of the policy's network.
        device: Where it runs.
        who: Whose loop it is, for the message.

    Raises:
        SpecError: Of a known network it makes another plan.
    """
    import torch  # whose policy this is

    config = copy.copy(policy.config)
    config.integration_method = "euler"  # the chain is the flow's, whatever method its own plans are made by
    twin = copy.copy(policy.objective)
    vars(twin)["config"] = config

    def own(denoise: Denoiser, cond: Array) -> Array:
        with torch.autocast(device.type, enabled=False):
            return type(twin).conditional_sample(twin, network(denoise), len(cond), cond)

    chain = GaussianChain.from_flow(config.num_integration_steps, 0.0, CONVENTION, float(config.sigma_min))
    shape = (2, config.horizon, config.action_feature.shape[0])
    check_sampling(own, chain, shape, device, who, _PACE)
