"""`asd-policy export`: a policy as one file for ONNX Runtime."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from asd_policy.checkpoints import find_format, inspection, load_policy, locate
from asd_policy.cli.advice import check_writable
from asd_policy.cli.common import DONE, ChainOption, FixedCropOption, print_json
from asd_policy.errors import SpecError
from asd_policy.evaluation.reports import report
from asd_policy.policy.law import CHECKPOINT

FORMATS = ("onnx",)


@dataclass(frozen=True)
class ExportCommand:
    """Write a policy as one ONNX file that is a policy by itself: network, noise schedule, normalisation, horizons."""

    policy: str
    """Checkpoint: a path, or a Hugging Face Hub id such as owner/name or owner/name@revision."""
    out: Path
    """File to write; an older one is replaced once the new one has been compared with the policy. It has the network in
    two forms, for calls of few points and of many, which take 2 to 3 times the room of its weights; where that is more
    than the 2 GiB of an ONNX file, the first one alone."""
    format: str = "onnx"
    """What to write: onnx."""
    chain: ChainOption = CHECKPOINT
    fixed_crop: FixedCropOption = False
    json: bool = False
    """Print the results as one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Export and compare; return the exit status."""
        if self.format not in FORMATS:
            raise SpecError(f"--format {self.format} is not one of {', '.join(FORMATS)}")
        if self.out.is_dir():
            raise SpecError(f"--out {self.out} is a folder; it names the file to write")
        check_writable(self.out.parent)
        from asd_policy.checkpoints.onnx.writing import CHECKED, export_policy

        folder = locate(self.policy)
        name, form = find_format(folder)
        policy = load_policy(folder, chain=self.chain, fixed_crop=self.fixed_crop)
        policy.law.check_gaussian("export")
        source = {"policy": report.shared_name(self.policy), "format": name, "files": inspection.files(folder, form)}
        with console.status("exporting"):
            difference = export_policy(policy, self.out, source)
        (written,) = inspection.files(self.out, form)
        results = {
            **report.run_record("export", self.policy, None, 0, policy),
            "format": self.format,
            "file": str(self.out),
            **{key: written[key] for key in ("bytes", "sha256")},
            "source": source,
            "checked_points": list(CHECKED),
            "largest_relative_difference": difference,
        }
        if self.json:
            print_json(results)
        console.print(
            f"{self.out}: {written['bytes'] / 2**20:.1f} MiB; predictions of {', '.join(map(str, CHECKED))} points "
            f"differ from the policy's by at most {difference:.1g} of the largest",
            soft_wrap=True,
        )
        return DONE
