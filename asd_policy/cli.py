"""The command line `asd-policy`: reads options, shows progress, and turns errors into one line and a status."""

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import asd_policy
from asd_policy import evaluate, law, report
from asd_policy.checkpoints import load_policy
from asd_policy.errors import AsdError, SpecError
from asd_policy.files import write_json
from asd_policy.samplers import SAMPLERS, make_sampler

DONE, DIFFERS, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
REDIRECTED_WIDTH = 140  # [columns] of what goes to a file, which has no width of its own


@dataclass(frozen=True)
class EvalCommand:
    """Roll a policy out in an environment with each sampler, on the same seeds, and compare."""

    policy: str
    """Checkpoint: a LeRobot diffusion folder."""
    env: str
    """Gymnasium id of the environment, such as asd/Avoid-v0."""
    out: Path
    """Folder for results.json (and videos)."""
    samplers: tuple[str, ...] = ("ddpm", "asd")
    """Sampler specs: ddpm | asd | asd:window=16,draft=frozen,verify=reflection, and approximate
    ddim:10 | dpmsolver:10 | paradigms:window=16,tol=0.1."""
    episodes: int = 20
    """Episodes for each sampler."""
    seed: int = 0
    """Seeds environments and planning noise; equal for all samplers."""
    device: str = "cpu"
    """Torch device to plan on."""
    json: bool = False
    """Print the results as one JSON object on stdout."""
    video: bool = False
    """Also write an mp4 of the first episode of each sampler."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Evaluate; return the exit status."""
        if self.episodes < 1:
            raise SpecError(f"--episodes {self.episodes} is not a positive number")
        if self.seed < 0:
            raise SpecError(f"--seed {self.seed} is not 0 or more")
        samplers = list(dict.fromkeys(make_sampler(spec) for spec in self.samplers))
        if self.video and sys.platform == "linux" and "DISPLAY" not in os.environ:
            os.environ.setdefault("MUJOCO_GL", "egl")  # no screen: MuJoCo's default would look for one
        policy = load_policy(self.policy, device=self.device)
        env = evaluate.make_env(self.env)
        planners = evaluate.prepare(policy, env, samplers)
        self.out.mkdir(parents=True, exist_ok=True)  # before the work, so that it is not lost for want of a folder
        record = report.run_record("eval", self.policy, self.env, self.seed, policy.device)
        record["episodes"] = self.episodes
        finished: list[evaluate.Episode] = []
        cut_short: KeyboardInterrupt | AsdError | None = None
        try:
            with _progress(console) as progress:
                task = progress.add_task(self.env, total=self.episodes * len(samplers))
                for episode in evaluate.rollouts(planners, env, self.episodes, self.seed):
                    finished.append(episode)
                    progress.advance(task)
        except (KeyboardInterrupt, AsdError) as stop:
            cut_short = stop
        finally:
            env.close()
        results = {**record, "interrupted": cut_short is not None, "samplers": evaluate.summarize(samplers, finished)}
        path = self.out / "results.json"
        write_json(path, results)
        if self.json:
            print(json.dumps(results))
        console.print(report.table(results))
        if cut_short is None:
            console.print(f"results: {path}", soft_wrap=True)
            if self.video:
                for video in evaluate.record_video(policy, self.env, samplers, self.seed, self.out):
                    console.print(f"video: {video}", soft_wrap=True)
            return DONE
        kept = f"{len(finished)} of {self.episodes * len(samplers)} episodes are kept in {path}"
        console.print(f"interrupted: {kept}", soft_wrap=True)
        if isinstance(cut_short, AsdError):
            raise cut_short
        return INTERRUPTED


