"""Exported policies with cameras and clouds: one file, the same features and plans, and nothing unchecked in it."""

import contextlib
import io
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import asd_policy
from asd_policy import cli
from asd_policy._common.arrays import NUMPY
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.checkpoints import inspection
from asd_policy.checkpoints.onnx import graph as onnx_graph
from asd_policy.checkpoints.onnx.graph import SENSOR, read_onnx
from asd_policy.checkpoints.onnx.policy import load_onnx
from asd_policy.checkpoints.onnx.record import KEY
from asd_policy.checkpoints.onnx.sizes import follow, sizes
from asd_policy.checkpoints.onnx.writing import export_policy
from asd_policy.errors import AsdError, BackendError, CheckpointError
from asd_policy.networks.backends import make_backend
from asd_policy.networks.backends.base import SensorJob
from asd_policy.networks.backends.onnx import OnnxSensor
from asd_policy.networks.backends.onnx_export import export_sensor, sensor_example
from asd_policy.networks.backends.onnx_exported import ExportedModel
from asd_policy.networks.unet import ConditionalUnet1d, UnetConfig
from asd_policy.networks.vision.pointnet import PointNet, PointNetConfig
from asd_policy.networks.vision.vit import VisionTransformer, VitConfig
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.plan import Horizons
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import Sensor, SensorEncoder
from asd_policy.samplers import make_sampler
from support.fuzzing import SCALE, count_refusals, damage_bytes, damage_json
from support.sensor_networks import Camera, Cloud, Patches, Pools

CPU = torch.device("cpu")
STEPS = 2
SOURCE = {"policy": "cameras", "format": "none", "files": []}


def affine(size: int) -> Affine:
    return Affine(torch.linspace(0.1, 0.3, size), torch.linspace(1.5, 2.5, size), torch.linspace(-0.5, 0.5, size))


def make_policy(**options: Any) -> Policy:
    """A policy of a vector, two cameras that share a network, one of its own, a cloud and a vector of one step."""
    camera = Camera(True).eval()
    features: dict[str, Affine | Sensor] = {
        "state": affine(2),
        "left": Sensor((3, 15, 21), affine(3), camera, 8),
        "right": Sensor((3, 15, 21), affine(3), camera, 8),
        "top": Sensor((3, 16, 16), affine(3), Patches().eval(), 16),
        "cloud": Sensor((20, 3), affine(3), Cloud().eval(), 5),
        "latest": Sensor((4,), affine(4), nn.Identity(), 4, steps=1 if options.get("by_feature") else None),
    }
    encoder = SensorEncoder(features, **options)
    torch.manual_seed(0)
    horizons = Horizons(STEPS, 8, 1)
    network = ConditionalUnet1d(UnetConfig(2, encoder.cond_dim(STEPS), (8, 16), 3, 4, 16, True)).eval()
    chain = GaussianChain.from_scheduler({"num_train_timesteps": 10}, None)
    return Policy(network, chain, make_sampler("ddpm"), horizons, encoder, affine(2), CPU)


def observation(step: int, floats: bool = False) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    seen: dict[str, Any] = {"state": rng.random(2), "latest": rng.random(4), "cloud": rng.random((20, 3))}
    for name, shape in (("left", (15, 21)), ("right", (15, 21)), ("top", (16, 16))):
        seen[name] = rng.integers(0, 256, (*shape, 3), np.uint8)
        if floats:
            seen[name] = np.moveaxis(seen[name], -1, 0).astype(np.float32) / 255
    return seen


class Written(NamedTuple):
    """A policy and the file that was written of it."""

    policy: Policy
    file: Path
    difference: float


