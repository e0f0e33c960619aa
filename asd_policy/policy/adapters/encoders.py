"""The observation encoders of live policies: the library's own, whatever they are, behind this package's seam."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy._common import arrays
from asd_policy.errors import SpecError
from asd_policy.networks.backends.base import Backend
from asd_policy.networks.backends.torch_network import Weights
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import is_frame
from asd_policy.policy.sensors import Sensor, SensorEncoder, most_rows, normalize

Encode = Callable[[dict[str, Tensor]], Tensor]
"""A library's own encoder: normalised features of single observations, [N, …] each, to [N, F]."""
_ALIKE = 4  # equal rows among which something random shows: a crop of a few pixels' freedom differs in one of them
_TOLERANCE = 1e-4  # relative; kernels may add up in another order


class PointsAlone(nn.Module):
    """An encoder that is given the coordinates of a cloud's points, without their colours."""

    def __init__(self, encoder: nn.Module, cloud: str) -> None:
        """Wrap an encoder; `cloud` is the feature's name."""
        super().__init__()
        self.encoder, self.cloud = encoder, cloud

    def forward(self, seen: dict[str, Tensor]) -> Tensor:
        """Encode normalised observations."""
        return self.encoder({**seen, self.cloud: seen[self.cloud][..., :3]})


@dataclass(frozen=True)
class LiveEncoder:
    """A library's own encoder, called with single observations: an `ObservationEncoder`."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each feature."""
    normalization: Mapping[str, Affine]
    """Map of each feature; of a frame for its colours."""
    sizes: Mapping[str, int]
    """Numbers that each feature of one observation becomes."""
    places: Mapping[str, int]
    """Where in the features those vectors begin that the encoder hands on as they are."""
    encode: nn.Module
    """The library's: normalised features of single observations, [N, …] each, to [N, F]."""
    weights: Weights
    """Sees whether its weights are those of before: features that are kept are of these."""
    device: torch.device
    """Where they are."""
    inpaints: bool = False
    """As `ObservationEncoder.inpaints`."""
    random_crop: str | None = None
    """As `ObservationEncoder.random_crop`."""

    @classmethod
    def around(
        cls,
        encode: nn.Module,
        shapes: Mapping[str, tuple[int, ...]],
        normalization: Mapping[str, Affine],
        device: torch.device,
        inpaints: bool = False,
    ) -> "LiveEncoder":
        """Make an encoder around a library's, which is called a few times to see what it makes of observations.

        Raises:
            SpecError: It encodes at random, or not each observation by itself.
        """
        seen = normalized(random_observations(shapes, 2), normalization, device)
        features = check_encoder(encode, seen)
        places = {
            name: place
            for name, values in seen.items()
            if values.ndim == 2 and (place := _find_columns(features, values)) is not None
        }
        others = [name for name in shapes if name not in places]
        left = features.shape[1] - sum(shapes[name][0] for name in places)
        shares = {name: left // len(others) for name in others}
        if others:
            shares[others[-1]] += left - sum(shares.values())
        sizes = {name: shares.get(name, shapes[name][0]) for name in shapes}
        return cls(shapes, normalization, sizes, places, encode, Weights(encode), device, inpaints)

    def to(self, device: Any) -> "LiveEncoder":
        """Stay where the live policy is.

        Raises:
            SpecError: The device is another one.
        """
        if torch.device(device) != self.device:
            raise SpecError(f"the live policy's encoder is on {self.device}, not on {device}")
        return self

    @property
    def keeps(self) -> bool:
        """Whether features are worth keeping: the library's networks make them, and not at random."""
        return True

    def on(self, backend: Backend, device: Any) -> "LiveEncoder":
        """Stay as it is, on the weights of now: the library runs its encoder itself."""
        return replace(self, weights=Weights(self.encode)).to(device)

    def check(self) -> None:
        """Refuse weights that were changed, as `ObservationEncoder.check`."""
        self.weights.check()

    def look(self, observations: Mapping[str, Any], device: Any) -> Tensor:
        """Encode single observations, as `ObservationEncoder.look`.

        Raises:
            BackendError: The encoder's weights were changed.
        """
        self.check()
        rows = len(next(iter(observations.values())))
        at_once = min(map(most_rows, self.shapes.values()))
        with arrays.sampling(self.device):
            parts = [
                self.encode(
                    normalized(
                        {name: observations[name][first : first + at_once] for name in self.shapes},
                        self.normalization,
                        self.device,
                    )
                )
                for first in range(0, max(1, rows), at_once)
            ]
            features = torch.cat(parts)
        return arrays.ordinary(features)

    def join(self, features: Tensor) -> Tensor:
        """Join features, a step after the other, as `ObservationEncoder.join`."""
        return features.flatten(1)

    def recover(self, cond: Tensor) -> dict[str, Tensor]:
        """Recover the vectors that are handed on as they are, as `ObservationEncoder.recover`."""
        features = cond.unflatten(1, (-1, sum(self.sizes.values())))
        return {
            name: self.normalization[name].unnormalize(features[..., place : place + self.sizes[name]])
            for name, place in self.places.items()
        }

    def cond_dim(self, n_obs_steps: int) -> int:
        """Count the numbers of the conditioning of one plan."""
        return n_obs_steps * sum(self.sizes.values())


class _Observed(nn.Module):
    """What robomimic's `ObservationEncoder` does to one feature."""

    def __init__(self, randomizer: nn.Module | None, network: nn.Module, activation: nn.Module | None) -> None:
        """Take the parts, which stay the encoder's."""
        super().__init__()
        self.randomizer, self.network, self.activation = randomizer, network, activation

    def forward(self, x: Tensor) -> Tensor:
        """Encode a normalised feature [N, …] as [N, F]."""
        x = x if self.randomizer is None else self.randomizer.forward_in(x)  # pyright: ignore[reportCallIssue]  theirs
        x = self.network(x)
        x = x if self.activation is None else self.activation(x)
        x = x if self.randomizer is None else self.randomizer.forward_out(x)  # pyright: ignore[reportCallIssue]  theirs
        return x.flatten(1)


class _Coordinates(nn.Module):
    """A network that is given the coordinates of points alone."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap it."""
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Encode clouds [N, points, channels]."""
        return self.network(x[..., :3])


def by_sensors(encoder: LiveEncoder) -> LiveEncoder | SensorEncoder:
    """Take a library's encoder apart into one network for each feature, so that backends can run them.

    Returns:
        An encoder of the library's own networks, whose features are the same; the one given where the library's is none
        of those whose parts are known.
    """
    try:
        networks = _networks_of(encoder.encode)
        if not networks:
            return encoder
        seen = random_observations(encoder.shapes, 2)
        values = normalized(seen, encoder.normalization, encoder.device)
        with torch.no_grad():
            sizes = {name: network(values[name]).shape[1] for name, network in networks.items()}
        apart = SensorEncoder(
            {
                name: Sensor(shape, encoder.normalization[name], networks[name], sizes[name])
                if name in networks
                else encoder.normalization[name]
                for name, shape in encoder.shapes.items()
            },
            inpaints=encoder.inpaints,
        )
        check_same(apart.look(seen, encoder.device), encoder.look(seen, encoder.device), "the features")
    except (AttributeError, KeyError, TypeError, IndexError, RuntimeError, SpecError):
        return encoder  # another version of a library, or something replaced in it: it is called as a whole
    return apart


def _networks_of(encoder: Any) -> dict[str, nn.Module]:
    """Find the networks of an encoder's features: diffusion_policy's `MultiImageObsEncoder`, robomimic's, DP3's."""
    if isinstance(encoder, PointsAlone):
        networks = _networks_of(encoder.encoder)
        return {**networks, encoder.cloud: _Coordinates(networks[encoder.cloud])}
    if hasattr(encoder, "key_model_map"):
        models = {key: encoder.key_model_map["rgb" if encoder.share_rgb_model else key] for key in encoder.rgb_keys}
        return {key: nn.Sequential(encoder.key_transform_map[key], model) for key, model in models.items()}
    if hasattr(encoder, "obs_nets"):
        activation, networks = encoder.activation, dict(encoder.obs_nets.items())
        return {
            name: _Observed(encoder.obs_randomizers[name], network, activation).eval()
            for name, network in networks.items()
            if network is not None
        }
    if hasattr(encoder, "point_cloud_shape") and not encoder.use_imagined_robot:
        return {encoder.point_cloud_key: encoder.extractor, encoder.state_key: encoder.state_mlp}
    return {}


def normalized(
    observations: Mapping[str, Any], normalization: Mapping[str, Affine], device: torch.device
) -> dict[str, Tensor]:
    """Normalise single observations, as `sensors.normalize`."""
    return {
        name: normalize(arrays.asarray(observations[name], device), affine) for name, affine in normalization.items()
    }


def random_observations(shapes: Mapping[str, tuple[int, ...]], rows: int) -> dict[str, Tensor]:
    """Make observations at random, always the same; frames are uint8."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in shapes.items():
        if is_frame(shape):
            size = (rows, *shape[1:], shape[0])
            made[name] = torch.randint(256, size, generator=generator, dtype=torch.uint8)
        else:
            made[name] = torch.rand((rows, *shape), generator=generator)
    return made


def check_encoder(encode: Encode, seen: dict[str, Tensor]) -> Tensor:
    """Refuse an encoder whose features depend on chance, or on the other rows of a batch.

    Args:
        encode: The library's.
        seen: Two normalised observations that differ.

    Returns:
        Their features [2, F].

    Raises:
        SpecError: They do; or they are no rows of numbers, or not finite.
    """
    devices = {each.device for each in seen.values() if each.is_cuda}
    with torch.random.fork_rng(list(devices)), torch.no_grad():
        features = encode(seen)
        alike = encode({name: each[:1].expand(_ALIKE, *each.shape[1:]) for name, each in seen.items()})
        alone = encode({name: each[:1] for name, each in seen.items()})
    if features.ndim != 2 or len(features) != 2 or not bool(torch.isfinite(features).all()):
        raise SpecError(f"the policy's encoder makes {tuple(features.shape)} of two observations, or NaN or infinity")
    scale = float(features.abs().max())
    change = float((torch.cat([alike, alone]) - features[:1]).abs().max())
    if change > _TOLERANCE * scale:
        raise SpecError(
            f"the policy's encoder makes different features of one observation, by {change:.2g} of {scale:.2g}: its "
            "library crops or changes frames at random when it plans (eval_fixed_crop=False in diffusion_policy), or "
            "batch normalisation mixes rows; a live encoder's crop cannot be fixed here, not by fixed_crop either. "
            "Build the policy with a fixed crop, or asd_policy.accelerate it, which keeps its library's law"
        )
    return features


def check_same(ours: Tensor, own: Tensor, what: str) -> None:
    """Refuse a policy whose own library computes something else than what was read of it.

    Raises:
        SpecError: The numbers differ.
    """
    if ours.shape != own.shape:
        raise SpecError(f"{what} {tuple(own.shape)} of the live policy's are not what its parts say, {ours.shape}")
    ours, own = ours.detach(), own.detach()
    change, scale = float((ours - own).abs().max()), float(own.abs().max())
    if not change <= _TOLERANCE * max(scale, 1e-6):
        raise SpecError(
            f"{what} of the live policy's are other ones than its parts say, by {change:.2g} of {scale:.2g}: something "
            "in it was replaced, which a Policy would not do"
        )


def _find_columns(features: Tensor, values: Tensor) -> int | None:
    """Find where in features [2, F] the columns of values [2, n] stand, unchanged; None where they do not."""
    width = values.shape[1]
    for place in range(features.shape[1] - width + 1):
        if torch.equal(features[:, place : place + width], values):
            return place
    return None
