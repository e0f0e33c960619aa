"""Vision networks: equal to those of torchvision and timm, and what each does at its edges."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from asd_policy.networks.vision.frames import Crop, Resize, middle
from asd_policy.networks.vision.pointnet import PointNet, PointNetConfig
from asd_policy.networks.vision.pooling import KeypointSoftmax, MeanPool, SpatialSoftmax
from asd_policy.networks.vision.resnet import resnet, torchvision_name
from asd_policy.networks.vision.vit import VITS, VisionTransformer
from support import image_files as images
from support.native_networks import native_features

GOLDEN = load_file(images.GOLDEN)
QUICK = ("resnet50", "vit_tiny_patch16_224")
"""The others, which differ from these in their sizes alone, are compared by scripts/maintenance/compare_policies.py."""


@pytest.mark.parametrize("name", QUICK)
def test_networks_are_those_of_their_libraries(name: str) -> None:
    features = native_features(name)
    wanted = GOLDEN[f"{name}/features"]
    torch.testing.assert_close(features, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_a_crop_between_two_pixels() -> None:
    """Torchvision takes the even pixel, robomimic the first."""
    frame = torch.arange(7.0).expand(1, 3, 7, 7)
    assert middle(frame, 4, 4)[0, 0, 0].tolist() == [2, 3, 4, 5]
    assert middle(frame, 4, 4, int)[0, 0, 0].tolist() == [1, 2, 3, 4]
    assert middle(frame, 2, 2)[0, 0, 0].tolist() == middle(frame, 2, 2, int)[0, 0, 0].tolist() == [2, 3]
    assert Crop(4, 4, int)(frame).shape == (1, 3, 4, 4)


def test_a_resize_smooths_or_does_not() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(8).expand(1, 3, 16, 16)
    smooth, plain = (Resize(4, 4, antialias=antialias)(stripes) for antialias in (True, False))
    assert torch.allclose(smooth[..., 1:-1], torch.full((1, 3, 4, 2), 0.5))
    assert smooth.shape == plain.shape and not torch.allclose(smooth, plain)


def test_keypoints_are_a_spatial_softmax_with_a_temperature() -> None:
    torch.manual_seed(0)
    one, other = SpatialSoftmax(5, 2, 3, 4), KeypointSoftmax(5, 2, 3, 4, temperature=0.5)
    other.nets.load_state_dict({name: value / 2 for name, value in one.nets.state_dict().items()})
    maps = torch.randn(2, 5, 2, 3)
    torch.testing.assert_close(one(maps), other(maps))
    learned = KeypointSoftmax(5, 2, 3, 4, temperature=None)
    assert "temperature" in dict(learned.named_parameters())


def test_a_cloud_has_no_order() -> None:
    torch.manual_seed(0)
    network = PointNet(PointNetConfig(coloured=False, features=8, layer_norm=True, final_norm=True))
    cloud = torch.randn(2, 9, 6)
    torch.testing.assert_close(network(cloud), network(cloud[:, torch.randperm(9)]))
    assert torch.equal(network(cloud), network(cloud[..., :3]))
    bare = PointNet(PointNetConfig(False, 256, layer_norm=False, final_norm=False, projection=False))
    assert bare(cloud).shape == (2, 256) and not any("final" in name for name in bare.state_dict())


def rows_alone(network: nn.Module, frames: Tensor) -> Tensor:
    return torch.cat([network(frame[None]) for frame in frames])


def test_rows_do_not_depend_on_their_neighbours() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(resnet("resnet18", group_norm=False), MeanPool()).eval()
    frames = torch.randn(3, 3, 40, 48)
    torch.testing.assert_close(network(frames), rows_alone(network, frames), rtol=1e-4, atol=1e-5)


def test_names_are_torchvisions() -> None:
    names = [torchvision_name(name) for name in resnet("resnet18", group_norm=True, levels=2).state_dict()]
    assert names[:3] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert {name.partition(".")[0] for name in names} == {"conv1", "bn1", "layer1", "layer2"}


def test_only_clips_transformers_normalise_first() -> None:
    with torch.device("meta"):
        for name, config in VITS.items():
            state = VisionTransformer(config).state_dict()
            assert ("norm_pre.weight" in state) == ("clip" in name) == ("patch_embed.proj.bias" not in state)
