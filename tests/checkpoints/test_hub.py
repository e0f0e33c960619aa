"""Hub ids, with huggingface_hub itself against a server of this machine that answers as the Hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

import asd_policy
from asd_policy import cli
from asd_policy.checkpoints import locate
from asd_policy.checkpoints.tuning import tuning_file
from asd_policy.errors import CheckpointError

REPO, COMMIT = "robots/avoid", "5" * 40
EXTRA = {"optimizer.bin": b"a pickle", "model.ckpt": b"a pickle", "README.md": b"words", "sub/config.json": b"{}"}


class Hub(ThreadingHTTPServer):
    """One repository with one revision, and some that answer with an error."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        """Listen at a free port."""
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = files
        self.asked: list[str] = []
        self.cut = False

    @property
    def url(self) -> str:
        """What `HF_ENDPOINT` is to be."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    """The part of the Hub's interface that a download uses (huggingface.co/docs/hub/api)."""

    def do_GET(self) -> None:
        """Answer with content."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer with headers alone."""
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    @property
    def hub(self) -> Hub:
        """The server."""
        assert isinstance(self.server, Hub)
        return self.server

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(path)
        errors = {"robots/none": (404, "RepoNotFound"), "robots/gated": (403, "GatedRepo"), "robots/down": (500, "")}
        for repo, (status, code) in errors.items():
            if repo in path:
                return self._send(status, b"{}", {"X-Error-Code": code} if code else {})
        if path in (f"api/models/{REPO}/revision/main", f"api/models/{REPO}/revision/v1", f"api/models/{REPO}"):
            siblings = [{"rfilename": name} for name in self.hub.files]
            return self._send_json({"id": REPO, "sha": COMMIT, "siblings": siblings})
        if path.startswith(f"api/models/{REPO}/revision/"):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if path.startswith(f"api/models/{REPO}/tree/"):
            listing = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                       for name, content in self.hub.files.items()]  # fmt: skip
            return self._send_json(listing)
        content = self.hub.files[path.removeprefix(f"{REPO}/resolve/{COMMIT}/")]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if self.hub.cut and self.command == "GET":
            return self._send(403, b"", {})
        return self._send(200, content, headers)

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with the small checkpoint, and an empty cache."""
    server = Hub({path.name: path.read_bytes() for path in checkpoint.iterdir()} | EXTRA)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"  # made of the endpoint at import
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def test_a_hub_id_loads_what_the_folder_loads(hub: Hub, checkpoint: Path) -> None:
    actions = []
    for path in (REPO, f"{REPO}@v1", f"{REPO}@{COMMIT}", checkpoint):
        policy = asd_policy.load_policy(path)
        policy.reset(seed=0)
        actions.append(policy.select_action([0.0] * 7).tolist())
    assert all(action == actions[0] for action in actions)


def test_only_what_a_loader_reads_is_downloaded(hub: Hub) -> None:
    folder = locate(REPO)
    names = {path.name for path in folder.iterdir()}
    assert names == {path for path in hub.files if path not in EXTRA and path != "training.json"}
    assert not [path for path in hub.asked if any(name in path for name in (*EXTRA, "training.json"))]


def test_the_cache_serves_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    asd_policy.load_policy(REPO)
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asd_policy.load_policy(REPO)
    assert len(hub.asked) == asked


def test_the_cache_serves_when_the_hub_is_gone(hub: Hub) -> None:
    asd_policy.load_policy(REPO)
    hub.shutdown()
    hub.server_close()
    asd_policy.load_policy(REPO)


def test_a_local_path_wins(hub: Hub, checkpoint: Path) -> None:
    Path(REPO).parent.mkdir()
    checkpoint.rename(REPO)
    asd_policy.load_policy(REPO)
    assert not hub.asked


@pytest.mark.parametrize(
    ("hub_id", "message"),
    [
        ("robots/none", "the Hub has no repository robots/none that you may see"),
        ("robots/gated", "the Hub's robots/gated is gated: ask for access on its page"),
        ("robots/down", "not in the Hub's cache, or not all of it, and the Hub cannot be reached (HfHubHTTPError)"),
        (f"{REPO}@v9", "the Hub's robots/avoid has no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    hub_id: str, message: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["inspect", "--policy", hub_id]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert said.startswith(f"asd-policy: no checkpoint at {hub_id}: the path does not exist, and ")
    assert message in said


def test_pickles_are_loaded_from_a_path(hub: Hub) -> None:
    """A repository that holds a .ckpt file alone."""
    hub.files = EXTRA
    with pytest.raises(CheckpointError, match=r"has none of the files .*config.json.*`hf download robots/avoid FILE`"):
        locate(REPO)


def test_offline_and_not_in_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="or not all of it, and HF_HUB_OFFLINE forbids"):
        locate(REPO)
    assert not hub.asked


def test_no_network(hub: Hub) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(CheckpointError, match=r"or not all of it, and the Hub cannot be reached \(Conn"):
        locate(REPO)


def test_a_download_that_breaks_off_leaves_nothing_that_loads(hub: Hub) -> None:
    hub.cut = True
    with pytest.raises(CheckpointError, match="robots/avoid"):
        locate(REPO)
    hub.cut = False
    asd_policy.load_policy(REPO)


def test_a_link_out_of_the_cached_repository_is_not_followed(hub: Hub, checkpoint: Path) -> None:
    """In the cache files are links to the repository's blobs; nothing else is reached through one."""
    config = locate(REPO) / "config.json"
    assert config.is_symlink()
    config.unlink()
    config.symlink_to(checkpoint / "config.json")
    with pytest.raises(CheckpointError, match="not a checkpoint of a known format"):
        asd_policy.load_policy(REPO)


