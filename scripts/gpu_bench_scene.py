"""What the cameras of gpu_bench.py see: a scene drawn by PyTorch from the state of pick-place, as it is needed.

The recording has no frames, and a renderer would need the environment. So the hand, the object and the goal are drawn
as soft discs, from the front and from above. The policy with cameras is given the hand's state alone: where the object
and the goal are, it has to see.
"""

import torch
from torch import Tensor

from asd_policy.policy.observation import IMAGES, STATE
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import encode_history

HAND_DIM = 4
"""Numbers of the hand: its place, and how far the gripper is open."""
GOAL = slice(32, 35)
"""Of the environment's state; the object's place is its first three numbers."""
PLACES = 6
"""Numbers of the places of the object and the goal."""
VIEWS = {f"{IMAGES}front": (0, 2), f"{IMAGES}top": (0, 1)}
"""Each camera, and the axes that lie across and up its frames."""
COLOURS = {"goal": (0.1, 0.9, 0.2), "object": (0.9, 0.15, 0.1), "hand": (0.2, 0.4, 1.0)}
"""Drawn in this order, the nearest last."""
RADIUS = 0.09
"""Of a disc, in halves of the frame's shorter side."""
_AT_ONCE = 16  # states whose frames are encoded together


def render(hand: Tensor, surroundings: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Draw states as each camera sees them.

    Args:
        hand: Normalised `agent_pos` [N, 4].
        surroundings: Normalised `environment_state` [N, 35].
        size: Height and width of a frame [pixels].

    Returns:
        Frames [N, 3, height, width] in uint8, by camera.
    """
    places = {"goal": surroundings[:, GOAL], "object": surroundings[:, :3], "hand": hand[:, :3]}
    wide = RADIUS * (1 + 0.3 * hand[:, 3])  # an open gripper is wider
    radii = {name: wide if name == "hand" else torch.full_like(wide, RADIUS) for name in places}
    return {
        view: _draw([(places[name][:, list(axes)], radii[name], COLOURS[name]) for name in COLOURS], size)
        for view, axes in VIEWS.items()
    }


def places(surroundings: Tensor) -> Tensor:
    """Find where the object and the goal are [N, 6], normalised."""
    return torch.cat([surroundings[:, :3], surroundings[:, GOAL]], dim=1)


def _draw(discs: list[tuple[Tensor, Tensor, tuple[float, float, float]]], size: tuple[int, int]) -> Tensor:
    """Draw discs (place [N, 2], radius [N], colour) over a grey that is lighter at the top."""
    height, width = size
    place = discs[0][0]
    ratio = width / height
    across = torch.linspace(-ratio, ratio, width, device=place.device)
    up = torch.linspace(1, -1, height, device=place.device)
    frames = (0.4 + 0.1 * up).view(1, 1, height, 1).expand(len(place), 3, height, width)
    for centre, radius, colour in discs:
        # A Gaussian is the product of its two profiles; 0.85 keeps what is at the border of the range in the frame.
        profiles = [
            torch.exp(-((axis - 0.85 * scale * centre[:, which, None]) ** 2) / (2 * radius[:, None] ** 2))
            for which, (axis, scale) in enumerate(((across, ratio), (up, 1.0)))
        ]
        mask = (profiles[1][:, :, None] * profiles[0][:, None, :])[:, None]  # [N, 1, height, width]
        frames = torch.lerp(frames, torch.tensor(colour, device=place.device).view(1, 3, 1, 1), mask)
    return (255 * frames).round().to(torch.uint8)


def look(policy: Policy, recorded: Tensor, like: Policy, size: tuple[int, int]) -> Tensor:
    """Encode recorded conditioning as a policy with cameras sees it.

    Args:
        policy: With cameras.
        recorded: Conditioning of the checkpoint that met the states [N, C].
        like: That checkpoint's policy.
        size: Height and width of the cameras' frames [pixels].

    Returns:
        The policy's conditioning [N, C'], on its device.
    """
    steps = like.horizons.n_obs_steps
    states = recorded.unflatten(1, (steps, -1)).to(policy.device)  # [N, n_obs_steps, hand and surroundings]
    found = []
    for part in states.split(_AT_ONCE):
        frames = render(part[..., :HAND_DIM].flatten(0, 1), part[..., HAND_DIM:].flatten(0, 1), size)
        history = {name: each.unflatten(0, (-1, steps)).movedim(2, -1) for name, each in frames.items()}
        history[STATE] = like.normalization[STATE].unnormalize(part[..., :HAND_DIM])
        found.append(encode_history(policy.encoder, history, steps, policy.device))
    return torch.cat(found)
