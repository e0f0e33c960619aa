"""Networks that make features of frames and of clouds of points, with the parameter names of the libraries' own."""

from asd_policy.networks.vision.lerobot import RgbEncoder, VisionConfig
from asd_policy.networks.vision.resnet import BatchNorm

__all__ = ["BatchNorm", "RgbEncoder", "VisionConfig"]
