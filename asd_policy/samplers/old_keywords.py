"""The keywords that `Sampler.sample` had in 0.1, for one release."""

from typing import Any, TypedDict

from asd_policy._common.arrays import Device
from asd_policy._common.clock import Stopwatch
from asd_policy._common.deprecated import warn_of_old
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers.deadline import Budget
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.warm_start import WarmStart


class OldKeywords(TypedDict, total=False):
    """Each with the parameter that has taken its place."""

    tape: NoiseTape | None
    """`generator`."""
    device: Device | str | None
    """`generator`: a tape that was drawn there."""
    held: Inpainting | None
    """`inpainting`."""
    past: WarmStart | None
    """`warm_start`."""
    stopwatch: Stopwatch | None
    """`budget`, and so the next three."""
    deadline_ms: float | None
    fallback: str
    began: float | None


_NEW = {"held": "inpainting", "past": "warm_start"} | dict.fromkeys(
    ("stopwatch", "deadline_ms", "fallback", "began"), "budget"
)


def in_new_keywords(old: OldKeywords, shape: tuple[int, ...], steps: int, new: dict[str, Any]) -> dict[str, Any]:
    """Translate old keywords to the new ones, and warn of them.

    Args:
        old: As they were given.
        shape: (B, *event).
        steps: Length K of the chain.
        new: The call's generator, inpainting, warm_start and budget.

    Raises:
        TypeError: There has never been such a keyword, or what has taken its place is given, too.
    """
    unknown = old.keys() - OldKeywords.__annotations__.keys()
    if unknown:
        raise TypeError(f"sample() got an unexpected keyword argument {min(unknown)!r}")
    for name, place in _NEW.items():
        if name in old and new[place] is not None:
            raise TypeError(f"sample() got both {place!r} and {name!r}, whose place it has taken")
    warn_of_old("Sampler.sample's " + ", ".join(old), "generator, inpainting, warm_start and budget")
    noise, device = old.get("tape") or new["generator"], old.get("device")
    if device is not None and not isinstance(noise, NoiseTape):
        noise = NoiseTape.draw(shape, steps, noise, device)
    budget = Budget(old.get("deadline_ms"), old.get("fallback", "jump"), old.get("began"), old.get("stopwatch"))
    return {
        "generator": noise,
        "inpainting": old.get("held", new["inpainting"]),
        "warm_start": old.get("past", new["warm_start"]),
        "budget": new["budget"] or budget,
    }
