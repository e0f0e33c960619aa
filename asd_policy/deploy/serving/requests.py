"""Read what robots ask of a server, none of which is trusted."""

import math
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import NUMPY, Array
from asd_policy.deploy.serving import planner_pb2 as pb
from asd_policy.deploy.serving import wire
from asd_policy.deploy.serving.frames import unpack
from asd_policy.errors import ObservationError, SpecError, one_line
from asd_policy.policy.continuity import Prefix
from asd_policy.policy.observation import is_frame
from asd_policy.policy.policy import Policy

MAX_NORMALIZED = 1e12
"""Largest normalised number that is planned with. With larger ones, the squares in a network's normalisation layers
come near the largest float32, and one robot's plan would fail all of its batch. A feature that was constant in
training, with its range of 1e-8, may still be off by thousands."""
_FRAMING = 4096  # [bytes] of a request beside its numbers


class Refusal(Exception):
    """The error that a call is answered with."""

    def __init__(self, code: grpc.StatusCode, details: str, retry_after: float | None = None) -> None:
        """Make the error.

        Args:
            code: Status of the call.
            details: What was wrong, and what would be right.
            retry_after: When to try again [s].
        """
        super().__init__(details)
        self.code, self.details, self.retry_after = code, one_line(details, wire.MAX_DETAILS), retry_after


class RequestReader:
    """Reads the observations and actions of requests for plans of one policy."""

    def __init__(self, policy: Policy) -> None:
        """Take note of the shapes that requests must have."""
        self._shapes, self._horizons, self._action_dim = policy.observation_shapes, policy.horizons, policy.action_dim
        self._host = NUMPY if policy.device == NUMPY else "cpu"
        self._affine = {name: affine.to(NUMPY) for name, affine in policy.normalization.items()}

    @property
    def features(self) -> list[pb.Feature]:
        """What the policy observes, for robots."""
        return [
            pb.Feature(name=name, dim=shape[0]) if len(shape) == 1 else pb.Feature(name=name, shape=shape)
            for name, shape in self._shapes.items()
        ]

    @property
    def most_bytes(self) -> int:
        """Most bytes of a request; frames may come as floats."""
        numbers = self._horizons.n_obs_steps * sum(map(math.prod, self._shapes.values()))
        names = sum(len(name.encode()) for name in self._shapes)
        return 4 * (numbers + self._horizons.horizon * self._action_dim) + names + _FRAMING

    def history(self, request: pb.PlanRequest) -> list[dict[str, Array]]:
        """Read the observations of a request, oldest first.

        Raises:
            Refusal: They are not those that the policy reads.
        """
        steps, sent = self._horizons.n_obs_steps, {*request.history, *request.frames}
        cameras = {name for name, shape in self._shapes.items() if is_frame(shape)}
        if set(request.frames) != cameras or set(request.history) != self._shapes.keys() - cameras:
            has = ", ".join(map(repr, sorted(sent))) or "none"
            reads = ", ".join(map(repr, self._shapes))
            framed = "" if sent != self._shapes.keys() else ", cameras as `frames` and others as `history`"
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"the policy reads {reads}{framed}; the request has {has}")
        read: dict[str, Any] = {}
        try:
            for name, shape in self._shapes.items():
                what = f"the request's observation {name!r}"
                if name in cameras:
                    read[name] = unpack(request.frames[name], shape, steps, what)
                else:
                    read[name] = wire.from_array(request.history[name], (steps, *shape), what)
                    self._check_size(read[name], name, what)
        except ObservationError as error:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        return [self._at(read, step) for step in range(steps)]

    def _at(self, read: Mapping[str, Any], step: int) -> dict[str, Array]:
        return {name: arrays.asarray(values[step], self._host) for name, values in read.items()}

    def prefix(self, request: pb.PlanRequest) -> Prefix | None:
        """Read the actions that a request's robot is committed to; None for none.

        Raises:
            Refusal: They do not fit the policy.
        """
        if not request.HasField("committed"):
            return None
        committed, horizons = request.committed, self._horizons
        most = horizons.horizon - horizons.executed.start
        count = committed.actions.shape[0] if committed.actions.shape else 0
        if count > most:
            why = f"{count} committed actions are more than the {most} of a plan"
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, why)
        try:
            actions = wire.from_array(committed.actions, (count, self._action_dim), "committed actions")
            self._check_size(actions, "action", "committed actions")
            return Prefix(actions, committed.delay, committed.soft)
        except (ObservationError, SpecError) as error:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None

    def _check_size(self, values: npt.NDArray[np.float32], feature: str, what: str) -> None:
        """Check that no number of a feature [n, feature_dim] makes a whole batch fail.

        Raises:
            ObservationError: One is too large.
        """
        normalized = arrays.to_numpy(self._affine[feature].normalize(arrays.asarray(values, NUMPY, "float64")))
        spoiling = ~(np.abs(normalized) <= MAX_NORMALIZED)
        if spoiling.any():
            worst = f"{values[spoiling][0]:g}, normalised {normalized[spoiling][0]:g}"
            raise ObservationError(f"{what} holds {worst}, which is not in ±{MAX_NORMALIZED:g}")
