"""The commands of `asd-policy`, a file each: a dataclass of options with `run(console) -> exit status`."""

from asd_policy.cli.bench import BenchCommand
from asd_policy.cli.compare import CompareCommand
from asd_policy.cli.evaluate import EvalCommand
from asd_policy.cli.export import ExportCommand
from asd_policy.cli.inspect import InspectCommand
from asd_policy.cli.report import ReportCommand
from asd_policy.cli.serve import ServeCommand
from asd_policy.cli.tune import TuneCommand
from asd_policy.cli.verify import VerifyCommand

COMMANDS = {
    "eval": EvalCommand,
    "report": ReportCommand,
    "compare": CompareCommand,
    "bench": BenchCommand,
    "verify": VerifyCommand,
    "tune": TuneCommand,
    "inspect": InspectCommand,
    "export": ExportCommand,
    "serve": ServeCommand,
}
"""Every command by its name."""
