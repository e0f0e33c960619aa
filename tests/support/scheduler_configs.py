"""Configurations of schedulers at random, over all of their options."""

from typing import Any

from hypothesis import strategies as st

from asd_policy.chain.scheduler_options import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    TIMESTEP_SPACINGS,
    VARIANCE_TYPES,
)


@st.composite
def configs(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Draw a value for every option of a scheduler."""
    train = draw(st.integers(2, 200))
    betas = st.lists(st.floats(1e-5, 0.5), min_size=train, max_size=train)
    options: dict[str, st.SearchStrategy[Any]] = {
        "beta_schedule": st.sampled_from(BETA_SCHEDULES[name]),
        "beta_start": st.floats(1e-5, 1e-3),
        "beta_end": st.floats(2e-3, 0.5),
        "trained_betas": st.none() if train > 20 else st.none() | betas,
        "prediction_type": st.sampled_from(PREDICTION_TYPES),
        "clip_sample": st.booleans(),
        "clip_sample_range": st.floats(0.1, 5.0),
        "thresholding": st.booleans(),
        "dynamic_thresholding_ratio": st.floats(0, 1),
        "sample_max_value": st.floats(0.2, 5.0),
        "timestep_spacing": st.sampled_from(TIMESTEP_SPACINGS),
        "steps_offset": st.integers(0, 3),
        "rescale_betas_zero_snr": st.booleans(),
    }
    if name == "DDPMScheduler":
        options["variance_type"] = st.sampled_from(VARIANCE_TYPES)
    else:
        options["set_alpha_to_one"] = st.booleans()
    return {"num_train_timesteps": train} | {key: draw(value) for key, value in options.items()}
