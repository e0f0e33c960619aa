"""Observations as the conditioning of a network.

Vectors are normalised, frames and point clouds go through networks of their own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy.networks.backends.base import Backend, SensorJob, Watching
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import Shapes, as_floats, is_frame, read_history

MOST_PIXELS = 2**22
"""Pixels, or numbers of clouds and vectors, encoded in one call; a ResNet-18 needs 100 bytes of memory for each."""
MOST_ROWS = 512
"""Observations that are encoded in one call."""


class ObservationEncoder(Protocol):
    """Makes the conditioning of a network of what a robot has seen, once for each plan.

    Each observation is encoded by itself, and the features of the last few are joined: so those of an observation that
    several plans look at are computed once.
    """

    @property
    def shapes(self) -> Shapes:
        """Shape of each feature, in the order the network reads them."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Numbers that each feature of one observation becomes, in the same order."""
        ...

    @property
    def normalization(self) -> Mapping[str, Affine]:
        """Map of each vector [feature_dim], of the colours of each camera [3], of the channels of each cloud."""
        ...

    @property
    def inpaints(self) -> bool:
        """Whether the network generates observations beside the actions, in place of being conditioned on them.

        Those that are known are given: arXiv 2303.04137 with `obs_as_global_cond=False`.
        """
        ...

    @property
    def random_crop(self) -> str | None:
        """What the policy's own library does at random when it plans, and the encoder does not; None for nothing."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether features are worth keeping for later plans: networks make them, the same for one observation."""
        ...

    def to(self, device: Device) -> "ObservationEncoder":
        """Bring it to a device."""
        ...

    def on(self, backend: Backend, device: Device) -> "ObservationEncoder":
        """Make one whose networks a backend runs, on the device where they are; a library's own encoder stays as it is.

        Raises:
            BackendError: The backend cannot run here, or not one of these networks.
        """
        ...

    def check(self) -> None:
        """Refuse weights that were changed after the features that are kept were made, as `look` does.

        Raises:
            BackendError: They were.
        """
        ...

    def look(self, observations: Mapping[str, Any], device: Device) -> Array:
        """Encode single observations as features [N, sum of `sizes`], each by itself.

        Args:
            observations: Each feature of N observations, checked: vectors [N, n]; frames [N, height, width, 3] in uint8
                or [N, 3, height, width] in 0 … 1; clouds [N, points, channels].
            device: Where the policy plans.
        """
        ...

    def join(self, features: Array) -> Array:
        """Join the features of the last observations [B, n_obs_steps, sum of `sizes`] to conditioning [B, cond_dim]."""
        ...

    def recover(self, cond: Array) -> dict[str, Array]:
        """Recover what can be of conditioning [B, cond_dim], up to rounding: vectors [B, n_obs_steps, n]."""
        ...

    def cond_dim(self, n_obs_steps: int) -> int:
        """Count the numbers of the conditioning of one plan."""
        ...


@dataclass(frozen=True)
class Sensor:
    """One feature that a network encodes: a camera's frame, a point cloud, or a vector."""

    shape: tuple[int, ...]
    """Of what it sees: (3, height, width), (points, channels) or (n,)."""
    affine: Affine
    """Normalisation of a frame's colours from 0 … 1, of a cloud's channels, or of the vector."""
    network: Callable[[Array], Array]
    """Turns what it has seen, normalised, [N, *shape] into features [N, size], each row by itself; of several sensors
    it may be the same."""
    size: int
    """Numbers that one observation of it becomes."""
    steps: int | None = None
    """How many of the last observations condition the network; None for all `n_obs_steps`."""
    run: Callable[[Array], Array] | None = None
    """The network as a backend runs it; None for as it is."""

    @property
    def most(self) -> int:
        """Rows of the largest call of the network."""
        return most_rows(self.shape)

    def job(self, device: Device) -> SensorJob:
        """What the network is called for."""
        return SensorJob(self.shape, self.size, self.most, device)

    def to(self, device: Device) -> "Sensor":
        """Bring it to a device, the network itself and not a copy."""
        network: Any = self.network
        return replace(self, affine=self.affine.to(device), network=network.to(device), run=None)

    def prepare(self, seen: Array, device: Device) -> Array:
        """Bring what it has seen [N, …] to a device, normalised [N, *shape]."""
        return normalize(arrays.asarray(seen, device), self.affine)

    def look(self, seen: Array, device: Device) -> Array:
        """Encode what it has seen [N, …] as features [N, size], not more at once than there may be memory for."""
        run, at_once = self.run or self.network, self.most
        with arrays.sampling(device):
            parts = [
                run(self.prepare(seen[first : first + at_once], device))
                for first in range(0, max(1, len(seen)), at_once)
            ]
            return arrays.namespace(parts[0]).concatenate(parts)


