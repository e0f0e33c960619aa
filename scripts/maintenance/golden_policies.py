"""Write tests/support/golden/cameras.safetensors: what the libraries' own policies compute, by small random weights.

    python scripts/maintenance/golden_policies.py --diffusion-policy DIR --robomimic-02 DIR --robomimic-05 DIR \
        --umi DIR --dp3 DIR

Each DIR is a checkout: real-stanford/diffusion_policy, ARISE-Initiative/robomimic at v0.2.0 and at 0.5,
real-stanford/universal_manipulation_interface, and the folder 3D-Diffusion-Policy in YanjieZe/3D-Diffusion-Policy. Run
it in an environment of its own with torch, torchvision, timm, diffusers, hydra-core, omegaconf, einops, zarr, h5py,
scipy, termcolor, dill, psutil and six; this package is not needed there. Every policy is built from the configuration
in tests/support/image_files.py, gets that file's weights, and plans from that file's observations with the noise of
tests/support/training_files.py.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

# The line above leads there.
from support import image_files as images  # noqa: E402
from support import training_files as files  # noqa: E402

FAMILIES = {
    "diffusion_policy": ("diffusion_policy", "robomimic_02"),
    "umi": ("umi",),
    "dp3": ("dp3",),
    "robomimic": ("robomimic_05",),
    "networks": (),
}
"""Which checkouts each family of policies needs; two have modules of one name."""
OPERATIONS = torch.library.Library("torchvision", "DEF")
"""What is defined in it goes when it does."""


def family_of(case: str) -> str:
    """Find the library of a case."""
    name = case.partition("-")[0]
    return name if name in FAMILIES else "diffusion_policy"


def library(name: str) -> Any:
    """Import a module of the environment that this script runs in."""
    return import_module(name)


def stand_in(name: str) -> None:
    """Offer an empty module where a library imports one that planning does not need."""
    parent = ""
    for part in name.split("."):
        parent = f"{parent}.{part}" if parent else part
        sys.modules.setdefault(parent, types.ModuleType(parent))


def prepare() -> None:
    """Make torchvision importable beside a torch of another build, and have nothing downloaded."""
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # there are some already
            OPERATIONS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    stand_in("pytorch3d.ops")
    # As before 0.17, when its training code was written; UMI, which came later, asks for the other.
    transforms = library("torchvision.transforms")
    resize = transforms.Resize
    transforms.Resize = lambda size, **options: resize(size, **{"antialias": False, **options})
    timm = library("timm")
    create = timm.create_model
    timm.create_model = lambda *args, **options: create(*args, **{**options, "pretrained": False})


@contextlib.contextmanager
def drawing(draws: list[Tensor]) -> Iterator[None]:
    """Let torch.randn and the schedulers of diffusers take these numbers, in their order."""
    ddim, ddpm = (library(f"diffusers.schedulers.scheduling_{name}") for name in ("ddim", "ddpm"))
    given = iter(draws)
    before = torch.randn, ddpm.randn_tensor, ddim.randn_tensor

    def draw(*_: Any, **__: Any) -> Tensor:
        return next(given).clone()

    torch.randn, ddpm.randn_tensor, ddim.randn_tensor = draw, draw, draw
    try:
        yield
    finally:
        torch.randn, ddpm.randn_tensor, ddim.randn_tensor = before
    assert next(given, None) is None, "there were fewer random draws than expected"


def tape_of(event: tuple[int, int], steps: int, noisy: bool) -> list[Tensor]:
    """List a plan's random draws; the last step of DDPM has none."""
    start, normals = files.tape(images.ROWS, event)
    return [start, *(normals[:, index] for index in range(steps - 1) if noisy)]


