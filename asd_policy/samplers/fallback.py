"""How a plan is finished whose deadline comes before the end of its chain."""

from collections.abc import Callable

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers.base import Target
from asd_policy.samplers.warm_start import WarmStart


def reserve(target: Target, tape: NoiseTape) -> None:
    """See to it that the time of a jump of the whole batch is known, where there is a deadline.

    Raises:
        SpecError: The deadline is shorter.
    """
    if target.deadline is None:
        return
    rows = arrays.arange(len(tape.initial), tape.initial)
    start = arrays.namespace(rows).zeros_like(rows)
    target.deadline.reserve(lambda: target.jump(tape.initial, start, rows))


def fall_back(target: Target, jump: Callable[[], Array], rows: Array, warm_start: WarmStart) -> tuple[Array, Array]:
    """Finish plans by their deadline's fallback.

    Args:
        target: With a deadline.
        jump: Returns the predictions x̂0 [R, …] at the points that the plans have come to, by one network call.
        rows: Which rows of the batch they are [R].
        warm_start: With the plans before them, if there are.

    Returns:
        Samples [R, *event], and the network calls that each row waited for [R].
    """
    deadline, xp = target.deadline, arrays.namespace(rows)
    assert deadline is not None
    event = target.shape[1:]
    if deadline.fallback == "jump" or warm_start.last_plan is None:
        return deadline.jump(jump).reshape(len(rows), *event), xp.ones_like(rows)
    last, lacks = (
        arrays.asarray(each, arrays.device_of(rows))[rows] for each in (warm_start.last_plan, warm_start.lacking)
    )
    if not bool(lacks.any()):
        return last, xp.zeros_like(rows)
    x0_pred = deadline.jump(jump).reshape(last.shape)
    return xp.where(lacks.reshape(-1, *(1,) * len(event)), x0_pred, last), xp.astype(lacks, rows.dtype)
