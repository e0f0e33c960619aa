"""Checkpoints of real-stanford/diffusion_policy and of its relatives UMI and DP3: `workspace.py` reads the files.

`layouts.py` and `denoisers.py` read what a policy's configuration says of its plans and its network, `normalizer.py`
its normaliser, and a file for each encoder of observations what that does: `hybrid.py`, `multi_image.py`, `umi.py`,
`pointcloud.py`.
"""

from asd_policy.checkpoints.diffusion_policy.workspace import (
    FORMAT,
    describe_diffusion_policy,
    load_diffusion_policy,
)

__all__ = ["FORMAT", "describe_diffusion_policy", "load_diffusion_policy"]
