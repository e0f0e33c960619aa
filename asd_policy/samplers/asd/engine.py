"""The engine of `asd`: a round is a function of the tensors of a `Path` to the same tensors."""

from dataclasses import dataclass

import numpy as np

from asd_policy._common import arrays
from asd_policy._common.arrays import NUMPY, Array
from asd_policy.chain.gaussian import transition
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers.asd.couplings import Verifier
from asd_policy.samplers.asd.draft import DRAFTS, Draft, Path, places, roll_out
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.response import Response, sines, turn
from asd_policy.samplers.target import Target


def begin(target: Target, tape: NoiseTape, last_plan: Array | None) -> Path:
    """Return a batch of plans at the start of the chain."""
    xp, x = arrays.namespace(tape.initial), tape.initial.reshape(len(tape.initial), -1)
    batch, steps = tape.uniforms.shape
    normals = tape.normals.reshape(batch, steps, -1)
    free = xp.ones_like(x)
    if target.held is not None:
        free = xp.where(target.held.mask.reshape(x.shape), 0, free)
        normals = free[:, None] * normals

    def by_step(width: int) -> Array:
        return arrays.zeros((batch, steps + 1, width), x)

    def none() -> Array:
        return arrays.zeros((batch, steps + 1), x, bool)

    def count() -> Array:
        return arrays.zeros((batch,), x, int)

    size = x.shape[1]
    latest = xp.zeros_like(x)
    if last_plan is not None:  # a copy: it is the caller's
        latest += arrays.asarray(last_plan, arrays.device_of(x), x.dtype).reshape(x.shape)
    latest = target.hold(latest)
    return Path(
        x=arrays.copied(x),
        cursor=count(),
        free=free.sum(1)[:, None],
        normals=xp.concatenate([normals, normals[:, :1]], axis=1),
        uniforms=xp.concatenate([tape.uniforms, tape.uniforms[:, :1]], axis=1),
        points=by_step(size),
        clean=by_step(size),
        seen=none(),
        shift=by_step(size),
        change=by_step(size),
        latest=latest,
        innovation=xp.zeros_like(x),
        rejected=~arrays.zeros((batch,), x, bool),
        refused=none(),
        judged=none(),
        rounds=count(),
        nfe=count(),
    )


def respond(draft: Draft, tape: NoiseTape, experience: Experience | None) -> Response | None:
    """Return how a draft's guesses follow the points of a chain; None where they do not."""
    if not draft.responds:
        return None
    x = tape.initial
    learned = experience and experience.response(arrays.device_of(x), x.dtype)
    return learned or Response.none(x, tape.uniforms.shape[1])


def is_compact(path: Path) -> bool:
    """Return whether rounds leave out what is done: on a CPU. A GPU computes it, in shapes that never change."""
    return arrays.device_of(path.x) == NUMPY or path.x.device.type == "cpu"


def learn(experience: Experience, path: Path, target: Target, pair: tuple[str, str], responds: bool) -> None:
    """Add the committed paths of finished plans to the experience of their policy.

    Args:
        experience: Of the policy.
        path: Of the plans.
        target: What was sampled.
        pair: Names of the draft and of the verifier.
        responds: Whether plans of this sampler may follow the response, so that there is a use for it.
    """
    free = None if target.held is None else ~target.held.mask.reshape(len(path.x), -1)
    steps = len(target.chain)
    points, clean = path.points[:, :steps], path.clean[:, :steps]
    if responds and not DRAFTS[pair[0]].responds:  # the others' are in that basis
        inverse = sines(target.shape[1], arrays.device_of(path.x), path.x.dtype).T
        points, clean = turn(inverse, points), turn(inverse, clean)
    judgements = (path.judged[:, :steps], path.refused[:, :steps])
    horizon = target.shape[1] if responds else None
    experience.learn(points, clean, path.cursor, free, *judgements, target.chain, pair, horizon)


