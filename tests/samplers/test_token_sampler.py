"""`tokens` as a sampler: its specs, what it refuses, and that a policy plans with it as with any other."""

import numpy as np
import pytest
import torch

from asd_policy._common import arrays
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.chain.tokens import TokenChain, order_of
from asd_policy.errors import DenoiserError, SpecError
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.networks.token_transformer import TokenTransformer, TokenTransformerConfig
from asd_policy.samplers import make_sampler
from asd_policy.samplers.base import Samples, Target
from asd_policy.samplers.deadline import Budget
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.tokens import Tokens
from asd_policy.samplers.warm_start import WarmStart
from asd_policy.tokens.couplings import TOKEN_VERIFIERS
from asd_policy.tokens.rounds import TOKEN_DRAFTS

CHAIN = TokenChain((4, 2), 8, order_of("forward", (4, 2)))
SHAPE = (3, 4, 2)
SPECS = [f"tokens:window=4,draft={draft},verify={verify}" for draft in TOKEN_DRAFTS for verify in TOKEN_VERIFIERS]


@pytest.fixture(scope="module")
def network() -> TokenTransformer:
    """A network with random weights, whose tokens depend on each other."""
    torch.manual_seed(0)
    made = TokenTransformer(TokenTransformerConfig(8, 8, 3, n_layer=1, n_head=2, n_emb=16))
    return made.eval().requires_grad_(False)


def draw(spec: str, network: TokenTransformer, seed: int = 0, rows: slice = slice(None)) -> torch.Tensor:
    cond = torch.randn(SHAPE[0], 3, generator=torch.Generator().manual_seed(9))[rows]
    sources = [torch.Generator().manual_seed(seed + row) for row in range(SHAPE[0])][rows]
    return make_sampler(spec).sample(network, CHAIN, (len(cond), *SHAPE[1:]), cond, sources).sample


@pytest.mark.parametrize("spec", ["tokens", *SPECS])
def test_specs_round_trip(spec: str) -> None:
    assert make_sampler(spec).spec == spec
    assert make_sampler(spec).exact


def test_defaults_are_spelled_out() -> None:
    assert make_sampler("tokens:window=1") == make_sampler("tokens")
    assert make_sampler("tokens:16").spec == "tokens:window=16,draft=frozen,verify=sequence"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tokens:window=0", "window=0 is not in 1 … K"),
        ("tokens:draft=picrd", "no draft 'picrd' of tokens; there are frozen, picard (did you mean 'picard'?)"),
        ("tokens:verify=block", "no verify 'block' of tokens; there are token, sequence, gumbel"),
        ("tokens:windw=2", "no option 'windw' in 'tokens:windw=2'; tokens has window, draft, verify"),
    ],
)
def test_wrong_specs_are_refused(spec: str, message: str) -> None:
    with pytest.raises(SpecError) as info:
        make_sampler(spec)
    assert message in str(info.value)


@pytest.mark.parametrize("spec", ["tokens", *SPECS])
def test_samples_are_middles_of_bins_and_rows_do_not_depend_on_each_other(spec: str, network: TokenTransformer) -> None:
    sample = draw(spec, network)
    assert sample.dtype == torch.float32 and sample.shape == SHAPE
    assert torch.equal(CHAIN.decode(CHAIN.encode(sample)), sample)
    for row in range(SHAPE[0]):
        assert torch.equal(draw(spec, network, rows=slice(row, row + 1))[0], sample[row])


def test_gumbel_is_the_sequential_plan(network: TokenTransformer) -> None:
    for seed in range(20):
        assert torch.equal(draw("tokens:window=8,verify=gumbel", network, seed), draw("tokens", network, seed))


def test_costs_are_counted(network: TokenTransformer) -> None:
    tape = NoiseTape.draw(SHAPE, CHAIN.noise_steps, torch.Generator().manual_seed(0))
    stats = Tokens(4).sample(network, CHAIN, SHAPE, torch.zeros(3, 3), tape).stats
    assert stats.steps == 8 and stats.window == 4 and stats.exact == (True,) * 3
    assert all(2 < rounds < 8 <= nfe for rounds, nfe in zip(stats.rounds, stats.nfe, strict=True))
    assert stats.trial_calls == stats.trial_points == 0
    again = Tokens(4).sample(network, CHAIN, SHAPE, torch.zeros(3, 3), tape)
    assert again.stats.plans == stats.plans


def test_noise_does_not_grow_with_the_tokens() -> None:
    """A tape with a step for each token would have as many numbers as their square."""
    shapes: list[torch.Size] = []

    class Watched(Tokens):
        def run(self, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Samples:
            shapes.append(tape.normals.shape)
            return super().run(target, tape, warm_start)

    Watched(4).sample(lambda x, timestep, cond: torch.zeros(x.shape), CHAIN, SHAPE)
    assert shapes == [(SHAPE[0], 1, *SHAPE[1:])]


def test_numpy_plans_like_torch(network: TokenTransformer) -> None:
    """The same tape in either library makes the same plan."""
    tape = NoiseTape.draw(SHAPE, CHAIN.noise_steps, torch.Generator().manual_seed(0))
    theirs = NoiseTape(*(arrays.asarray(part, arrays.NUMPY) for part in (tape.initial, tape.normals, tape.uniforms)))

    def plain(x: np.ndarray, timestep: np.ndarray, cond: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(x), torch.from_numpy(timestep), torch.from_numpy(cond)).numpy()

    ours = Tokens(4).sample(network, CHAIN, SHAPE, torch.zeros(3, 3), tape).sample
    found = Tokens(4).sample(plain, CHAIN, SHAPE, np.zeros((3, 3), np.float32), theirs).sample  # pyright: ignore[reportArgumentType]
    assert np.array_equal(found, ours.numpy())


def test_chains_of_the_other_kind_are_refused(
    network: TokenTransformer, mixture: MixtureDenoiser, chain: GaussianChain
) -> None:
    with pytest.raises(SpecError, match="tokens samples tokens, and this is a chain of Gaussian steps: ddpm or asd"):
        make_sampler("tokens").sample(mixture, chain, (1, 2, 2))
    with pytest.raises(
        SpecError, match="needs a chain of Gaussian steps, and this policy samples 8 tokens of 8 values"
    ):
        make_sampler("asd").sample(network, CHAIN, SHAPE, torch.zeros(3, 3))
    with pytest.raises(SpecError, match="window=9 is not in 1 … 8"):
        make_sampler("tokens:9").sample(network, CHAIN, SHAPE, torch.zeros(3, 3))


def test_what_tokens_cannot_do_is_refused(network: TokenTransformer) -> None:
    given = Inpainting(torch.zeros(SHAPE, dtype=torch.bool), torch.zeros(SHAPE))
    with pytest.raises(SpecError, match="tokens has no given coordinates: --continuity none"):
        Tokens().sample(network, CHAIN, SHAPE, torch.zeros(3, 3), inpainting=given)
    with pytest.raises(SpecError, match="no deadline can cut tokens"):
        Tokens().sample(network, CHAIN, SHAPE, torch.zeros(3, 3), budget=Budget(1000.0))


def test_a_network_that_is_not_finite_is_named() -> None:
    def broken(x: torch.Tensor, timestep: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
        return x * torch.nan

    with pytest.raises(DenoiserError, match="NaN or infinity among its logits"):
        Tokens().sample(broken, CHAIN, SHAPE)
