"""`asd-policy serve` as a process: it says where it listens, serves, and ends as it is told to."""

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from grpc_health.v1 import health_pb2

from asd_policy import cli
from asd_policy.deploy.serving import RemotePolicy
from asd_policy.deploy.serving.server import Limits
from asd_policy.deploy.serving.wire import is_loopback
from asd_policy.errors import ServingError
from support.policy_servers import FIXED, OBSERVATION, health, serving

START = 300  # [s] on a machine that is busy


@dataclass
class Command:
    """A server in a process of its own."""

    process: "subprocess.Popen[str]"
    said: list[str]
    """What it has said by the time it listens."""

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.said[-1].rpartition(":")[2])

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal; return the exit status and what was said."""
        assert self.process.stderr is not None
        self.process.send_signal(number)
        said = self.process.stderr.read()  # `communicate` would not see what was buffered with the lines before
        return self.process.wait(START), said


@contextmanager
def command(checkpoint: Path, *words: str) -> Iterator[Command]:
    """Run `asd-policy serve` until the block ends."""
    serve = [sys.executable, "-m", "asd_policy.cli", "serve", "--policy", str(checkpoint), "--sampler", FIXED]
    process = subprocess.Popen(
        [*serve, "--max-batch", "1", "--port", "0", *words],
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in a shell's background, children ignore Ctrl-C unless told otherwise.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line.strip())
            if line.startswith("serving "):
                break
        assert process.poll() is None, said
        yield Command(process, said)
    finally:
        process.kill()
        process.communicate()


def test_it_serves_until_ctrl_c(small_checkpoint: Path) -> None:
    """Health and metrics too; and who listens to the whole network is told what that means."""
    with command(small_checkpoint, "--metrics-port", "0", "--host", "0.0.0.0") as server:
        metrics, serving = server.said[-2:]
        assert serving == f"serving {small_checkpoint} on 0.0.0.0:{server.port}"
        robot = RemotePolicy(f"127.0.0.1:{server.port}")
        robot.select_action(OBSERVATION)
        assert health(robot.address) == health_pb2.HealthCheckResponse.SERVING
        found = re.fullmatch(r"metrics on 0\.0\.0\.0:(\d+)", metrics)
        assert found is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/metrics") as page:
            told = page.read().decode()
        assert "asd_policy_plans_total 1.0" in told and "asd_policy_sessions 1.0" in told
        status, said = server.end(signal.SIGINT)
        assert status == 130
        assert said.splitlines() == [
            "warning: whoever reaches 0.0.0.0 can have plans made: there is no --token-file",
            "stopping: plans under way are finished",
        ]
        robot.reset()
        with pytest.raises(ServingError, match="cannot be reached"):
            robot.select_action(OBSERVATION)


def test_tls_and_a_token(small_checkpoint: Path, tmp_path: Path) -> None:
    """With both a robot is served; without either it is not. SIGTERM ends it."""
    authority, other = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "root.pem")
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    (tmp_path / "token").write_text("secret-of-the-lab\n")
    words = ["--tls-cert", "cert.pem", "--tls-key", "key.pem", "--token-file", "token"]
    words = [str(tmp_path / word) if index % 2 else word for index, word in enumerate(words)]
    with command(small_checkpoint, *words) as server:
        address, token = f"127.0.0.1:{server.port}", "secret-of-the-lab"
        with RemotePolicy(address, token, root_certificates=tmp_path / "root.pem") as robot:
            assert robot.select_action(OBSERVATION).shape == (2,)
        with pytest.raises(ServingError, match="a token is needed"):
            RemotePolicy(address, root_certificates=tmp_path / "root.pem")
        with pytest.raises(ServingError, match="cannot be reached: .*CERTIFICATE_VERIFY_FAILED"):
            RemotePolicy(address, token, root_certificates=tmp_path / "other.pem")
        with pytest.raises(ServingError, match="cannot be reached"):
            RemotePolicy(address, token)
        with pytest.raises(FileNotFoundError):
            RemotePolicy(address, token, root_certificates=tmp_path / "none.pem")
        status, said = server.end(signal.SIGTERM)
        assert status == 0
        assert said.endswith("stopping: plans under way are finished\n")  # before it gRPC's own lines on bad handshakes


def test_a_port_that_is_taken(small_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(small_checkpoint, limits=Limits(1)) as served:
        words = ["serve", "--policy", str(small_checkpoint), "--sampler", FIXED, "--max-batch", "1"]
        assert cli.run([*words, "--port", str(served.port)]) == 2
        assert f"asd-policy: cannot listen on 127.0.0.1:{served.port}" in last_line(capsys)
        assert cli.run([*words, "--port", "0", "--metrics-port", str(served.port)]) == 2
        said = f"asd-policy: --metrics-port {served.port} on 127.0.0.1: Address already in use"
        assert last_line(capsys) == said


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-batch", "0"], "--max-batch 0 is not 1 or more"),
        (["--max-queue", "0"], "--max-queue 0 is not 1 or more"),
        (["--max-clients", "-1"], "--max-clients -1 is not 1 or more"),
        (["--lease", "0"], "--lease 0 is not a time above 0 s"),
        (["--lease", "nan"], "--lease nan is not a time above 0 s"),
        (["--lease", "inf"], "--lease inf is not a time above 0 s"),
        (["--port", "70000"], "--port 70000 is not in 0 … 65535"),
        (["--metrics-port", "-1"], "--metrics-port -1 is not in 0 … 65535"),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key go together; one of them is missing"),
        (["--tls-key", "key.pem"], "--tls-cert and --tls-key go together; one of them is missing"),
        (["--tls-key", "none.pem", "--tls-cert", "none.pem"], "No such file or directory: 'none.pem'"),
        (["--tls-key", "garbage", "--tls-cert", "garbage"], "cannot listen on 127.0.0.1:0"),
        (["--token-file", "none"], "No such file or directory: 'none'"),
        (["--token-file", "empty"], "--token-file empty does not hold one word of printable ASCII characters"),
        (["--token-file", "words"], "--token-file words does not hold one word of printable ASCII characters"),
        (["--token-file", "garbage"], "--token-file garbage does not hold one word of printable ASCII characters"),
        (["--sampler", "asd:window=11"], "window=11 is not in 1 … 10"),
        (["--host", "999.0.0.1"], "cannot listen on 999.0.0.1:0"),
    ],
)
def test_bad_input(
    words: list[str],
    message: str,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "words").write_text("two words")
    (tmp_path / "garbage").write_bytes(b"\xff\x00\xfe")
    given = ["serve", "--policy", str(small_checkpoint), "--port", "0", "--max-batch", "1"]
    assert cli.run([*given, *(["--sampler", FIXED] if "--sampler" not in words else []), *words]) == 2
    said = last_line(capsys)
    assert said.startswith("asd-policy: ") and message in said


@pytest.mark.parametrize("package", ["grpc", "grpc_health", "prometheus_client", "google.protobuf"])
def test_without_the_extra(
    package: str, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [package, *sys.modules]:
        if name == package or name.startswith(f"{package}."):
            monkeypatch.setitem(sys.modules, name, None)
        elif name.startswith("asd_policy.deploy.serving"):
            monkeypatch.delitem(sys.modules, name)
    assert cli.run(["serve", "--policy", str(small_checkpoint)]) == 2
    said = rf"asd-policy: serv\w+ needs {package}[\w.]*: pip install 'asd-policy\[serve\]'"
    assert re.fullmatch(said, last_line(capsys))


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("robot.lab", False)],
)
def test_loopback(host: str, here: bool) -> None:
    assert is_loopback(host) is here
