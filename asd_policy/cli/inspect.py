"""`asd-policy inspect`: what is in a checkpoint, what will be exact on it, and what is missing to run it here?"""

from dataclasses import dataclass

from rich.console import Console
from tyro.conf import Positional

from asd_policy.checkpoints import inspection
from asd_policy.cli.common import DONE, ChainOption, FixedCropOption, print_json
from asd_policy.errors import SpecError
from asd_policy.evaluation.reports import report
from asd_policy.policy.law import CHECKPOINT


@dataclass(frozen=True)
class InspectCommand:
    """Say what is in a checkpoint, which samplers are exact on it and why, and what is missing to run it here."""

    checkpoint: Positional[str | None] = None
    """A path, or a Hugging Face Hub id such as owner/name or owner/name@revision."""
    policy: str | None = None
    """The same as an option, as all other commands have it."""
    chain: ChainOption = CHECKPOINT
    fixed_crop: FixedCropOption = False
    json: bool = False
    """Print the results as one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Inspect; return the exit status, 0 also for a checkpoint that cannot run here."""
        given = [each for each in (self.checkpoint, self.policy) if each is not None]
        if len(given) != 1:
            raise SpecError(f"inspect PATH takes one checkpoint; given {' and '.join(given) or 'none'}")
        said = inspection.inspect(given[0], self.chain, self.fixed_crop)
        if self.json:
            print_json(said)
        console.print(report.inspection_table(said))
        return DONE
