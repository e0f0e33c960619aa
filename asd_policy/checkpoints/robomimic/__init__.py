"""robomimic's checkpoints: `file.py` reads them, `visual_core.py` the encoders of cameras in them."""

from asd_policy.checkpoints.robomimic.file import FORMAT, describe_robomimic, load_robomimic

__all__ = ["FORMAT", "describe_robomimic", "load_robomimic"]
