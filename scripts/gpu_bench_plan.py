"""What gpu_bench.py measures, in which order, and whether there is time for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

GRAPH, EAGER, COMPILED, HALF = (
    "torch-cuda-graph",
    "torch-eager",
    "torch-compile",
    "torch-cuda-graph:dtype=bfloat16",
)
FROZEN = "asd:window=32,draft=frozen,verify=reflection"
"""The paper's."""
PARADIGMS = "paradigms:window=16,tol=0.1"
LEAST_SECONDS = 5.0
"""Left for plans after all that is prepared, or a part is not begun."""

Entries = tuple[tuple[str, tuple[str, ...]], ...]
"""Backends, and the samplers on each."""


@dataclass(frozen=True)
class Subject:
    """A network to measure."""

    name: str
    down_dims: tuple[int, ...] | None = None
    """Channels of its resolutions; None for the bundled checkpoint."""
    frame: tuple[int, int] | None = None
    """Height and width of the frames of its two cameras [pixels]; None for a policy that observes vectors."""
    resized: tuple[int, int] | None = None
    """Height and width that its encoder looks at [pixels]."""


@dataclass(frozen=True)
class Training:
    """To train a network, unless an earlier run has."""

    subject: Subject
    prepare: float
    """Seconds at most that it takes beside the training steps, such as writing the file; they cannot be cut."""
    seconds: float
    """Of training steps."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"training of {self.subject.name}"


@dataclass(frozen=True)
class Part:
    """Samplers to measure against one another, interleaved."""

    subject: Subject
    kind: str
    entered: Entries
    prepare: float
    """Seconds that compiling, capturing and learning take, about; one compilation cannot be cut."""
    seconds: float
    """Of plans, at most."""
    batch: int = 1
    plans: int = 200
    """Of each contender, at most."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.subject.name}, {self.kind}"


