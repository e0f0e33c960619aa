"""What the scripts for docs/results/lerobot.md make of runs that are there already, and what the stopwatch sees."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))
from lerobot_runs import Options, Policy, Run, latency_rows, lines_said, policy_rows, reward_rows, rollout_rows  # noqa: E402
from lerobot_timed import Stopwatch  # noqa: E402

SAID = "INFO 2026-11-29 18:33:25 sd/report.py:46 diffusion policy plans with asd … where LeRobot's DDPM loop takes 1 ms"


def write_run(folder: Path, successes: list[bool], times: dict[str, object]) -> None:
    """Write what a run of lerobot-eval leaves; its rewards are 1 for success, else a half."""
    rewards = [1.0 if each else 0.5 for each in successes]
    metrics = {"successes": successes, "max_rewards": rewards, "sum_rewards": [10 * each for each in rewards]}
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    (folder / "eval/eval_info.json").write_text(json.dumps({"per_task": [{"metrics": metrics}]}))
    (folder / "times.json").write_text(json.dumps(times))
    (folder / "robot.jsonl").write_text('{"time": 1, "reward": 0.25}\n{"time": 2, "reward": 0.5}\n')
    (folder / "log.txt").write_text(
        f"{{'a': \"LeRobot's\"}}\nRecord loop is running slower (1 Hz) than the target FPS\n{SAID}\n"
    )


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """Make two turns of two runs of a policy that plans in 100 ms, and in 50 ms and 20 rounds with the plugin."""
    policy, out = tmp_path / "mine", tmp_path / "runs"
    policy.mkdir()
    shape = {"horizon": 64, "n_action_steps": 32, "num_inference_steps": None, "num_train_timesteps": 100}
    features = {"observation.state": {}, "observation.image": {}}
    (policy / "config.json").write_text(json.dumps({**shape, "input_features": features}))
    (policy / "training.json").write_text(json.dumps({"parameters": 2_700_000, "options": {"steps": 8000}}))
    off: dict[str, object] = {"load_s": [0.5], "plans_s": [0.3, 0.1, 0.1]}
    on = off | {"load_s": [2.0], "plans_s": [0.06, 0.04, 0.06], "plans": 3, "rounds": 60}
    for name in ("rewards{}", "latency{}-0", "latency{}-1", "rollout{}-0", "rollout{}-1"):
        write_run(out / "mine" / name.format("-off"), [True, False, True, True], off)
        write_run(out / "mine" / name.format("-asd"), [True, True, True, True], on)
    return Options(policies=(str(policy),), out=out, turns=2)


def test_a_changed_field(options: Options) -> None:
    policy = Policy(f"{options.policies[0]},n_action_steps=8")
    assert (policy.name, policy.config["n_action_steps"], policy.has_camera) == ("mine,n_action_steps=8", 8, True)
    assert policy.words == [f"--policy.path={options.policies[0]}", "--policy.n_action_steps=8"]
    assert Policy("here").name == "here"


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_tables(options: Options) -> None:
    assert cells(list(policy_rows(options))[2]) == ["`mine`", "state, image", "64 / 32", "100", "2.7", "8000 steps"]
    off, on, difference = map(cells, list(reward_rows(options))[2:])
    assert off[:4] == ["`mine`", "`off`", "4", "75 [30, 95]"] and on[:4] == ["`mine`", "`asd`", "4", "100 [51, 100]"]
    assert (off[4].split()[0], off[5].split()[0], off[6:]) == ("0.875", "8.8", ["3", "–"])
    assert on[4:] == ["1.000 [1.000, 1.000]", "10.0 [10.0, 10.0]", "3", "20.0"]
    assert [each.split()[0] for each in difference[3:6]] == ["+25", "+0.125", "+1.2"]
    off, on = map(cells, list(latency_rows(options))[2:])
    assert off == ["`mine`", "`off`", "0.5; 0.5", "300, 300", "100 / 100", "4", "", "–"]
    assert on[:6] == ["`mine`", "`asd`", "2.0; 2.0", "60, 60", "50 / 60", "4"]
    assert (on[6].split()[0], on[7]) == ("2.00", "20.0")
    on = cells(list(rollout_rows(options))[3])
    assert on[2:5] + on[6:] == ["60, 60", "50 / 60", "4", "20.0", "2, 2", "1, 1", "0.50, 0.50"]
    assert list(lines_said(options))[:2] == ["mine, off:", SAID]


def test_a_failed_run_is_named(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    run = Run(options.out / "mine/rewards-off")
    (run.folder / "times.json").unlink()
    with pytest.raises(SystemExit, match="lerobot-eval of .*mine with off has failed: see .*rewards-off/log.txt"):
        list(reward_rows(options))


def test_a_policy_that_was_not_accelerated_is_refused(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = options.out / "mine/rewards-asd"
    (folder / "times.json").unlink()

    def run(words: list[str], **_: object) -> SimpleNamespace:
        write_run(folder, [True], {"load_s": [0.5], "plans_s": [0.3]})
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(SystemExit, match="mine was not accelerated: INFO .* diffusion policy"):
        list(reward_rows(options))
    assert not (folder / "times.json").exists()


def test_the_stopwatch_changes_nothing() -> None:
    stopwatch, config = Stopwatch(), SimpleNamespace(type="diffusion")
    loaded = SimpleNamespace(config=config, predict_action_chunk=lambda batch, noise=None: (batch, noise))
    policy = stopwatch.watch(lambda *, cfg: cfg)(cfg=loaded)
    assert policy is loaded
    assert policy.predict_action_chunk(3, noise=4) == (3, 4)
    assert policy.predict_action_chunk(5) == (5, None)
    report = stopwatch.report()
    assert (len(report["load_s"]), len(report["plans_s"]), report["type"]) == (1, 2, "diffusion")
    assert "rounds" not in report
    loaded.asd_stats = SimpleNamespace(plans=2, rounds=30, nfe=99)
    assert stopwatch.report()["rounds"] == 30
