"""Whom a command talks to: nobody, in the process of its own in which ONNX Runtime is first imported."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asd_policy.deploy.serving import RemotePolicy
from support.policy_servers import FIXED, OBSERVATION

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="sockets are watched by a library made with cc"
)

WATCH = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void note(const char *what) {
    FILE *file = fopen(getenv("WATCHED"), "a");
    fprintf(file, "%s\n", what);
    fclose(file);
}
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    real = dlsym(RTLD_NEXT, "getaddrinfo");
    if (node) note(node);
    return real(node, service, hints, found);
}
int connect(int file, const struct sockaddr *address, socklen_t size) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    if (address->sa_family != AF_UNIX) note("a connection");
    return real(file, address, size);
}
"""
"""Notes every look-up of a host and every connection but those within the machine's file system."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watch")
    (folder / "watch.c").write_text(WATCH)
    words = ["cc", "-shared", "-fPIC", str(folder / "watch.c"), "-o", str(folder / "watch.so"), "-ldl"]
    subprocess.run(words, check=True)
    return folder / "watch.so"


@contextmanager
def running(library: Path, home: Path, words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run Python with these words, watched, until it ends by itself; it is ended where the block fails."""
    home.mkdir(exist_ok=True)
    home.with_suffix(".log").touch()
    own = {"HOME": str(home), "LD_PRELOAD": str(library), "WATCHED": str(home.with_suffix(".log"))}
    own["ASD_POLICY_CACHE"] = f"{home}-cache"
    inherited = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", *own)}
    variables = inherited | own
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=variables
    )
    try:
        yield process
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 0, said
    finally:
        process.kill()
        process.wait()


def seen(home: Path) -> tuple[list[str], list[Path]]:
    """List the hosts that were looked up or talked to, and what was left in the home."""
    return home.with_suffix(".log").read_text().splitlines(), [path for path in home.rglob("*") if path.is_file()]


def watched(library: Path, home: Path, words: list[str]) -> tuple[list[str], list[Path]]:
    """Run Python with these words to its end; return what was seen of it."""
    with running(library, home, words):
        pass
    return seen(home)


def test_the_watch_sees_a_lookup(library: Path, tmp_path: Path) -> None:
    words = ["-c", "import socket; socket.getaddrinfo('localhost', 80)"]
    assert watched(library, tmp_path / "home", words) == (["localhost"], [])


def test_commands_talk_to_nobody(library: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    """Every one that imports ONNX Runtime and ends, and by each way to it: a backend, the export, an exported file."""
    checkpoint, file = str(small_checkpoint), str(tmp_path / "policy.onnx")
    commands = [
        ["export", "--policy", checkpoint, "--out", file],
        ["inspect", "--policy", file],
        ["tune", "--policy", checkpoint, "--plans", "1", "--backends", "onnx"],
        ["bench", "--policy", checkpoint, "--plans", "1", "--backends", "onnx", "--samplers", "ddim:2", "--out", "OUT"],
        [*"eval --env asd/Avoid-v0 --samplers ddpm --episodes 1 --backend onnx --out OUT --policy".split(), file],
        [*"verify --sampler ddpm --samples 16 --backend onnx --out OUT --policy".split(), file],
    ]
    for index, words in enumerate(commands):
        words = [str(tmp_path / f"out-{index}") if word == "OUT" else word for word in words]
        hosts, left = watched(library, tmp_path / f"home-{index}", ["-m", "asd_policy.cli", *words])
        assert not hosts, words
        assert not [path for path in left if "onnxruntime" in str(path)], words


def test_a_server_talks_to_nobody(library: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    """It binds the port that it was given, answers a robot that asks it for a plan, and is told to end."""
    words = ["serve", "--policy", str(small_checkpoint), "--sampler", FIXED, "--backend", "onnx", "--max-batch", "1"]
    with running(library, tmp_path / "home", ["-m", "asd_policy.cli", *words, "--port", "0"]) as process:
        assert process.stderr is not None
        port = next(line for line in process.stderr if line.startswith("serving ")).rpartition(":")[2].strip()
        with RemotePolicy(f"127.0.0.1:{port}") as robot:
            assert robot.select_action(OBSERVATION).shape == (2,)
        process.send_signal(signal.SIGTERM)
    hosts, left = seen(tmp_path / "home")
    assert not hosts
    assert not [path for path in left if "onnxruntime" in str(path)]


def test_the_user_decides() -> None:
    for said, heard in ((None, "1"), ("0", "0")):
        variables = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        script = "import os, asd_policy; print(os.environ['ORT_DISABLE_TELEMETRY'])"
        own = {} if said is None else {"ORT_DISABLE_TELEMETRY": said}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables | own)
        assert done.stdout.strip() == heard
