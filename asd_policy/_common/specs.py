"""The grammar of everything that is chosen by a string: `name`, `name:value`, `name:option=value,option=value`."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_type_hints

from asd_policy._common.names import did_you_mean
from asd_policy.errors import SpecError

T = TypeVar("T")


def parse_spec(kind: str, spec: str, registry: Mapping[str, type[T]]) -> T:
    """Make an instance of the class that a spec names. A bare value stands for its first option: `ddim:10`.

    Args:
        kind: What the registry has, for messages.
        spec: Such as `ddpm`, `ddim:10` or `asd:window=16,draft=picard`.
        registry: Dataclasses by name; an option that may be None is then written auto.

    Raises:
        SpecError: An unknown name or option, or a value that is not of the option's type or out of range.
    """
    name, _, rest = spec.partition(":")
    if name not in registry:
        raise SpecError(
            f"no {kind} {name!r} in {spec!r}; there are {', '.join(registry)}{did_you_mean(name, registry)}"
        )
    made = registry[name]
    hints = get_type_hints(made)
    options = [field.name for field in fields(made)]  # pyright: ignore[reportArgumentType]  # all are dataclasses
    values: dict[str, object] = {}
    for position, item in enumerate(rest.split(",") if rest else []):
        option, equals, text = item.partition("=")
        if not equals and position == 0 and options:
            option, text = options[0], item
        if option not in options:
            there = f"{', '.join(options) or 'none'}{did_you_mean(option, options)}"
            raise SpecError(f"no option {option!r} in {spec!r}; {name} has {there}")
        if option in values:
            raise SpecError(f"option {option!r} is given twice in {spec!r}")
        try:
            values[option] = _read(hints[option], text)
        except ValueError:
            kinds = " or ".join(each.__name__ for each in get_args(hints[option]) or [hints[option]])
            kinds = kinds.replace("NoneType", "auto")
            raise SpecError(f"{option}={text} in {spec!r} is not of type {kinds}") from None
    return made(**values)


def _read(hint: Any, text: str) -> object:
    """Read an option's value; where it may be None, that is written auto.

    Raises:
        ValueError: It is not of the hinted type.
    """
    kinds = get_args(hint)
    if not kinds:
        return hint(text)
    return None if text == "auto" else kinds[0](text)
