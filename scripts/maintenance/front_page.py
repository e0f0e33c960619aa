"""Write the numbers of README.md from what docs/results has measured, between its markers; nothing is measured again.

    python scripts/maintenance/front_page.py

Run it after a page of results has changed; tests/scripts/test_front_page.py fails until then.
"""

import re
import textwrap
from pathlib import Path

import pictures
from asd_policy._common.files import atomic_file
from asd_policy.evaluation.reports.names import short_name

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "docs/results"


def main() -> None:
    """Write README.md anew."""
    with atomic_file(README) as temporary:
        temporary.write_text(rendered(README.read_text()))


def rendered(text: str) -> str:
    """Put the numbers into the text of README.md.

    Raises:
        ValueError: A marker is missing, or a page of results has not the rows that are quoted.
    """
    for name, block in (("numbers", numbers()), ("ddim", ddim()), ("verify", verified())):
        marker = re.compile(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if len(marker.findall(text)) != 1:
            raise ValueError(f"README.md has no place for {name}")
        text = marker.sub(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
    return text


def numbers() -> str:
    """Say in a line what was measured on a CPU, and in the real time of one task."""
    page = (RESULTS / "wall_clock.md").read_text().partition("<!-- /study:wallclock -->")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if "| asd, onnx |" in line]
    speedups = [float(row[8].partition(" ")[0]) for row in rows]
    rounds = [float(row[4]) for row in rows]
    if not rows:
        raise ValueError("wall_clock.md has no row of asd on onnx")
    own = {
        each.spec: each
        for each in pictures.read_measured(pictures.MEASURED.read_text())
        if (each.task, each.backend) == (pictures.TASK, pictures.FILM_BACKEND)
    }
    slow, fast, few, many = min(speedups), max(speedups), min(rounds), max(rounds)
    return _wrapped(
        f"On one CPU core `asd` plans **{slow:.1f} to {fast:.1f} times as fast** as the fastest sequential sampler "
        f"(ONNX Runtime, {len(rows)} bundled policies), with {few:.0f} to {many:.0f} sequential network calls in place "
        "of 100 ([measured](docs/results/wall_clock.md)). In PyTorch, where a paddle has to meet pucks that do not "
        f"wait, success is {own['asd'].success:.0%} in place of {own['ddpm'].success:.0%} "
        "([measured](docs/results/latency.md)). No GPU has been measured yet."
    )


def ddim() -> str:
    """Say where ten steps of DDIM are good enough, and where they are not."""
    rates: dict[str, dict[str, int]] = {}
    task = ""
    for line in (RESULTS / "success.md").read_text().splitlines():
        found = re.match(r"\|\s*(?:`(asd/[^`]*)`)?\s*\| ([^|`]*) \| (\d+) \[", line)
        if found:
            task = found[1] or task
            rates.setdefault(task, {})[found[2]] = int(found[3])
    lost = {task: each[short_name("ddpm")] - each[short_name("ddim:10", exact=False)] for task, each in rates.items()}
    worse = [task for task in lost if lost[task] > 5]
    if not worse:
        raise ValueError("success.md has no task on which ddim:10 loses")
    losses = " and ".join(f"{lost[task]} of 100 on `{task}`" for task in worse)
    equal = len(lost) - len(worse)
    return _wrapped(
        "- *DDIM is good enough on your task.* Ten steps of it are faster than anything exact. On "
        f"{equal} of our {len(lost)} tasks they succeed as often as the hundred; they lose {losses} "
        "([measured](docs/results/success.md)). "
        "[How to find out on yours](docs/guide/ddim_or_asd.md).",
        indent="  ",
    )


def verified() -> str:
    """Quote the first and the last line of what `asd-policy verify` printed, around its table."""
    before, _, after = (RESULTS / "verify.txt").read_text().partition("\ntest ")
    verdict = after.rstrip().splitlines()[-1]
    return f"```text\n{before}\n…\n{verdict}\n```"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    main()
