"""The journal: what is on the disk after a crash at any moment, and what a run that goes on with it may not be."""

import errno
import json
import multiprocessing
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier

import pytest

from asd_policy.errors import RunError
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.rollout.journal import NAME, Journal, find_run
from asd_policy.policy.plan import PlanRecord

RUN = {"policy": "here", "seed": 0, "envs": 2, "sha256": {"weights": 64 * "a"}}


def episode(index: int) -> Episode:
    plan = PlanRecord(
        at=0, rounds=9, nfe=90, window=10, batch=1, seconds=0.1, network_seconds=0.09, refused=(1,), unjudged=()
    )
    return Episode("ddpm", index, True, 1.0, 7, None, None, (plan, plan))


def written(folder: Path, count: int) -> Path:
    journal = Journal.start(folder, RUN)
    for index in range(count):
        journal.add(episode(index))
    journal.close()
    return folder / NAME


def kept(folder: Path) -> tuple[Episode, ...]:
    found = find_run(folder)
    assert found is not None
    return found.episodes


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert find_run(tmp_path) is None
    assert find_run(tmp_path / "nowhere") is None
    path = written(tmp_path / "new" / "folder", 3)
    found = find_run(path.parent)
    assert found is not None
    assert found.run == RUN
    assert found.episodes == tuple(map(episode, range(3)))
    first, second, *_ = path.read_text().splitlines()
    assert json.loads(first) == {"version": 1, "run": RUN}
    assert json.loads(second)["return"] == 1.0


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    """Wherever it is torn; what is added then stands on a line of its own."""
    path = written(tmp_path, 2)
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in (start, start + 1, (start + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        found = find_run(tmp_path)
        assert found is not None
        assert found.episodes == (episode(0),)
        journal = Journal.resume(found)
        journal.add(episode(1))
        journal.close()
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged"),
        ("no json\n", "is damaged: JSONDecodeError"),
        ('{"version": 2, "run": {}}\n', "ValueError version 2 is not 1"),
        ('{"version": 1, "run": {}}\n{"spec": "ddpm"}\n', "KeyError 'plans' after 0 episodes"),
        ('{"version": 1, "run": {}}\n[1]\n', "is damaged: AttributeError"),
    ],
)
def test_a_damaged_journal_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(content)
    with pytest.raises(RunError) as error:
        find_run(tmp_path)
    assert message in str(error.value)


def test_an_episode_that_is_there_twice(tmp_path: Path) -> None:
    path = written(tmp_path, 2)
    with path.open("a") as file:
        file.write(json.dumps(episode(1).to_json()) + "\n")
    with pytest.raises(RunError, match="an episode is there twice"):
        find_run(tmp_path)


def test_another_run_is_refused(tmp_path: Path) -> None:
    """By what differs; the name of a checkpoint may, its contents not."""
    written(tmp_path, 1)
    found = find_run(tmp_path)
    assert found is not None
    found.check_same({**RUN, "policy": "elsewhere"})
    with pytest.raises(RunError, match=r"seed is 0 there, 5 here; envs is 2 there, null here; name another --out"):
        found.check_same({key: 5 if key == "seed" else RUN[key] for key in RUN if key != "envs"})
    with pytest.raises(RunError, match=r"cannot go on with: sha256 differs;"):
        found.check_same({**RUN, "sha256": {"weights": 64 * "b"}})


def test_plans_of_a_longer_chain_are_refused(tmp_path: Path) -> None:
    written(tmp_path, 2)
    found = find_run(tmp_path)
    assert found is not None
    found.check_plans(2)
    with pytest.raises(RunError, match="is damaged: ddpm episode 0 has a step that is not one of 1; --overwrite it"):
        found.check_plans(1)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    journal = Journal.start(tmp_path, RUN)
    found = find_run(tmp_path)
    assert found is not None
    for begin in (lambda: Journal.resume(found), lambda: Journal.start(tmp_path, RUN)):
        with pytest.raises(RunError, match="is being written by another process"):
            begin()
    journal.add(episode(0))
    journal.close()
    Journal.start(tmp_path, RUN).close()
    assert kept(tmp_path) == ()


def _begin(folder: Path, replace: bool, together: Barrier, begun: "multiprocessing.SimpleQueue[bool]") -> None:
    together.wait()
    try:
        journal = Journal.start(folder, RUN, replace)
    except RunError:
        begun.put(False)
        together.wait()
    else:
        begun.put(True)
        together.wait()
        journal.close()


@pytest.mark.parametrize("replace", [False, True])
def test_of_processes_that_begin_at_once_one_holds_the_journal(replace: bool, tmp_path: Path) -> None:
    """In a new folder, and in one whose run is to be replaced."""
    pytest.importorskip("fcntl")
    context, count = multiprocessing.get_context("fork"), 4
    together, begun = context.Barrier(count), context.SimpleQueue()
    for trial in range(20):
        folder = tmp_path / str(trial)
        if replace:
            written(folder, 1)
        processes = [context.Process(target=_begin, args=(folder, replace, together, begun)) for _ in range(count)]
        for process in processes:
            process.start()
        assert sum(begun.get() for _ in processes) == 1
        for process in processes:
            process.join()
        assert [path.name for path in folder.iterdir()] == [NAME]


def test_a_run_that_another_process_began_meanwhile_stays(tmp_path: Path) -> None:
    """Nobody said that it may be replaced, or was shown what it has now."""
    written(tmp_path, 1)
    found = find_run(tmp_path)
    assert found is not None
    with pytest.raises(RunError, match="is being written by another process"):
        Journal.start(tmp_path, RUN, replace=False)
    journal = Journal.resume(found)
    journal.add(episode(1))
    journal.close()
    with pytest.raises(RunError, match="is being written by another process"):
        Journal.resume(found)
    assert kept(tmp_path) == (episode(0), episode(1))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_some_calls(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFS, FUSE and others do not flush folders, or have no links: a run can be kept there all the same."""
    fsync = os.fsync

    def files_only(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(file)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", files_only)
    monkeypatch.setattr(os, "link", refuse)
    written(tmp_path, 2)
    assert kept(tmp_path) == (episode(0), episode(1))


def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match="cannot be written: Input/output error"):
        Journal.start(tmp_path, RUN)


@pytest.fixture
def room() -> Iterator[int]:
    """Let no file of this process grow beyond so many bytes: an error while writing, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = 2000
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    yield size
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_room(tmp_path: Path, room: int) -> None:
    """A line of which a part could be written is taken back; the lines before are whole."""
    journal = Journal.start(tmp_path, RUN)
    with pytest.raises(
        RunError, match=r"cannot be written: File too large; it keeps the \d+ episodes before, and --res"
    ):
        for index in range(room):
            journal.add(episode(index))
    journal.close()
    content = (tmp_path / NAME).read_bytes()
    assert content.endswith(b"\n") and len(content) < room
    episodes = kept(tmp_path)
    assert 0 < len(episodes) < room // 100
    assert episodes == tuple(map(episode, range(len(episodes))))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.start(tmp_path, RUN)
    journal.add(episode(0))
    write = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:-99])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunError, match="No space left on device; it keeps the 1 episodes before"):
        journal.add(episode(1))
    monkeypatch.undo()
    assert kept(tmp_path) == (episode(0),)
    journal.add(episode(1))  # there is room again
    journal.close()
    assert kept(tmp_path) == (episode(0), episode(1))