def steps_of(mask: Array) -> tuple[tuple[int, ...], ...]:
    """Return the steps of each row at which a mask [B, K] is true."""
    return tuple(tuple(np.flatnonzero(row).tolist()) for row in arrays.to_numpy(mask))


@dataclass(frozen=True)
class Round:
    """One round: a function of the path's tensors to the path's tensors."""

    target: Target
    draft: Draft
    verifier: Verifier
    response: Response | None
    window: int

    def __call__(self, path: Path, rows: Array, compact: bool) -> None:
        """Commit at least one step of every row that is not done.

        Args:
            path: Of the batch; changed in place.
            rows: The rows to advance [R].
            compact: Leave out the points that no row has use for. Otherwise shapes depend on nothing but
                R, θ and the draft, and nothing waits for the device, so that a CUDA graph can hold the round; rows
                that are done are computed and stay as they are.
        """
        chain, xp = self.target.chain, arrays.namespace(path.x)
        end, cursor = len(chain), path.cursor[rows]
        quota = xp.minimum(self.draft.quota(path, rows, self.window), end - cursor)  # [R] points; 0 of rows done
        width = int(quota.max()) if compact else self.window
        slots = arrays.arange(width, rows)  # [n]
        live = slots < quota[:, None]  # [R, n]
        steps = (cursor[:, None] + slots).clip(max=end - 1)  # [R, n]

        # Draft.
        self.target.mark("draft")
        known = self.draft.known(path, rows, steps)
        point, guess, turned = roll_out(path, rows, steps, known, chain, self.response, compact)  # [R, n, D]

        # Verify.
        clean = self.target.predict_window(point, steps, rows, live if compact else None)  # [R, n, D]
        self.target.mark("verify")
        tables = chain.tables(arrays.device_of(point), point.dtype)
        of = places(rows, steps, compact)
        noise, uniform = path.normals[of], path.uniforms[of]
        if self.target.held is not None:  # given coordinates are no part of the law
            owners = xp.broadcast_to(rows[:, None], steps.shape).reshape(-1)
            guess = self.target.hold(guess.reshape(-1, guess.shape[-1]), owners).reshape(guess.shape)
        verdict = self.verifier.judge(guess - clean, (tables.a / tables.sigma)[steps], noise, uniform, live)
        last, rejected = verdict.last, verdict.rejected

        # Commit.
        self.target.mark("commit")
        going = quota > 0  # a row that is done has no live point, and must not change
        here = (arrays.arange(len(rows), rows), last)
        last_steps = steps[here]
        a, b, sigma = (table[last_steps][:, None] for table in (tables.a, tables.b, tables.sigma))
        own = verdict.noise[here]
        moved = transition(a, clean[here], sigma, own, b, point[here])
        keep = going[:, None]
        path.x[rows] = xp.where(keep, moved, path.x[rows])
        path.latest[rows] = xp.where(keep, clean[here], path.latest[rows])
        path.innovation[rows] = xp.where(keep, sigma * own, path.innovation[rows])
        path.cursor[rows] = xp.where(going, cursor + last + 1, cursor)
        path.rejected[rows] = xp.where(going, rejected, path.rejected[rows])
        path.refused[rows, last_steps] |= rejected & going
        drafted = live & ((slots < last[:, None]) | ((slots == last[:, None]) & rejected[:, None]))
        path.judged[rows[:, None], xp.where(drafted, steps, end)] = True
        # What has no place of its own goes behind the end; the points of one row all have one.
        at = of if compact and len(rows) == 1 else (rows[:, None], xp.where(live, steps, end))
        if self.response is not None:
            clean = self.response.turn(clean)
            again = xp.astype(path.seen[at], point.dtype)[:, :, None]
            path.shift[at] = again * (turned - path.points[at])
            path.change[at] = again * (clean - path.clean[at])
        path.points[at], path.clean[at], path.seen[at] = turned, clean, live
        if self.verifier.renews_noise:
            path.normals[at], path.uniforms[at] = verdict.noise, verdict.uniform
        path.rounds[rows] += going
        path.nfe[rows] += quota if compact else width
        self.target.mark("host")
