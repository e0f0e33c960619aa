"""Rounds of `asd` in a few kernels (`kernels`): those of `rounds.RoundRecording`, for points in a GPU's memory.

The text of `engine.Round` is the definition, and what runs where Triton is missing, does not fit or cannot compile.
A round is six launches with the draft `response`, four with the others, beside the network's own and, for chains that
threshold, the scheduler's.
"""

import importlib
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

from asd_policy._common import arrays
from asd_policy._common.arrays import NUMPY, Array, Device
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.networks.denoiser import Denoiser
from asd_policy.networks.recording import OutOfDeviceMemory
from asd_policy.samplers.asd.couplings import Verifier, block
from asd_policy.samplers.asd.draft import Draft, FrozenDraft
from asd_policy.samplers.asd.engine import Round, response_for
from asd_policy.samplers.asd.path import Path
from asd_policy.samplers.base import Target

_TRIAL = 2
"""Points per row of the round that kernels are tried on."""
_NO_FUSION: dict[str, Any] = {"enable_fp_fusion": False}
"""A product and a sum are rounded each, as the reference's: an accepted draft is the drafted point to the bit."""


def is_launched(device: Device) -> bool:
    """Tell whether kernels can be launched on a device."""
    return device != NUMPY and device.type == "cuda"


@cache
def load_launched() -> ModuleType | None:
    """Import the kernels; None, and a warning, where Triton is missing or does not fit."""
    try:
        return importlib.import_module("asd_policy.samplers.asd.launched.kernels")
    except Exception as error:  # Triton's errors are many
        _warn(error)
        return None


def launches(device: Device) -> bool:
    """Tell whether recorded rounds on a device are these kernels: they have not failed, as far as is known."""
    return is_launched(device) and not _failed and load_launched() is not None


_failed: list[str] = []
"""What went wrong with the kernels in this process; the reference runs from then on."""


def _warn(error: Exception) -> None:
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    _failed.append(reason)
    warnings.warn(
        f"asd's rounds run in PyTorch's kernels, which is slower: {reason}; Triton compiles them", stacklevel=3
    )


def launched_form(round_: Round, path: Path, counts: Array) -> "Round | LaunchedRound":
    """Give a round its form of few kernels, if it has one for a path and it runs here; else the round itself.

    It is tried on the path, which is not what it was after that: the kernels are compiled before a recording begins.

    Args:
        round_: The round, of all rows.
        path: Theirs.
        counts: Takes the counts of the path, see `rounds.RoundRecording`.

    Raises:
        OutOfDeviceMemory: There is no room for it.
    """
    coupled = round_.verifier.tolerance is None  # the kernels know the couplings alone
    if not (coupled and round_.is_known and arrays.has_known_precision(path.x) and launches(arrays.device_of(path.x))):
        return round_
    kernels: Any = load_launched()
    try:
        LaunchedRound(replace(round_, window=min(_TRIAL, round_.window)), path, kernels, counts).attempt()
        arrays.synchronize(arrays.device_of(path.x))
    except Exception as error:
        if arrays.is_out_of_memory(error):
            raise OutOfDeviceMemory from error
        _warn(error)
        return round_
    return LaunchedRound(round_, path, kernels, counts)


def compile_round(
    denoiser: Denoiser, chain: GaussianChain, event: tuple[int, ...], device: Device, how: tuple[Draft, Verifier]
) -> None:
    """Compile the kernels for float32 plans without given coordinates, or read them from the disk.

    Args:
        denoiser: The network, which is not called.
        chain: Whose plans they are.
        event: Shape of a point.
        device: Where.
        how: Draft and verifier.
    """
    shape, (draft, verifier) = (1, *event), how
    with arrays.sampling(device):
        tape = NoiseTape.draw(shape, len(chain), arrays.make_generator(device, 0), device)
        target = Target(denoiser, chain, shape)
        round_ = Round(target, draft, verifier, response_for(draft, chain, tape, None), min(_TRIAL, len(chain)))
        path = Path.begin(target.inpainting, tape, None).apart()
        with suppress(OutOfDeviceMemory):  # a plan will say so
            launched_form(round_, path, arrays.zeros((3 + 2 * len(chain), 1), tape.initial, int))


