"""How many rounds does each draft × verifier × window need, on the states that a policy meets in closed loop?"""

from collections.abc import Iterator
from typing import Any

from rich.progress import track

from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.autotune import DEFAULT
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.sampler import Asd
from study_common import Results, Subject, console, count, markdown_table, summarize

TARGETS = ((32, 14.0), (64, 17.0))
"""Largest window, and the algorithmic speedup to reach with it."""
PEER = "paradigms"


def measure(subject: Subject, windows: tuple[int, ...], seed: int, results: Results) -> Iterator[dict[str, Any]]:
    """Yield one record per setting, those of the default draft on all the states first.

    Args:
        subject: The checkpoint and its states.
        windows: To try; those longer than the chain count as its length.
        seed: Of the tapes.
        results: Where records are kept.
    """
    policy = subject.policy
    drafts = sorted(DRAFTS, key=lambda draft: draft != DEFAULT.draft)
    windows = tuple(dict.fromkeys(min(window, len(policy.chain)) for window in windows))
    specs = [
        f"asd:window={window},draft={draft},verify={verifier}"
        for draft in drafts
        for verifier in VERIFIERS
        for window in windows
    ]
    for spec in track([*specs, PEER], f"grid, {subject.name}", console=console):
        sampler = make_sampler(spec)

        def run(sampler: Any = sampler) -> dict[str, Any]:
            counts = count(policy.denoiser, policy.chain, sampler, subject.states, subject.experience, seed)
            options = {"draft": sampler.draft, "verify": sampler.verify} if isinstance(sampler, Asd) else {}
            summary = summarize(counts, subject.states.episode, len(policy.chain))
            return {"spec": sampler.spec, "window": sampler.window, **options, **summary}

        yield results.once(f"{subject.name} {spec}", run)


def markdown(subject: Subject, records: list[dict[str, Any]]) -> str:
    """Format the section of one checkpoint: a table, the targets, what it was measured on."""
    grid = {(r["draft"], r["verify"], r["window"]): r for r in records if "draft" in r}
    (peer,) = (record for record in records if "draft" not in record)
    windows = sorted({window for _, _, window in grid})
    rows = [
        [f"`{draft}` + `{verifier}`", *(cell(grid[draft, verifier, window]) for window in windows)]
        for draft in DRAFTS
        for verifier in VERIFIERS
    ]
    lines = [f"### `{subject.name}` in `{subject.env}`\n", markdown_table(["", *map(str, windows)], rows)]
    lines += [f"{target_line(list(grid.values()), limit, target)}  " for limit, target in TARGETS]
    lines += [f"Approximate peer `{peer['spec']}`: {cell(peer)}.\n"]
    lines.append(
        f"K = {peer['steps']}; n = {peer['n']} states from {peer['episodes']} episodes (intervals treat an episode as "
        f"one observation); `response` has learned from {subject.experience.plans} plans of other episodes.\n"
    )
    return "\n".join(lines)


def cell(record: dict[str, Any]) -> str:
    """Format speedup with its interval, evaluations, and tail of one setting."""
    low, high = record["speedup_ci95"]
    return (
        f"{record['speedup']:.1f} [{low:.1f}, {high:.1f}] · {record['nfe_per_step']:.2f} · {record['rounds_p95']:.0f}"
    )


def target_line(records: list[dict[str, Any]], limit: int, target: float) -> str:
    """Tell whether the default sampler, and the best of all, reach a speedup with a window up to `limit`."""
    within = [record for record in records if record["window"] <= limit]
    best = max(within, key=lambda record: record["speedup"])
    default = DEFAULT
    own = max(
        (r for r in within if (r["draft"], r["verify"]) == (default.draft, default.verify)), key=lambda r: r["speedup"]
    )
    return (
        f"Target {target:g}× with a window up to {limit}: default {verdict(own, target)}; best {verdict(best, target)}."
    )


def verdict(record: dict[str, Any], target: float) -> str:
    """Compare a setting's speedup and its interval with the target."""
    low, high = record["speedup_ci95"]
    word = "reached" if low >= target else "not reached" if high < target else "not told from the target"
    return f"`{record['spec']}` {record['speedup']:.1f}× [{low:.1f}, {high:.1f}], {word}"
