"""`asd-policy compare`: what differs between two evaluations?"""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from asd_policy.cli.common import DONE, check_margin, print_json
from asd_policy.evaluation import comparison
from asd_policy.evaluation.comparison import MARGIN
from asd_policy.evaluation.reports import report
from asd_policy.evaluation.reports.names import shown_name
from asd_policy.evaluation.reports.verdicts import equivalence_text


@dataclass(frozen=True)
class CompareCommand:
    """Compare two runs of eval in the same environment: differences with intervals, for each sampler that both have.

    If both runs have the same seed and their episodes.jsonl, episodes are paired; otherwise they are two groups.
    """

    first: Positional[Path]
    """results.json of the run to compare with, or its folder."""
    second: Positional[Path]
    """The other run. Differences are second minus first, ratios second over first."""
    margin: float = MARGIN
    """Difference of success rates that would not matter, for the test of equivalence."""
    json: bool = False
    """Print the results as one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Compare; return the exit status."""
        check_margin(self.margin)
        first, second = comparison.load_run(self.first), comparison.load_run(self.second)
        results = comparison.compare_runs(first, second, self.margin)
        if self.json:
            print_json(results)
        console.print(report.comparison_table(results))
        for result in results["samplers"]:
            verdict = equivalence_text(result["equivalence"], min(result["episodes"]))
            console.print(f"{shown_name(result)}: {verdict}", soft_wrap=True)
        return DONE