@pytest.fixture(scope="module", params=[False, True], ids=["by step", "by feature"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    policy, file = make_policy(by_feature=request.param), tmp_path_factory.mktemp("written") / "policy.onnx"
    return Written(policy, file, export_policy(policy, file, SOURCE))


def test_a_file_alone_is_the_policy(written: Written) -> None:
    found = asd_policy.load_policy(written.file)
    assert found.observation_shapes == written.policy.observation_shapes
    encoder, expected = found.encoder, written.policy.encoder
    assert isinstance(encoder, SensorEncoder) and isinstance(expected, SensorEncoder)
    assert (encoder.sizes, encoder.by_feature, encoder.inpaints, encoder.random_crop) == (
        expected.sizes, expected.by_feature, expected.inpaints, expected.random_crop,
    )  # fmt: skip
    assert {name: each.steps for name, each in encoder.sensors.items()} == {
        name: each.steps for name, each in expected.sensors.items()
    }
    assert written.difference < 1e-5


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("device", [CPU, NUMPY])
def test_it_plans_as_the_policy(written: Written, device: Any, floats: bool) -> None:
    """On tensors and, without a look at PyTorch, on NumPy's arrays; each observation is encoded once."""
    found = load_onnx(written.file, make_sampler("ddpm"), device)
    assert device != NUMPY or isinstance(found.normalization["left"].gain, np.ndarray)
    for policy in (found, written.policy):
        policy.reset(seed=0)
        for step in range(3):
            policy.select_action(observation(step, floats))
    for mine, its in zip(found.plans, written.policy.plans, strict=True):
        np.testing.assert_allclose(np.asarray(mine.cond), np.asarray(its.cond), rtol=0, atol=2e-5)
        assert mine.encoding is not None and mine.encoding.observations == 1
        if device == CPU:
            torch.testing.assert_close(mine.chunk, its.chunk, rtol=0, atol=1e-4)


def test_a_shared_network_is_stored_and_opened_once(written: Written) -> None:
    found = asd_policy.load_policy(written.file)
    assert isinstance(found.encoder, SensorEncoder)
    runs = {name: sensor.run for name, sensor in found.encoder.sensors.items()}
    assert runs["left"] is runs["right"] and len(set(map(id, runs.values()))) == 4
    assert len(read_onnx(written.file).parts) == 4


def test_onnx_and_onnxruntime_read_it(written: Written) -> None:
    """It is an ordinary file: the denoiser, and beside its weights those that nobody reads."""
    onnx.checker.check_model(onnx.load(written.file))
    names = {each.name for each in onnxruntime.InferenceSession(written.file).get_inputs()}
    assert names == {"x", "timestep", "cond"}
    for first, size in read_onnx(written.file).parts.values():
        content = written.file.read_bytes()[first : first + size]
        onnx.checker.check_model(onnx.load_from_string(content))
        assert OnnxSensor(written.file, first, size).read() == content


def test_it_runs_on_onnx_alone(written: Written) -> None:
    found = asd_policy.load_policy(written.file)
    with pytest.raises(BackendError, match="OnnxModel|OnnxSensor"):
        found.with_backend(make_backend("torch-eager:dtype=bfloat16"))
    with pytest.raises(BackendError, match="the sensor's model in .* runs with the backend onnx alone"):
        OnnxSensor(written.file, 0, 1)(None)
    with pytest.raises(BackendError, match="is an ONNX file already"):
        export_policy(found, written.file.with_name("again.onnx"), SOURCE)


def test_the_command_exports_a_checkpoint_with_a_camera(camera_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy.onnx"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.run(["export", "--policy", str(camera_checkpoint), "--out", str(out), "--json"]) == 0
    assert json.loads(printed.getvalue())["largest_relative_difference"] < 1e-5
    frame = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    chunks = []
    for path in (camera_checkpoint, out):
        policy = asd_policy.load_policy(path, "ddpm")
        policy.reset(seed=0)
        policy.select_action({"agent_pos": [0.1, 0.2], "pixels": frame})
        chunks.append(policy.plans[0].chunk)
    torch.testing.assert_close(*chunks, rtol=0, atol=1e-4)
    assert inspection.inspect(str(out))["observation"]["observation.image"] == [3, 40, 48]


def test_a_crop_at_random_stays_refused(tmp_path: Path) -> None:
    policy = make_policy(random_crop="its library crops at random")
    export_policy(policy, tmp_path / "x.onnx", SOURCE)
    with pytest.raises(CheckpointError, match="its library crops at random; plans with the crop in the middle"):
        asd_policy.load_policy(tmp_path / "x.onnx")
    asd_policy.load_policy(tmp_path / "x.onnx", fixed_crop=True)


def test_what_is_not_exported(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    assert isinstance(policy.encoder, SensorEncoder)
    sensor = policy.encoder.sensors["top"]
    wrong = replace(sensor, network=nn.Sequential(Patches(), nn.Linear(16, 5)).eval())
    policy.encoder = replace(policy.encoder, features={**policy.encoder.features, "top": wrong})
    with pytest.raises(BackendError, match=r"the policy needs features tensor\(float\) \['N', 16\]"):
        export_policy(policy, tmp_path / "x.onnx", SOURCE)

    class Own:
        pass

    policy.encoder = Own()  # pyright: ignore[reportAttributeAccessIssue]  # somebody's
    with pytest.raises(BackendError, match="the policy's encoder is a Own of its library, which is not exported"):
        export_policy(policy, tmp_path / "x.onnx", SOURCE)
    policy = make_policy()
    monkeypatch.setattr("asd_policy.checkpoints.onnx.writing.MAX_BYTES", 4000)
    refused = r"Camera and Patches and Cloud and Identity has \d+ bytes of weights; one ONNX file has 4000 at most"
    with pytest.raises(BackendError, match=refused):
        export_policy(policy, tmp_path / "x.onnx", SOURCE)
    assert not (tmp_path / "x.onnx").exists()


def test_a_file_that_encodes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from asd_policy.checkpoints.onnx import writing

    export = writing.export_sensor

    def wrong(network: Any, job: Any) -> ExportedModel:
        return export(nn.Sequential(network, nn.Hardtanh(-0.1, 0.1)).eval() if job.shape == (20, 3) else network, job)

    monkeypatch.setattr(writing, "export_sensor", wrong)
    monkeypatch.setitem(onnx_graph.sizes.__globals__["_RULES"], "Clip", onnx_graph.sizes.__globals__["_shape_alone"])
    with pytest.raises(
        BackendError, match=r"the exported network differs from the policy's by \S+ of .* encodes 'cloud'"
    ):
        export_policy(make_policy(), tmp_path / "x.onnx", SOURCE)
    assert not (tmp_path / "x.onnx").exists()


# Files that are not what they should be.


def edited(written: Written, out: Path, change: Callable[[onnx.ModelProto], None], digest: bool = True) -> Path:
    """Write a copy with another graph, and the digest that is right for it, unless the record is the change."""
    model = onnx.load(written.file)
    change(model)
    if digest:
        (entry,) = (each for each in model.metadata_props if each.key == KEY)
        record = json.loads(entry.value)
        plain = onnx.ModelProto()
        plain.CopyFrom(model)
        out.write_bytes(plain.SerializeToString())
        with contextlib.suppress(CheckpointError):
            record["graph"] = read_onnx(out).digest
        entry.value = json.dumps(record)
    out.write_bytes(model.SerializeToString())
    return out


def weight_of(model: onnx.ModelProto, number: int = 0) -> TensorProto:
    (found,) = (each for each in model.graph.initializer if each.name == f"{SENSOR}{number}")
    return found


def refusal(path: Path) -> str:
    with pytest.raises(AsdError) as error:
        asd_policy.load_policy(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def inner(change: Callable[[onnx.ModelProto], None]) -> Callable[[onnx.ModelProto], None]:
    """Change the first sensor's model."""

    def both(model: onnx.ModelProto) -> None:
        weight = weight_of(model)
        sensor = onnx.load_from_string(weight.raw_data)
        change(sensor)
        weight.raw_data = sensor.SerializeToString()
        weight.dims[:] = [len(weight.raw_data)]

    return both


def test_a_sensors_model_is_checked_as_a_file_is(written: Written, tmp_path: Path) -> None:
    def of_another(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = "com.microsoft"

    def outside(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].data_location = TensorProto.EXTERNAL

    def large(model: onnx.ModelProto) -> None:
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.initializer.append(helper.make_tensor("n", TensorProto.INT64, [4], [64, 2**12, 2**12, 8]))
        model.graph.node.append(helper.make_node("Expand", ["seen", "n"], ["features"]))
        model.graph.input[0].type.tensor_type.shape.CopyFrom(
            helper.make_tensor_value_info("x", 1, [1, 1, 1, 1]).type.tensor_type.shape
        )

    def nested(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(TensorProto(name=f"{SENSOR}9", data_type=2, dims=[1], raw_data=b"x"))

    cases: dict[str, Callable[[onnx.ModelProto], None]] = {
        "an operator of the domain 'com.microsoft'": inner(of_another),
        "weights in another file": inner(outside),
        "tensors of ": inner(large),
        "asd_policy.sensor.9 within asd_policy.sensor.": inner(nested),
        "is not a whole ONNX file": lambda model: setattr(weight_of(model), "raw_data", b"\x3a\xff"),
        "it has 0 graphs, not 1": lambda model: setattr(weight_of(model), "raw_data", b""),
    }
    for said, change in cases.items():
        assert said in refusal(edited(written, tmp_path / "x.onnx", change)), said


def test_a_sensors_model_that_was_changed(written: Written, tmp_path: Path) -> None:
    def other(model: onnx.ModelProto) -> None:
        weight = next(each for each in model.graph.initializer if each.raw_data and len(each.raw_data) > 8)
        weight.raw_data = bytes(len(weight.raw_data))

    path = edited(written, tmp_path / "x.onnx", inner(other), digest=False)
    assert "was changed after its export" in refusal(path)

    def gone(model: onnx.ModelProto) -> None:
        model.graph.initializer.remove(weight_of(model))

    assert "has no model 'asd_policy.sensor.0' of the sensor 'left'" in refusal(
        edited(written, tmp_path / "x.onnx", gone)
    )

    def swapped(model: onnx.ModelProto) -> None:
        weight_of(model, 0).raw_data, weight_of(model, 1).raw_data = (
            weight_of(model, 1).raw_data, weight_of(model, 0).raw_data,
        )  # fmt: skip

    assert "the policy needs seen tensor(float) ['N', 3, 15, 21]" in refusal(
        edited(written, tmp_path / "x.onnx", swapped)
    )


BAD_SENSORS: list[tuple[dict[str, Any], str]] = [
    ({"shape": [3, 15]}, "has the shape"),
    ({"shape": [4, 15, 21]}, "has the shape"),
    ({"shape": [3, 0, 21]}, "has the shape"),
    ({"shape": [3, 15.5, 21]}, "has the shape"),
    ({"shape": [3, 2**15, 2**15]}, "has the shape"),
    ({"shape": [1, 3, 15, 21]}, "has the shape"),
    ({"shape": "large"}, "shape is 'large', not a list"),
    ({"size": 0}, "size is 0, not an integer in 1"),
    ({"size": 9}, "the policy needs"),
    ({"steps": 0}, "steps is 0, not an integer in 1"),
    ({"steps": 3}, "steps is 3, not an integer in 1 … 2"),
    ({"model": 7}, "model is 7, not a text"),
    ({"model": "x"}, "has no model 'x' of the sensor 'left'"),
]


@pytest.mark.parametrize(("change", "said"), BAD_SENSORS, ids=[str(each) for each, _ in BAD_SENSORS])
def test_a_record_that_does_not_fit(change: dict[str, Any], said: str, written: Written, tmp_path: Path) -> None:
    def damage(model: onnx.ModelProto) -> None:
        (entry,) = (each for each in model.metadata_props if each.key == KEY)
        record = json.loads(entry.value)
        record["observation"]["left"]["sensor"] |= change
        entry.value = json.dumps(record)

    assert said in refusal(edited(written, tmp_path / "x.onnx", damage, digest=False))


def test_a_file_of_before_there_were_sensors_loads(tmp_path: Path, small_checkpoint: Path) -> None:
    policy = asd_policy.load_policy(small_checkpoint)
    export_policy(policy, tmp_path / "new.onnx", SOURCE)
    model = onnx.load(tmp_path / "new.onnx")
    (entry,) = (each for each in model.metadata_props if each.key == KEY)
    record = json.loads(entry.value)
    del record["by_feature"], record["random_crop"]
    entry.value = json.dumps(record)
    onnx.save(model, tmp_path / "old.onnx")
    found = asd_policy.load_policy(tmp_path / "old.onnx")
    assert found.encoder.shapes == policy.encoder.shapes and not found.encoder.keeps


def damage_record(path: Path, rng: random.Random) -> str:
    """Change, delete or rename one entry of the record; return what was done."""
    aside = path.with_suffix(".json")
    model = onnx.load(path)
    (entry,) = (each for each in model.metadata_props if each.key == KEY)
    aside.write_text(entry.value)
    done = damage_json(aside, rng)
    entry.value = aside.read_text()
    onnx.save(model, path)
    return done


def damage_sensor(path: Path, rng: random.Random) -> str:
    """Damage bytes of the sensors' models alone; return what was done."""
    first, size = rng.choice(list(read_onnx(path).parts.values()))
    content, at = bytearray(path.read_bytes()), first + rng.randrange(min(size, 3000))
    content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"flip at {at}"


@pytest.mark.fuzz
@pytest.mark.parametrize("damage", [damage_record, damage_bytes, damage_sensor])
def test_damage_is_refused_or_harmless(
    written: Written, tmp_path: Path, damage: Callable[[Path, random.Random], str]
) -> None:
    path = tmp_path / "policy.onnx"
    path.write_bytes(written.file.read_bytes())

    def use() -> None:
        assert np.isfinite(asd_policy.load_policy(path).select_action(observation(0))).all()

    assert count_refusals(path, [""], damage, use, rounds=20 * SCALE) > 5 * SCALE


# The sizes of graphs that are exported.


@pytest.mark.parametrize("rows", [1, 3])
def test_shapes_are_those_that_onnxruntime_computes(
    rows: int, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every value of every sensor's model."""
    monkeypatch.setattr(onnx_graph, "POINTS", rows)
    graphs: list[Any] = []
    monkeypatch.setattr(onnx_graph, "sizes", lambda *graph: graphs.append(graph) or sizes(*graph))
    spans = read_onnx(written.file).parts
    kinds = set()
    for (nodes, known), (first, size) in zip(graphs[1:], spans.values(), strict=True):
        model = onnx.load_from_string(written.file.read_bytes()[first : first + size])
        every = [name for node in model.graph.node for name in node.output if name]
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in every)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        (given,) = session.get_inputs()
        values = session.run(every, {"seen": np.zeros((rows, *given.shape[1:]), np.float32)})
        shapes = {name: np.asarray(value).shape for name, value in zip(every, values, strict=True)}
        for node, _, outputs in follow(nodes, known):
            kinds.add(node.kind)
            for name, value in zip(node.outputs, outputs, strict=False):
                assert value.shape == shapes[name], (node.kind, name)
    assert {"Conv", "Resize", "ReduceMax", "MatMul"} <= kinds


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Pools(), (3, 24, 26)),
        (VisionTransformer(VitConfig(32, 16, 2, 2, clip=True)), (3, 32, 32)),
        (PointNet(PointNetConfig(True, 8, True, True)), (30, 6)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_parts_of_every_formats_encoder(network: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Are exported, with operators whose sizes are known, and compute the same."""
    torch.manual_seed(0)
    for parameter in network.eval().parameters():
        parameter.data.normal_(0, 0.3)
    with torch.inference_mode():
        job = SensorJob(shape, network(torch.zeros(2, *shape)).shape[1], 64, CPU)
        encode = make_backend("onnx").prepare_sensor(network, job)
        for count in (1, 5):
            expected, found = network(sensor_example(job, count)), encode(sensor_example(job, count))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    onnx.save(export_sensor(network, job).whole(), tmp_path / "x.onnx")
    read_onnx(tmp_path / "x.onnx")