def as_tensors(seen: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    """Convert observations to what the libraries' policies take: frames float, colours first."""
    return {
        name: torch.from_numpy(np.moveaxis(each, -1, 2).astype(np.float32) / 255)
        if each.dtype == np.uint8
        else torch.from_numpy(each)
        for name, each in seen.items()
    }


def run_workspace(case: str) -> tuple[dict[str, list[int]], Tensor, Tensor]:
    """Plan with a policy of Diffusion Policy, UMI or DP3: shapes of its state, features, and the plan."""
    build, configuration = library("hydra.utils").instantiate, library("omegaconf").OmegaConf.create
    section = json.loads(json.dumps(images.CASES[case]))
    encoder = section.get("obs_encoder", {})
    if encoder.get("transforms"):
        transforms = library("torchvision.transforms")
        # The law that is planned with here: no jitter, and the middle in place of a random crop.
        side = section["shape_meta"]["obs"]["camera0_rgb"]["shape"][1]
        middle = transforms.CenterCrop(int(side * encoder["transforms"][0]["ratio"]))
        del encoder["transforms"]
        fixed = [middle, transforms.Resize(side, antialias=True)]
        built = build(configuration(encoder), transforms=None)
        built.key_transform_map = torch.nn.ModuleDict(
            {name: torch.nn.Sequential(*fixed) for name in built.key_transform_map}
        )
        del section["obs_encoder"]
        policy = build(configuration(section), obs_encoder=built)
    else:
        policy = build(configuration(section))
    shapes = {name: list(each.shape) for name, each in policy.state_dict().items() if "normalizer" not in name}
    shapes |= images.normalizer_shapes(section)
    missing = policy.load_state_dict(images.state_of(shapes, images.is_shared(case)), strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys, missing
    policy.eval()
    obs = {name: meta for name, meta in section["shape_meta"]["obs"].items() if not meta.get("ignore_by_policy")}
    steps = max(meta.get("horizon", 2) for meta in obs.values())
    seen = as_tensors(images.history(obs, steps))
    seen = {name: each[:, -obs[name].get("horizon", steps) :] for name, each in seen.items()}
    features: list[Tensor] = []
    policy.obs_encoder.register_forward_hook(lambda *found: features.append(found[-1]))
    rows = section["n_action_steps"] if section.get("pred_action_steps_only") else 8
    width = 2 if section.get("obs_as_global_cond", True) else 2 + policy.obs_feature_dim
    noisy = "ddpm" in section["noise_scheduler"]["_target_"]
    with torch.no_grad(), drawing(tape_of((rows, width), section["num_inference_steps"], noisy)):
        plan = policy.predict_action(seen)["action_pred"]
    return shapes, features[0], plan


def run_robomimic(case: str) -> tuple[dict[str, list[int]], Tensor, Tensor]:
    """Plan with a policy of robomimic, its network made smaller."""
    nets = library("robomimic.models.diffusion_policy_nets")
    algos = library("robomimic.algo")
    given = images.robomimic_config(case)
    config = library("robomimic.config").config_factory("diffusion_policy")
    with config.values_unlocked():
        config.update({"algo": {"ema": {"enabled": False}, "ddpm": given["algo"]["ddpm"]}})
        config.algo.horizon.update(given["algo"]["horizon"])
        config.observation.modalities.obs.update(images.MODALITIES)
        with config.unlocked():
            config.observation.encoder.rgb.update(images.ROBOMIMIC_CASES[case])
    library("robomimic.utils.obs_utils").initialize_obs_utils_with_config(config)
    algos.DiffusionPolicyUNet._create_optimizers = lambda _: None  # it asks for a data set's size
    whole = nets.ConditionalUnet1D
    nets.ConditionalUnet1D = functools.partial(whole, down_dims=[8, 16], diffusion_step_embed_dim=8)
    observed = images.robomimic_observations()
    shapes_of = {name: images.ROBOMIMIC_SHAPES[name] for name in images.ROBOMIMIC_SHAPES}
    algo = algos.algo_factory("diffusion_policy", config, shapes_of, ac_dim=files.ACTION_DIM, device="cpu")
    nets.ConditionalUnet1D = whole
    shapes = {name: list(each.shape) for name, each in algo.nets.state_dict().items()}
    algo.nets.load_state_dict(images.robomimic_state(case, shapes))
    algo.set_eval()
    seen = as_tensors(images.history(observed, 2))
    features: list[Tensor] = []
    algo.nets["policy"]["obs_encoder"].register_forward_hook(lambda *found: features.append(found[-1]))
    plans: list[Tensor] = []
    step = algo.noise_scheduler.step

    def stepped(**options: Any) -> Any:
        plans.append(step(**options).prev_sample)
        return types.SimpleNamespace(prev_sample=plans[-1])

    algo.noise_scheduler.step = stepped
    with torch.no_grad(), drawing(tape_of((8, files.ACTION_DIM), images.STEPS, noisy=True)):
        algo._get_action_trajectory(seen)
    return shapes, features[0], plans[-1]


def run_network(name: str) -> tuple[dict[str, list[int]], Tensor]:
    """Run a network of torchvision or timm without its last layer: shapes of its state, and features."""
    if name.startswith("resnet"):
        network = getattr(library("torchvision.models"), name)()
        network.fc = torch.nn.Identity()
    else:
        network = library("timm").create_model(name, global_pool="", num_classes=0)
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict(images.state_of(shapes))
    with torch.no_grad():
        output = network.eval()(images.network_frames(name))
    return shapes, output if output.ndim == 2 else output[:, 0]


def write_family(family: str, out: Path) -> None:
    """Compute all cases of one library."""
    prepare()
    tensors, shapes = {}, {}
    for name in images.NETWORKS if family == "networks" else ():
        shapes[name], features = run_network(name)
        tensors[f"{name}/features"] = features.contiguous()
        print(name, tuple(features.shape), f"{features.std():.3f}", flush=True)
    for case in (*images.CASES, *images.ROBOMIMIC_CASES):
        if family_of(case) != family:
            continue
        shapes[case], features, plan = (run_robomimic if family == "robomimic" else run_workspace)(case)
        tensors[f"{case}/features"], tensors[f"{case}/chunk"] = features.contiguous(), plan.contiguous()
        print(case, tuple(features.shape), f"{features.std():.3f}", f"{plan.std():.3f}", flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm", "diffusers")}
    save_file(tensors, out, {"shapes": json.dumps(shapes), "versions": json.dumps(versions)})


def main() -> None:
    """Compute each family in a process of its own, and put the results together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("diffusion-policy", "robomimic-02", "robomimic-05", "umi", "dp3"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=images.GOLDEN)
    parser.add_argument("--family", choices=FAMILIES, help="of one library alone")
    options = parser.parse_args()
    if options.family:
        sys.path[:0] = [str(getattr(options, name)) for name in FAMILIES[options.family]]
        return write_family(options.family, options.out)
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, Any] = {}
    versions = ""
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            part = Path(folder) / f"{family}.safetensors"
            subprocess.run(
                [sys.executable, *sys.argv, "--family", family, "--out", part],
                check=True,
            )
            tensors |= load_file(part)
            with safe_open(part, "pt") as file:
                shapes |= json.loads(file.metadata()["shapes"])
                versions = file.metadata()["versions"]
    options.out.parent.mkdir(exist_ok=True)
    save_file(tensors, options.out, {"shapes": json.dumps(shapes), "versions": versions})
    return None


if __name__ == "__main__":
    main()