@dataclass(frozen=True)
class Counting:
    """To count kernels, of all samplers with drafts that are there.

    After a GPU's times: the profiler, once it has run, may go on to cost a little.
    """

    backend: str
    prepare: float
    """Seconds that it takes, about."""
    seconds: float = 0.0
    """Nothing of it is cut."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return "kernels of a round"


Step = Training | Part | Counting


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    steps: tuple[Step, ...]
    """In this order: what is needed most comes first."""
    states: int = 256
    """Of the recording, at most; a quarter of them to warm up in."""
    observations: int = 32
    """Observations in a batch of the training with cameras; each is used for several noises."""


SMALL, MIDDLE = Subject("4.6M"), Subject("64M", (256, 512, 1024))
LARGE = Subject("263M, two cameras", (512, 1024, 2048), (480, 640), (240, 320))


def by_graph(subject: Subject, prepare: float, seconds: float) -> Part:
    """Measure what is launched as graphs: no Python between kernels."""
    samplers = ("ddpm", "asd", FROZEN, "asd:window=32", "asd:window=64", "ddim:10")
    return Part(subject, "graphs", ((GRAPH, samplers),), prepare, seconds)


def by_call(subject: Subject, prepare: float, seconds: float) -> Part:
    """Measure what people run today, called from Python, beside the graphs."""
    entered = ((GRAPH, ("ddpm", "asd")), (EAGER, ("ddpm", "asd", "ddim:10", PARADIGMS)))
    return Part(subject, "eager", entered, prepare, seconds, plans=40)


def compiled(subject: Subject, prepare: float, seconds: float) -> Part:
    """Measure what torch.compile makes, beside the graphs."""
    return Part(
        subject, "compiled", ((GRAPH, ("ddpm", "asd")), (COMPILED, ("ddpm", "asd"))), prepare, seconds, plans=60
    )


def in_half(subject: Subject, prepare: float, seconds: float) -> Part:
    """Measure bfloat16, beside float32."""
    return Part(subject, "bfloat16", ((GRAPH, ("ddpm", "asd")), (HALF, ("ddpm", "asd"))), prepare, seconds, plans=100)


def in_batches(subject: Subject, batch: int, prepare: float, seconds: float) -> Part:
    """Measure many robots at once."""
    entered = ((GRAPH, ("ddpm", "asd", FROZEN)),)
    return Part(subject, f"batch {batch}", entered, prepare, seconds, batch, plans=100)


FULL = Size(
    (
        by_graph(SMALL, 18, 8),
        by_call(SMALL, 10, 8),
        Training(MIDDLE, 5, 50),
        by_graph(MIDDLE, 20, 15),
        by_call(MIDDLE, 14, 10),
        Training(LARGE, 12, 95),
        by_graph(LARGE, 30, 15),
        by_call(LARGE, 18, 10),
        Counting(GRAPH, 15),
        compiled(MIDDLE, 70, 8),
        # What follows is for a run that takes up the networks of an earlier one, or a faster machine.
        in_half(MIDDLE, 15, 8),
        in_half(LARGE, 20, 8),
        compiled(SMALL, 70, 6),
        compiled(LARGE, 100, 8),
        in_batches(MIDDLE, 8, 12, 8),
        in_batches(MIDDLE, 64, 15, 10),
    )
)
"""All of it."""

_TINY, _SEEING = Subject("tiny", (16, 32)), Subject("tiny, two cameras", (16, 32), (96, 128), (48, 64))
_TINY_ENTRIES: Entries = (
    (EAGER, ("ddpm", "asd:window=16", FROZEN, "ddim:10", PARADIGMS)),
    (GRAPH, ("ddpm", "asd", "asd:window=16", FROZEN)),
)
SMOKE = Size(
    (
        Training(_TINY, 0, 0.5),
        Part(_TINY, "all", _TINY_ENTRIES, 0, 30, 4, 2),
        Training(_SEEING, 0, 0.5),
        Part(_SEEING, "all", ((EAGER, ("ddpm", "asd:window=16", FROZEN)), (GRAPH, ("asd:window=16",))), 0, 30, 1, 2),
        Counting(EAGER, 0),
        Counting(GRAPH, 0),
    ),
    states=32,
    observations=4,
)
"""Every kind of step in seconds, on a CPU too."""


@dataclass(frozen=True)
class Slot:
    """When a step runs."""

    step: Step
    begins: float
    """Seconds after the run's begin."""
    ends: float
    skipped: bool
    """Whether there was no time for it."""


def fits(step: Step, left: float) -> bool:
    """Tell whether there is time to begin a step when so many seconds are left."""
    return left >= step.prepare + LEAST_SECONDS


def slots(
    steps: Sequence[Step],
    seconds: float,
    trained: Callable[[Subject], bool],
    preparing: Callable[[Step], float] = lambda step: step.prepare,
    loading: float = 10.0,
) -> list[Slot]:
    """Lay out a run, without running it.

    Args:
        steps: In their order.
        seconds: That it may take.
        trained: Whether a network is there already.
        preparing: What preparing a step takes [s]; what is planned for it, or as measured.
        loading: What it takes to begin [s].
    """
    now, found = loading, []
    for step in steps:
        if isinstance(step, Training) and trained(step.subject):
            continue
        begins, skipped = now, not fits(step, seconds - now)
        if not skipped:
            # Plans and training steps are cut when their time, or the run's, is up; what is prepared is not.
            now += preparing(step)
            now += min(step.seconds, max(seconds - now, 0))
        found.append(Slot(step, begins, now, skipped))
    return found


def describe(laid_out: Sequence[Slot]) -> str:
    """Write a run that was laid out as lines."""
    return "\n".join(
        f"{slot.begins:5.0f} … {slot.ends:3.0f} s  {slot.step.name}"
        + (": no time is left for it, in a run of this length" if slot.skipped else "")
        for slot in laid_out
    )
