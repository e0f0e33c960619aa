"""One round of `asd`: draft, evaluate, verify, commit.

symbol   | in code                | meaning
k        | `path.cursor`          | the first step of a row that is not committed
x_k      | `path.x`               | the exact point that it leaves
ξ, u     | `normals`, `uniforms`  | the tape's noise of each step
x̃, x̂0    | `point`, `x0_pred`     | drafted points, and the network's predictions there
d        | `guess`                | what the draft took x̂0 for
θ        | `window`               | points that one network call evaluates for a row
"""

from dataclasses import dataclass

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.gaussian import GaussianChain, transition
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers.asd import draft as drafts
from asd_policy.samplers.asd.couplings import Verdict, Verifier, block, reflection
from asd_policy.samplers.asd.draft import DRAFTS, Draft, Window, roll_out
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.path import Path
from asd_policy.samplers.asd.response import Response
from asd_policy.samplers.base import Target

_DRAFTS = tuple(type(draft) for draft in DRAFTS.values())


def response_for(draft: Draft, chain: GaussianChain, tape: NoiseTape, experience: Experience | None) -> Response | None:
    """Find how a draft's guesses follow the points of a chain; None where they do not."""
    if not draft.responds:
        return None
    x, device = tape.initial, arrays.device_of(tape.initial)
    learned = experience and experience.response(device, x.dtype, not chain.predicts_sample)
    return learned or chain.keep(("no response", *x.shape[1:], device, x.dtype), lambda: Response.none(x, len(chain)))


@dataclass(frozen=True)
class Round:
    """One round: a function of the path's tensors to the path's tensors."""

    target: Target
    draft: Draft
    verifier: Verifier
    response: Response | None
    window: int
    """Points θ of a row, at most."""

    @property
    def is_known(self) -> bool:
        """Whether draft, verifier and roll-out are those of this package, whose rounds have compiled forms, too."""
        plain = type(self.draft) in _DRAFTS and not vars(self.draft)  # an attribute of its own may change it
        known = self.verifier.judge in (reflection, block) or self.verifier.tolerance is not None
        return plain and known and roll_out is drafts.roll_out

    def __call__(self, path: Path, rows: Array, compact: bool) -> None:
        """Commit at least one step of every row that is not done.

        Args:
            path: Of the batch; changed in place.
            rows: The rows to advance [R].
            compact: Leave out the points that no row has use for. Otherwise shapes depend on nothing but
                R, θ and the draft, and nothing waits for the device, so that a CUDA graph can hold the round; rows
                that are done are computed and stay as they are.
        """
        target, xp, end = self.target, arrays.namespace(path.x), len(self.target.chain)
        cursor = path.cursor[rows]
        quota = xp.minimum(self.draft.quota(path, rows, self.window), end - cursor)  # [R] points; 0 of rows done
        slots = arrays.arange(int(quota.max()) if compact else self.window, rows)  # [n]
        live = slots < quota[:, None]  # [R, n]
        window = Window(rows, (cursor[:, None] + slots).clip(max=end - 1), compact)

        # Draft: guess x̂0 for each step, and roll the chain out on the guesses, along the tape.
        target.mark("draft")
        known = self.draft.known(path, rows, window.steps)
        point, guess, turned = roll_out(path, window, known, target.chain, self.response)  # [R, n, D]

        # Evaluate: the network's own predictions at all of these points, in one call.
        x0_pred = target.predict(point, window.steps, rows, live if compact else None)  # [R, n, D]

        # Verify: how many of the drafted steps stand, and the noise of the one after them.
        target.mark("verify")
        verdict = self._verify(path, window, guess - x0_pred, live)

        # Commit: the steps that stand and one more, whose prediction is known; and keep what was seen on the way.
        target.mark("commit")
        self._commit(path, window, point, x0_pred, verdict, quota)
        self._keep(path, window, turned, x0_pred, live, verdict)
        path.rounds[rows] += quota > 0
        path.nfe[rows] += quota if compact else self.window
        target.mark("host")

    def _verify(self, path: Path, window: Window, gap: Array, live: Array) -> Verdict:
        """Couple the drafted steps with their targets, gaps d − x̂0 [R, n, D] apart."""
        tables, at = self.target.chain.tables(arrays.device_of(gap), gap.dtype), window.places
        if self.target.inpainting is not None:  # given coordinates are no part of the law
            given = self.target.inpainting.mask.reshape(len(path.x), 1, -1)[window.rows]
            gap = arrays.namespace(gap).where(given, 0, gap)
        scale = (tables.a / tables.sigma)[window.steps]
        return self.verifier.judge(gap, scale, path.normals[at], path.uniforms[at], live)

    def _commit(self, path: Path, window: Window, point: Array, x0_pred: Array, verdict: Verdict, quota: Array) -> None:
        """Take the steps that stand, and the one after them from its target."""
        xp, rows = arrays.namespace(path.x), window.rows
        tables = self.target.chain.tables(arrays.device_of(point), point.dtype)
        going = quota > 0  # a row that is done has no live point, and must not change
        here = (arrays.arange(len(rows), rows), verdict.last)
        step = window.steps[here]
        a, b, sigma = (table[step][:, None] for table in (tables.a, tables.b, tables.sigma))
        noise = verdict.noise[here]
        moved = transition(a, x0_pred[here], sigma, noise, b, point[here])
        keep = going[:, None]
        path.x[rows] = xp.where(keep, moved, path.x[rows])
        path.latest[rows] = xp.where(keep, x0_pred[here], path.latest[rows])
        path.innovation[rows] = xp.where(keep, sigma * noise, path.innovation[rows])
        path.cursor[rows] = xp.where(going, path.cursor[rows] + verdict.last + 1, path.cursor[rows])
        path.rejected[rows] = xp.where(going, verdict.rejected, path.rejected[rows])
        path.refused[rows, step] |= verdict.rejected & going

    def _keep(self, path: Path, window: Window, turned: Array, x0_pred: Array, live: Array, verdict: Verdict) -> None:
        """Keep the round's points and predictions for the drafts of the rounds to come, and its noise where renewed."""
        xp, rows, end = arrays.namespace(path.x), window.rows, len(self.target.chain)
        slots, last = arrays.arange(live.shape[1], rows), verdict.last[:, None]
        drafted = live & ((slots < last) | ((slots == last) & verdict.rejected[:, None]))
        # An array, as PyTorch copies a number from the host's memory to a GPU's, which no recording may do.
        path.judged[rows[:, None], xp.where(drafted, window.steps, end)] = xp.ones_like(drafted)
        # What has no place of its own goes behind the end; the points of one row all have one.
        one = window.compact and len(rows) == 1
        at = window.places if one else (rows[:, None], xp.where(live, window.steps, end))
        if self.response is not None:
            x0_pred = self.response.turn(x0_pred)
            again = xp.astype(path.seen[at], turned.dtype)[:, :, None]
            path.shift[at] = again * (turned - path.points[at])
            path.change[at] = again * (x0_pred - path.x0_pred[at])
        path.points[at], path.x0_pred[at], path.seen[at] = turned, x0_pred, live
        if self.verifier.renews_noise:
            path.normals[at], path.uniforms[at] = verdict.noise, verdict.uniform
