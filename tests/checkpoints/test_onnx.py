"""ONNX Runtime: an exported file alone is the policy, at every number of points, on arrays and on tensors."""

import contextlib
import io
import json
import random
import re
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import asd_policy
from asd_policy import cli
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.checkpoints import load_policy
from asd_policy.checkpoints.lerobot.folder import DiffusionConfig
from asd_policy.checkpoints.onnx import graph as onnx_graph
from asd_policy.checkpoints.onnx.chain import contradiction
from asd_policy.checkpoints.onnx.record import KEY
from asd_policy.checkpoints.onnx.sizes import MOST_VALUES, Node, Value, follow, sizes
from asd_policy.checkpoints.onnx.writing import CHECKED
from asd_policy.checkpoints.untrusted.protobuf import fields as wire_fields
from asd_policy.cli.parsing import parse
from asd_policy.errors import AsdError, BackendError, DenoiserError, SpecError
from asd_policy.networks.backends import Job, make_backend
from asd_policy.networks.backends import onnx_export as exporting
from asd_policy.networks.backends.onnx import MAX_GRAPHS, Onnx, OnnxModel
from asd_policy.networks.backends.onnx_export import example
from asd_policy.networks.backends.onnx_lowering import NARROW_GROUP
from asd_policy.networks.backends.onnx_network import OnnxCudaNetwork, OnnxNetwork
from asd_policy.networks.backends.onnx_session import INPUTS, default_threads, open_session, provider_options
from asd_policy.networks.denoiser import encode
from asd_policy.networks.transformer import DiffusionTransformer, TransformerConfig
from support.fuzzing import SCALE, count_refusals, damage_bytes, damage_json
from support.small_checkpoints import save_random

CPU = torch.device("cpu")


