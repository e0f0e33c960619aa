"""The training script: what it writes, resuming, and wrong input, on a run of seconds."""

import json
import re
import sys
from ctypes.util import find_library
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import asd_policy
import train
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.cli import common
from asd_policy.policy.sensors import encode_history
from training import episodes, objectives, trainer


def run(out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    words = ["--env", "asd/Avoid-v0", "--out", str(out), "--steps", "8", "--demonstrations", "2", "--noise", "0.01"]
    words += ["--down-dims", "16", "32", "--batch", "8", "--save-every", "2", *more]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    train.main()


def test_writes_a_policy_that_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "policy", monkeypatch, "--n-action-steps", "3")
    policy = asd_policy.load_policy(tmp_path / "policy", "asd:window=8")
    action = policy.select_action({"agent_pos": torch.zeros(4), "environment_state": torch.zeros(3)})
    assert action.shape == (2,)
    assert policy.horizons.n_action_steps == 3
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    stored = load_file(tmp_path / "policy" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert str(tmp_path) not in (tmp_path / "policy" / "training.json").read_text()


def test_a_flow_is_learned_and_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "flow", monkeypatch, "--objective", "flow")
    assert asd_policy.load_policy(tmp_path / "flow").sampler.spec == "euler:100"
    policy = asd_policy.load_policy(tmp_path / "flow", "asd:window=8", chain="stochastic")
    assert policy.select_action({"agent_pos": torch.zeros(4), "environment_state": torch.zeros(3)}).shape == (2,)
    config = trainer.DiffusionConfig({}, 2, {}, num_train_timesteps=4, **objectives.OBJECTIVES["flow"])
    clean, noise = torch.randn(2, 4, 3, 2)
    points, velocity = objectives.corruption_of(config)(clean, noise, torch.arange(4))
    torch.testing.assert_close(points[3], noise[3])  # the last timestep is time 1
    chain = GaussianChain.from_flow(4, 0.0, "timestep", num_train_timesteps=4)
    for k, timestep in enumerate(chain.timesteps.tolist()):
        torch.testing.assert_close(
            chain.predict(points[timestep][None], velocity[timestep][None], k)[0], clean[timestep]
        )


