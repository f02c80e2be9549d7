"""`infini-jax import OWNER/NAME`: the package's own client against a small hub here, and one line where it fails."""

import hashlib
import http.server
import json
import re
import sys
import threading
from pathlib import Path

import pytest

from infini_jax.training.trained import Trained
from tests.support.commands import spawned, told
from tests.support.foreign import LLAMA, llama_tensors, write_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNASKED = ("pytorch_model.bin", "consolidated.safetensors", "original/params.json")


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one model, `own/tiny`, whose files lie in a folder, one that is gated, and one that breaks."""

    folder: Path
    asked: list[str]

    def log_message(self, format, *args) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        files = {str(file.relative_to(self.folder)): file.read_bytes() for file in sorted(self.folder.rglob("*.*"))}
        if path.startswith("/api/models/own/tiny/tree/"):
            tree = [{"type": "file", "path": name, "size": len(body), "oid": COMMIT} for name, body in files.items()]
            return self.answer(200, json.dumps(tree).encode())
        if path.startswith("/api/models/own/tiny"):
            siblings = [{"rfilename": name} for name in files]
            return self.answer(200, json.dumps({"id": "own/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        if found := re.fullmatch(f"/own/tiny/resolve/{COMMIT}/(.+)", path):
            body = files[found[1]]
            return self.answer(200, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'})
        if path.startswith("/api/models/own/gated"):
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask its owner"})
        if path.startswith("/api/models/own/broken"):
            return self.answer(500, b"")
        return self.answer(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to be in, without prepared data."""
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture
def hub(place, monkeypatch):
    """(what an environment says of a hub with an empty cache, the paths that it is asked for)."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="models of the hub need the extra pretrained")
    folder = write_model(place / "served", LLAMA, llama_tensors(LLAMA), shards=2)
    for name in UNASKED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "tokenizer.json").write_text(tokenizer_json())
    handler = type("Served", (Hub,), {"folder": folder, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield known(constants, monkeypatch, f"http://127.0.0.1:{server.server_port}", place / "cache"), handler.asked
        server.shutdown()
        thread.join()


def known(constants, monkeypatch, endpoint: str, cache: Path) -> dict[str, str]:
    """The environment of a process that knows this hub only; the package, where it is loaded already, knows it too."""
    said = {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache)}
    for name, value in said.items():
        monkeypatch.setattr(constants, name.removeprefix("HF_") if name == "HF_ENDPOINT" else name, value)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    return {**said, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def tokenizer_json() -> str:
    """A byte-level BPE of fewer tokens than the model has: the first letters."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizer.json is read by the package tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={letter: n for n, letter in enumerate("abcdefgh")}, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return made.to_str()


def test_a_model_of_the_hub_is_downloaded_and_imported(hub):
    """In a process of its own, whose client reads the environment."""
    environment, asked = hub
    done = spawned(["import", "own/tiny"], **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "results/models/tiny: llama, " in done.stdout
    trained = Trained.open(Path("results/models/tiny"))
    embedding = llama_tensors(LLAMA)["model.embed_tokens.weight"]
    assert (trained.params["embedding"]["embedding"] == embedding).all()
    source = json.loads((trained.folder / "source.json").read_text())
    assert (source["source"], source["revision"], source["license"]) == ("own/tiny", COMMIT, "mit")
    assert len(source["files"]) == 2
    assert sum(path.endswith(".safetensors") for path in asked) >= 2
    assert not [path for path in asked if any(name in path for name in UNASKED)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own/gated", "there is no own/gated on this machine, and on the hub it is gated; accept its terms"),
        ("own/nothing", "there is no own/nothing on this machine, and the hub shows none of this name; look the name up"),
        ("own/broken", "and the hub cannot be reached or gives it not whole (Server error '500"),
    ],
)
def test_what_the_hub_does_not_give_is_told_in_one_line(hub, capsys, name, said):
    assert said in told(capsys, ["import", name], 2)
    assert not list(Path().iterdir())


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(place, capsys, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="models of the hub need the extra pretrained")
    known(constants, monkeypatch, "http://127.0.0.1:9", place / "cache")
    said = told(capsys, ["import", "own/tiny"], 2)
    assert "the hub cannot be reached" in said
    assert said.endswith("hf download own/tiny --local-dir FOLDER, and import that folder")


def test_without_the_package_its_installation_is_told(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert told(capsys, ["import", "own/tiny"], 2).endswith("is not installed; pip install 'infini_jax[pretrained]'")
    assert not list(Path().iterdir())


def test_a_folder_of_that_name_is_not_looked_for_elsewhere(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    Path("own/tiny").mkdir(parents=True)
    assert "own/tiny holds neither safetensors nor a GGUF" in told(capsys, ["import", "own/tiny"], 2)
