"""`asd-policy report`: the page of an evaluation, from its folder."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from asd_policy.cli.common import DONE
from asd_policy.evaluation.reports import page


@dataclass(frozen=True)
class ReportCommand:
    """Write report.html from what an evaluation left in its folder."""

    folder: tyro.conf.Positional[Path]
    """The --out of an asd-policy eval."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Write the page; return the exit status."""
        console.print(f"page: {page.write(self.folder)}", soft_wrap=True)
        return DONE
