"""Short names: short, and none for two samplers."""

from itertools import product

import pytest

from asd_policy.evaluation.reports.names import name_at_any_window, short_name, shown_name
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("ddpm", "ddpm"),
        ("asd", "asd"),
        ("asd:window=32", "asd θ=32"),
        ("asd:32", "asd θ=32"),
        ("asd:window=8,draft=frozen,verify=reflection", "paper's asd θ=8"),
        ("asd:draft=frozen,verify=reflection", "paper's asd"),
        ("asd:window=16,draft=picard", "asd θ=16 picard"),
        ("asd:window=16,verify=reflection", "asd θ=16 reflection"),
        ("asd:draft=response,verify=block", "asd response block"),
        ("ddim:10", "ddim-10 ≈"),
        ("ddim:10,eta=1", "ddim-10 η=1 ≈"),
        ("dpmsolver:10,order=3", "dpmsolver-10 order=3 ≈"),
        ("paradigms:window=16,tol=0.1", "paradigms θ=16 tol=0.1 ≈"),
    ],
)
def test_names(spec: str, name: str) -> None:
    """Of what a user writes, and of the full spec, alike."""
    exact = make_sampler(spec).exact
    assert short_name(spec, exact) == name
    assert short_name(make_sampler(spec).spec, exact) == name
    assert shown_name({"spec": spec, "exact": exact}) == name


def test_no_two_samplers_share_a_name() -> None:
    options = product(["auto", "8", "32"], ["auto", *DRAFTS], ["auto", *VERIFIERS])
    specs = {make_sampler(f"asd:window={w},draft={d},verify={v}").spec for w, d, v in options}
    specs |= {make_sampler(f"ddim:{steps},eta={eta}").spec for steps, eta in product((8, 32), (0, 0.5))}
    assert len({short_name(spec) for spec in specs}) == len(specs)


def test_a_line_of_a_plot_is_of_all_windows_but_the_one_that_was_chosen() -> None:
    assert name_at_any_window(make_sampler("asd:window=8").spec) == "asd θ=…"
    assert name_at_any_window(make_sampler("asd:window=64").spec) == "asd θ=…"
    assert name_at_any_window(make_sampler("asd").spec) == "asd"
    assert name_at_any_window("asd:window=8,draft=frozen,verify=reflection") == "paper's asd θ=…"