@dataclass(frozen=True)
class Tiles:
    """How much of a round one program does."""

    rows: int = 1
    """Rows of the programs that have whole rows; others have as many numbers."""

    def whole(self, size: int) -> dict[str, int]:
        """Share out rows whose numbers one program has all."""
        wide = _power(size)
        return {"ROWS": self.rows, "WIDE": wide, "num_warps": min(max(wide // 128, 1), 32)}

    def split(self, size: int) -> dict[str, int]:
        """Share out rows whose numbers have nothing to do with each other."""
        return {"ROWS": self.rows, "WIDE": min(_power(size), 128), "num_warps": 4 if size > 64 else 1}

    def summed(self, size: int) -> tuple[int, int]:
        """Share out points whose numbers are summed up in parts."""
        wide = min(_power(size), 1024)
        return max(128 // wide, 1) * self.rows, wide

    def turned(self, horizon: int) -> dict[str, int]:
        """Share out vectors that are turned."""
        return {"TALL": min(_power(horizon), 16), "WIDE": 32 * self.rows, "num_warps": 4}


class LaunchedRound:
    """A `Round` of all rows of one path as launches of kernels."""

    tiles = Tiles()

    def __init__(self, reference: Round, path: Path, kernels: ModuleType, counts: Array) -> None:
        """Look at the arrays of a path, whose addresses the kernels will have."""
        self.reference = reference
        self.path, self._kernels, self._counts = path, kernels, counts
        self._cond: Array | None = None
        chain = reference.target.chain
        self._tables = tables = chain.tables(arrays.device_of(path.x), path.x.dtype)
        self._scale = tables.a / tables.sigma
        inpainting = reference.target.inpainting
        parts = (inpainting.mask, inpainting.values, inpainting.noisy_values, inpainting.guidance) if inpainting else ()
        x = path.x
        # A kernel takes any tensor for one that it does not look at.
        mask, values, noisy, guidance = (*(x if part is None else part for part in parts), *(x,) * 4)[:4]
        self._mask = _flags(mask) if inpainting else mask
        self._shown_values = self._mask, values, noisy
        self._guided_values = self._mask, values, guidance
        self._given = inpainting is not None
        self._noised = inpainting is not None and inpainting.noisy_values is not None
        self._guided = inpainting is not None and inpainting.guidance is not None
        self._singly = isinstance(reference.draft, FrozenDraft)

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        """R, n, K, D."""
        rows, size = self.path.x.shape
        return rows, self.reference.window, len(self.reference.target.chain), size

    @property
    def _event(self) -> tuple[int, int]:
        """Length of the time axis, and how many numbers each time has."""
        horizon = self.reference.target.shape[1]
        return horizon, self.path.x.shape[1] // horizon

    def begin(self) -> None:
        """Take the conditioning of the plans that begin, once for each point of a round."""
        cond, window = self.reference.target.cond, self.reference.window
        if cond is None:
            return
        every = cond[:, None].expand(-1, window, *cond.shape[1:])
        if self._cond is None:
            self._cond = every.reshape(-1, *cond.shape[1:]).clone()
        self._cond.view(every.shape)[...] = every

    def __call__(self) -> None:
        """Commit at least one step of every row that is not done."""
        shown, timesteps, drafts = self._draft()
        output = self.reference.target.call(shown.view(-1, shown.shape[-1]), timesteps, self._cond)
        self._verify(output, shown, timesteps, drafts)

    def attempt(self) -> None:
        """Do a round with something in the place of the network."""
        shown, timesteps, drafts = self._draft()
        self._verify(shown.view(-1, shown.shape[-1]), shown, timesteps, drafts)

    def _draft(self) -> tuple[Array, Array, tuple[Array, Array]]:
        """Draft, see `draft.roll_out`.

        Returns:
            The points as the network is to see them [R, n, D], their timesteps [R·n], points and guesses [2, R, n, D],
            and the points in the response's basis, or the same.
        """
        path, (rows, window, steps, size) = self.path, self._sizes
        plain = path.x.new_empty((2, rows, window, size))
        shown = path.x.new_empty((rows, window, size)) if self._given else plain[0]
        timesteps = self._tables.timesteps.new_empty(rows * window)
        tables = self._tables.a, self._tables.b, self._tables.sigma, self._tables.timesteps
        how, kernels, tiles = (self._singly, self._given, self._noised), self._kernels, self.tiles
        response = self.reference.response
        if response is None:
            share = tiles.split(size)
            grid = (_parts(rows, share["ROWS"]), _parts(size, share["WIDE"]))
            state = path.x, path.cursor, path.normals, _flags(path.seen), path.x0_pred, path.latest
            kernels.reuse[grid](
                (*state, _flags(path.rejected)), tables, self._shown_values, (plain, shown, timesteps),
                coded(*self._sizes), how, **share, **_NO_FUSION,
            )  # fmt: skip
            return shown, timesteps, (plain, plain)
        horizon, width = self._event
        turned, drafted = path.x.new_empty((rows, window + 3, size)), plain.new_empty(plain.shape)
        share, sizes = tiles.turned(horizon), coded(rows, window, steps, horizon, width)
        state = path.x, path.cursor, path.normals, path.latest, path.innovation
        kernels.turn_in[self._turns(rows * (window + 3))](
            state, self._tables.sigma, response.basis, turned, sizes, **share, **_NO_FUSION
        )
        share_rows = tiles.whole(size)
        state = path.cursor, path.free, _flags(path.seen), path.points, path.x0_pred, path.shift, path.change
        kernels.respond[(_parts(rows, share_rows["ROWS"]),)](
            state, tables, response.gain, turned, (drafted, timesteps), coded(*self._sizes), **share_rows, **_NO_FUSION
        )
        kernels.turn_back[self._turns(2 * rows * window)](
            (path.x, path.cursor), (response.basis, drafted), self._shown_values, (plain, shown), sizes, how,
            **share, **_NO_FUSION,
        )  # fmt: skip
        return shown, timesteps, (plain, drafted)

    def _turns(self, vectors: int) -> tuple[int, int]:
        """Count the programs that go through so many vectors, an event each, by tiles of `Tiles.turned`."""
        horizon, width = self._event
        share = self.tiles.turned(horizon)
        return _parts(vectors * width, share["WIDE"]), _parts(horizon, share["TALL"])

    def _verify(self, output: Array, shown: Array, timesteps: Array, drafts: tuple[Array, Array]) -> None:
        """Verify and commit, given the network's output [R·n, *event] or flattened."""
        path, (rows, window, steps, size) = self.path, self._sizes
        chain, tables, (plain, drafted) = self.reference.target.chain, self._tables, drafts
        horizon, width = self._event
        ready = chain.threshold is not None  # that needs a quantile of each sample
        if ready:
            k = (path.cursor[:, None] + arrays.arange(window, path.cursor)).clip(max=steps - 1).reshape(-1)
            output = chain.predict(shown.view(-1, size), output.reshape(-1, size).to(shown.dtype), k)
        if output.ndim != 3:
            output = output.reshape(-1, horizon, width)
        tile = self.tiles.summed(size)
        grid = _parts(rows * window, tile[0]), _parts(size, tile[1])
        x0_pred, parts = shown.new_empty(shown.shape), shown.new_empty((5, grid[1], rows * window))
        excess = tables.a if tables.excess is None else tables.excess
        self._kernels.compare[grid](
            (path.cursor, _flags(path.rejected), path.normals), (shown, output, plain),
            (tables.output_scale, tables.input_scale, excess, self._scale), self._guided_values, (x0_pred, parts),
            coded(*self._sizes, width, *output.stride()),
            (self._singly, self._given, self._guided, ready, chain.clip_range, tables.excess is not None), tile,
            num_warps=1 if size <= 128 else 4, **_NO_FUSION,
        )  # fmt: skip
        verdict = self._judge(parts)
        response, renews = self.reference.response, self.reference.verifier.renews_noise
        state = path.x, path.normals, path.points, path.x0_pred, path.shift, path.change, path.latest, path.innovation
        basis = path.x if response is None else response.basis
        self._kernels.commit[self._turns(rows * window)](
            state, (tables.a, tables.b, tables.sigma, self._mask, basis), (plain, drafted, x0_pred), verdict,
            coded(rows, window, steps, horizon, width), (response is not None, renews, self._given),
            **self.tiles.turned(horizon), **_NO_FUSION,
        )  # fmt: skip

    def _judge(self, parts: Array) -> tuple[Array, ...]:
        """Judge, and move the rows on; what `commit` needs of it."""
        path, (rows, window, steps, _) = self.path, self._sizes
        spans = path.cursor.new_empty((3, rows))
        again = path.seen.new_empty((rows, window))
        units, roots, moves = (path.x.new_empty((rows, window)) for _ in range(3))
        verdict = spans, _flags(again), units, roots, moves
        flags = (_flags(each) for each in (path.seen, path.rejected, path.refused, path.judged))
        slots = max(_power(steps), 32)  # with fewer, each thread of Triton 3.6 would look at all cells of a root
        self._kernels.judge[(_parts(rows, self.tiles.rows),)](
            (path.cursor, path.uniforms, *flags, path.rounds, path.nfe), (parts, self._scale), verdict, self._counts,
            coded(rows, window, steps, parts.shape[1]), (self._singly, self.reference.verifier.judge is block),
            ROWS=self.tiles.rows, SLOTS=slots, num_warps=min(slots // 32, 8 if slots > 256 else 4),
        )  # fmt: skip
        return verdict


def coded(*sizes: int) -> tuple[int, ...]:
    """Write sizes so that a kernel is the same for all: Triton makes others for 1, and for what 16 divides."""
    return tuple(32 * size + 17 for size in sizes)


def _flags(values: Array) -> Array:
    """Look at booleans as bytes."""
    import torch

    return values.view(torch.uint8)


def _power(count: int) -> int:
    """Find the smallest power of two that is not less."""
    return 1 << (count - 1).bit_length()


def _parts(count: int, each: int) -> int:
    """Count the programs that go through `count` things."""
    return -(-count // each)
