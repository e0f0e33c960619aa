"""The metadata record that makes an ONNX file a policy: its chain, normalisation, horizons, and where it came from.

Numbers are written as the shortest decimals that read back to the same float64, so the chain is the checkpoint's to the
bit, and no scheduler is computed again.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from asd_policy._common.version import PACKAGE_VERSION
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.scheduler_options import check_options, configuration
from asd_policy.checkpoints.onnx.chain import contradiction
from asd_policy.errors import CheckpointError
from asd_policy.policy.observation import is_frame
from asd_policy.policy.plan import Horizons
from asd_policy.policy.sensors import SensorEncoder

if TYPE_CHECKING:
    from asd_policy.policy.policy import Policy

KEY = "asd_policy"
"""Key of the record in a model's metadata_props."""
VERSION = 1
MAX_RECORD = 16 * 2**20  # [characters]
MAX_SIZE = 2**20  # of any horizon or feature
MAX_SENSED = 2**26  # numbers that a sensor sees: a frame of 4096 × 4096
_SCHEDULE = ("a", "b", "sigma", "output_scale", "input_scale")
_AFFINE = ("origin", "gain", "shift")

Floats = npt.NDArray[np.float64]
Map = dict[str, npt.NDArray[np.float32]]
"""`origin`, `gain` and `shift` [feature_dim] of a feature's map."""


@dataclass(frozen=True)
class SensorRecord:
    """A feature that a network encodes."""

    shape: tuple[int, ...]
    """Of what it sees."""
    size: int
    """Numbers that one observation of it becomes."""
    steps: int | None
    """How many of the last observations count; None for all."""
    model: str
    """Name of the weight of the graph that holds its network's model."""


@dataclass(frozen=True)
class PolicyRecord:
    """The contents of an exported file's record: everything of the policy but its network."""

    package: str
    """Version of asd_policy that exported it."""
    source: Mapping[str, Any]
    """What was exported: its name, format, and the sha256 of its files."""
    network: str
    """Class of the network."""
    parameters: int
    """Numbers in its weights."""
    graph: str
    """sha256 of the serialised graph, weights included."""
    chain: GaussianChain
    """The checkpoint's chain, exactly."""
    observation: dict[str, Map]
    """Map of each observation feature, in the network's order."""
    action: Map
    """Map of the action."""
    horizons: Horizons
    """Horizons of observation, plan and execution."""
    inpaints: bool
    """As `Policy.inpaints`."""
    sensors: dict[str, SensorRecord]
    """Those of the features that networks encode."""
    by_feature: bool
    """As `SensorEncoder.by_feature`."""
    random_crop: str | None
    """As `ObservationEncoder.random_crop`."""
    own_plan: str | None = None
    """Spec of the plan of the checkpoint's own scheduler, where the chain is the one its network was trained for."""

    @property
    def event(self) -> tuple[int, int]:
        """Shape of a sample."""
        sizes = [
            self.sensors[name].size if name in self.sensors else len(each["origin"])
            for name, each in self.observation.items()
        ]
        dims = sum(sizes) if self.inpaints else 0
        return self.horizons.horizon, len(self.action["origin"]) + dims


