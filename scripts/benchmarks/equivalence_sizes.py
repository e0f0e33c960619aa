"""How many episodes show that two success rates are equal within a margin? A table for docs/results/episodes.md.

python scripts/benchmarks/equivalence_sizes.py
"""

from dataclasses import dataclass

import tyro

from asd_policy.evaluation.equivalence import LEVEL, WANTED_POWER, equivalence_power, pairs_needed


@dataclass(frozen=True)
class Options:
    """What to look up."""

    margins: tuple[float, ...] = (0.2, 0.1, 0.05)
    """Differences that would not matter."""
    discordances: tuple[float, ...] = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
    """Probabilities that one of a pair of episodes succeeds and the other fails."""
    episodes: int = 100
    """Also tell the power of so many."""


def table(options: Options) -> str:
    """Format the table in Markdown."""
    header = ["pairs that differ"]
    for margin in options.margins:
        header += [f"± {100 * margin:g} points", f"power of {options.episodes}"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for discordance in options.discordances:
        cells = [f"{100 * discordance:g} %"]
        for margin in options.margins:
            power = equivalence_power(options.episodes, discordance, margin)
            cells += [str(pairs_needed(discordance, margin)), f"{100 * power:.0f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Episodes for a power of {100 * WANTED_POWER:.0f} % at a level of {100 * LEVEL:.0f} %; exact."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table."""
    print(table(tyro.cli(Options, description=__doc__)))


if __name__ == "__main__":
    main()
