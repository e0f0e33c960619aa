"""Files whose scheduler is DDIM without noise: their own plan, the chain they were trained for, and what is refused."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from rich.console import Console
from torch import Tensor

import asd_policy
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.checkpoints import inspection
from asd_policy.checkpoints.lerobot.folder import DiffusionConfig
from asd_policy.checkpoints.recommendation import recommendation_lines
from asd_policy.evaluation.reports import report
from asd_policy.policy.policy import Policy
from asd_policy.samplers import OF_STEPS, make_sampler
from asd_policy.samplers.ddim import Ddim
from support import training_files as files
from support.small_checkpoints import save_random

OWN = 5
TOLERANCE = 1e-4  # of the action range, which is −1 … 1
OPTIONS: dict[str, Any] = {
    "num_train_timesteps": files.STEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
    "steps_offset": 0,
}
LEROBOT = {key: OPTIONS[key] for key in ("num_train_timesteps", "beta_schedule", "clip_sample", "prediction_type")}

Make = Callable[[Path, Mapping[str, Any]], Path]


def workspace(case: str, **policy: Any) -> Make:
    """Write a Diffusion Policy checkpoint of a case."""

    def make(folder: Path, options: Mapping[str, Any]) -> Path:
        payload = files.workspace(case)
        scheduler = {"_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler", **options}
        changes = {"noise_scheduler": scheduler, "num_inference_steps": OWN, **policy}
        payload["cfg"]["policy"] = {**payload["cfg"]["policy"], **changes}
        return files.save_workspace(folder / "latest.ckpt", payload)

    return make


def robomimic(folder: Path, options: Mapping[str, Any]) -> Path:
    payload = files.robomimic()
    algo = payload["config"]["algo"]
    algo["ddpm"]["enabled"] = False
    algo["ddim"] = {"enabled": True, "num_inference_timesteps": OWN, **options}
    return files.save_robomimic(folder / "model.pth", payload)


FILES: dict[str, Make] = {
    "unet": workspace("unet"),
    "unet-inpainting": workspace("unet-inpainting"),
    "transformer": workspace("transformer"),
    "robomimic": robomimic,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "offset": {"set_alpha_to_one": False, "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
    "sample": {"prediction_type": "sample"},
    "v": {"prediction_type": "v_prediction", "clip_sample": False},
    "thresholding": {"thresholding": True, "sample_max_value": 1.5},
}


def observations(policy: Policy) -> Tensor:
    """Return conditioning for three plans."""
    dims = policy.horizons.n_obs_steps * sum(policy.observation_dims.values())
    return files.fill({"cond": (3, dims)})["cond"]


def by_diffusers(policy: Policy, options: Mapping[str, Any], steps: int, cond: Tensor, start: Tensor) -> Tensor:
    """Plan as the libraries do: their loop around diffusers' scheduler, with the same network and start noise."""
    scheduler = DDIMScheduler(**options)
    scheduler.set_timesteps(steps)
    held, x = policy.inpainting(cond), start
    with torch.inference_mode():
        for timestep in scheduler.timesteps:
            x = x if held is None else torch.where(held.mask, held.values, x)
            output = policy.network(x, timestep.expand(len(x)), None if policy.inpaints else cond)
            x = scheduler.step(output, int(timestep), x, return_dict=False)[0]
    return x if held is None else torch.where(held.mask, held.values, x)


def check_own_plan(path: Path, options: Mapping[str, Any], steps: int, spec: str | None = None) -> None:
    policy = asd_policy.load_policy(path, spec)
    assert policy.sampler.spec == f"ddim:{steps}"
    cond, shape = observations(policy), (3, *policy.event)
    tape = NoiseTape.draw(shape, len(policy.chain), torch.Generator().manual_seed(0))
    result = policy.sampler.sample(
        policy.denoiser,
        policy.chain,
        shape,
        None if policy.inpaints else cond,
        tape,
        inpainting=policy.inpainting(cond),
    )
    expected = by_diffusers(policy, options, steps, cond, tape.initial)
    torch.testing.assert_close(result.sample, expected, rtol=0, atol=TOLERANCE)
    assert result.stats.rounds == result.stats.nfe == (steps,) * 3
    assert all(plan.exact is (steps == OWN) for plan in result.stats.plans)
    assert result.stats.steps == OWN


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", FILES)
def test_the_own_plan_is_that_of_the_library(name: str, variant: str, tmp_path: Path) -> None:
    options = OPTIONS | VARIANTS[variant]
    check_own_plan(FILES[name](tmp_path, options), options, OWN)


