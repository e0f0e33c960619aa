"""The commands of `asd-policy`, a file each: a dataclass of options with `run(console) -> exit status`."""

from asd_policy.commands.bench import BenchCommand
from asd_policy.commands.compare import CompareCommand
from asd_policy.commands.evaluate import EvalCommand
from asd_policy.commands.export import ExportCommand
from asd_policy.commands.inspect import InspectCommand
from asd_policy.commands.report import ReportCommand
from asd_policy.commands.tune import TuneCommand
from asd_policy.commands.verify import VerifyCommand

COMMANDS = {
    "eval": EvalCommand,
    "report": ReportCommand,
    "compare": CompareCommand,
    "bench": BenchCommand,
    "verify": VerifyCommand,
    "tune": TuneCommand,
    "inspect": InspectCommand,
    "export": ExportCommand,
}
"""Every command by its name."""