class Exported(NamedTuple):
    """A checkpoint and what it was exported to."""

    source: Path
    file: Path
    results: dict[str, Any]
    """What the command printed."""


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, small_config: DiffusionConfig) -> Exported:
    """Exported once, because it takes seconds; not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    source, file = save_random(folder / "checkpoint", small_config), folder / "new" / "policy.onnx"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert export(source, file, "--format", "onnx", "--json") == 0
    return Exported(source, file, json.loads(printed.getvalue()))


def export(policy: Path, out: Path, *words: str) -> int:
    return cli.run(["export", "--policy", str(policy), "--out", str(out), *words])


def job_of(chain: GaussianChain, event: tuple[int, ...], cond_dim: int) -> Job:
    return Job(chain, event, cond_dim, CPU)


def largest_difference(network: Any, other: Any, job: Job) -> float:
    """Return the largest difference of two networks' predictions, in units of the largest prediction."""
    worst = 0.0
    for count in CHECKED:
        x, timestep, cond = example(job, count, torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected = network(x, timestep, cond)
            found = other(x, timestep, encode(other, cond))
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


def edit(path: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a copy of an exported file with another record."""
    model = onnx.load(path)
    (entry,) = (each for each in model.metadata_props if each.key == KEY)
    record = json.loads(entry.value)
    change(record)
    entry.value = json.dumps(record)
    onnx.save(model, out)
    return out


# The file is the policy.


def test_a_file_alone_is_the_policy(exported: Exported) -> None:
    source, file, _ = exported
    policy, original = load_policy(file), load_policy(source)
    assert isinstance(policy.network, OnnxModel)
    assert policy.backend == Onnx("cpu")
    assert policy.horizons == original.horizons and policy.inpaints == original.inpaints
    assert list(policy.observation_dims.items()) == list(original.observation_dims.items())
    for name, affine in original.normalization.items():
        for each in fields(affine):
            assert torch.equal(getattr(policy.normalization[name], each.name), getattr(affine, each.name))
    for each in fields(GaussianChain):
        stored, expected = getattr(policy.chain, each.name), getattr(original.chain, each.name)
        if not each.name.startswith("_"):
            assert np.array_equal(stored, expected) if isinstance(expected, np.ndarray) else stored == expected


@pytest.mark.parametrize("spec", ["ddpm", "asd:window=4"])
def test_plans_are_the_policys(exported: Exported, spec: str) -> None:
    """Chunk for chunk on one tape."""
    chunks = []
    for path in (exported.source, exported.file):
        policy = load_policy(path, spec)
        tape = NoiseTape.draw((3, *policy.event), len(policy.chain), torch.Generator().manual_seed(0))
        cond = example(policy.job, 3, torch.Generator().manual_seed(1))[2]
        chunks.append(
            policy.sampler.sample(policy.denoiser, policy.chain, (3, *policy.event), cond, generator=tape).sample
        )
    assert float((chunks[1] - chunks[0]).abs().max()) < 1e-5


def test_a_file_controls(exported: Exported) -> None:
    """As the policy it was exported from, step by step.

    With asd it would be another plan of the same law: what it learns makes another draft of a last bit.
    """
    actions = []
    for path in (exported.source, exported.file):
        policy = load_policy(path, "ddpm")
        policy.reset(seed=0)
        actions.append([policy.select_action([0.1 * step] * 7) for step in range(20)])
    np.testing.assert_allclose(actions[1], actions[0], atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_observations_in_arrays_of_numpy(exported: Exported) -> None:
    """Without PyTorch's tensors, as where it is not installed: any form, in memory that is used again."""
    policy, actions = load_policy(exported.file, "ddpm", device="numpy"), []
    buffer = np.zeros(7, ">f8")[::-1]
    for own in (True, False):
        policy.reset(seed=np.int64(3))
        actions.append([])
        for step in range(20):
            buffer[:] = 0.1 * step
            action = policy.select_action(buffer.astype(np.float32) if own else buffer)
            actions[-1].append(action.tolist())
            action *= 100
    assert actions[0] == actions[1]
    with pytest.raises(asd_policy.ObservationError, match="the observation is an array of object, not of real numbers"):
        policy.select_action(np.full(7, None))
    with pytest.raises(asd_policy.ObservationError, match=r"NaN or infinity in 32 bits: 1e\+300 at \[0\]"):
        policy.select_action(np.full(7, 1e300))


def test_arrays_and_tensors_are_equal(exported: Exported) -> None:
    policy = load_policy(exported.file)
    inputs = example(policy.job, 5, torch.Generator().manual_seed(0))
    found = policy.denoiser(*inputs)
    arrays: Any = policy.denoiser(*(each.numpy() for each in inputs))  # pyright: ignore[reportArgumentType]  # arrays
    assert isinstance(arrays, np.ndarray)
    np.testing.assert_array_equal(arrays, found.numpy())
    turned = inputs[0].transpose(1, 2).contiguous().transpose(1, 2).double()
    assert torch.equal(policy.denoiser(turned, *inputs[1:]), found)


def test_calls_that_do_not_fit_are_refused(exported: Exported) -> None:
    """Addresses are passed on, so a wrong shape must not be."""
    policy = load_policy(exported.file)
    x, timestep, cond = example(policy.job, 3, torch.Generator().manual_seed(0))
    for inputs, told in (
        ((x, timestep, None), "cond is None"),
        ((x, timestep, cond[:, :2]), r"cond has shape \(3, 2\) on cpu, not \(3, 14\) on cpu:0"),
        ((x, timestep[:2], cond), r"timestep has shape \(2,\)"),
        ((x[:, :8], timestep, cond), "x has shape"),
        ((x, timestep, cond.to("meta")), "on meta, not"),
        ((x.numpy(), timestep.numpy(), cond.numpy()[:, :2]), "^ONNX Runtime: "),
    ):
        with pytest.raises(DenoiserError, match=told):
            policy.denoiser(*inputs)  # pyright: ignore[reportArgumentType]  # arrays


def test_another_backend_says_what_runs_a_file(exported: Exported) -> None:
    with pytest.raises(BackendError, match="is an ONNX file: run it with the backend onnx"):
        load_policy(exported.file, backend="torch-eager")


def test_the_documented_blocks(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python runs, on a smaller policy; commands are ones that there are."""
    document = (Path(__file__).parents[2] / "docs/guide/onnx.md").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "metaworld-pick-place").symlink_to(exported.source)
    (tmp_path / "policy.onnx").symlink_to(exported.file)
    loaded: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    for block in blocks:
        exec(block, loaded)
        assert loaded.pop("policy").backend == Onnx("cpu")
    commands = re.findall(r"^asd-policy (.*)$", document, re.MULTILINE)
    assert len(blocks) == 2 and [parse(command.split()).debug for command in commands] == [False] * 3


# Networks.


def test_a_policy_of_pytorch_runs_on_the_backend(exported: Exported) -> None:
    policy = load_policy(exported.source, backend="onnx:threads=1")
    policy.check()
    assert policy.backend.spec == "onnx:provider=cpu,threads=1" and policy.backend.dtype == "float32"
    assert isinstance(policy.network, nn.Module)
    assert largest_difference(policy.network, policy.denoiser, policy.job) < 1e-5


@pytest.mark.parametrize(
    "config",
    [
        TransformerConfig(3, 3, 8, 2, cond_dim=5, n_layer=1, n_head=2, n_emb=16, causal_attn=True, n_cond_layers=1),
        TransformerConfig(3, 3, 8, 2, n_layer=1, n_head=2, n_emb=16, causal_attn=True, time_as_cond=False),
    ],
    ids=["told", "not told"],
)
def test_transformers(config: TransformerConfig, chain: GaussianChain) -> None:
    """Also one that does not look at what it is told: the input stays."""
    torch.manual_seed(0)
    network = DiffusionTransformer(config).eval().requires_grad_(False)
    job = job_of(chain, (8, 3), 10)
    assert largest_difference(network, make_backend("onnx").prepare(network, job), job) < 1e-5


class Layers(nn.Module):
    """Layers that are rewritten, in all their variants, and ones that are not."""

    def __init__(self) -> None:
        """Build them."""
        super().__init__()
        self.sequence = nn.Sequential(
            nn.Conv1d(3, 8, 5, padding=2, bias=False),
            nn.GroupNorm(4, 8),
            nn.Mish(),
            nn.Conv1d(8, 8, 3, stride=2, padding=1),
            nn.Conv1d(8, 8, 3, padding=2, dilation=2),
            nn.Conv1d(8, 8, 3, padding=1, groups=2),
            nn.ConvTranspose1d(8, 6, 4, 2, 1),
            nn.GroupNorm(2, 6, affine=False),
            nn.Tanh(),
            nn.ConvTranspose1d(6, 6, 2),
            nn.Conv1d(6, 6, 2),
            nn.Conv1d(6, 6, 1),
            nn.Conv1d(6, 6, 2, padding=1),
            nn.Conv1d(6, 6, 2),
            nn.ConvTranspose1d(6, 6, 3, 1, 1, bias=False),
            nn.Conv1d(6, 6, 2, stride=2),
            nn.ConvTranspose1d(6, 4, 6, 4, 1),
            nn.Conv1d(4, 4, 2, stride=4),
            nn.Conv1d(4, 4, 9, padding=4),
            nn.ConvTranspose1d(4, 3, 4, 2, 1),
            nn.GroupNorm(3, 3, affine=False),
        )
        self.told = nn.Linear(4, 3)

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        """Map [N, 8, 3], [N] and [N, 4] to [N, 8, 3]."""
        hidden = self.sequence(x.transpose(1, 2)) + self.told(cond).unsqueeze(-1)
        both = torch.cat([hidden, hidden * 0.5 + nn.functional.mish(timestep.float())[:, None, None]], dim=1)
        return (both[:, :3] * both[:, 3:]).transpose(1, 2)


def test_lowered_layers_compute_the_same(chain: GaussianChain) -> None:
    torch.manual_seed(0)
    network = Layers().eval().requires_grad_(False)
    job = job_of(chain, (8, 3), 4)
    form = next(exporting.export_for_cpu(network, job))
    model = form.whole()
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    # Left are the dilated one, the grouped one, and the transposed one that does not make a multiple of the steps.
    assert [kinds.count(kind) for kind in ("Conv", "ConvTranspose", "Mish")] == [2, 1, 0]
    session = open_session(form, "layers", provider_options("cpu", 0, job, 0), 1)
    assert largest_difference(network, OnnxNetwork([session], ("cpu", 0)), job) < 1e-5


class Normalized(nn.Module):
    """Group normalisations of a sequence of 8 steps: one that is scaled, one that two nodes read as it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 2 * width, 3, padding=1)
        self.scaled, self.plain = nn.GroupNorm(2, 2 * width), nn.GroupNorm(2, 2 * width, affine=False)
        for part in self.scaled.parameters():
            nn.init.uniform_(part, 0.5, 2.0)
        self.back = nn.Conv1d(2 * width, 3, 1)

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        """Map [N, 8, 3], [N] and [N, 4] to [N, 8, 3]."""
        far = self.conv(x.transpose(1, 2)) + 100.0  # a mean far above the deviation
        once = nn.functional.mish(self.scaled(far))
        twice = self.plain(once)
        return self.back(twice * (twice + cond.sum(1)[:, None, None] + 0 * timestep[:, None, None])).transpose(1, 2)


@pytest.mark.parametrize(("width", "turned"), [(4, 0), (NARROW_GROUP, 0), (NARROW_GROUP + 8, 2)])
def test_groups_are_normalised_where_they_are_if_they_are_narrow(chain: GaussianChain, width: int, turned: int) -> None:
    torch.manual_seed(0)
    network = Normalized(width).eval().requires_grad_(False)
    job = job_of(chain, (8, 3), 4)
    form = next(exporting.export_for_cpu(network, job))
    assert [node.op_type for node in form.model.graph.node].count("InstanceNormalization") == turned
    session = open_session(form, "groups", provider_options("cpu", 0, job, 0), 1)
    assert largest_difference(network, OnnxNetwork([session], ("cpu", 0)), job) < 1e-3  # 100 has five digits left


def test_mish_is_right_at_both_ends(chain: GaussianChain) -> None:
    class Ends(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
            return nn.functional.mish(x * cond.unsqueeze(1) + 0 * timestep[:, None, None])

    network, job = Ends().eval(), job_of(chain, (1, 1), 1)
    found = make_backend("onnx").prepare(network, job)
    x = torch.tensor([-1e30, -200.0, -90.0, -20.0, -1e-6, 0.0, 1e-6, 1.0, 40.0, 60.0, 100.0, 1e30]).view(-1, 1, 1)
    inputs = (x, torch.zeros(len(x), dtype=torch.int64), torch.ones(len(x), 1))
    torch.testing.assert_close(found(*inputs), network(*inputs), rtol=1e-5, atol=1e-30)


def test_networks_that_cannot_be_exported_are_refused(chain: GaussianChain) -> None:
    class Strange(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else cond

    job = job_of(chain, (8, 3), 4)
    for network, told in (
        (lambda x, timestep, cond: x, "a function is no PyTorch module"),
        (Strange(), "the Strange cannot be exported to ONNX: "),
        (nn.Linear(2, 2).half(), "has weights of torch.float16, not torch.float32"),
    ):
        with pytest.raises(BackendError, match=told) as error:
            make_backend("onnx").prepare(network, job)
        assert "\n" not in str(error.value)


# Sessions.


@pytest.mark.parametrize("spec", ["onnx:provider=gpu", "onnx:threads=0", "onnx:threads=x", "onnx:cores=2"])
def test_wrong_specs_are_refused(spec: str) -> None:
    with pytest.raises(SpecError):
        make_backend(spec)


def test_a_provider_that_is_not_there_is_refused(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """As well when the package has it and takes another one without a word, as without a GPU."""
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(BackendError, match=f"has no provider {provider}; it has cpu"):
            load_policy(exported.file, backend=f"onnx:provider={provider}")
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: both)
    with pytest.warns(UserWarning), pytest.raises(BackendError, match="CUDAExecutionProvider here and took CPU"):
        load_policy(exported.file, backend="onnx:provider=cuda")


def test_points_on_a_device_that_the_provider_does_not_reach(exported: Exported) -> None:
    policy = load_policy(exported.source)
    for device, told in (("cuda:1", "use provider=cuda or"), ("mps", "use a policy on cpu or cuda")):
        job = Job(policy.chain, policy.event, 14, torch.device(device))
        with pytest.raises(BackendError, match=f"does not reach points on {device} .*{told}"):
            make_backend("onnx").prepare(policy.network, job)


def test_a_missing_package_is_named(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'asd-policy\[onnx\]'"):
        load_policy(exported.file)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_threads() == torch.get_num_threads()
    monkeypatch.delitem(sys.modules, "torch")
    for told, threads in (("3", 3), ("2,1", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert default_threads() == threads
    for told in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert default_threads() >= 1


def test_options_of_the_gpu_providers(chain: GaussianChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    job = job_of(chain, (16, 4), 78)
    (cuda, options), (cpu, _) = provider_options("cuda", 1, job, 4096)
    assert (cuda, cpu) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    expected = {"device_id": "1", "user_compute_stream": "4096", "use_tf32": "0", "enable_cuda_graph": "1"}
    assert options == expected
    assert provider_options("cuda", 0, job, 0)[0][1]["enable_cuda_graph"] == "0"
    names, (options, *_) = zip(*provider_options("tensorrt", 0, job, 4096), strict=True)
    assert names == ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["trt_profile_max_shapes"] == "x:512x16x4,timestep:512,cond:512x78"
    assert Path(options["trt_engine_cache_path"]) == tmp_path / "asd_policy" / "tensorrt"
    assert Path(options["trt_engine_cache_path"]).is_dir()


class FakeStream:
    """Counts how often it is told to wait."""

    def __init__(self) -> None:
        """Begin at 0."""
        self.waits = 0

    def wait_stream(self, other: Any) -> None:
        """Count."""
        self.waits += 1


def test_fixed_memory_of_graphs_gives_the_same(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph replays, run by a session on the CPU: more sizes than graphs, and more points than one call."""
    stream, current = FakeStream(), FakeStream()
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: current)
    monkeypatch.setattr("torch.cuda.stream", lambda stream: contextlib.nullcontext())
    policy = load_policy(exported.file)
    plain = policy.denoiser
    assert isinstance(plain, OnnxNetwork)
    fixed = OnnxCudaNetwork(plain.sessions[0], ("cpu", 0), stream, most_points=30, most_graphs=MAX_GRAPHS)
    x, timestep, cond = example(policy.job, 1, torch.Generator().manual_seed(0))
    with pytest.raises(DenoiserError, match="cond has shape"):  # and nothing of it stays
        fixed(x, timestep, cond[:, 1:])
    for round_ in range(2):
        for count in (*range(1, MAX_GRAPHS + 4), 75):
            inputs = example(policy.job, count, torch.Generator().manual_seed(100 * round_ + count))
            with torch.inference_mode(round_ == 0):
                assert torch.equal(fixed(*inputs), plain(*inputs))
    assert stream.waits == current.waits > 0
    assert len(fixed._graphs) == MAX_GRAPHS


# Files that are not what they should be.


def little_model(**options: Any) -> onnx.ModelProto:
    """A whole ONNX file of somebody else."""
    node = helper.make_node("Identity", ["x"], ["y"], **options)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    return helper.make_model(helper.make_graph([node], "little", [x], [y]))


def refusal(path: Path) -> str:
    with pytest.raises(AsdError) as error:
        load_policy(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    model = little_model()
    model.metadata_props.append(onnx.StringStringEntryProto(key="author", value="somebody"))
    onnx.save(model, tmp_path / "x.onnx")
    said = refusal(tmp_path / "x.onnx")
    assert "lacks the metadata record 'asd_policy' (it has author)" in said
    assert "`asd-policy export --policy CHECKPOINT --format onnx --out FILE`" in said


def test_what_could_reach_out_of_a_file_is_refused(tmp_path: Path) -> None:
    outside = TensorProto(name="w", dims=[1], data_type=1, data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../../etc/passwd")
    graph = little_model().graph
    cases = {
        "an operator of the domain 'com.microsoft'": little_model(domain="com.microsoft"),
        "control flow": little_model(body=graph),
        "weights in another file": little_model(value=outside),
        "sparse tensors": little_model(),
        "functions": little_model(),
        "training information": little_model(),
    }
    cases["sparse tensors"].graph.sparse_initializer.add()
    cases["functions"].functions.add()
    cases["training information"].training_info.add()
    for told, model in cases.items():
        (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
        assert f"x.onnx is not loaded: it has {told}" in refusal(tmp_path / "x.onnx")
    model = little_model()
    model.graph.initializer.append(outside)
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    assert "weights in another file" in refusal(tmp_path / "x.onnx")


def long_tag(number: int, kind: int, value: bytes) -> bytes:
    """Encode a field whose number has bits beyond the 32 of a tag, which a parser may drop."""
    tag, encoded = (number << 3 | kind) + 2**35, b""
    while tag:
        encoded += bytes([tag & 0x7F | (0x80 if tag > 0x7F else 0)])
        tag >>= 7
    return encoded + value


def test_a_tag_is_the_field_that_every_parser_reads(tmp_path: Path) -> None:
    """Weights in another file, behind a number that only 64 bits hold."""
    hidden = long_tag(14, 0, b"\x01") + long_tag(13, 2, b"\x00")
    graph = little_model().graph.SerializeToString()
    tensor = TensorProto(name="w", dims=[1], data_type=1).SerializeToString() + hidden
    graph += b"\x2a" + bytes([len(tensor)]) + tensor
    (tmp_path / "x.onnx").write_bytes(b"\x08\x08\x12\x00\x3a" + bytes([len(graph)]) + graph)
    assert "a field's tag has more than 32 bits" in refusal(tmp_path / "x.onnx")
    padded = b"\xba\x80\x80\x80\x80\x00"  # 7, as a message, in six bytes
    (tmp_path / "x.onnx").write_bytes(b"\x08\x08\x12\x00" + padded + bytes([len(graph)]) + graph)
    assert "a field's tag has more than 32 bits" in refusal(tmp_path / "x.onnx")


def mutate_wire(message: bytes, rng: random.Random) -> bytes:
    """Change, insert or delete a few bytes, often ones that mean something in a tag or a size."""
    bytes_ = bytearray(message)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(bytes_) + 1)
        piece = bytes(rng.choice((0x00, 0x01, 0x80, 0xFF, 0x08, 0x12, 0x3A, rng.randrange(256))) for _ in range(3))
        bytes_[at : at + rng.randint(0, 2)] = piece[: rng.randint(0, 3)]
    return bytes(bytes_)


@pytest.mark.fuzz
def test_our_reader_sees_the_fields_that_the_real_one_sees() -> None:
    """What we accept, field by field, is what protobuf's parser reads of the same bytes; fixed seeds."""
    rng, compared = random.Random(0), 0
    seeds = [little_model().SerializeToString(), little_model(domain="x", value=1.5).SerializeToString()]
    kinds = {0: int, 1: int, 2: bytes, 5: int}
    for round_ in range(4000 * SCALE):
        message = mutate_wire(seeds[round_ % 2], rng)
        try:
            ours = [(number, value) for number, value in wire_fields(memoryview(message))]
        except ValueError:
            continue
        empty = Empty()
        empty.ParseFromString(message)  # what we accept, it does too
        theirs = [(each.field_number, each.wire_type, each.data) for each in UnknownFieldSet(empty)]
        assert len(ours) == len(theirs)
        for (number, value), (their_number, kind, data) in zip(ours, theirs, strict=True):
            assert number == their_number
            if isinstance(value, int):
                assert kind == 0 and value % 2**64 == data
            else:
                expected = data if kinds[kind] is bytes else int(data).to_bytes(8 if kind == 1 else 4, "little")
                assert bytes(value) == expected
        compared += 1
    assert compared > 400 * SCALE


def big_model(nodes: list[Any], weights: dict[str, Any] | None = None) -> onnx.ModelProto:
    """A model of x [points, 4] to y."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["points", None]) for name in "xy")
    x.type.tensor_type.shape.dim[1].dim_value = 4
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    return helper.make_model(helper.make_graph(nodes, "big", [x], [y], constants))


def test_what_would_take_for_ever_or_all_memory_is_refused_before_it_is_run(tmp_path: Path) -> None:
    node = helper.make_node
    many = [node("Identity", [f"v{i}" if i else "x"], [f"v{i + 1}"]) for i in range(20_001)]
    doubled = [node("Concat", [f"v{i}" if i else "x"] * 2, [f"v{i + 1}"], axis=1) for i in range(30)]
    spread = [
        node("Unsqueeze", ["x", "axis"], ["v"]),
        node("Mul", ["v", "row"], ["w"]),
        node("Mul", ["w", "column"], ["y"]),
    ]
    ones = np.ones((3000, 3000), np.float32)
    folded = [node("MatMul", ["w", "w"], ["v"])]
    axis = np.array([1], np.int64)
    cases = {
        "more than 20000 nodes or weights": big_model(many),
        "numbers for 64 points; 536870912 are the most": big_model(doubled),
        "numbers for 64 points": big_model(
            spread,
            {"axis": axis, "row": np.ones((3000, 1), np.float32), "column": np.ones((5000, 1, 1, 1), np.float32)},
        ),
        "operations on constants, to be done at load": big_model(folded, {"w": ones}),
        "the operator Loop, which no exported policy has": big_model([node("Loop", ["x"], ["y"])]),
        "the tensor z, which is used before it is there": big_model([node("Add", ["x", "z"], ["y"])]),
        "an operator Reshape that does not fit its inputs": big_model([node("Reshape", ["x", "x"], ["y"])]),
    }
    for told, model in cases.items():
        (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
        said = refusal(tmp_path / "x.onnx")
        assert "x.onnx is not loaded: it has " in said and told in said


class Filtered(nn.Module):
    """A convolution of channels and time steps enough to be taken apart for a single point."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(96, 96, 5, padding=2)

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        """Map [N, 32, 96], [N] and [N, 4] to [N, 32, 96]."""
        return self.conv(x.transpose(1, 2)).transpose(1, 2) + (cond.sum(1) + timestep)[:, None, None]


@pytest.mark.parametrize("points", [1, 3, 64])
@pytest.mark.parametrize("network", ["unet", "transformer", "filtered"])
def test_shapes_are_those_of_onnx_runtime(
    network: str, points: int, exported: Exported, chain: GaussianChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every tensor of an exported graph, each made an output."""
    if network == "unet":
        model, job = onnx.load(exported.file), load_policy(exported.source).job
    elif network == "filtered":  # with fewer products
        job = job_of(chain, (32, 96), 4)
        model = next(exporting.export_for_cpu(Filtered().eval(), job)).whole()
        assert "Split" in [node.op_type for node in model.graph.node]
    else:
        job = job_of(chain, (8, 3), 10)
        config = TransformerConfig(3, 3, 8, 2, cond_dim=5, n_layer=1, n_head=2, n_emb=16, causal_attn=True)
        model = next(exporting.export_for_cpu(DiffusionTransformer(config).eval(), job)).whole()
    del model.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    onnx.save(model, tmp_path / "x.onnx")
    graphs: list[Any] = []
    monkeypatch.setattr(onnx_graph, "POINTS", points)
    monkeypatch.setattr(onnx_graph, "sizes", lambda *graph: graphs.append(graph) or sizes(*graph))
    onnx_graph.read_onnx(tmp_path / "x.onnx")
    values = [value for _, _, outputs in follow(*graphs[0]) for value in outputs]
    session = open_session(str(tmp_path / "x.onnx"), "x", [("CPUExecutionProvider", {})], 1)
    inputs = example(job, points, torch.Generator().manual_seed(0))
    found: Any = session.run(names, dict(zip(INPUTS, (each.numpy() for each in inputs), strict=True)))
    assert [value.shape for value in values] == [np.shape(each) for each in found]


def test_numbers_that_are_gathered_again_and_again_are_forgotten() -> None:
    """Two small weights, and a number of values that grows by their size with each operator."""
    axes = 3
    weights = {"0": np.zeros((1,) * axes, np.int64), "index": np.zeros(MOST_VALUES, np.int64)}
    nodes = [Node("Gather", [str(axis), "index"], [str(axis + 1)], {"axis": axis}) for axis in range(axes)]
    known = {name: Value(each.shape, each, constant=True) for name, each in weights.items()}
    kept = [value.numbers for _, _, outputs in follow(nodes, known) for value in outputs]
    assert [each is not None for each in kept] == [True, False, False]
    assert sizes(nodes, known).peak >= MOST_VALUES**axes


def test_a_file_cut_anywhere_is_refused(exported: Exported, tmp_path: Path) -> None:
    whole, path = exported.file.read_bytes(), tmp_path / "cut.onnx"
    for size in (0, 2, 3, 10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        said = refusal(path)
        assert "is not a whole ONNX file: " in said if size > 2 else "not a checkpoint of a known format" in said


def test_changed_weights_are_noticed(exported: Exported, tmp_path: Path) -> None:
    """Which no look at a number could: a record's digest is of all of them."""
    model = onnx.load(exported.file)
    weight = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
    onnx.save(model, tmp_path / "x.onnx")
    assert "was changed after its export" in refusal(tmp_path / "x.onnx")


@pytest.mark.parametrize(
    "place, value, told",
    [
        (("version",), 2, "the record is of version 2, and this asd_policy .* reads 1"),
        (("chain", "a"), [1.0], "the record's chain's a is .*, not a list of 10 numbers"),
        (("chain", "sigma", 0), -1.0, "sigma is -1 at step 0, not "),
        (("chain", "sigma", 3), 0.0, "sigma is 0 at step 3, not "),
        (("chain", "b", 2), -0.5, "b is -0.5 at step 2, not "),
        (("chain", "timesteps"), list(range(10)), "timesteps is 0 at step 0, not 9"),
        (("chain", "excess"), [0.0] * 10, "excess is there"),
        (("chain", "timesteps", 0), 10, "no integers in 0 … 9"),
        (("chain", "config", "beta_schedule"), "x", "beta_schedule 'x' is not one of"),
        (("chain", "excess"), "none", "not a list of"),
        (("action", "gain", 0), 0, "has a gain of 0"),
        (("horizons", "n_action_steps"), 16, "no 16 to execute from 1"),
        (("horizons", "horizon"), 32, r"event is \[16, 2\], but .* make samples of \[32, 2\]"),
        (("event",), None, "event is None, but"),
        (("horizons", "n_obs_steps"), 3, "has the inputs .*; the policy needs x .*cond .*21"),
        (("inpaints",), True, r"make samples of \[16, 9\]"),
        (("observation",), {}, "the policy needs .*cond .*0"),
        (("inpaints",), 1, "is 1, not true or false"),
        (("parameters",), True, "is True, not an integer"),
        (("graph",), "0", "was changed after its export"),
    ],
)  # fmt: skip
def test_records_that_do_not_fit(
    exported: Exported, tmp_path: Path, place: tuple[str | int, ...], value: Any, told: str
) -> None:
    def change(record: Any) -> None:
        for key in place[:-1]:
            record = record[key]
        record[place[-1]] = value

    path = edit(exported.file, tmp_path / "x.onnx", change)
    with pytest.raises(AsdError, match=told) as error:
        load_policy(path)
    assert str(path) in str(error.value) or "beta_schedule" in told
    assert "\n" not in str(error.value)


def test_without_pytorch_a_chain_is_held_to_theory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asd_policy.checkpoints.onnx.chain.find_spec", lambda name: None)
    for prediction in ("epsilon", "sample", "v_prediction"):
        config = {"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2", "prediction_type": prediction}
        for scheduler, eta in (("DDPMScheduler", None), ("DDIMScheduler", 0.5)):
            chain = GaussianChain.from_scheduler({**config, "_class_name": scheduler}, 25, eta)
            assert contradiction(chain) is None
            wrong = {
                "timesteps": chain.timesteps[::-1],
                "sigma": chain.sigma * (np.arange(25) != 3),
                "b": -chain.b,
                "output_scale": -chain.output_scale,
                "input_scale": chain.input_scale + 0.5,
            }
            for name, values in wrong.items():
                assert contradiction(replace(chain, **{name: values})) is not None, (prediction, scheduler, name)


def test_an_entry_that_is_missing_is_named(exported: Exported, tmp_path: Path) -> None:
    path = edit(exported.file, tmp_path / "x.onnx", lambda record: record["chain"].pop("b"))
    assert refusal(path).endswith("the record's chain lacks 'b'")


def test_a_record_that_is_no_json(exported: Exported, tmp_path: Path) -> None:
    for text in ("{", "[" * 100_000, "[]", "3"):
        model = onnx.load(exported.file)
        model.metadata_props[0].value = text
        onnx.save(model, tmp_path / "x.onnx")
        assert "the record is" in refusal(tmp_path / "x.onnx")


def damage_record(path: Path, rng: random.Random) -> str:
    """Change, delete or rename one entry of an exported file's record; return what was done."""
    aside = path.with_suffix(".json")
    model = onnx.load(path)
    aside.write_text(model.metadata_props[0].value)
    done = damage_json(aside, rng)
    model.metadata_props[0].value = aside.read_text()
    onnx.save(model, path)
    return done


@pytest.mark.fuzz
@pytest.mark.parametrize("damage", [damage_record, damage_bytes])
def test_damage_is_refused_or_harmless(
    exported: Exported, tmp_path: Path, damage: Callable[[Path, random.Random], str]
) -> None:
    path = tmp_path / "policy.onnx"
    path.write_bytes(exported.file.read_bytes())

    def use() -> None:
        assert np.isfinite(load_policy(path).select_action([0.0] * 7)).all()

    assert count_refusals(path, [""], damage, use, rounds=40 * SCALE) > 10 * SCALE


# The command.


def test_export_writes_a_policy_that_inspect_knows(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, file, results = exported
    assert results["command"] == "export" and results["bytes"] == file.stat().st_size
    assert results["checked_points"] == [1, 2, 7, 64]
    assert 0 <= results["largest_relative_difference"] < 1e-5
    assert [path.name for path in file.parent.iterdir()] == ["policy.onnx"]
    said = {}
    for path in (checkpoint, file):
        assert cli.run(["inspect", "--policy", str(path), "--json"]) == 0
        said[path] = json.loads(capsys.readouterr().out)
    for key in ("observation", "action", "horizons", "ranges", "prediction_type", "chain", "samplers", "parameters"):
        assert said[file][key] == said[checkpoint][key]
    assert said[file]["format"] == "exported ONNX file" and said[file]["runs_here"]
    assert results["source"]["files"] == said[checkpoint]["files"]
    assert results["source"]["policy"] == checkpoint.name
    assert str(checkpoint.parent).encode() not in file.read_bytes()  # what is passed on tells nothing of its user
    # Nothing of this machine is in the file but what the user called the policy.
    assert str(Path(asd_policy.__file__).parent).encode() not in file.read_bytes()
    assert export(file, tmp_path / "again.onnx") == 2
    assert "is an ONNX file already" in capsys.readouterr().err


def test_a_file_that_predicts_something_else_is_not_written(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*given: Any) -> Any:
        for form in exporting.export_for_cpu(*given):
            next(each for each in form.model.graph.node if each.op_type == "Sin").op_type = "Cos"
            yield form

    monkeypatch.setattr("asd_policy.checkpoints.onnx.writing.export_for_cpu", wrong)
    file = tmp_path / "policy.onnx"
    file.write_text("an older one")
    assert export(exported.source, file) == 2
    assert "the exported network differs from the policy's by" in capsys.readouterr().err
    assert file.read_text() == "an older one"
    assert not list(tmp_path.glob(".*"))


def test_wrong_options(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["--format", "torchscript", "--out", str(tmp_path / "x")], "--format torchscript is not one of onnx"),
        (["--out", str(tmp_path)], "is a folder; it names the file to write"),
    ):
        assert cli.run(["export", "--policy", str(checkpoint), *words]) == 2
        said = capsys.readouterr().err
        assert told in said and said.count("\n") == 1
