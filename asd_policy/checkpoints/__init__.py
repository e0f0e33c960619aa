"""Public checkpoint formats: each is a loader, found by the content of the path."""

from asd_policy.checkpoints.base import Description, Format
from asd_policy.checkpoints.formats import FORMATS, find_format, locate
from asd_policy.checkpoints.loading import AUTO, load, load_fn, load_policy

__all__ = ["AUTO", "FORMATS", "Description", "Format", "find_format", "load", "load_fn", "load_policy", "locate"]
