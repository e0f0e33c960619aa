"""What is published and how: extras, the sdist, one version everywhere, workflows that call what there is."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PLUGIN: dict[str, Any] = tomllib.loads((ROOT / "plugins/lerobot_policy_asd/pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
PYTHONS = ["3.11", "3.12", "3.13"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TEMPLATES = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
# What the extras install that neither the core nor torch does, as it is imported.
BEYOND_CORE = (
    *("diffusers", "gymnasium", "huggingface_hub", "imageio", "imageio_ffmpeg", "matplotlib", "PIL", "rich", "scipy"),
    *("tyro", "onnx", "onnxruntime", "onnxscript", "grpc", "grpc_health", "google", "prometheus_client", "ray", "h5py"),
    *("zarr", "mujoco", "shapely", "metaworld", "gym_pusht", "gymnasium_robotics", "lerobot", "asd_envs"),
)


def requirements(*extras: str) -> set[str]:
    """Names of what extras install, with those of the extras that they name."""
    found: set[str] = set()
    for extra in extras:
        for line in EXTRAS[extra]:
            name = re.split(r"[\[<>=;, ]", line)[0].lower().replace("_", "-")
            inner = re.match(r"asd-policy\[([\w,-]+)\]", line)
            found |= requirements(*inner[1].split(",")) if inner else {name}
    return found


def texts() -> Iterator[tuple[Path, str]]:
    """The package, its plugins, scripts and documents."""
    for folder in ("asd_policy", "envs", "plugins", "scripts", "docs"):
        for path in sorted((ROOT / folder).rglob("*.*")):
            if path.suffix in (".py", ".md", ".html"):
                yield path, path.read_text()


def test_extras_that_are_named_exist() -> None:
    named = {
        (str(path.relative_to(ROOT)), extra)
        for path, text in texts()
        for extras in re.findall(r"(?:asd-policy|pip install '\.)\[([\w,-]+)\]", text)
        for extra in extras.split(",")
    }
    assert len(named) > 10
    assert [each for each in sorted(named) if each[1] not in EXTRAS] == []
    given = re.findall(r'needed\([^"]*".*?", "(\w+)"|module\(".*?", ".*?", "(\w+)"|install\([\'"]([\w-]+)', source())
    called = {name for names in given for name in names if name}
    assert {"torch", "hub", "eval", "serve", "client", "ray", "onnx"} <= called <= EXTRAS.keys()


def source() -> str:
    return "\n".join(text for path, text in texts() if path.suffix == ".py")


def test_documents_install_from_a_checkout() -> None:
    """A name on an index only once it is there."""
    assert [str(path) for path, text in texts() if path.suffix == ".md" and "pip install 'asd-policy" in text] == []


def test_the_page_of_extras_lists_them() -> None:
    page = (ROOT / "docs/guide/install.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)
    listed = {extra for row in rows for extra in re.findall(r"`([\w-]+)`", row)}
    assert listed == EXTRAS.keys() - {"plots", "dev", "docs"}


def test_what_is_heavy_is_no_core_dependency() -> None:
    core = {re.split(r"[<>=]", line)[0] for line in PROJECT["dependencies"]}
    assert core == {"array-api-compat", "lazy-loader", "numba", "numpy", "safetensors"}
    assert not requirements("edge", "client", "realtime") & requirements("eval")
    assert requirements("eval") <= requirements("serve") & requirements("ray") & requirements("all")
    whole = requirements(*EXTRAS.keys() - {"dev", "docs", "edge", "onnx-gpu", "robosuite", "aloha", "lerobot"})
    assert requirements("all") == whole


def test_core_and_torch_alone_plan_fast() -> None:
    """A checkpoint is loaded and accelerated with everything else out of reach, and the rounds are compiled."""
    code = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {BEYOND_CORE!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import asd_policy
from asd_policy.samplers.compiled import ROUNDS, load_kernels
policy = asd_policy.accelerate(asd_policy.load_policy("checkpoints/avoid"), "asd:window=16")
policy.select_action({{"agent_pos": [0.0] * 4, "environment_state": [0.0] * 3}})
assert policy.plans[0].stats.rounds[0] < policy.plans[0].stats.steps and load_kernels(ROUNDS) is not None
asd_policy.accelerate(policy, "ddim:10").select_action({{"agent_pos": [0.0] * 4, "environment_state": [0.0] * 3}})
for call in (
    lambda: asd_policy.accelerate(policy, "dpmsolver:10"),
    lambda: asd_policy.load_policy("lerobot/diffusion_pusht"),
    lambda: asd_policy.load_policy("checkpoints/avoid", backend="onnx"),
):
    try:
        call()
    except asd_policy.AsdError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"needs (\w+).*?asd-policy\[(\w+)\]", done.stdout) == [
        ("diffusers", "diffusers"),
        ("huggingface_hub", "hub"),
        ("onnxruntime", "onnx"),
    ]


def test_the_sdist_is_small_and_builds_the_wheel(tmp_path: Path) -> None:
    def build(root: Path, kind: str, folder: str) -> Path:
        words = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(tmp_path / folder)]
        subprocess.run(words, cwd=root, check=True, capture_output=True)
        (built,) = (tmp_path / folder).iterdir()
        return built

    sdist = build(ROOT, "sdist", "sdist")
    assert sdist.stat().st_size < 2_000_000
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path / "source", filter="data")
    assert {"asd_policy/py.typed", "asd_policy/__init__.pyi", "LICENSE", "README.md", "CITATION.cff"} <= inside
    assert {name.partition("/")[0] for name in inside} - {".gitignore", ""} == {
        *("asd_policy", "envs", "LICENSE", "README.md", "CITATION.cff", "CHANGELOG.md", "PKG-INFO", "pyproject.toml"),
    }
    (source_root,) = (tmp_path / "source").iterdir()
    again, direct = build(source_root, "wheel", "again"), build(ROOT, "wheel", "direct")
    assert again.name == direct.name
    names = [set(zipfile.ZipFile(each).namelist()) for each in (again, direct)]
    assert names[0] == names[1]


def test_there_is_one_version() -> None:
    ours = PROJECT["version"]
    assert PLUGIN["version"] == ours == version("asd-policy")
    assert f"asd-policy>={'.'.join(ours.split('.')[:2])}" in PLUGIN["dependencies"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == ours
    assert re.search(rf"^## {re.escape(ours)} - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    for project in (PROJECT, PLUGIN):
        named = [line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)]
        assert named == PYTHONS


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_there_is(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    for step in steps(path):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v1)", step["uses"])
            continue
        for target in re.findall(r"\bmake ([a-z]+)", step["run"]):
            assert target in targets, target
        for file in re.findall(r"(?<![\w/])\.?/?((?:tests|plugins|scripts)/[\w/.]+)", step["run"]):
            assert (ROOT / file).exists(), file
        for extra in re.findall(r"'\.\[([\w,]+)\]'", step["run"]):
            assert set(extra.split(",")) <= EXTRAS.keys()


def test_ci_runs_what_a_change_must_pass() -> None:
    """On every Python that is supported."""
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS
    called = {target for step in steps(ROOT / ".github/workflows/ci.yml") for target in made(step.get("run", ""))}
    assert called == {"lint", "types", "docs", "test", "edge"}
    assert called | {"lerobot", "demo"} == made((ROOT / ".ci/run").read_text())
    extras = re.search(r"^LEROBOT_EXTRAS := (\S+)$", MAKEFILE, re.MULTILINE)
    assert extras and f"lerobot[{extras[1]}]" in (ROOT / ".github/workflows/nightly.yml").read_text()


def made(text: str) -> set[str]:
    return {word for words in re.findall(r"^make ([a-z ]+)", text, re.MULTILINE) for word in words.split()}


def test_publishing_needs_no_token() -> None:
    text = (ROOT / ".github/workflows/release.yml").read_text()
    publish = yaml.safe_load(text)["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["needs"] == "build"
    assert "secrets." not in text and "password" not in text


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    for field in form["body"]:
        assert field["type"] in ("markdown", "textarea", "input")
        assert field["attributes"].get("label") or field["type"] == "markdown"


def test_hooks_run_the_pinned_ruff() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert hooks[0]["rev"] == f"v{PINS['ruff']}"
    assert [hook["id"] for repo in hooks for hook in repo["hooks"]] == ["ruff-check", "ruff-format", "types"]


def test_the_site_is_built_strictly() -> None:
    """With --quiet, mkdocs counts no warnings, and --strict lets everything pass."""
    (line,) = (line for line in MAKEFILE.splitlines() if "mkdocs build" in line)
    command = line.partition("#")[0].split()
    assert "--strict" in command and "--quiet" not in command and "-q" not in command
