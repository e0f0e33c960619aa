"""How long plans are taken to take: what `--latency` may be, and what it may not."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from asd_policy.errors import SpecError
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.rollout.journal import NAME, Journal
from asd_policy.evaluation.rollout.latencies import Measured, read_latency
from asd_policy.policy.plan import PlanRecord

SPECS = ("ddpm", "asd:window=5,draft=frozen,verify=block")


def journal(folder: Path, *seconds: float) -> Path:
    """Write the journal of a run: `ddpm` with plans that took so long, the other sampler with plans of 0.3 s."""
    written = Journal.start(folder, {})
    for spec, times in zip(SPECS, (seconds, (0.3,)), strict=True):
        plans = tuple(
            PlanRecord(
                at=0,
                rounds=9,
                nfe=90,
                window=10,
                batch=1,
                seconds=each,
                network_seconds=None,
                refused=None,
                unjudged=None,
            )
            for each in times
        )
        written.add(Episode(spec, 0, True, 1.0, 7, None, None, plans))
    written.close()
    return folder / NAME


def test_laws() -> None:
    rng = np.random.default_rng(0)
    assert read_latency("measured", SPECS) == Measured()
    assert read_latency("measured", SPECS).draw("ddpm", 0.123, rng) == 0.123
    for text, name, seconds in (("20", "20", 0.02), ("12.50", "12.5", 0.0125), ("0", "0", 0.0), ("1e3", "1000", 1.0)):
        law = read_latency(text, SPECS)
        assert (law.name, law.sha256, law.draw("ddpm", 9.0, rng)) == (name, None, pytest.approx(seconds))
        assert read_latency(law.name, SPECS) == law


def test_a_text(tmp_path: Path) -> None:
    """Every line as likely as the next, for all samplers alike, and by a generator alone."""
    path = tmp_path / "trace.txt"
    path.write_text("10\n 20.5 \n\n0\n10\n")
    law = read_latency(str(path), SPECS)
    drawn = [law.draw("ddpm", 9.0, np.random.default_rng(seed)) for seed in range(400)]
    assert drawn == [law.draw(SPECS[1], 9.0, np.random.default_rng(seed)) for seed in range(400)]
    assert set(drawn) == {0.0, 0.01, 0.0205}
    assert 150 < drawn.count(0.01) < 250
    assert (law.name, law.sha256) == (str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_run(tmp_path: Path) -> None:
    """For each sampler what its own plans took; a line that is being written does not count."""
    path = journal(tmp_path, 0.1, 0.2)
    path.write_bytes(path.read_bytes() + b'{"spec": "ddpm", "ind')
    law, rng = read_latency(str(path), SPECS), np.random.default_rng(0)
    assert {law.draw("ddpm", 9.0, rng) for _ in range(50)} == {0.1, 0.2}
    assert {law.draw(SPECS[1], 9.0, rng) for _ in range(50)} == {0.3}


def bench(*entries: tuple[str, str, list[float]]) -> bytes:
    """Write the latencies of a results.json of `asd-policy bench`."""
    samplers = [{"spec": spec, "backend": backend, "latencies_ms": each} for spec, backend, each in entries]
    return json.dumps({"samplers": samplers}).encode()


def test_a_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(bench(("ddpm", "onnx", [100.0, 200.0]), (SPECS[1], "onnx", [300.0]), ("ddim:2", "onnx", [5.0])))
    law, rng = read_latency(str(path), SPECS), np.random.default_rng(0)
    assert {law.draw("ddpm", 9.0, rng) for _ in range(50)} == {0.1, 0.2}
    assert {law.draw(SPECS[1], 9.0, rng) for _ in range(50)} == {0.3}
    path.write_bytes(
        bench(*[(SPECS[1], backend, [300.0]) for backend in ("onnx", "torch-eager")], ("ddpm", "o", [1.0]))
    )
    assert read_latency(str(path), ["ddpm"]).draw("ddpm", 9.0, rng) == 0.001
    with pytest.raises(SpecError, match="verify=block on onnx, torch-eager: bench it with one of them"):
        read_latency(str(path), SPECS)


def test_a_run_whose_plans_were_made_together(tmp_path: Path) -> None:
    written = Journal.start(tmp_path, {})
    for spec, batch in zip(SPECS, (1, 8), strict=True):
        plan = PlanRecord(
            at=0,
            rounds=9,
            nfe=90,
            window=10,
            batch=batch,
            seconds=0.1,
            network_seconds=None,
            refused=None,
            unjudged=None,
        )
        written.add(Episode(spec, 0, True, 1.0, 7, None, None, (plan,)))
    written.close()
    path = str(tmp_path / NAME)
    assert read_latency(path, SPECS[:1]).draw("ddpm", 9.0, np.random.default_rng(0)) == 0.1
    with pytest.raises(SpecError, match="up to 8 plans were made at once there; measure single ones, with --envs 1"):
        read_latency(path, SPECS)


@pytest.mark.parametrize("seconds", ["null", '"x"'])
def test_a_run_that_is_damaged(seconds: str, tmp_path: Path) -> None:
    path = journal(tmp_path, 0.125)
    path.write_text(path.read_text().replace("0.125", seconds))
    with pytest.raises(
        SpecError, match=r"is damaged: ValueError episode.plans\[0\].seconds is .*, not a number after 0 episodes"
    ):
        read_latency(str(path), SPECS)


@pytest.mark.parametrize("text", ["-1", "1.1e9", "-0.001", "nan", "inf", "-inf"])
def test_a_number_that_is_no_latency(text: str) -> None:
    with pytest.raises(SpecError, match=rf"^--latency {text} is not a number of milliseconds in 0 … 1e\+09$"):
        read_latency(text, SPECS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; it is to have a number of milliseconds in each line"),
        (b"\n \n", "is empty"),
        (b"10\n\n-3\n", r"line 3, '-3', is not a number of milliseconds in 0 … 1e\+09"),
        (b"10\nnan\n", r"line 2, 'nan', is not a number"),
        (b"10 ms\n", r"line 1, '10 ms', is not a number"),
        (b"\x89PNG\r\n", r"line 1, .* is not a number"),
        (b"{}\n", "is damaged: KeyError 'version'"),
        (b'{"version": 7, "run": {}}\n', "is damaged: ValueError version 7 is not 1"),
        (b"\xef\xbb\xbf10\n1e300\n", r"line 2, '1e300', is not a number of milliseconds in 0 … 1e\+09"),
        (b'{"samplers": []}', "has no plans of ddpm, asd:.*; it has those of no sampler"),
        (
            b'{"samplers": [{"spec": "ddpm", "latency_ms": {}}]}',
            "is no results.json of `asd-policy bench`; those of an `eval` are in",
        ),
        (b'{"samplers": 7}', "is no results.json of `asd-policy bench`"),
        (bench(("ddpm", "onnx", [3.0, -1.0]), (SPECS[1], "onnx", [3.0])), "a plan of ddpm with -1 ms is not a number"),
        (b'{"version": 1, "run": {}}\n', "has no plans of ddpm, asd:.*; it has those of no sampler"),
    ],
)
def test_a_file_that_has_none(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=f"^--latency {path}.* ?{message}"):
        read_latency(str(path), SPECS)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(SpecError, match="is neither 'measured', nor a number of milliseconds, nor a file") as error:
            read_latency(str(path), SPECS)
        assert str(error.value).endswith(reason)


def test_a_run_without_a_sampler(tmp_path: Path) -> None:
    """What it has is named; a latency that is none is not drawn."""
    path = str(journal(tmp_path, 0.1))
    with pytest.raises(SpecError, match=rf"has no plans of ddim:2; it has those of ddpm, {SPECS[1]}$"):
        read_latency(path, ["ddpm", "ddim:2"])
    for bad in (-0.1, float("inf")):
        text = Path(path).read_text().replace('"seconds": 0.1', f'"seconds": {bad}'.replace("inf", "Infinity"))
        (tmp_path / "bad").write_text(text)
        with pytest.raises(SpecError, match=r"seconds is (-0\.1, which is below 0|inf, not a number)"):
            read_latency(str(tmp_path / "bad"), SPECS)
