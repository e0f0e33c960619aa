"""The package as it is installed: what an import costs, what a wheel holds, what the manifest promises."""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium
import pytest
from safetensors.torch import load_file

import asd_policy

ROOT = Path(__file__).parents[1]
MANIFEST = json.loads((ROOT / "checkpoints/manifest.json").read_text())


HEAVY = ("gymnasium", "mujoco", "diffusers", "huggingface_hub", "onnx", "onnxruntime", "onnxscript", "lerobot", "scipy",
         "matplotlib", "ray", "rich", "tyro", "requests", "asd_envs", "torch._dynamo", "torch._inductor", "torch.onnx",
         "torch.utils.flop_counter", "torch.distributed.tensor", "grpc", "google", "prometheus_client")  # fmt: skip


@pytest.mark.parametrize(
    "module", ["asd_policy", "asd_policy.evaluation.benchmark", "asd_policy.evaluation.reports.report"]
)
def test_importing_brings_in_nothing_heavy(module: str) -> None:
    """No environment, no package that is not needed to plan, and no part of PyTorch that torch itself leaves out."""
    code = f"import sys, torch; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    brought = done.stdout.split()
    assert module in brought
    heavy = [name for name in brought if any(name == each or name.startswith(f"{each}.") for each in HEAVY)]
    assert heavy == []


def test_public_names_exist_and_are_documented() -> None:
    """And are imported, torch with them, when they are asked for."""
    for name in asd_policy.__all__:
        value = getattr(asd_policy, name)
        assert isinstance(value, str) or (value.__doc__ or "").strip(), name
    assert dir(asd_policy) == asd_policy.__all__
    unknown = "no_such_name"
    with pytest.raises(AttributeError, match="module 'asd_policy' has no attribute 'no_such_name'"):
        getattr(asd_policy, unknown)
    code = "import sys, asd_policy, asd_policy.cli; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_wheel_works_alone(tmp_path: Path) -> None:
    """Built and unpacked elsewhere, it plans, and finds its environments and their files."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("asd_policy-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import asd_policy, asd_envs, gymnasium, importlib.resources\n"
        f"assert asd_policy.__file__.startswith({str(site)!r}) and asd_envs.__file__.startswith({str(site)!r})\n"
        "gymnasium.make('asd/Avoid-v0').reset(seed=0)\n"
        "assert (importlib.resources.files(asd_policy) / 'evaluation/reports/templates/report.html').is_file()\n"
        f"policy = asd_policy.load_policy({str(ROOT / 'checkpoints/avoid')!r}, 'asd:window=16')\n"
        "policy.select_action({'agent_pos': [0, 0, 0, 0], 'environment_state': [0, 0, 0]})\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize("entry", MANIFEST, ids=[entry["path"] for entry in MANIFEST])
def test_bundled_checkpoints(entry: dict[str, object]) -> None:
    """Files are those that were measured, small enough, and fit their environment."""
    folder = ROOT / str(entry["path"])
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert digests == entry["sha256"]
    tensors = load_file(folder / "model.safetensors")
    cameras = any("rgb_encoder" in name for name in tensors)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= (26 if cameras else 10) * 2**20
    no_weights = re.compile(r".*pos_grid|range\..*")  # a buffer of the spatial softmax; what numbers of tokens mean
    assert sum(each.numel() for name, each in tensors.items() if not no_weights.fullmatch(name)) == entry["parameters"]
    from asd_policy.checkpoints.token_folder import is_token_folder
    from asd_policy.evaluation.rollout.environments import make_env

    env = make_env(str(entry["env"]))
    policy = asd_policy.load_policy(folder, "tokens:window=16" if is_token_folder(folder) else "asd:window=32")
    observation, _ = env.reset(seed=0)
    action = policy.select_action(observation)
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    assert action.shape == env.action_space.shape
    env.close()


def test_the_manifest_lists_every_checkpoint() -> None:
    folders = {f"checkpoints/{path.parent.name}" for path in (ROOT / "checkpoints").glob("*/config.json")}
    assert folders == {entry["path"] for entry in MANIFEST}
