"""Tests of equivalence in words: whether success is the sequential sampler's, or how many episodes can show it."""

from collections.abc import Sequence
from typing import Any

from asd_policy.evaluation.equivalence import MOST_PAIRS, pairs_needed
from asd_policy.evaluation.reports.names import reference_of, shown_name

SHOWN, NOT_SHOWN, NOT_SO = "shown", "not shown", "not so"
"""Of equivalence: what a test can find. `NOT_SO` where the interval of the difference lies outside of the margin."""
_NO_POWER = 0.005  # is 0 %


def verdict_line(results: dict[str, Any]) -> str | None:
    """Say in one line of which samplers success is the sequential one's; None where none was compared.

    Args:
        results: A results.json object of `eval`.
    """
    judged = [result for result in results["samplers"] if result["equivalence"] is not None]
    if not judged:
        return None
    within = f"{100 * judged[0]['equivalence']['margin']:g} points"
    reference = reference_of(results)
    if all(_is_hopeless(result["equivalence"]) for result in judged):
        return f"verdict: {_too_few(judged, reference)}"
    words: dict[str, list[str]] = {SHOWN: [], NOT_SHOWN: [], NOT_SO: []}
    for result in judged:
        word, why = _judge(result)
        words[word].append(f"{shown_name(result)} ({why})")
    episodes = " … ".join(str(count) for count in sorted({result["episodes"] for result in judged}))
    found = "; ".join(f"{word} for {', '.join(names)}" for word, names in words.items() if names)
    return f"verdict: success within {within} of {reference}'s over {episodes} episodes: {found}"


def equivalence_lines(results: dict[str, Any]) -> list[str]:
    """Write a line for each sampler that was compared with the sequential one: whether its success is equivalent.

    Samplers for which so few episodes could not have shown it share one line.
    """
    judged = [result for result in results["samplers"] if result["equivalence"] is not None]
    hopeless = [result for result in judged if _is_hopeless(result["equivalence"])]
    lines = [
        f"{shown_name(result)}: {equivalence_text(result['equivalence'], result['episodes'])}"
        for result in judged
        if result not in hopeless
    ]
    return lines + ([_too_few(hopeless, reference_of(results))] if hopeless else [])


def headline_verdict(result: dict[str, Any], reference: str) -> str:
    """Say in a sentence whether a sampler's success is the sequential one's, or how many episodes can show it.

    Args:
        result: Of results.json, with a test of equivalence.
        reference: Spec of the sequential sampler.
    """
    verdict = result["equivalence"]
    if _is_hopeless(verdict):
        return f"{_too_few([result], reference)}."
    word, why = _judge(result)
    within = f"{reference}'s within {100 * verdict['margin']:g} points"
    if word == NOT_SHOWN:
        return f"{result['episodes']} episodes do not show that its success is {within} ({why})."
    return f"Its success is {'not ' if word == NOT_SO else ''}{within} ({why})."


def equivalence_text(verdict: dict[str, Any], episodes: int) -> str:
    """Put a test of equivalence into words: over how many episodes and, where it is not shown, how many can."""
    within = f"within {100 * verdict['margin']:g} points"
    p_value = f"p = {verdict['p_value']:.2g}, {episodes} episodes"
    if verdict["equivalent"]:
        return f"success equivalent {within} ({p_value})"
    more = "" if verdict["power"] is None else f": {_what_can(verdict, episodes)}"
    return f"success not shown to be equivalent {within} ({p_value}){more}"


def _judge(result: dict[str, Any]) -> tuple[str, str]:
    """Say whether equivalence is shown, not shown, or not so, and why."""
    verdict, difference = result["equivalence"], result.get("paired_difference_ci95")
    p_value = f"p = {verdict['p_value']:.2g}"
    if verdict["equivalent"]:
        return SHOWN, p_value
    if difference is not None and (difference[0] > verdict["margin"] or difference[1] < -verdict["margin"]):
        return NOT_SO, f"{100 * difference[0]:+.0f} … {100 * difference[1]:+.0f} points"
    return NOT_SHOWN, f"{p_value}, {_what_can(verdict, result['episodes'])}"


def _is_hopeless(verdict: dict[str, Any]) -> bool:
    """Tell whether so few episodes could not have shown it."""
    return not verdict["equivalent"] and verdict["power"] is not None and verdict["power"] < _NO_POWER


def _too_few(hopeless: Sequence[dict[str, Any]], reference: str) -> str:
    """Say that so many episodes cannot show equivalence, and how many can, for all of these samplers."""
    episodes = max(result["episodes"] for result in hopeless)
    verdicts = [result["equivalence"] for result in hopeless]
    worst = max(verdicts, key=lambda verdict: _discordance(verdict, episodes))
    within = f"within {100 * worst['margin']:g} points"
    so_many = "1 episode" if episodes == 1 else f"{episodes} episodes"
    needed = {_what_can(verdict, episodes) for verdict in verdicts}
    of_all = " for every sampler" if len(needed) > 1 else ""
    return f"{so_many} cannot show that success is {reference}'s {within}: {_what_can(worst, episodes)}{of_all}"


def _what_can(verdict: dict[str, Any], episodes: int) -> str:
    """Say how many episodes can show equivalence; where so many have not, how often they do at equal rates."""
    needed = pairs_needed(_discordance(verdict, episodes), verdict["margin"])
    if needed is None:
        return f"it takes more than {MOST_PAIRS:,} episodes"
    if needed > episodes:
        return f"about {needed} can"
    return f"of equal rates so many show it in {100 * verdict['power']:.0f} % of cases"


def _discordance(verdict: dict[str, Any], episodes: int) -> float:
    """Look up the share of pairs that differ. Older results have none; where no pair differs, it is this."""
    return verdict.get("discordance") or 1 / (episodes + 2)
