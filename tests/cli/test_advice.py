"""What is said before the work: a place that cannot be written, a busy machine, a backend that is not used."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from asd_policy import cli
from asd_policy._common import hardware
from asd_policy._common.arrays import find_device
from asd_policy.checkpoints import load_policy
from asd_policy.cli import advice
from asd_policy.cli.app import _terminated_as_interrupted
from asd_policy.cli.common import make_console
from asd_policy.networks.backends import make_backend
from support.contract import one_line


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("eval", "--env", "asd/Avoid-v0"), "out"),
        (("bench",), "out"),
        (("verify",), "out"),
        (("tune",), "out/file"),
        (("export",), "out/policy.onnx"),
    ],
)
def test_out_is_looked_at_before_the_policy(
    words: tuple[str, ...], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in the way").touch()
    out = tmp_path / "in the way" / name
    line = one_line([*words, "--policy", "nowhere", "--out", str(out)], capsys)
    wanted = out if words[0] not in ("tune", "export") else out.parent
    assert line == f"asd-policy: --out {wanted} cannot be written: Not a directory"
    assert [path.name for path in tmp_path.iterdir()] == ["in the way"]


def test_a_place_that_can_be_written_stays_as_it_is(tmp_path: Path) -> None:
    advice.check_writable(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("load", "looked", "threads", "said"),
    [
        (0.4, 8.0, 8, None),  # the load is of this command's own beginning
        (9.5, 7.9, 1, "the load is 9.5 on 8 CPUs: times will be those of a busy machine"),
        (9.5, 0.1, 8, None),  # of the command before
        (9.5, None, 1, "the load is 9.5 on 8 CPUs"),  # a system that does not say more
        (1.5, 1.2, 8, "PyTorch computes on 8 threads and the load is 1.5 on 8 CPUs"),
        (1.5, 1.2, 4, None),  # there are enough for both
        (1.5, 0.2, 8, None),
        (None, 8.0, 8, None),
    ],
)
def test_a_busy_machine(
    load: float | None, looked: float | None, threads: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpus", lambda: 8)
    monkeypatch.setattr(hardware, "load_average", lambda: load)
    monkeypatch.setattr(hardware, "busy_cpus", lambda _: looked)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    note = advice.busy_note()
    assert note is None if said is None else note is not None and note.startswith(said)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_busy_cpus_are_counted() -> None:
    ending = threading.Event()

    def work() -> None:
        while not ending.is_set():
            pass

    worker = threading.Thread(target=work)
    before = time.process_time()
    worker.start()
    found = hardware.busy_cpus(0.5)
    ending.set()
    worker.join()
    spent = (time.process_time() - before) / 0.5
    assert found is not None and 0.5 * min(spent, 1) - 0.1 <= found <= hardware.cpus() + 0.2


def test_onnx_that_is_not_used(
    small_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, there = load_policy(small_checkpoint), True
    monkeypatch.setattr(advice, "onnx_is_installed", lambda: there)

    def said(option: str = "--backend onnx") -> str:
        advice.hint_at_onnx(make_console(), policy, option)
        return capsys.readouterr().err

    assert said().startswith("hint: ONNX Runtime is installed and not used; --backend onnx is mostly faster on a CPU")
    there = False
    assert said() == ""
    there, policy = True, policy.with_backend(make_backend("torch-eager:dtype=bfloat16"))
    assert said() == ""
    assert policy.device == find_device("cpu")


def test_the_hint_is_not_for_who_has_chosen(
    small_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "onnx_is_installed", lambda: True)
    words = ["verify", "--policy", str(small_checkpoint), "--samples", "16", "--observations", "1", "--sampler", "ddpm"]
    for more, count in (([], 1), (["--backend", "torch-eager"], 0)):
        cli.run([*words, *more])
        assert capsys.readouterr().err.count("hint: ONNX Runtime") == count


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_what_ends_a_job_ends_it_as_an_interrupt(name: str) -> None:
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip("not on this system")
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), _terminated_as_interrupted():
            os.kill(os.getpid(), number)
            time.sleep(5)
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # as under nohup
        with _terminated_as_interrupted():
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
