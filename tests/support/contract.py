"""What every command keeps: the keys of its results, and one line for an error."""

import pytest

from asd_policy import cli

CONTRACT = {
    "version", "command", "policy", "env", "seed", "episodes", "device", "backend", "package", "commit", "torch",
    "started", "samplers",
}  # fmt: skip


SAMPLER_CONTRACT = {
    "spec", "exact", "steps", "success_rate", "success_ci95", "return_mean", "return_ci95", "paired_difference_ci95",
    "plans", "rounds_mean", "rounds_p95", "nfe_mean", "acceptance_length_mean", "algorithmic_speedup",
    "wall_clock_speedup", "overhead_fraction", "latency_ms", "reward_difference", "equivalence",
}  # fmt: skip


def one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error line of a command that must fail with status 2 and say nothing else."""
    assert cli.run(words) == 2
    printed = capsys.readouterr()
    assert not printed.out
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("asd-policy: ")
    return lines[0]