def write_record(
    policy: "Policy", network: str, parameters: int, graph: str, source: Mapping[str, Any], models: Mapping[str, str]
) -> str:
    """Write the record of a policy as JSON.

    Args:
        policy: What is exported.
        network: Class of its network.
        parameters: Numbers in the network's weights.
        graph: sha256 of the serialised graph.
        source: What was exported.
        models: For each feature that a network encodes, the name of the weight that holds its model.
    """
    assert isinstance(policy.encoder, SensorEncoder)
    chain = policy.chain
    maps: dict[str, dict[str, Any]] = {
        name: {part: [float(number) for number in getattr(affine, part).tolist()] for part in _AFFINE}
        for name, affine in policy.normalization.items()
    }
    for name, sensor in policy.encoder.sensors.items():
        its = {"shape": sensor.shape, "size": sensor.size, "steps": sensor.steps, "model": models[name]}
        maps[name] = {**maps[name], "sensor": its}
    record = {
        "version": VERSION,
        "package": PACKAGE_VERSION,
        "source": source,
        "network": network,
        "parameters": parameters,
        "graph": graph,
        "chain": {
            "config": chain.config,
            "timesteps": chain.timesteps,
            **{name: getattr(chain, name) for name in (*_SCHEDULE, "excess")},
        },
        "action": maps.pop("action"),
        "observation": maps,
        "horizons": {each.name: getattr(policy.horizons, each.name) for each in fields(Horizons)},
        "inpaints": policy.inpaints,
        "by_feature": policy.encoder.by_feature,
        "random_crop": policy.encoder.random_crop,
        "own_plan": None if policy.law.own is None else policy.law.own.spec,
        "event": policy.event,
    }
    return json.dumps(record, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    """Convert NumPy's numbers and arrays, and mappings of other types, for JSON."""
    return dict(value) if isinstance(value, Mapping) else value.tolist()


def read_record(text: str) -> PolicyRecord:
    """Read a record; it comes from an untrusted file.

    Raises:
        CheckpointError: It is not JSON, of another version, or an entry is missing, of the wrong kind, not finite, out
            of range, or does not fit the others.
    """
    if len(text) > MAX_RECORD:
        raise CheckpointError(f"the record has {len(text)} characters; {MAX_RECORD} are the most")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the record is not JSON: {error}") from None
    top = _Entry("the record", raw)
    version = top.get("version")
    if version.value != VERSION:
        raise CheckpointError(
            f"the record is of version {version.value!r:.40}, and this asd_policy {PACKAGE_VERSION} reads {VERSION}; "
            f"export the policy anew with `asd-policy export`"
        )
    features = top.get("observation")
    record = PolicyRecord(
        package=top.get("package").text(),
        source=top.get("source").mapping(),
        network=top.get("network").text(),
        parameters=top.get("parameters").integer(0, 2**62),
        graph=top.get("graph").text(),
        chain=_read_chain(top.get("chain")),
        observation={name: _read_map(features.get(name)) for name in features.mapping()},
        action=_read_map(top.get("action")),
        horizons=_read_horizons(top.get("horizons")),
        inpaints=top.get("inpaints").flag(),
        sensors={
            name: _read_sensor(features.get(name), top.get("horizons").get("n_obs_steps").value)
            for name, each in features.mapping().items()
            if "sensor" in each
        },
        by_feature=top.find("by_feature").flag() if top.find("by_feature").value is not None else False,
        random_crop=top.find("random_crop").text() if top.find("random_crop").value is not None else None,
        own_plan=top.find("own_plan").text() if top.find("own_plan").value is not None else None,
    )
    event = top.get("event").value
    if event != list(record.event):
        raise CheckpointError(
            f"the record's event is {event!r:.60}, but its horizon and features make samples of {list(record.event)}"
        )
    return record


@dataclass(frozen=True)
class _Entry:
    """A value of the record, and its name for messages."""

    name: str
    value: Any

    def get(self, key: str) -> "_Entry":
        if key not in self.mapping():
            raise CheckpointError(f"{self.name} lacks {key!r}")
        return _Entry(f"{self.name}'s {key}", self.value[key])

    def find(self, key: str) -> "_Entry":
        """Get an entry that files of older versions lack: its value is None there."""
        return self.get(key) if key in self.mapping() else _Entry(f"{self.name}'s {key}", None)

    def mapping(self) -> dict[str, Any]:
        return self._is(dict, "an object")

    def text(self) -> str:
        return self._is(str, "a text")

    def flag(self) -> bool:
        return self._is(bool, "true or false")

    def integer(self, least: int, most: int) -> int:
        wanted = f"an integer in {least} … {most}"
        value = self._is(int, wanted)
        return value if least <= value <= most and not isinstance(value, bool) else self._refuse(wanted)

    def numbers(self, count: int | None = None) -> Floats:
        """Read an array [count], or one of any length but 0."""
        wanted = f"a list of {count or 'finite'} numbers"
        values = self._array(self._is(list, wanted), wanted)
        return values if len(values) and count in (None, len(values)) else self._refuse(wanted)

    def _array(self, values: list[Any], wanted: str) -> Floats:
        if not all(type(value) in (int, float) for value in values):
            return self._refuse(wanted)
        try:
            array = np.array(values, dtype=np.float64)
        except OverflowError:  # an integer of hundreds of digits
            return self._refuse(wanted)
        return array if bool(np.isfinite(array).all()) else self._refuse(wanted)

    def _is(self, kind: type, wanted: str) -> Any:
        return self.value if isinstance(self.value, kind) else self._refuse(wanted)

    def _refuse(self, wanted: str) -> Any:
        raise CheckpointError(f"{self.name} is {self.value!r:.60}, not {wanted}")


def _read_horizons(entry: _Entry) -> Horizons:
    n_obs_steps, horizon, n_action_steps = (
        entry.get(name).integer(1, MAX_SIZE) for name in ("n_obs_steps", "horizon", "n_action_steps")
    )
    first = entry.get("first_action")
    horizons = Horizons(
        n_obs_steps, horizon, n_action_steps, None if first.value is None else first.integer(0, horizon)
    )
    if horizons.executed.stop > horizon or n_obs_steps > horizon:
        raise CheckpointError(
            f"{entry.name}: a plan of {horizon} steps has no {n_action_steps} to execute from {horizons.executed.start}"
            f", or {n_obs_steps} observations do not fit into it"
        )
    return horizons


def _read_map(entry: _Entry) -> Map:
    origin = entry.get("origin").numbers()
    read = {"origin": origin} | {part: entry.get(part).numbers(len(origin)) for part in _AFFINE[1:]}
    with np.errstate(over="ignore"):
        used = {part: values.astype(np.float32) for part, values in read.items()}
    if len(origin) > MAX_SIZE or not used["gain"].all() or not all(np.isfinite(each).all() for each in used.values()):
        raise CheckpointError(
            f"{entry.name} has a gain of 0, a number that is none in float32, or more than {MAX_SIZE} numbers"
        )
    return used


def _read_sensor(entry: _Entry, n_obs_steps: int) -> SensorRecord:
    channels, sensor = len(entry.get("origin").numbers()), entry.get("sensor")
    shape = sensor.get("shape").numbers()
    steps = sensor.get("steps")
    read = SensorRecord(
        shape=tuple(int(size) for size in shape),
        size=sensor.get("size").integer(1, MAX_SIZE),
        steps=None if steps.value is None else steps.integer(1, n_obs_steps),
        model=sensor.get("model").text(),
    )
    known = read.shape[0] if is_frame(read.shape) else read.shape[-1]
    whole = all(size == math.floor(size) and 1 <= size <= MAX_SIZE for size in shape)
    if not whole or len(shape) > 3 or math.prod(read.shape) > MAX_SENSED or known != channels:
        raise CheckpointError(
            f"{sensor.name} has the shape {shape.tolist()!r:.60}, not (n,), (points, channels) or (3, height, width) "
            f"of at most {MAX_SENSED} numbers, with a map of as many channels"
        )
    return read


def _read_chain(entry: _Entry) -> GaussianChain:
    # The samplers of few steps make their schedulers of it.
    stored = entry.get("config")
    config = configuration(stored.mapping())
    check_options(config)
    if config["trained_betas"] is not None:
        stored.get("trained_betas").numbers(config["num_train_timesteps"])
    timesteps = entry.get("timesteps").numbers()
    steps, last = len(timesteps), config["num_train_timesteps"] - 1
    if any(step != math.floor(step) or not 0 <= step <= last for step in timesteps):
        raise CheckpointError(f"{entry.name} has timesteps that are no integers in 0 … {last}")
    schedule = {name: entry.get(name).numbers(steps) for name in _SCHEDULE}
    excess = entry.get("excess")
    chain = GaussianChain(
        timesteps=timesteps.astype(np.int64),
        **schedule,
        excess=None if excess.value is None else excess.numbers(steps),
        config=config,
    )
    differs = contradiction(chain)
    if differs is not None:
        raise CheckpointError(f"{entry.name} contradicts the scheduler's configuration beside it: {differs}")
    return chain
