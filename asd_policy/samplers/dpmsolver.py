"""DPM-Solver++ with few steps, through diffusers: the deterministic multistep solver for small numbers of steps."""

from dataclasses import dataclass
from typing import Any

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import SpecError
from asd_policy.samplers.fewsteps import FewSteps, configured

ORDERS = (1, 2, 3)


@dataclass(frozen=True)
class DpmSolver(FewSteps):
    """A solver of the probability flow that reuses its last predictions (Lu et al., arXiv 2211.01095, algorithm 2)."""

    order: int = 2
    """Predictions that a step is made of, 1 … 3; with 1 it is DDIM's step."""

    def __post_init__(self) -> None:
        """Check the options that need no chain.

        Raises:
            SpecError: One of them is out of range.
        """
        super().__post_init__()
        if self.order not in ORDERS:
            raise SpecError(f"order={self.order} is not one of {', '.join(map(str, ORDERS))}")

    @property
    def spec(self) -> str:
        """The full spec of this sampler."""
        return f"dpmsolver:{self.steps}" + (f",order={self.order}" if self.order != 2 else "")

    def scheduler(self, chain: GaussianChain) -> Any:
        """Make a `DPMSolverMultistepScheduler`; it does not clip, but its thresholding with a maximum of 1 does."""
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        options: dict[str, Any] = {"solver_order": self.order}
        if chain.clip_range is not None:
            if chain.clip_range != 1:
                raise SpecError(
                    f"{self.spec} cannot clip to ±{chain.clip_range:g} (clip_sample_range): diffusers' "
                    "DPMSolverMultistepScheduler clips to ±1 or not at all; use ddim"
                )
            options |= {"thresholding": True, "sample_max_value": 1.0}
        if not chain.config.get("set_alpha_to_one", True):  # DDIM's last step then ends at the smallest noise
            options["final_sigmas_type"] = "sigma_min"
        return configured(DPMSolverMultistepScheduler, chain, **options)