@dataclass(frozen=True)
class VerifyCommand:
    """Test whether a sampler's law is the sequential one on a policy: exit status 0 if so, 1 if not."""

    policy: str
    """Checkpoint: a LeRobot diffusion folder."""
    sampler: str = "asd"
    """Spec of the sampler in question; an approximate one such as ddim:10 should fail."""
    samples: int = 256
    """Plans to draw with it, and with ddpm, at each observation; 16 to 4096."""
    observations: int = 4
    """Observations to plan at."""
    env: str | None = None
    """Gymnasium id: take the observations from its episodes, and not at random from the normalisation's range."""
    alpha: float = 0.01
    """Probability of a false alarm, over all tests together. Going from 0.05 to 0.01 costs a fifth more in the
    difference that can be seen, and makes a failure worth believing."""
    seed: int = 0
    """Seeds observations, noise and permutations."""
    out: Path | None = None
    """Folder for results.json."""
    device: str = "cpu"
    """Torch device to plan on."""
    json: bool = False
    """Print the results as one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Draw, test and tell; return the exit status."""
        if not 16 <= self.samples <= 4096:
            raise SpecError(f"--samples {self.samples} is not in 16 … 4096")
        if self.observations < 1:
            raise SpecError(f"--observations {self.observations} is not a positive number")
        if not 0 < self.alpha < 1:
            raise SpecError(f"--alpha {self.alpha} is not between 0 and 1")
        if self.seed < 0:
            raise SpecError(f"--seed {self.seed} is not 0 or more")
        sampler = make_sampler(self.sampler)
        policy = load_policy(self.policy, device=self.device)
        sampler.check(policy.chain)
        policy.check()
        record = report.run_record("verify", self.policy, self.env, self.seed, policy.device)
        states, noise, reference_noise, tests = (
            int(word) for word in np.random.SeedSequence(self.seed).generate_state(4)
        )
        if self.env is None:
            conds, source = law.at_random(policy, self.observations, states), "random in the normalisation's range"
        else:
            env = evaluate.make_env(self.env)
            try:
                conds = law.closed_loop(policy, env, sampler, self.observations, states)
            finally:
                env.close()
            source = f"episodes of {self.env}"
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)  # before the work, so that it is not lost for want of a folder
        with _progress(console) as progress:
            task = progress.add_task(sampler.spec, total=2 * self.observations * self.samples)

            def advance(count: int) -> None:
                progress.advance(task, count)

            drawn = law.draw(policy, sampler, conds, self.samples, noise, True, advance)
            progress.update(task, description="ddpm")
            reference = law.draw(policy, law.reference_sampler(), conds, self.samples, reference_noise, False, advance)
            progress.update(task, description="tests")
            outcome = law.compare(drawn, reference, self.alpha, tests)
        results = {
            **record,
            "sampler": sampler.spec,
            "exact": sampler.exact,
            "steps": len(policy.chain),
            "samples": self.samples,
            "observations": self.observations,
            "observations_from": source,
            **outcome,
        }
        if self.out is not None:
            write_json(self.out / "results.json", results)
        if self.json:
            print(json.dumps(results))
        console.print(report.verification_table(results))
        console.print(report.verdict(results), soft_wrap=True)
        return DONE if results["holds"] else DIFFERS


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


COMMANDS = {"eval": EvalCommand, "verify": VerifyCommand}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a check did not hold, 2 bad usage or input, 130 interrupted."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=REDIRECTED_WIDTH)
    try:
        command = _parse(arguments)
    except AsdError as error:
        return _fail(error)
    try:
        return command.run(console)
    except KeyboardInterrupt:
        print("asd-policy: interrupted before anything was done", file=sys.stderr)
        return INTERRUPTED
    except (AsdError, OSError) as error:
        if command.debug:
            raise
        return _fail(error)


def _parse(arguments: Sequence[str]) -> Any:
    """Return the command that the arguments describe.

    Raises:
        SpecError: They describe none; tyro's box of text, folded into one line.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="asd-policy",
                description=f"{asd_policy.__doc__} Samplers: {', '.join(SAMPLERS)}.",
                args=list(arguments),
            )
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
    raise SpecError(_fold(said.getvalue()))


def _fold(box: str) -> str:
    """Return tyro's boxed message as one line, without its title, help texts and guesses."""
    lines = [line.strip("│╭╮╰╯ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    parts = [part.strip() for part in re.split(r"─{4,}", " ".join(lines))]
    told = [part for part in parts if part and not re.match(r"─ |For full|Argument help|Perhaps you", part)]
    message = re.sub(r"(--[\w-]+) [A-Z]+ .*?\(required\)", r"\1", " ".join("; ".join(told).split()))
    message = re.sub(r" \(applied to [\w -]+\)| Arguments are applied.*?matter\.", "", message)
    return f"{message.rstrip('.')}; see asd-policy --help"


def _fail(error: Exception) -> int:
    print("asd-policy: " + " ".join(str(error).split()), file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    main()