def test_a_log_file_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is no terminal, lines say how far it is."""
    monkeypatch.setattr(common, "_LINE_EVERY", 0.0)
    run(tmp_path / "policy", monkeypatch)
    lines = capsys.readouterr().err.splitlines()
    assert {"1 of 2: demonstrations", "2 of 2: demonstrations"} <= set(lines)
    assert any(re.fullmatch(r"5 of 8: training, loss \d\.\d+", line) for line in lines)


def test_an_interrupted_training_goes_on_as_if_nothing_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", monkeypatch)
    update = trainer.Trainer.update

    def interrupted(self: trainer.Trainer, windows: trainer.Windows) -> float:
        if self.step == 5:
            raise KeyboardInterrupt
        return update(self, windows)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "update", interrupted)
        with pytest.raises(SystemExit) as stop:
            run(tmp_path / "halves", patch)
    assert stop.value.code == 130
    assert (tmp_path / "halves.training").exists()
    with pytest.raises(SystemExit, match="is of a training with batch 8, not 9: remove it first"):
        run(tmp_path / "halves", monkeypatch, "--batch", "9")
    run(tmp_path / "halves", monkeypatch)
    assert not (tmp_path / "halves.training").exists()
    whole, halves = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    for key, value in whole.items():
        assert torch.equal(value, halves[key]), key


def test_windows_repeat_the_edges() -> None:
    past, chunk = episodes.window_rows([3, 1], 2, 4)
    assert past.tolist() == [[0, 0], [0, 1], [1, 2], [3, 3]]
    # A chunk begins with the action of the oldest observation, one step in the past.
    assert chunk.tolist() == [[0, 0, 1, 2], [0, 1, 2, 2], [1, 2, 2, 2], [3, 3, 3, 3]]


def test_still_coordinates_keep_their_scale() -> None:
    statistics = episodes.measure_statistics({"x": torch.tensor([[0.0, 5.0], [2.0, 5.0]])})["x"]
    assert statistics["min"].tolist() == [0.0, 4.0]
    assert statistics["max"].tolist() == [2.0, 6.0]


def test_statistics_of_frames_are_those_of_their_colours() -> None:
    frames = np.random.default_rng(0).integers(3, 250, (300, 5, 4, 3), np.uint8)
    frames[..., 2] = 7  # a colour that never changes
    found = episodes.measure_statistics({"camera": torch.from_numpy(frames)})["camera"]
    colours = frames.reshape(-1, 3) / 255
    expected = {"min": colours.min(0), "max": colours.max(0), "mean": colours.mean(0), "std": colours.std(0)}
    expected["std"][2] = 1
    for name, value in expected.items():
        assert found[name].shape == (3, 1, 1)
        np.testing.assert_allclose(found[name].flatten(), value, atol=1e-6)


@pytest.mark.skipif(find_library("EGL") is None, reason="frames need the system library libEGL")
def test_images_are_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "--images",
        "--auxiliary",
        "1",
        "--env",
        "asd/AvoidPixels-v0",
        "--steps",
        "3",
        "--batch",
        "2",
        "--draws",
        "3",
    ]
    run(tmp_path / "policy", monkeypatch, *words, "--crop", "60", "56", "--snapshot-every", "2")
    policy = asd_policy.load_policy(tmp_path / "policy", "asd:window=8")
    assert dict(policy.observation_shapes) == {"observation.state": (4,), "observation.image": (3, 64, 64)}
    env = gymnasium.make("asd/AvoidPixels-v0")
    seen, _ = env.reset(seed=0)
    env.close()
    assert policy.select_action(seen).shape == (2,)
    # LeRobot since 0.6 would download weights where nothing is said.
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["pretrained_backbone_weights"] is None
    # The encoder is trained: a random one has biases of zero after its normalisations.
    stored = load_file(tmp_path / "policy" / "model.safetensors")
    assert stored["diffusion.rgb_encoder.backbone.1.bias"].abs().max() > 0
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_training_sees_what_the_policy_sees(tmp_path: Path) -> None:
    """The trainer's conditioning is that of the policy that it writes, for a camera and two vectors."""
    random = np.random.default_rng(1)
    steps = episodes.Episodes(
        {
            "observation.state": torch.rand(6, 2),
            "observation.environment_state": torch.rand(6, 3),
            "observation.images.front": torch.from_numpy(random.integers(0, 256, (6, 40, 36, 3), np.uint8)),
            "observation.images.wrist": torch.from_numpy(random.integers(0, 256, (6, 40, 36, 3), np.uint8)),
            "action": torch.rand(6, 2),
        },
        [4, 2],
    )
    options = train.Options(env="asd/Avoid-v0", out=tmp_path / "policy", down_dims=(8,))
    config = train.configure(options, steps)
    statistics = episodes.measure_statistics(steps.features)
    windows = trainer.Windows(steps, config, statistics, "cpu")
    made = trainer.Trainer(trainer.Training(1, 1, 1, None, 1e-3, 0, False, 0.0, "cpu"), config)
    train.write(options.out, made, windows, statistics, {})
    policy = asd_policy.load_policy(options.out)
    made.network.load_state_dict({name: value.half().float() for name, value in made.network.state_dict().items()})
    history = {
        name: torch.stack([values[[0, 1]], values[[4, 5]]])
        for name, values in steps.features.items() if name != "action"
    }  # fmt: skip
    with torch.no_grad():
        cond, _ = windows.conditioning(torch.tensor([1, 5]), made.network, torch.Generator(), bfloat16=False)
    torch.testing.assert_close(
        cond, encode_history(policy.encoder, history, 2, torch.device("cpu")), rtol=1e-4, atol=1e-4
    )


