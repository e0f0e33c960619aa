"""LeRobot's diffusion folders: `folder.py` reads and writes them, by `config.py` and `statistics.py`."""

from asd_policy.checkpoints.lerobot.folder import FORMAT, DiffusionConfig, describe_lerobot, load_lerobot, save_lerobot

__all__ = ["FORMAT", "DiffusionConfig", "describe_lerobot", "load_lerobot", "save_lerobot"]
