"""`asd-policy inspect`: what is in a checkpoint, what will be exact on it, and what is missing to run it here?"""

from dataclasses import dataclass

from rich.console import Console

from asd_policy.checkpoints import inspection
from asd_policy.cli.common import DONE, ChainOption, FixedCropOption, print_json
from asd_policy.evaluation.reports import report
from asd_policy.policy.law import CHECKPOINT


@dataclass(frozen=True)
class InspectCommand:
    """Say what is in a checkpoint, which samplers are exact on it and why, and what is missing to run it here."""

    policy: str
    """Checkpoint: a path, or a Hugging Face Hub id such as owner/name or owner/name@revision."""
    chain: ChainOption = CHECKPOINT
    fixed_crop: FixedCropOption = False
    json: bool = False
    """Print the results as one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Inspect; return the exit status, 0 also for a checkpoint that cannot run here."""
        said = inspection.inspect(self.policy, self.chain, self.fixed_crop)
        if self.json:
            print_json(said)
        console.print(report.inspection_table(said))
        return DONE
