"""Real-time chunking as LeRobot asks its policies for it: a plan that begins with the actions that are committed.

`lerobot-rollout --inference.type=rtc` plans in a thread while the robot goes on with the last plan. It asks for a plan
given that (`lerobot/rollout/inference/rtc.py`, `lerobot/policies/rtc/action_queue.py`, 0.6.1), and drops as many of its
first actions as were executed meanwhile. Here those that it expects to are given to the plan, by replacement in the
denoising chain as in `policy.continuity`, and all others are sampled given them, exactly.
"""

import logging
from collections.abc import Callable
from typing import Any

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.errors import ObservationError, SpecError
from asd_policy.policy.adapters.base import LivePlanner, Patch, alone, check_own

Batch = dict[str, Array]
Planning = Callable[[Batch], Array]
_log = logging.getLogger(__name__)
_IMAGES = "observation.images"  # where LeRobot stacks the frames of all cameras
_OWN = ("predict_action_chunk", "select_action")


class Chunking:
    """The methods by which LeRobot's engine of real-time chunking uses a policy."""

    def __init__(self, policy: Any, planner: LivePlanner, plan: Planning, nothing: Callable[[int], Batch]) -> None:
        """Take the place of a policy's `predict_action_chunk`.

        Args:
            policy: Live, of LeRobot's; its `config` says `input_features`, `image_features`, `action_feature`,
                `horizon`, `n_obs_steps` and `n_action_steps`.
            planner: Its planner.
            plan: Makes actions [B, n_action_steps, action_dim] of observations [B, n_obs_steps, …], through `planner`.
            nothing: Makes observations of a number of robots that are all zero, as `plan` takes them.
        """
        self.policy, self.planner, self.plan, self.nothing = policy, planner, plan, nothing
        self.own = policy.predict_action_chunk
        self._told = self._warm = False

    @classmethod
    def patches(
        cls,
        policy: Any,
        known: tuple[str, ...],
        planner: LivePlanner,
        plan: Planning,
        nothing: Callable[[int], Batch],
    ) -> list[Patch]:
        """Make the patches of a policy for real-time chunking.

        There are none for a policy whose methods are not LeRobot's own: what they do to an action would be lost, as
        LeRobot's engine does not call `select_action`. LeRobot refuses it then.

        Args:
            policy: As for `__init__`.
            known: Qualified names of LeRobot's classes.
            planner: As for `__init__`.
            plan: As for `__init__`.
            nothing: As for `__init__`.
        """
        try:
            check_own(policy, known, _OWN)
        except SpecError:
            return []
        arrays.leave_alone(cls.predict_action_chunk, cls._answer)  # lerobot-rollout gives it to torch.compile
        chunking = cls(policy, planner, plan, nothing)
        return [
            Patch(policy, "supports_rtc", chunking.supports_rtc),
            Patch(policy, "predict_action_chunk", chunking.predict_action_chunk),
        ]

    def supports_rtc(self) -> bool:
        """Tell LeRobot that `predict_action_chunk` takes committed actions.

        It asks before it connects a robot for real-time chunking, and no more: so this is when what the first plan
        with such actions would wait for is done, such as recording the graphs of those.

        Raises:
            DenoiserError: As `asd_policy.warm_up`.
        """
        if not self._warm and not self.policy.training:
            self._warm = True
            config, like = self.policy.config, next(self.policy.parameters())
            left = like.new_ones((1, config.action_feature.shape[0]))
            mask, values, _ = self._commit(left, 1, 1)
            with alone(self.policy, like.device), self.planner.committed(mask, values):
                self.planner.warm_up(lambda: self.plan(self.nothing(1)))
        return True

    def predict_action_chunk(
        self,
        batch: Batch,
        *given: Any,
        inference_delay: int | None = None,
        prev_chunk_left_over: Array | None = None,
        **options: Any,
    ) -> Array:
        """Plan given the actions that the robot takes meanwhile; without the two arguments as LeRobot does.

        Args:
            batch: Each feature's observation [B, …], which then stands for all `n_obs_steps` of them, as at the begin
                of an episode, or the observations [B, n_obs_steps, …].
            *given: What LeRobot's own method takes besides.
            inference_delay: How many actions are expected to be executed until the plan is there.
            prev_chunk_left_over: What is left of the last plan [T, action_dim] or [B, T, action_dim], normalised, from
                the action for the observation on. Rows of zeros at its end are padding. None for no last plan.
            **options: What LeRobot's own method takes besides.

        Returns:
            Actions [B, n_action_steps, action_dim], normalised, from the one for the observation on. The first of them,
            `inference_delay` or as many as are left, are those of `prev_chunk_left_over`.

        Raises:
            ObservationError: A feature is missing, or its shape is another one.
            SpecError: The delay is negative, or what is left are no actions, or not finite.
        """
        return self._answer(batch, given, options, inference_delay, prev_chunk_left_over)

    @arrays.uncompiled
    def _answer(
        self,
        batch: Batch,
        given: tuple[Any, ...],
        options: dict[str, Any],
        inference_delay: int | None,
        prev_chunk_left_over: Array | None,
    ) -> Array:
        if inference_delay is None and prev_chunk_left_over is None:
            return self.own(batch, *given, **options)
        if given or options:
            more = ", ".join(options) or f"{len(given)} more argument{'s'[: len(given) > 1]}"
            raise SpecError(f"predict_action_chunk takes {more} only without committed actions")
        seen = self._observe(batch)
        rows = len(seen[next(iter(self.policy.config.input_features))])  # LeRobot's batch has more than observations
        rtc = getattr(self.policy.config, "rtc_config", None)
        if rtc is not None and not rtc.enabled:
            prev_chunk_left_over = None  # without real-time chunking LeRobot's queue appends plans to one another
        import torch  # whose policy this is

        with torch.no_grad():
            if prev_chunk_left_over is None:
                return self.plan(seen)
            mask, values, moved = self._commit(prev_chunk_left_over, inference_delay or 0, rows)
            with self.planner.committed(mask, values, moved):
                return self.plan(seen)

    def _observe(self, batch: Batch) -> Batch:
        """Give each feature's observations [B, n_obs_steps, …], and the cameras' together, as the policy stacks them.

        Raises:
            ObservationError: See `predict_action_chunk`.
        """
        config, seen = self.policy.config, dict(batch)
        seen.pop("action", None)
        count = config.n_obs_steps
        for name, feature in config.input_features.items():
            if name not in batch:
                raise ObservationError(f"the batch lacks {name!r}; it has {', '.join(map(repr, batch)) or 'nothing'}")
            values, dims = batch[name], len(feature.shape)
            if values.ndim == dims + 1:
                seen[name] = values[:, None].expand(-1, count, *values.shape[1:])
                self._tell(count)
            elif values.ndim != dims + 2 or values.shape[1] != count:
                raise ObservationError(
                    f"{name!r} has shape {tuple(values.shape)}, not (B, …) or (B, {count}, …) with "
                    f"{dims} numbers in the place of …"
                )
        if config.image_features:
            frames = [seen[name] for name in config.image_features]
            seen[_IMAGES] = arrays.namespace(frames[0]).stack(frames, -4)
        return seen

    def _tell(self, count: int) -> None:
        """Say once what the observations of a plan are."""
        if count > 1 and not self._told:
            _log.info(
                "real-time chunking gives a policy one observation per plan: it stands for all %d (n_obs_steps), as at "
                "the begin of an episode",
                count,
            )
        self._told = True

    def _commit(self, left: Array, delay: int, rows: int) -> tuple[Array, Array, int | None]:
        """Lay the committed actions over plans.

        Returns:
            Where they are and what they are, both [B, horizon, action_dim], and by how many control steps they are
            beyond the first action of the last plan; None where they are not of it.

        Raises:
            SpecError: See `predict_action_chunk`.
        """
        config, like = self.policy.config, next(self.policy.parameters())
        dim, first = config.action_feature.shape[0], config.n_obs_steps - 1
        if delay < 0:
            raise SpecError(f"inference_delay={delay} is negative")
        shape = tuple(left.shape)
        if len(shape) not in (2, 3) or shape[-1] != dim or (len(shape) == 3 and shape[0] != rows):
            raise SpecError(f"prev_chunk_left_over has shape {shape}, not (T, {dim}) or ({rows}, T, {dim})")
        left = left.to(like.device, like.dtype).expand(rows, *shape[-2:])
        xp = arrays.namespace(left)
        if not arrays.is_finite(left):
            raise SpecError("prev_chunk_left_over holds NaN or infinity")
        left = left[:, : config.horizon - first]
        real = (left != 0).any(-1).flip(1).cummax(1).values.flip(1)  # what comes after these is padding
        real = real & (xp.arange(left.shape[1], device=left.device) < delay)
        mask = xp.zeros((rows, config.horizon, dim), dtype=real.dtype, device=left.device)
        values = xp.zeros(mask.shape, dtype=left.dtype, device=left.device)
        mask[:, first : first + left.shape[1]], values[:, first : first + left.shape[1]] = real[..., None], left
        return mask, values, self._moved(left, first)

    def _moved(self, left: Array, first: int) -> int | None:
        """Find how far into the last plan its rest begins."""
        last = self.planner.last_sample
        if last is None or not left.shape[1] or len(last) != len(left):
            return None
        same = (last[:, first:] == left[:, :1]).all(-1).all(0)
        return int(same.int().argmax()) if bool(same.any()) else None
