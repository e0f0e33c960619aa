"""`asd-policy eval`: is it as good, and is it faster, in closed loop?"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from asd_policy import evaluate, page, report, video
from asd_policy.backends.torch_eager import TorchEager
from asd_policy.checkpoints import load_policy
from asd_policy.commands.common import DONE, INTERRUPTED, BackendOption, check_at_least, progress_bar
from asd_policy.environments import make_env
from asd_policy.episodes import Episode
from asd_policy.errors import AsdError
from asd_policy.files import write_json
from asd_policy.policy import Policy
from asd_policy.runner import LocalRunner, groups
from asd_policy.samplers import make_sampler
from asd_policy.vector import make_envs


@dataclass(frozen=True)
class EvalCommand:
    """Roll a policy out in an environment with each sampler, on the same seeds, and compare."""

    policy: str
    """Checkpoint: a path, or a Hugging Face Hub id such as owner/name or owner/name@revision."""
    env: str
    """Gymnasium id of the environment, such as asd/Avoid-v0."""
    out: Path
    """Folder for results.json, report.html and videos."""
    samplers: tuple[str, ...] = ("ddpm", "asd")
    """Sampler specs: ddpm | asd | asd:window=16,draft=frozen,verify=reflection, and approximate
    ddim:10 | dpmsolver:10 | paradigms:window=16,tol=0.1."""
    episodes: int = 20
    """Episodes for each sampler."""
    seed: int = 0
    """Seeds environments and planning noise; equal for all samplers."""
    envs: int = 1
    """Environments that are stepped side by side, each in a process of its own where there are more than one, and
    planned for together. The rounding of a plan can depend on it, nothing else."""
    device: str = "cpu"
    """Torch device to plan on."""
    backend: BackendOption = TorchEager.name
    json: bool = False
    """Print the results as one JSON object on stdout."""
    video: bool = False
    """Also write an mp4 of the first episode of each sampler, and one of ddpm beside the fastest exact one."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self, console: Console) -> int:
        """Evaluate; return the exit status."""
        check_at_least("episodes", self.episodes, 1)
        check_at_least("envs", self.envs, 1)
        check_at_least("seed", self.seed, 0)
        samplers = list(dict.fromkeys(make_sampler(spec) for spec in self.samplers))
        if self.video:
            video.ffmpeg()
        if self.video and sys.platform == "linux" and "DISPLAY" not in os.environ:
            os.environ.setdefault("MUJOCO_GL", "egl")  # no screen: MuJoCo's default would look for one
        policy = load_policy(self.policy, device=self.device, backend=self.backend)
        env = make_env(self.env)
        try:
            planners = evaluate.prepare(policy, env, samplers)
        finally:
            env.close()
        runner = LocalRunner(planners, make_envs(partial(make_env, self.env), self.envs), self.seed)
        self.out.mkdir(parents=True, exist_ok=True)  # before the work, so that it is not lost for want of a folder
        record = report.run_record("eval", self.policy, self.env, self.seed, policy)
        record |= {"episodes": self.episodes, "envs": self.envs}
        finished: list[Episode] = []
        cut_short: KeyboardInterrupt | AsdError | None = None
        try:
            with progress_bar(console) as progress:
                task = progress.add_task(self.env, total=self.episodes * len(samplers))
                work = groups([sampler.spec for sampler in samplers], self.episodes, self.envs)
                for episode in runner.run(work):
                    finished.append(episode)
                    progress.advance(task)
        except (KeyboardInterrupt, AsdError) as stop:
            cut_short = stop
        finally:
            runner.close()
        summary = evaluate.summarize(samplers, finished, len(policy.chain))
        results = {**record, "interrupted": cut_short is not None, "samplers": summary}
        path = self.out / "results.json"
        write_json(path, results)
        if self.json:
            print(json.dumps(results))
        console.print(report.table(results))
        if cut_short is None:
            console.print(f"results: {path}", soft_wrap=True)
            self._show(console, planners, results)
            return DONE
        kept = f"{len(finished)} of {self.episodes * len(samplers)} episodes are kept in {path}"
        console.print(f"interrupted: {kept}", soft_wrap=True)
        if finished:
            self._show(console, [], results)
        if isinstance(cut_short, AsdError):
            raise cut_short
        return INTERRUPTED

    def _show(self, console: Console, planners: Sequence[Policy], results: dict[str, Any]) -> None:
        """Write videos of the planners, where they are asked for, and the page."""
        best = page.fastest_exact(results)
        try:
            if self.video and planners:
                for path in video.record(planners, self.env, self.seed, self.out, best["spec"] if best else None):
                    console.print(f"video: {path}", soft_wrap=True)
        finally:
            console.print(f"page: {page.write(self.out)}", soft_wrap=True)