def test_another_number_of_steps_is_the_library_s_too_and_approximate(tmp_path: Path) -> None:
    options = OPTIONS | {"set_alpha_to_one": False}
    check_own_plan(FILES["unet"](tmp_path, options), options, 2, "ddim:2")


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_the_own_plan_of_a_lerobot_folder(prediction_type: str, lerobot: Path) -> None:
    edit(lerobot, prediction_type=prediction_type)
    check_own_plan(lerobot, LEROBOT | {"prediction_type": prediction_type}, OWN)


def test_without_a_number_of_steps_it_is_all_of_them(lerobot: Path) -> None:
    edit(lerobot, num_inference_steps=None)
    assert asd_policy.load_policy(lerobot).sampler.spec == "ddim:10"


@pytest.fixture
def lerobot(tmp_path: Path, small_config: DiffusionConfig) -> Path:
    """A LeRobot folder with DDIM."""
    folder = save_random(tmp_path / "lerobot", small_config)
    edit(folder, noise_scheduler_type="DDIM", num_inference_steps=OWN)
    return folder


def edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def plans(policy: Policy) -> list[float]:
    """Plan in closed loop, seeded."""
    policy.reset(seed=3)
    observation = {name: np.zeros(dim) for name, dim in policy.observation_dims.items()}
    return policy.select_action(observation).tolist()


@pytest.mark.parametrize("name", FILES)
def test_the_trained_chain_is_that_of_ddpm(name: str, tmp_path: Path) -> None:
    """All training timesteps, DDPM's variance, the same betas, prediction and clipping."""
    path = FILES[name](tmp_path, OPTIONS | {"set_alpha_to_one": False, "steps_offset": 1})
    policy = asd_policy.load_policy(path, chain="trained")
    shared = {key: OPTIONS[key] for key in ("num_train_timesteps", "beta_schedule", "clip_sample", "prediction_type")}
    expected = GaussianChain.from_scheduler(DDPMScheduler(**shared))
    assert policy.sampler.spec == "ddpm" and policy.law.runs == "trained"
    for field in ("timesteps", "a", "b", "sigma", "output_scale", "input_scale"):
        assert getattr(policy.chain, field).tolist() == getattr(expected, field).tolist()
    assert policy.chain.config == expected.config
    sequential = policy.with_sampler(make_sampler("asd:window=1"))
    assert plans(sequential) == plans(policy)
    assert policy.with_sampler(make_sampler("asd")).sampler.exact


@pytest.mark.parametrize("spec", ["ddpm", "asd", "asd:window=4", "dpmsolver:5", "paradigms:window=4"])
def test_other_samplers_are_refused_in_a_line_that_names_the_way_out(spec: str, lerobot: Path) -> None:
    policy = asd_policy.load_policy(lerobot)
    for refused in (
        lambda: asd_policy.load_policy(lerobot, spec),
        lambda: asd_policy.accelerate(policy, spec),
        lambda: policy.with_sampler(make_sampler(spec)),
    ):
        with pytest.raises(
            asd_policy.SpecError, match=r"plan is ddim:5: --chain trained, or .*chain='trained'"
        ) as info:
            refused()
        assert "\n" not in str(info.value)
    asd_policy.load_policy(lerobot, spec, chain="trained")


def test_every_sampler_runs_on_the_trained_chain(lerobot: Path) -> None:
    specs = {
        "ddim": "ddim:5",
        "dpmsolver": "dpmsolver:5",
        "paradigms": "paradigms:window=4",
        "parallel": "parallel:steps=4",
    }
    for name in set(OF_STEPS) - {"euler"}:  # that follows flows alone
        assert len(plans(asd_policy.load_policy(lerobot, specs.get(name, name), chain="trained"))) == 2


def test_backends_and_deadlines_keep_the_law(lerobot: Path) -> None:
    policy = asd_policy.load_policy(lerobot)
    for other in (policy.with_backend(policy.backend), policy.with_deadline(1e6)):
        assert other.law.runs == "checkpoint" and other.sampler == policy.sampler == policy.reference
        assert plans(other) == plans(policy)


def test_noise_that_is_asked_for_makes_another_plan(lerobot: Path) -> None:
    policy = asd_policy.load_policy(lerobot, f"ddim:{OWN},eta=1")
    assert isinstance(policy.sampler, Ddim) and not policy.sampler.exact
    assert plans(policy) != plans(asd_policy.load_policy(lerobot))


def test_on_a_ddpm_file_both_are_the_same(checkpoint: Path) -> None:
    first, second = (asd_policy.load_policy(checkpoint, chain=chain) for chain in ("checkpoint", "trained"))
    assert first.sampler == second.sampler == first.reference == second.reference
    assert plans(first) == plans(second)
    assert first.law.own is None and first.steps == len(first.chain)


def test_an_unknown_chain_lists_the_valid_ones(checkpoint: Path) -> None:
    with pytest.raises(asd_policy.SpecError, match="chain 'train' is not one of checkpoint, trained, stochastic"):
        asd_policy.load_policy(checkpoint, chain="train")