def test_an_encoder_learns_to_predict_what_the_policy_does_not_observe(tmp_path: Path) -> None:
    """The second loss goes down, and leaves nothing in the policy."""
    generator = torch.Generator().manual_seed(0)
    level = torch.rand(40, 1, generator=generator)
    bars = (torch.linspace(0, 1, 34) - level).abs() < 0.2
    steps = episodes.Episodes(
        {
            "observation.state": torch.zeros(40, 1),
            "observation.image": 255 * bars.byte().view(40, 1, 34, 1).expand(40, 8, 34, 3),
            "action": torch.randn(40, 2, generator=generator),
        },
        [1] * 40,
        unseen=level,
    )
    options = train.Options(env="asd/Avoid-v0", out=tmp_path / "policy", down_dims=(8,))
    config = train.configure(options, steps)
    statistics = episodes.measure_statistics(steps.features)
    windows = trainer.Windows(steps, config, statistics, "cpu")
    made = trainer.Trainer(trainer.Training(100, 8, 1, None, 1e-3, 0, False, 1.0, "cpu"), config, unseen=1)

    def error() -> float:
        predict = made.network.predict
        assert predict is not None
        with torch.no_grad():
            _, seen = windows.conditioning(torch.arange(40), made.network, torch.Generator(), bfloat16=False)
            assert seen is not None
            return float((predict(seen)[:, -1] - (2 * level - 1)).square().mean())

    before = error()
    for _ in range(20):
        made.update(windows)
    assert error() < 0.5 * before
    train.write(options.out, made, windows, statistics, {})
    assert not [name for name in load_file(options.out / "model.safetensors") if "predict" in name]


def toy(tmp_path: Path, **options: object) -> tuple[trainer.Trainer, trainer.Windows]:
    """A trainer on ten steps of noise that are seen by a camera."""
    generator = torch.Generator().manual_seed(3)
    steps = episodes.Episodes(
        {
            "observation.state": torch.rand(10, 2, generator=generator),
            "observation.image": torch.randint(0, 256, (10, 34, 8, 3), generator=generator).byte(),
            "action": torch.rand(10, 2, generator=generator),
        },
        [6, 4],
    )
    values = {"steps": 20, "batch": 2, "draws": 2, "encoder_steps": 2, "learning_rate": 1e-2, "seed": 0}
    training = trainer.Training(**{**values, "bfloat16": False, "auxiliary": 0.0, "device": "cpu", **options})
    config = train.configure(train.Options(env="asd/Avoid-v0", out=tmp_path, down_dims=(8,)), steps)
    statistics = episodes.measure_statistics(steps.features)
    return trainer.Trainer(training, config), trainer.Windows(steps, config, statistics, "cpu")


