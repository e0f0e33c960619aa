"""Measure the structure of the package, and what it costs to import and to plan; alone or against another checkout.

    git worktree add ../before 2d5e83a
    python scripts/maintenance/house.py --before ../before

Prints a table in Markdown for docs/theory/architecture.md. Plans are timed in processes that take turns, so that the
ratio of the two is of one machine in one state.
"""

import ast
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[2]
PACKAGE = "asd_policy"

PLANS = """
import json, sys, time, traceback, warnings
warnings.simplefilter("ignore")
import torch
import asd_policy
torch.set_num_threads(1)
checkpoint, spec, plans = sys.argv[1:]
policy = asd_policy.load_policy(checkpoint, spec)
stacks = []
hook = policy.denoiser.core.register_forward_pre_hook(lambda *_: stacks.append(traceback.extract_stack()))
policy.reset(seed=0)
observation = [0.1] * sum(policy.observation_dims.values())
policy.select_action(observation)
hook.remove()
files = [frame.filename for frame in stacks[-1]]
names = [frame.name for frame in stacks[-1]]
path = [file for file in files[names.index("select_action"):] if "/asd_policy/" in file]
seconds = []
for index in range(int(plans) + 20):
    policy.reset(seed=index)
    start = time.perf_counter()
    policy.select_action(observation)
    seconds.append(time.perf_counter() - start)
print(json.dumps({"frames": len(path), "files": len(set(path)), "seconds": seconds[20:]}))
"""
"""Plans of a policy, the first of them with the stack at its last network call."""
IMPORT = """
import time, torch
start = time.perf_counter()
import asd_policy
for name in asd_policy.__all__:
    if name in ("load_policy", "accelerate", "Policy"):
        getattr(asd_policy, name)
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    before: Path | None = None
    """Another checkout of the repository; None for this one alone."""
    checkpoint: Path = ROOT / "checkpoints/avoid"
    """Of the policy that plans."""
    spec: str = "asd:window=32"
    """Its sampler."""
    plans: int = 40
    """In each process."""
    turns: int = 8
    """Processes of each checkout."""


@dataclass(frozen=True)
class Structure:
    """A package read as text."""

    root: Path
    """Of its checkout."""

    @property
    def package(self) -> Path:
        """Its folder."""
        return self.root / PACKAGE

    @property
    def modules(self) -> list[Path]:
        """Its modules, but for those that a program wrote."""
        return sorted(path for path in self.package.rglob("*.py") if "_pb2" not in path.name)

    @property
    def entries(self) -> int:
        """Files and folders at the top."""
        return sum(path.name != "__pycache__" for path in self.package.iterdir())

    @property
    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All of its functions."""
        for path in self.modules:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield node

    def imports(self) -> dict[str, set[str]]:
        """List what each module imports of the package, wherever in it: by dotted names without the package's."""
        names = {_name(path, self.package): path for path in self.package.rglob("*.py")}
        found = {}
        for name, path in names.items():
            wanted = set()
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
                    base = node.module.removeprefix(PACKAGE).removeprefix(".")
                    for alias in node.names:
                        full = f"{base}.{alias.name}".removeprefix(".")
                        wanted.add(full if full in names else base)
                elif isinstance(node, ast.Import):
                    wanted |= {alias.name.removeprefix(PACKAGE).removeprefix(".") for alias in node.names
                               if alias.name.split(".")[0] == PACKAGE}  # fmt: skip
            found[name] = {each for each in wanted if each in names and each not in ("", name)}
        return found

    def arrows(self) -> set[tuple[str, str]]:
        """List which entry of a folder imports which other entry of the same folder, over all folders."""
        found = set()
        for name, wanted in self.imports().items():
            for other in wanted:
                here, there = name.split("."), other.split(".")
                depth = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), None)
                if depth is not None and name:
                    found.add((".".join(here[: depth + 1]), ".".join(there[: depth + 1])))
        return found

    def floors(self) -> int:
        """Count the longest chain of imports between entries at the top."""
        top = {pair for pair in self.arrows() if "." not in pair[0] and "." not in pair[1]}

        @cache
        def height(entry: str, above: frozenset[str] = frozenset()) -> int:
            if entry in above:
                return 0  # a circle has no floor of its own
            return 1 + max((height(b, above | {entry}) for a, b in top if a == entry), default=0)

        return max(height(entry) for entry, _ in top)


def _name(path: Path, package: Path) -> str:
    return ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [each for each in given if each.arg not in ("self", "cls")]


def _typed(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    returns = node.returns is not None or node.name == "__init__"
    return returns and all(each.annotation is not None for each in _parameters(node))


def structure(root: Path) -> dict[str, str]:
    """Measure what can be read from the text of a checkout."""
    package = Structure(root)
    functions = list(package.functions)
    lengths = [len(path.read_text().splitlines()) for path in package.modules]
    return {
        "entries at the top of `asd_policy/`": str(package.entries),
        "rooms: modules": str(len(lengths)),
        "floors: longest chain of imports between entries at the top": str(package.floors()),
        "arrows: entries of a folder that import each other, at the top": str(
            sum("." not in a and "." not in b for a, b in package.arrows())
        ),
        "arrows: the same over all folders": str(len(package.arrows())),
        "longest function [lines]": str(max((node.end_lineno or 0) - node.lineno + 1 for node in functions)),
        "most parameters of a function": str(max(len(_parameters(node)) for node in functions)),
        "functions with all types": f"{sum(map(_typed, functions)) / len(functions):.1%}",
        "median length of a file [lines]": f"{statistics.median(lengths):.0f}",
        "longest file [lines]": str(max(lengths)),
    }


def run(root: Path, code: str, *words: str) -> str:
    """Run Python code with a checkout's package; return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout


def main() -> None:
    """Measure and print the table."""
    options = tyro.cli(Options, description=__doc__)
    roots = [ROOT] if options.before is None else [options.before.resolve(), ROOT]
    columns = [structure(root) for root in roots]
    imported: list[list[float]] = [[] for _ in roots]
    medians: list[list[float]] = [[] for _ in roots]
    for turn in range(options.turns):
        for index, root in enumerate(roots):
            imported[index].append(float(run(root, IMPORT)))
            found = json.loads(run(root, PLANS, str(options.checkpoint.resolve()), options.spec, str(options.plans)))
            medians[index].append(statistics.median(found["seconds"]))
            if not turn:
                stack = f"{found['frames']} in {found['files']}"
                columns[index]["frames in files from `select_action` to the network"] = stack
    for column, times, plans in zip(columns, imported, medians, strict=True):
        column["import of what plans, beyond torch [s]"] = f"{statistics.median(times):.2f}"
        column[f"plan, `{options.spec}`, median [ms]"] = f"{1e3 * statistics.median(plans):.2f}"
    print("| | " + " | ".join(["before", "now"][-len(roots) :]) + " |")
    print("|---|" + "---|" * len(roots))
    for name in columns[-1]:
        print(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")
    if options.before is not None:
        ratios = [now / then for then, now in zip(*medians, strict=True)]
        spread = statistics.stdev(ratios) if len(ratios) > 1 else float("nan")
        print(
            f"\nA plan takes {statistics.median(ratios):.3f} times as long as before; standard deviation {spread:.3f} "
            f"over {options.turns} pairs of processes of {options.plans} plans each."
        )


if __name__ == "__main__":
    main()