@dataclass(frozen=True)
class SensorEncoder:
    """Encodes each feature by itself, and puts all of them in a row."""

    features: Mapping[str, Affine | Sensor]
    """What encodes each feature, in the order the network reads them: for a vector its normalisation is enough."""
    inpaints: bool = False
    """As `ObservationEncoder.inpaints`."""
    by_feature: bool = False
    """Whether a feature's last observations stand together, one feature after the other, as in UMI (arXiv 2402.10329);
    otherwise all features of one observation do."""
    random_crop: str | None = None
    """As `ObservationEncoder.random_crop`."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each feature."""
        return {name: each.shape if isinstance(each, Sensor) else (len(each.origin),) for name, each in self._items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers that each feature of one observation becomes."""
        return {name: each.size if isinstance(each, Sensor) else len(each.origin) for name, each in self._items()}

    @property
    def normalization(self) -> dict[str, Affine]:
        """Map of each vector, of the colours of each camera, of the channels of each cloud."""
        return {name: each.affine if isinstance(each, Sensor) else each for name, each in self._items()}

    @cached_property
    def sensors(self) -> dict[str, Sensor]:
        """The features that a network encodes."""
        return {name: each for name, each in self._items() if isinstance(each, Sensor)}

    @property
    def keeps(self) -> bool:
        """Whether there are networks, as `ObservationEncoder.keeps`; each gives the same features each time."""
        return bool(self.sensors)

    def to(self, device: Device) -> "SensorEncoder":
        """Bring it to a device, the networks themselves and not copies."""
        return replace(self, features={name: each.to(device) for name, each in self._items()})

    def on(self, backend: Backend, device: Device) -> "SensorEncoder":
        """Make one whose networks a backend runs, each prepared once, as `ObservationEncoder.on`."""
        prepared: dict[Any, Callable[[Array], Array]] = {}
        features: dict[str, Affine | Sensor] = dict(self.features)
        for name, sensor in self.sensors.items():
            job = sensor.job(device)
            if (key := (id(sensor.network), job)) not in prepared:
                prepared[key] = backend.prepare_sensor(sensor.network, job)
            features[name] = replace(sensor, run=prepared[key])
        return replace(self, features=features)

    def check(self) -> None:
        """Refuse weights that were changed, as `ObservationEncoder.check`."""
        for sensor in self.sensors.values():
            if isinstance(sensor.run, Watching):
                sensor.run.check()

    def look(self, observations: Mapping[str, Any], device: Device) -> Array:
        """Encode single observations, as `ObservationEncoder.look`.

        Sensors that share a network share its calls.
        """
        features: dict[str, Array] = {}
        for names in self._sharing:
            features |= self._look_together(names, [observations[name] for name in names], device)
        if not features:
            seen = [arrays.asarray(observations[name], device, "float32") for name in self.features]
            return self._vectors.normalize(arrays.in_a_row(seen))
        parts = [
            arrays.ordinary(features[name]) if isinstance(each, Sensor)
            else each.normalize(arrays.asarray(observations[name], device, "float32"))
            for name, each in self._items()
        ]  # fmt: skip
        return arrays.in_a_row(parts)

    @cached_property
    def _vectors(self) -> Affine:
        """The map of all features in a row, where all are vectors that no network encodes."""
        return Affine.in_a_row([each for each in self.features.values() if isinstance(each, Affine)])

    def _look_together(self, names: Sequence[str], seen: Sequence[Array], device: Device) -> dict[str, Array]:
        """Encode what sensors of one network have seen [N, …] each: in one call, if that is not too much at once."""
        sensors, rows = [self.sensors[name] for name in names], len(seen[0])
        if len(names) == 1 or rows * len(names) > sensors[0].most:
            return {name: sensor.look(each, device) for name, sensor, each in zip(names, sensors, seen, strict=True)}
        with arrays.sampling(device):
            prepared = [sensor.prepare(each, device) for sensor, each in zip(sensors, seen, strict=True)]
            features = (sensors[0].run or sensors[0].network)(arrays.namespace(prepared[0]).concatenate(prepared))
        return {name: features[index * rows : (index + 1) * rows] for index, name in enumerate(names)}

    @cached_property
    def _sharing(self) -> list[list[str]]:
        """List the sensors by their networks, those that call one and the same together."""
        groups: dict[Any, list[str]] = {}
        for name, sensor in self.sensors.items():
            groups.setdefault((id(sensor.run or sensor.network), sensor.shape), []).append(name)
        return list(groups.values())

    def join(self, features: Array) -> Array:
        """Join features, as `ObservationEncoder.join`."""
        if not self.by_feature:
            return features.reshape(len(features), features.shape[1] * features.shape[2])
        parts = [
            part[:, -steps:].reshape(len(part), steps * part.shape[2])
            for part, steps in zip(self._parts(features), self._steps(features.shape[1]), strict=True)
        ]
        return arrays.namespace(features).concatenate(parts, axis=-1)

    def recover(self, cond: Array) -> dict[str, Array]:
        """Recover the vectors that are normalised alone, as `ObservationEncoder.recover`."""
        n_obs_steps = next(n for n in range(1, cond.shape[1] + 1) if self.cond_dim(n) == cond.shape[1])
        found, first = {}, 0
        for (name, feature), steps in zip(self._items(), self._steps(n_obs_steps), strict=True):
            size = self.sizes[name]
            if isinstance(feature, Affine):
                apart = size if self.by_feature else sum(self.sizes.values())
                parts = [cond[:, start : start + size] for start in range(first, first + steps * apart, apart)]
                found[name] = feature.unnormalize(arrays.namespace(cond).stack(parts, axis=1))
            first += size * (steps if self.by_feature else 1)
        return found

    def cond_dim(self, n_obs_steps: int) -> int:
        """Count the numbers of the conditioning of one plan."""
        steps = self._steps(n_obs_steps)
        return sum(kept * size for kept, size in zip(steps, self.sizes.values(), strict=True))

    def _items(self) -> list[tuple[str, Affine | Sensor]]:
        return list(self.features.items())

    def _steps(self, n_obs_steps: int) -> list[int]:
        """List how many observations of each feature condition the network."""
        known = [each.steps if isinstance(each, Sensor) else None for each in self.features.values()]
        return [n_obs_steps if steps is None else steps for steps in known]

    def _parts(self, features: Array) -> list[Array]:
        """Take features [..., sum of `sizes`] apart."""
        parts, first = [], 0
        for size in self.sizes.values():
            parts.append(features[..., first : first + size])
            first += size
        return parts


def normalize(seen: Array, affine: Affine) -> Array:
    """Normalise one feature of single observations, on its device: frames of either form as floats.

    Args:
        seen: Vectors [N, n], clouds [N, points, channels], or frames [N, height, width, 3] in uint8 or [N, 3, height,
            width] in 0 … 1.
        affine: The feature's map.

    Returns:
        Vectors and clouds as they came, frames [N, 3, height, width], in float32.
    """
    if not is_frame(tuple(seen.shape[1:])):
        return affine.normalize(arrays.asarray(seen, arrays.device_of(seen), "float32"))
    parts = (affine.origin, affine.gain, affine.shift)
    return Affine(*(part[:, None, None] for part in parts)).normalize(as_floats(seen))


def most_rows(shape: tuple[int, ...]) -> int:
    """Count the observations of a shape that are encoded at once: not more than there may be memory for."""
    return max(1, min(MOST_ROWS, MOST_PIXELS // max(1, math.prod(shape[-2:]))))


def encode_history(encoder: ObservationEncoder, history: Mapping[str, Any], n_obs_steps: int, device: Device) -> Array:
    """Encode histories as conditioning [B, cond_dim].

    Args:
        encoder: Of the policy.
        history: Each feature's last observations, oldest first, in any array: vectors [B, n_obs_steps, n]; frames
            [B, n_obs_steps, height, width, 3] in uint8, or [B, n_obs_steps, 3, height, width] in 0 … 1; clouds
            [B, n_obs_steps, points, channels].
        n_obs_steps: Observations that the policy looks at.
        device: Where it plans.

    Raises:
        ObservationError: A feature is missing, a shape or a dtype is wrong, or a value is no finite real number.
    """
    read = read_history(history, encoder.shapes, n_obs_steps)
    rows = len(next(iter(read.values())))
    single = {name: each.reshape(rows * n_obs_steps, *each.shape[2:]) for name, each in read.items()}
    features = encoder.look(single, device)
    return encoder.join(features.reshape(rows, n_obs_steps, features.shape[-1]))


def at_rest(encoder: ObservationEncoder) -> dict[str, Array]:
    """Make an observation in the middle of what the normalisation knows; frames are grey."""
    seen = {}
    for name, shape in encoder.shapes.items():
        affine = encoder.normalization[name]
        middle = affine.unnormalize(0 * affine.origin)
        seen[name] = arrays.zeros(shape, middle) + (0.5 if is_frame(shape) else middle)
    return seen
