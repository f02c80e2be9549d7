"""Public code beside ours: what cannot be had is told and skipped."""

import importlib.util
import sys
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.models import Sizes


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_a_peer_that_does_not_start_says_why():
    with pytest.raises(peers.Missing, match="No module named 'torch'"), peers.stepping(Path(sys.executable), "full", Sizes()):
        pass


def test_a_package_that_cannot_be_installed_leaves_out_its_peers_alone(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    monkeypatch.setattr(peers, "install", lambda folder, *packages: "no such package" if "einops-exts" in packages else "")
    assert peers.made(tmp_path, tuple(peers.PEERS)) == {"memorizing": "no such package"}
    monkeypatch.setattr(peers, "install", lambda folder, *packages: "no index")
    assert peers.made(tmp_path, ("full", "infini")) == {"full": "no index", "infini": "no index"}