def test_eta_above_0_stays_the_chain_of_the_file(tmp_path: Path) -> None:
    path = workspace("unet", eta=0.5)(tmp_path, OPTIONS)
    for chain in ("checkpoint", "trained"):
        policy = asd_policy.load_policy(path, "asd", chain=chain)
        assert policy.law.own is None and policy.chain.config["_class_name"] == "DDIMScheduler"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"steps_offset": 9}, "steps_offset 9 puts timestep 17 beyond 9"),
    ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is not one of"),
    ({"set_alpha_to_one": 1}, "set_alpha_to_one 1 is not True or False"),
    ({"timestep_spacing": "even"}, "timestep_spacing 'even' is not one of"),
    ({"prediction_type": "flow"}, "prediction_type 'flow' is not one of"),
    ({"num_train_timestep": 10}, "did you mean 'num_train_timesteps'"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
@pytest.mark.parametrize("name", ["unet", "robomimic"])
def test_bad_options_are_named(name: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = FILES[name](tmp_path, OPTIONS | options)
    for chain in ("checkpoint", "trained"):
        with pytest.raises(asd_policy.AsdError, match=message) as info:
            asd_policy.load_policy(path, chain=chain)
        assert "\n" not in str(info.value)


def test_more_steps_than_training_steps_are_refused(lerobot: Path) -> None:
    edit(lerobot, num_inference_steps=11)
    with pytest.raises(asd_policy.ChainError, match="num_inference_steps 11 is not in 1 … 10"):
        asd_policy.load_policy(lerobot)


def test_inspect_says_which_law_runs(lerobot: Path) -> None:
    said = inspection.inspect(str(lerobot))
    assert said["runs_here"] and said["own_plan"] == "ddim:5"
    assert said["chain"]["runs"] == "checkpoint" and not said["chain"]["gaussian"]
    assert "with --chain trained asd is exact" in said["chain"]["why"]
    assert {each["spec"]: each["usable"] and each["exact"] for each in said["samplers"]} == {
        **dict.fromkeys(("ddpm", "dpmsolver", "euler", "paradigms", "parallel", "asd"), False), "ddim:5": True
    }  # fmt: skip
    said = inspection.inspect(str(lerobot), "trained")
    assert said["own_plan"] == "ddim:5" and said["chain"]["runs"] == "trained"
    assert said["chain"]["gaussian"] and said["chain"]["steps"] == 10
    assert [each["spec"] for each in said["samplers"] if each["usable"] and each["exact"]] == ["ddpm", "asd"]
    with pytest.raises(asd_policy.SpecError, match="chain 'x' is not one of checkpoint, trained"):
        inspection.inspect(str(lerobot), "x")


def test_inspect_of_what_cannot_be_loaded_says_it_too(lerobot: Path) -> None:
    raw = json.loads((lerobot / "config.json").read_text())
    features = raw["input_features"] | {"observation.image": {"type": "VISUAL", "shape": [3, 9, 9]}}
    edit(lerobot, input_features=features)
    said = inspection.inspect(str(lerobot))
    assert not said["runs_here"] and said["own_plan"] == "ddim:5"


def test_inspect_measures_whether_parallel_pays(lerobot: Path) -> None:
    said = inspection.inspect(str(lerobot))
    found = said["recommended"]
    assert found["own"]["spec"] == "ddim:5" and found["own"]["calls"] == 5 >= found["parallel"]["calls"] >= 1
    assert found["parallel"]["spec"] == "parallel:window=4,tol=0.03,draft=warm"
    assert 0 <= found["difference"] < 10 and found["plans"] >= 3
    assert found["pays"] == (found["parallel"]["ms"] < 0.9 * found["own"]["ms"])
    assert inspection.inspect(str(lerobot), "trained")["recommended"] is None
    for pays, first in ((True, found["parallel"]["spec"]), (False, "ddim:5")):
        lines = recommendation_lines(found | {"pays": pays})
        assert lines[0] == first and f"{found['parallel']['ms']:.1f} ms" in lines[1]
        assert any(line.startswith("approximate: plans were off by") for line in lines) is pays
        Console(file=(printed := io.StringIO()), width=500).print(
            report.inspection_table(said | {"recommended": found | {"pays": pays}})
        )
        assert lines[1] in printed.getvalue()


def test_parallel_is_the_files_own_plan_to_a_tolerance(lerobot: Path) -> None:
    own, near, exact = (asd_policy.load_policy(lerobot, spec) for spec in (None, "parallel", "parallel:tol=0"))
    assert not near.sampler.exact and near.steps == 5
    np.testing.assert_allclose(plans(exact), plans(own), rtol=0, atol=TOLERANCE)