def test_an_encoder_that_has_learned_stays_as_it_is_and_is_written_so(tmp_path: Path) -> None:
    made, windows = toy(tmp_path)
    assert made.network.encoder is not None
    first = made.network.encoder.out.weight.detach().clone()
    for _ in range(3):
        made.update(windows)
    kept = {name: value.clone() for name, value in made.network.encoder.state_dict().items()}
    unet = next(made.network.unet.parameters()).detach().clone()
    assert not torch.equal(first, kept["out.weight"])
    for _ in range(2):
        made.update(windows)
    _, encoder = made.weights()
    assert encoder is not None
    for name, value in made.network.encoder.state_dict().items():
        assert torch.equal(value, kept[name]) and torch.equal(encoder[name].float(), kept[name]), name
    assert not torch.equal(next(made.network.unet.parameters()), unet)
    # What the U-Net learns on is what the policy will see.
    windows_again = toy(tmp_path)[1]
    with torch.no_grad():
        kept_cond, _ = windows.conditioning(torch.arange(10), made.network, torch.Generator(), bfloat16=False)
        cond, _ = windows_again.conditioning(torch.arange(10), made.network, torch.Generator(), bfloat16=False)
    torch.testing.assert_close(kept_cond, cond, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_training_on_frames_goes_on_as_if_nothing_happened(stop: int, tmp_path: Path) -> None:
    """Before its encoder has learned, and after."""
    made, windows = toy(tmp_path)
    losses = [made.update(windows) for _ in range(5)]
    first, windows = toy(tmp_path)
    again = [first.update(windows) for _ in range(stop)]
    first.save(tmp_path / "state")
    second, windows = toy(tmp_path)
    second.restore(tmp_path / "state")
    again += [second.update(windows) for _ in range(5 - stop)]
    assert again == losses
    for ours, theirs in zip(second.weights()[0].values(), made.weights()[0].values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_training_goes_on_with_more_steps_and_says_so(tmp_path: Path) -> None:
    first, windows = toy(tmp_path)
    for _ in range(4):
        first.update(windows)
    first.save(tmp_path / "state")
    longer, windows = toy(tmp_path, steps=40)
    longer.restore(tmp_path / "state")
    assert longer.step == 4 and longer.schedules == [{"steps": 20, "until": 4}]
    rate = longer.schedule.get_last_lr()
    for _ in range(5):
        longer.update(windows)
    expected, _ = toy(tmp_path, steps=40)
    for _ in range(9):
        expected.optimizer.step()
        expected.schedule.step()
    assert longer.schedule.get_last_lr() == expected.schedule.get_last_lr() != rate
    longer.save(tmp_path / "state")
    shorter, _ = toy(tmp_path, steps=8)
    with pytest.raises(SystemExit, match="is of a training with steps 40, not 8"):
        shorter.restore(tmp_path / "state")  # it is past its end


def test_frames_are_cropped_at_random_places() -> None:
    frames = torch.arange(36.0).view(1, 1, 6, 6).expand(2, 3, 6, 6)
    generator = torch.Generator().manual_seed(0)
    corners = {int(trainer.random_crop(frames, (5, 4), generator)[0, 0, 0, 0]) for _ in range(60)}
    assert corners == {0, 1, 2, 6, 7, 8}


def test_frames_that_are_one_place_to_the_encoder(tmp_path: Path) -> None:
    """Their places are all that a spatial softmax keeps of feature maps."""
    features = {name: torch.zeros(3, 2) for name in ("observation.state", "action")}
    options = train.Options(env="asd/Avoid-v0", out=tmp_path)
    steps = episodes.Episodes({**features, "observation.image": torch.zeros(3, 32, 30, 3, dtype=torch.uint8)}, [3])
    with pytest.raises(SystemExit, match="frames of 32 × 30 are a single place to the encoder: more than 32 pixels"):
        train.configure(options, steps)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images"], "asd/Avoid-v0 shows no frames: --images needs an environment that does, asd/AvoidPixels-v0"),
        (["--env", "asd/AvoidPixels-v0"], "asd/AvoidPixels-v0 shows frames and not the state of its objects: --images"),
    ],
)
def test_frames_and_no_frames_are_told_apart(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=message):
        run(tmp_path / "policy", monkeypatch, *words)


def test_wrong_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no environment 'CartPole-v1' with an expert: asd/Avoid-v0"):
        run(tmp_path / "policy", monkeypatch, "--env", "CartPole-v1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps 0 is not a positive number"),
        (["--demonstrations", "-1"], "--demonstrations -1 is not a positive number"),
        (["--draws", "0"], "--draws 0 is not a positive number"),
        (["--save-every", "0"], "--save-every 0 is not a positive number"),
        (["--n-action-steps", "16"], "--n-action-steps 16 is not in 1 … 15"),
        (["--noise", "2"], "--noise 2.0 is not in 0 … 1"),
        (["--horizon", "10", "--n-action-steps", "2"], "--horizon 10 is not a multiple of 4, as 2 --down-dims need"),
        (["--n-obs-steps", "0"], "--n-obs-steps 0 is not a positive number"),
        (["--encoder-steps", "0"], "--encoder-steps 0 is not a positive number"),
        (["--auxiliary", "-1"], "--auxiliary -1.0 is negative"),
        (["--auxiliary", "1"], "--auxiliary needs an environment that knows its state, and --images"),
        (["--learning-rate", "0"], "--learning-rate 0.0 is not positive"),
        (["--down-dims", "12", "16"], "--down-dims 12 16 are not multiples of 8"),
    ],
)
def test_wrong_numbers(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=message):
        run(tmp_path / "policy", monkeypatch, *words)
    assert not list(tmp_path.iterdir())
