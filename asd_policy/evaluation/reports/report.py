"""Results as tables in the terminal and in Markdown, and the record of what ran."""

import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from asd_policy._common import arrays
from asd_policy._common.arrays import Device
from asd_policy._common.hardware import hardware
from asd_policy._common.version import PACKAGE_VERSION
from asd_policy.checkpoints.recommendation import recommendation_lines
from asd_policy.errors import printable
from asd_policy.evaluation.reports.layout import NOTHING, Column, Sheet
from asd_policy.evaluation.reports.names import reference_of, short_name, shown_name
from asd_policy.evaluation.reports.verdicts import verdict_line
from asd_policy.networks.denoiser import Denoiser
from asd_policy.networks.recording import launcher_of
from asd_policy.policy.law import CHECKPOINT, STOCHASTIC, TRAINED
from asd_policy.policy.plan import MEASURED, UNCLOCKED
from asd_policy.policy.policy import Policy
from asd_policy.samplers.asd.launched.form import launches
from asd_policy.samplers.compiled import ROUNDS, load_kernels

if TYPE_CHECKING:  # imported where it is used: a record of what ran does without it
    from rich.table import Table

Cell = Callable[[dict[str, Any]], str]
"""Writes a cell of a sampler of results.json."""


def git_commit() -> str | None:
    """Find the git commit of the checkout that this package runs from; None where there is none."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def shared_name(word: str) -> str:
    """Shorten an absolute path, which may name a user, to its last part: results are passed on to others.

    Args:
        word: A path as the user gave it, or anything else, which stays as it is.
    """
    path = Path(word)
    return path.name if path.is_absolute() else word


def run_record(command: str, checkpoint: str, env: str | None, seed: int, policy: Policy) -> dict[str, Any]:
    """Build what every results.json says of its run as a whole.

    Args:
        command: Of `asd-policy`.
        checkpoint: As the user named it.
        env: Gymnasium id, or None.
        seed: Of the run.
        policy: As loaded, for its device and backend.
    """
    return {
        "version": 1,
        "command": command,
        "policy": shared_name(checkpoint),
        "chain": policy.law.runs,
        "reference": policy.reference.spec,
        "fixed_crop": policy.encoder.random_crop is not None,
        "env": env,
        "seed": seed,
        "device": hardware(policy.device),
        "backend": policy.backend.spec,
        "dtype": policy.backend.dtype,
        "engine": engine_of(policy.device, policy.denoiser),
        "package": PACKAGE_VERSION,
        "commit": git_commit(),
        "torch": torch.__version__,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def engine_of(device: Device, denoiser: Denoiser) -> str:
    """Say what does the arithmetic of asd's rounds: compiled loops, Triton's kernels, or the arrays' own library.

    Args:
        device: Where plans are made.
        denoiser: The network as its backend runs it: kernels are launched where its calls can be recorded.
    """
    if arrays.is_host(device):
        return "arrays" if load_kernels(ROUNDS) is None else "compiled"
    return "triton" if launcher_of(denoiser) is not None and launches(device) else "arrays"


def laws_of(results: dict[str, Any]) -> list[str]:
    """Say which law ran, in each thing in which a checkpoint may have two."""
    said, sequential = [], reference_of(results)
    if results.get("chain") == TRAINED:
        said.append(f"chain {TRAINED}: the DDPM chain that the network was trained for")
    elif str(results.get("chain")).startswith(STOCHASTIC):
        said.append(f"chain {results['chain']}: the flow with noise, a law of its own and not that of Euler's steps")
    elif sequential.startswith("euler"):
        said.append(f"chain {CHECKPOINT}: Euler's steps along a flow, whose own plan is {sequential}")
    elif sequential.startswith("ddim"):
        said.append(f"chain {CHECKPOINT}: DDIM without noise, whose own plan is {sequential}")
    if results.get("fixed_crop"):
        said.append("fixed crop: frames are cropped in the middle, where the checkpoint's library crops them at random")
    return said


def caption(results: dict[str, Any]) -> str:
    """Write what stands under a table: the device, and which law ran."""
    return "; ".join((results["device"], *laws_of(results)))


def _percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f}"


def _optional(value: float | None, form: str) -> str:
    return NOTHING if value is None else form.format(value)


def _success(result: dict[str, Any]) -> str:
    low, high = result["success_ci95"]
    return f"{_percent(result['success_rate'])} [{_percent(low)}, {_percent(high)}]"


def _share(value: float | None, digits: int = 0) -> str:
    return NOTHING if value is None else f"{_percent(value, digits)} %"


def _milliseconds(key: str) -> Cell:
    return lambda result: NOTHING if result["latency_ms"] is None else f"{result['latency_ms'][key]:.0f}"


def _number(key: str, form: str) -> Cell:
    return lambda result: _optional(result[key], form)


_CELLS: tuple[tuple[str, Cell, int], ...] = (
    ("sampler", shown_name, 0),
    ("success % [95 %]", _success, 0),
    ("wall-clock speedup", _number("wall_clock_speedup", "{:.2f}×"), 0),
    ("mean ms", _milliseconds("mean"), 0),
    ("p50 ms", _milliseconds("p50"), 7),
    ("p95 ms", _milliseconds("p95"), 8),
    ("p99 ms", _milliseconds("p99"), 4),
    ("rounds", _number("rounds_mean", "{:.1f}"), 0),
    ("algorithmic speedup", _number("algorithmic_speedup", "{:.1f}×"), 6),
    ("nfe", _number("nfe_mean", "{:.0f}"), 1),
    ("return [95 %]", lambda result: _interval(result["return_mean"], result["return_ci95"]), 5),
    ("mode entropy", _number("mode_entropy", "{:.2f}"), 3),
    ("overhead", lambda result: _share(result["overhead_fraction"], 1), 2),
)
"""Name of a column, what it says of a sampler, and when it leaves a narrow terminal, see `Column.leaves`."""
COLUMNS = tuple(name for name, _, _ in _CELLS)


def row(result: dict[str, Any]) -> tuple[str, ...]:
    """Write the cells of one sampler of results.json, in the order of `COLUMNS`."""
    return tuple(cell(result) for _, cell, _ in _CELLS)


def _interval(mean: float | None, ends: Sequence[float] | None) -> str:
    if mean is None:
        return NOTHING
    return f"{mean:.3g}" + ("" if ends is None else f" [{ends[0]:.3g}, {ends[1]:.3g}]")


def sample_sizes(results: dict[str, Any]) -> str:
    """Say how much was measured, as in "20 episodes and 98 … 105 plans for each sampler"."""
    episodes = sorted({result["episodes"] for result in results["samplers"]})
    plans = sorted({result["plans"] for result in results["samplers"]})

    def span(values: list[int]) -> str:
        return "0" if not values else " … ".join(map(str, dict.fromkeys((values[0], values[-1]))))

    return f"{span(episodes)} episodes and {span(plans)} plans for each sampler"


def table(results: dict[str, Any]) -> Sheet:
    """Lay out a results.json object as a table for the terminal."""
    title = f"{results['env']}, seed {results['seed']}: {sample_sizes(results)}"
    return Sheet(title, _columns(_CELLS, results["samplers"]), caption(results))


def _columns(cells: Sequence[tuple[str, Cell, int]], samplers: Sequence[dict[str, Any]]) -> list[Column]:
    return [Column(name, tuple(map(cell, samplers)), leaves) for name, cell, leaves in cells]


def _timing(key: str, form: str) -> Cell:
    """Write what became of a sampler in real time; nothing where no episode came to its end."""
    return lambda result: NOTHING if result["timing"] is None else _optional(result["timing"][key], form)


def _timing_share(key: str) -> Cell:
    return lambda result: NOTHING if result["timing"] is None else _share(result["timing"][key])


def _counted(key: str) -> Cell:
    def cell(result: dict[str, Any]) -> str:
        counted = result["timing"] and result["timing"]["counted_latency_ms"]
        return f"{counted[key]:.0f}" if counted else NOTHING

    return cell


_TIMING_CELLS: tuple[tuple[str, Cell, int], ...] = (
    ("sampler", shown_name, 0),
    ("counted p50 ms", _counted("p50"), 3),
    ("counted p95 ms", _counted("p95"), 0),
    ("delay steps", _timing("delay_steps_mean", "{:.1f}"), 0),
    ("stale steps", _timing_share("stale_fraction"), 0),
    ("missed deadlines", _timing_share("missed_fraction"), 0),
    ("control Hz", _timing("control_frequency_hz", "{:.1f}"), 0),
    ("jitter ms", _timing("jitter_ms", "{:.0f}"), 2),
    ("seam", _timing("seam_mean", "{:.3f}"), 1),
)
TIMING_COLUMNS = tuple(name for name, _, _ in _TIMING_CELLS)


def timing_row(result: dict[str, Any]) -> tuple[str, ...]:
    """Write the cells of one sampler of results.json that ran by a clock, in the order of `TIMING_COLUMNS`."""
    return tuple(cell(result) for _, cell, _ in _TIMING_CELLS)


def timing_table(results: dict[str, Any]) -> Sheet:
    """Lay out delays and deadlines of a run by a clock, a results.json object, as a table for the terminal."""
    return Sheet(clock_title(results), _columns(_TIMING_CELLS, results["samplers"]))


def is_clocked(results: dict[str, Any]) -> bool:
    """Tell whether time went on while plans were made, in the run of a results.json object."""
    return results.get("clock", UNCLOCKED) != UNCLOCKED


def clock_title(results: dict[str, Any]) -> str:
    """Describe the clock of a run, as in "clock async, 50 Hz, latency measured, continuity none"."""
    latency = results["latency"] + ("" if results["latency_sha256"] or results["latency"] == MEASURED else " ms")
    continuity = f", continuity {results['continuity']}" if results["clock"] == "async" else ""
    return f"clock {results['clock']}, {results['hz']:g} Hz, latency {printable(latency)}{continuity}"


def other_rate(results: dict[str, Any]) -> str | None:
    """Explain what it means that a run's clock is not the environment's own; None where it is, or it is unknown."""
    if results["env_hz"] in (None, results["hz"]):
        return None
    return (
        f"{results['env']} runs at {results['env_hz']:g} Hz, the clock at {results['hz']:g} Hz: a delay costs "
        f"{results['hz'] / results['env_hz']:.3g} times the steps it would cost by the environment's own time"
    )


def choices(results: dict[str, Any]) -> list[str]:
    """Write a line for each sampler of results.json that had settings to choose: what it, or most plans, ran as."""
    return [
        f"{shown_name(result)}{' on ' + result['backend'] if 'backend' in result else ''} ran as {result['ran']}"
        for result in results["samplers"]
        if result.get("ran", result["spec"]) != result["spec"]
    ]


def cuts(results: dict[str, Any]) -> list[str]:
    """Write a line for each sampler of results.json with plans that a deadline cut: how many."""
    return [
        f"{shown_name(result)}: {result['cut_plans']} of {result['plans']} plans cut at {results['deadline_ms']:g} ms "
        f"and finished by {results['fallback']} (approximate)"
        for result in results["samplers"]
        if result.get("cut_plans")
    ]


def encodings(results: dict[str, Any]) -> list[str]:
    """Write one line on what networks that encode observations take of a plan; none for policies of vectors alone."""
    shares = [
        f"{shown_name(result)} {result['encode_ms']:.0f} ms ({100 * result['encode_fraction']:.0f} %)"
        for result in results["samplers"]
        if result.get("encode_ms") is not None
    ]
    return [f"encoding takes of a plan: {', '.join(shares)}"] if shares else []


def remarks(results: dict[str, Any]) -> list[str]:
    """Write the lines under the table of an evaluation."""
    verdict = verdict_line(results)
    return [*choices(results), *cuts(results), *encodings(results), *([] if verdict is None else [verdict])]


def comparison_table(results: dict[str, Any]) -> Sheet:
    """Lay out what `asd-policy compare` found as a table for the terminal."""
    how = "episodes paired" if results["paired"] else f"episodes not paired: {results['why_unpaired']}"
    cells: tuple[tuple[str, Cell, int], ...] = (
        ("sampler", shown_name, 0),
        ("episodes", lambda result: " / ".join(map(str, dict.fromkeys(result["episodes"]))), 1),
        ("success, points", lambda result: _estimate(result["success_difference"], "{:+.1f}", 100), 0),
        ("return", lambda result: _estimate(result["return_difference"], "{:+.3g}"), 2),
        ("rounds per plan", lambda result: _estimate(result["rounds_ratio"], "{:.2f}×"), 0),
        ("latency per plan", lambda result: _estimate(result["latency_ratio"], "{:.2f}×"), 0),
    )
    return Sheet(
        printable(f"{results['env']}: {results['second']} against {results['first']}"),
        _columns(cells, results["samplers"]),
        printable(f"second minus first, second / first; 95 % intervals; {how}"),
    )


def _estimate(value: dict[str, Any] | None, form: str, scale: float = 1) -> str:
    if value is None:
        return NOTHING
    mean = form.format(scale * value["mean"])
    if value["ci95"] is None:
        return mean
    low, high = (form.format(scale * end) for end in value["ci95"])
    return f"{mean} [{low}, {high}]"


def markdown(all_results: Sequence[dict[str, Any]]) -> str:
    """Write several results.json objects as one Markdown table, with what they were measured on below."""
    header = ("task", *COLUMNS)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for results in all_results:
        for index, result in enumerate(results["samplers"]):
            task = f"`{results['env']}`" if index == 0 else ""
            lines.append("| " + " | ".join((task, *row(result))) + " |")
    first = all_results[0]
    ran = f"{first['device']}; torch {first['torch']}, {first['backend']}, {first['dtype']}; seed {first['seed']}"
    counts = "; ".join(f"`{results['env']}` {sample_sizes(results)}" for results in all_results)
    code = f"asd_policy {first['package']}" + (f" at {first['commit'][:8]}" if first["commit"] else "")
    laws = "".join(f"; {law}" for law in dict.fromkeys(law for results in all_results for law in laws_of(results)))
    chosen = "".join(f"; on `{results['env']}` {line}" for results in all_results for line in choices(results))
    lines += ["", f"{ran}; {code}; K = {first['samplers'][0]['steps']}; {counts}{chosen}{laws}."]
    return "\n".join(lines) + "\n"


def tuning_table(results: dict[str, Any]) -> Sheet:
    """Lay out the results.json object of `tune` as a table for the terminal."""
    pair = results["sampler"].partition(",")[2]
    sequential = {name: _least(results, name) for name in ("plan_ms", "expected_plan_ms")}
    rows, headings, styles = [], [], []
    for each in sorted(results["settings"], key=lambda each: (each["backend"], each["window"])):
        tried, own = each["plan_ms"] is not None, f"draft={each['draft']},verify={each['verify']}" == pair
        if tried or own:
            name, about = ("plan_ms", "") if tried else ("expected_plan_ms", "≈ ")
            cells = f"{each['call_ms']:.2f}", f"{about}{each[name]:.1f}", f"{about}{sequential[name] / each[name]:.2f}×"
            rows.append((f"θ={each['window']} {each['draft']} {each['verify']}", *cells))
            headings.append(f"on {each['backend']}")
            best = all(results[key] == each[key] for key in ("backend", "window"))
            styles.append("bold" if tried and own and best else "")
    names = "setting", "call ms", "plan ms", "against sequential"
    columns = [Column(name, tuple(cells)) for name, cells in zip(names, zip(*rows, strict=True), strict=True)]
    title = f"{results['policy']}: {results['plans']} plans learned from"
    return Sheet(title, columns, f"≈ expected, not tried; {caption(results)}", headings, styles)


def _least(results: dict[str, Any], name: str) -> float:
    """Find what a plan of the sequential sampler takes on the backend where it takes the least."""
    return min(each[name] for each in results["settings"] if each["window"] == 1 and each[name] is not None)


def verification_table(results: dict[str, Any]) -> Sheet:
    """Lay out the results.json object of `verify` as a table for the terminal."""
    checks = results["checks"]
    found = [
        ", ".join(f"{_words(effect)} {value:.3g}" for effect, value in check["effects"].items()) for check in checks
    ]
    detectable = [results["detectable"].get(check["name"], {}) for check in checks]
    seen = [", ".join(f"{_words(effect)} {_powers(each)}" for effect, each in powers.items()) for powers in detectable]
    return Sheet(
        f"{results['sampler']} against {reference_of(results)}: {results['samples']} plans each at "
        f"{results['observations']} observations ({results['observations_from']}), seed {results['seed']}",
        [
            Column("test", tuple(check["name"] for check in checks), text=True),
            Column("of", tuple(check["of"] for check in checks), text=True),
            Column("p-value", tuple(f"{check['p_value']:.2g}" for check in checks)),
            Column("found", tuple(found), text=True),
            Column("would be found (power 80 / 90 %)", tuple(seen), text=True),
        ],
        caption(results),
        styles=["bold red" if check["p_value"] <= results["level"] else "" for check in checks],
    )


def verdict(results: dict[str, Any]) -> str:
    """Say in a line what `verify` found."""
    name = short_name(results["sampler"], results["exact"])
    numbers = f"p = {results['p_value']:.2g} over {len(results['checks'])} tests, level {results['alpha']:g}"
    steps = "" if results["steps_tested"] else "; its steps are not the chain's, so only plans were tested"
    reference = reference_of(results)
    if results["holds"]:
        return f"{name}: no difference from {reference} found ({numbers}{steps})"
    worst = min(results["checks"], key=lambda check: check["p_value"])
    return f"{name}: NOT the law of {reference}, by {worst['name']} of its {worst['of']} ({numbers}{steps})"


def inspection_table(said: dict[str, Any]) -> "Table":
    """Lay out the JSON object of `inspect` as a table for the terminal. What a checkpoint says may be any text."""
    from rich.table import Table
    from rich.text import Text

    rich_table = Table(title=Text(printable(f"{said['policy']}: {said['format']}")), show_header=False)
    rich_table.add_column(no_wrap=True)
    rich_table.add_column(overflow="fold")

    def row(name: str, *lines: str) -> None:
        rich_table.add_row(name, Text("\n".join(printable(line) for line in lines)))

    row("network", *_parameters(said))
    for kind in ("observation", "action"):
        if said[kind]:
            row(kind, *(f"{name} {shape}" for name, shape in said[kind].items()))
    if said["horizons"]:
        row("horizons", ", ".join(f"{name} {steps}" for name, steps in said["horizons"].items()))
    eta = {} if said["eta"] is None else {"eta": said["eta"]}
    row("scheduler", ", ".join(f"{key} {value}" for key, value in (said["scheduler"] | eta).items()))
    row("chain", said["chain"]["why"])
    for exact, title in ((True, "exact"), (False, "approximate")):
        samplers = [each for each in said["samplers"] if each["exact"] is exact]
        if samplers:
            row(title, *(f"{each['spec']}: {'' if each['usable'] else 'not here, '}{each['why']}" for each in samplers))
    if said["normalization"]:
        row("normalised", *(f"{feature} by {mode}" for feature, mode in said["normalization"].items()))
    for feature, ends in said["ranges"].items():
        low, high = (", ".join(f"{value:.4g}" for value in ends[key]) for key in ("at_minus_one", "at_one"))
        row("range", f"of {feature}", f"−1 is {low}", f"+1 is {high}")
    if said["recommended"]:
        row("recommended", *recommendation_lines(said["recommended"]))
    if said["is_policy"] and said["prediction_type"]:  # of tokens nothing is tuned
        tuning = said["tuning"]
        row("tuning", f"{tuning['plans']} plans in {tuning['file']}" if tuning else "none; asd-policy tune makes it")
    row("files", *(f"{each['name']} {each['bytes']:,} bytes, sha256 {each['sha256'][:16]}…" for each in said["files"]))
    for note in said["notes"]:
        row("note", note)
    use = "asd_policy.load_policy" if said["is_policy"] else "asd_policy.load_fn"
    row("runs here", *([f"yes, {use} loads it"] if said["runs_here"] else ["no:", *said["missing"]]))
    return rich_table


def _parameters(said: dict[str, Any]) -> list[str]:
    """Write a line for the parameters of the network in a checkpoint, and one for other numbers beside it."""
    network = said["parameters"] if said["network_parameters"] is None else said["network_parameters"]
    beside = said["parameters"] - network
    more = [f"{beside:,} numbers beside it, such as encoders of observations and statistics"] if beside else []
    return [f"{said['network']}, {network:,} parameters in the checkpoint", *more]


def _words(name: str) -> str:
    return name.replace("_sd", " in sd").replace("_", " ")


def _powers(powers: dict[str, float | None]) -> str:
    return " / ".join("–" if value is None else f"{value:.2g}" for value in powers.values())