def test_tuning_is_of_the_revision(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.run(["tune", "--policy", REPO, "--plans", "1", "--backends", "torch-eager"]) == 0
    assert tuning_file(locate(REPO)).exists()
    assert asd_policy.load_policy(REPO).experience.plans == 1


@pytest.mark.parametrize("path", ["nowhere", "./a/b", "a/b/c", "/a/b", "../a", "a/..", "a/b@", "-a/b@ c"])
def test_other_paths_are_never_asked_for(path: str, hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="the path does not exist$"):
        asd_policy.load_policy(path)
    assert not hub.asked


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("checkpoints/avoyd", "checkpoints is a folder here, and has avoid; checkpoints/avoyd@main would ask for it"),
        ("checkpoints/else", "checkpoints is a folder here; checkpoints/else@main would ask for it"),
        ("run/policy.ckpt", ".ckpt is a file's; run/policy.ckpt@main would ask for it"),
        ("run/policy.onnx", ".onnx is a file's; run/policy.onnx@main would ask for it"),
    ],
)
def test_a_mistyped_path_is_not_asked_for(path: str, reason: str, hub: Hub) -> None:
    """And it is said why not."""
    Path("checkpoints/avoid").mkdir(parents=True)
    with pytest.raises(CheckpointError) as error:
        asd_policy.load_policy(path)
    assert str(error.value) == (
        f"no checkpoint at {path}: the path does not exist, and the Hub was not asked: {reason}"
    )
    assert not hub.asked


def test_a_revision_makes_an_id(hub: Hub) -> None:
    Path(REPO).parent.mkdir()
    asd_policy.load_policy(f"{REPO}@v1")
    assert hub.asked


def test_the_environment_variables_of_huggingface_hub(hub: Hub, tmp_path: Path) -> None:
    """Endpoint and cache as a shell sets them, in a process of its own."""
    variables = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "other"), "HF_HUB_OFFLINE": "0"}
    words = [sys.executable, "-m", "asd_policy.cli", "inspect", "--policy", REPO, "--json"]
    root = Path(__file__).parents[2]
    done = subprocess.run(words, capture_output=True, text=True, cwd=root, env={**os.environ, **variables}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"].startswith(str(tmp_path / "other"))
