"""How far does float32 leave drafted points from where the coupling takes them to be, in units of each step's σ?

python scripts/benchmarks/rounding.py
"""

from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

import asd_policy
from asd_policy._common.hardware import hardware
from asd_policy.chain.gaussian import GaussianChain, transition
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers.asd.draft import Window, roll_out
from asd_policy.samplers.asd.path import Path
from asd_policy.samplers.asd.response import Response, sines


@dataclass(frozen=True)
class Options:
    """How far does float32 leave drafted points from where the coupling takes them to be, in units of σ?"""

    steps: int = 100
    """Steps K of the chain (squared-cosine betas)."""
    horizon: int = 16
    """Steps of a plan."""
    action_dim: int = 2
    """Numbers of a step."""
    plans: int = 1000
    """Plans drafted."""


def main() -> None:
    """Draft whole chains in float32, with and without a response, and compare each step with float64."""
    options = tyro.cli(Options, description=__doc__)
    chain = GaussianChain.from_scheduler({"num_train_timesteps": options.steps, "beta_schedule": "squaredcos_cap_v2"})
    generator = torch.Generator().manual_seed(0)
    shape = (options.plans, options.horizon, options.action_dim)
    tape = NoiseTape.draw(shape, len(chain), generator)
    rows, steps = torch.arange(options.plans), torch.arange(len(chain)).expand(options.plans, -1)
    path = Path.begin(None, tape, 2 * torch.rand(shape, generator=generator) - 1)
    alpha = torch.as_tensor(chain.input_scale, dtype=torch.float32) ** -2
    gain = 0.01 * alpha.sqrt() / (0.01 * alpha + 1 - alpha)  # of Gaussian data with a deviation of 0.1
    size = options.horizon * options.action_dim
    follows = Response(sines(options.horizon, tape.initial.device, torch.float32), gain[:, None].expand(-1, size))
    print("| drafts | median over steps | largest step |\n|---|---|---|")
    for name, response in (("held", None), ("response", follows)):
        known = torch.zeros_like(steps, dtype=torch.bool)
        off = discrepancy(
            chain,
            *roll_out(path, Window(rows, steps, compact=False), known, chain, response)[:2],
            tape.normals.flatten(2),
        )
        print(f"| {name} | {off.median():.1e} | {off.max():.1e} |")
    print(
        f"\nRoot mean square over {options.plans} plans of ‖x̃ − (m̂ + σξ)‖/σ, by step; K = {options.steps}, "
        f"D = {size}, float32; {hardware(torch.device('cpu'))}; torch {torch.__version__}, "
        f"asd_policy {asd_policy.__version__}."
    )


def discrepancy(chain: GaussianChain, points: Tensor, guesses: Tensor, noise: Tensor) -> Tensor:
    """Compute how far each drafted point is off the step to it [K − 1], in σ.

    Args:
        chain: Whose steps.
        points: Drafted points [B, K, D].
        guesses: What they were drafted with [B, K, D].
        noise: And along [B, K, D].
    """
    tables = chain.tables(points.device, torch.float64)
    a, b, sigma = (table[:-1].float().double().unsqueeze(1) for table in (tables.a, tables.b, tables.sigma))
    before, guess, own = (values[:, :-1].double() for values in (points, guesses, noise))
    missed = points[:, 1:].double() - transition(a, guess, sigma, own, b, before)
    return (missed / sigma).square().sum(2).mean(0).sqrt()


if __name__ == "__main__":
    main()
