"""This package's own networks with the weights of golden outputs, to be compared with the libraries'."""

import torch
from torch import Tensor, nn

from asd_policy.networks.vision.pooling import MeanPool
from asd_policy.networks.vision.resnet import resnet, torchvision_name
from asd_policy.networks.vision.vit import VITS, VisionTransformer
from support import image_files as images


def native_features(name: str) -> Tensor:
    """Run a network of `images.NETWORKS` as this package has it, with the weights of its golden output."""
    state = images.state_of(images.golden_shapes(name))
    if name in VITS:
        network: nn.Module = VisionTransformer(VITS[name])
    else:
        network = nn.Sequential(resnet(name, group_norm=False), MeanPool())
        state = {key: state[torchvision_name(key.removeprefix("0."))] for key in network.state_dict()}
    network.load_state_dict(state)
    with torch.no_grad():
        return network.eval()(images.network_frames(name))
