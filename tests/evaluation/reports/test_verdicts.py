"""Equivalence in words: one line for a run, one sentence for a page."""

from typing import Any

from asd_policy.evaluation.reports.verdicts import equivalence_lines, equivalence_text, headline_verdict, verdict_line


def judged(spec: str = "asd", episodes: int = 15, difference: Any = (-0.05, 0.05), **changes: Any) -> dict[str, Any]:
    """A sampler whose success was compared with the sequential one's."""
    verdict = {"margin": 0.1, "p_value": 0.2, "equivalent": False, "power": 0.0, "discordance": 1 / 17} | changes
    exact = not spec.startswith("ddim")
    return {"spec": spec, "exact": exact, "episodes": episodes, "equivalence": verdict,
            "paired_difference_ci95": difference}  # fmt: skip


DDPM = {"spec": "ddpm", "exact": True, "episodes": 15, "equivalence": None}
SHOWN = {"equivalent": True, "p_value": 0.012, "power": 0.9}


def test_too_few_episodes_are_said_once() -> None:
    """And how many would do for all, by the most that differ; what was shown, or could have been, has its own line."""
    few = [judged("asd:1"), judged("asd:2", power=0.004, discordance=3 / 17), judged("asd:4")]
    said = "15 episodes cannot show that success is ddpm's within 10 points: about 164 can"
    assert equivalence_lines({"samplers": few}) == [f"{said} for every sampler"]
    assert verdict_line({"samplers": [DDPM, *few]}) == f"verdict: {said} for every sampler"
    assert headline_verdict(few[1], "ddpm") == f"{said}."
    lines = equivalence_lines({"samplers": [judged("asd:8", power=0.3), *few, judged(**SHOWN)]})
    assert [each.partition(":")[0] for each in lines] == ["asd θ=8", "asd", said.partition(":")[0]]
    for each in few:
        del each["equivalence"]["discordance"]  # as before
    assert equivalence_lines({"samplers": few})[0].endswith("about 76 can")
    (one,) = equivalence_lines({"samplers": [few[0] | {"episodes": 1}]})
    assert one.startswith("1 episode cannot show")


def test_a_run_has_one_line() -> None:
    samplers = [
        DDPM,
        judged(**SHOWN),
        judged("asd:window=32", p_value=0.001, equivalent=True),
        judged("asd:window=8,draft=frozen,verify=reflection", power=0.3, discordance=0.1),
        judged("ddim:2", difference=(-0.5, -0.2), p_value=1.0),
    ]
    assert verdict_line({"samplers": samplers}) == (
        "verdict: success within 10 points of ddpm's over 15 episodes: shown for asd (p = 0.012), asd θ=32 "
        "(p = 0.001); not shown for paper's asd θ=8 (p = 0.2, about 104 can); not so for ddim-2 ≈ (-50 … -20 points)"
    )
    assert verdict_line({"samplers": [DDPM]}) is None


def test_an_interval_that_reaches_into_the_margin_says_nothing() -> None:
    assert "not shown for asd" in str(verdict_line({"samplers": [judged(difference=(-0.5, -0.05), power=0.5)]}))
    assert "not so for asd" in str(verdict_line({"samplers": [judged(difference=(0.15, 0.3), power=0.5)]}))


def test_sentences_of_a_page() -> None:
    assert headline_verdict(judged(**SHOWN), "ddpm") == "Its success is ddpm's within 10 points (p = 0.012)."
    lacking = judged(power=0.3, discordance=0.1)
    assert headline_verdict(lacking, "ddim:16") == (
        "15 episodes do not show that its success is ddim:16's within 10 points (p = 0.2, about 104 can)."
    )
    worse = judged(difference=(-0.5, -0.2), power=0.5)
    assert headline_verdict(worse, "ddpm") == "Its success is not ddpm's within 10 points (-50 … -20 points)."


def test_a_test_by_itself() -> None:
    shown = {"margin": 0.1, "p_value": 0.012, "equivalent": True, "power": 0.9}
    assert equivalence_text(shown, 200) == "success equivalent within 10 points (p = 0.012, 200 episodes)"
    missed = {"margin": 0.05, "p_value": 0.31, "equivalent": False, "power": 0.12, "discordance": 0.1}
    words = "success not shown to be equivalent within 5 points (p = 0.31, 50 episodes)"
    assert equivalence_text(missed, 50) == f"{words}: about 375 can"
    assert equivalence_text(missed | {"power": None}, 50) == words  # two groups, not pairs
    unlucky = missed | {"power": 0.81}
    assert equivalence_text(unlucky, 400) == (
        "success not shown to be equivalent within 5 points (p = 0.31, 400 episodes): of equal rates so many show it "
        "in 81 % of cases"
    )
