"""`asd-policy report`: the page of an evaluation, from its folder; or figures and tables of any run, for a paper."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from asd_policy.cli.common import DONE
from asd_policy.errors import SpecError
from asd_policy.evaluation.reports import figures, page
from asd_policy.evaluation.reports.plots import FORMATS


@dataclass(frozen=True)
class ReportCommand:
    """Write report.html from what an evaluation left in its folder; with --figures, what a paper needs instead."""

    folder: tyro.conf.Positional[Path]
    """The --out of an asd-policy eval; with --figures also of a bench."""
    figures: Path | None = None
    """Folder to write each figure into, and the results as a table in LaTeX (results.tex) and CSV (results.csv)."""
    format: str | None = None
    """Of the figures: pdf, png or svg; pdf if it is left out."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Write the page or the figures; return the exit status."""
        if self.figures is None:
            if self.format is not None:
                raise SpecError(f"--format {self.format} is for --figures, which is not given")
            console.print(f"page: {page.write(self.folder)}", soft_wrap=True)
            return DONE
        form = FORMATS[0] if self.format is None else self.format
        if form not in FORMATS:
            raise SpecError(f"--format {form} is not one of {', '.join(FORMATS)}")
        if self.figures.exists() and not self.figures.is_dir():
            raise SpecError(f"--figures {self.figures} is a file; it names the folder to write into")
        written = figures.write_all(self.folder, self.figures, form)
        for path in written.files:
            console.print(f"written: {path}", soft_wrap=True)
        for line in written.left_out:
            console.print(line, soft_wrap=True)
        return DONE
