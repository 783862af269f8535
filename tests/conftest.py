"""Fixtures of more than one file of tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.datasets import make_dataset
from tests.file_server import FileServer

REMOTE_COUNTS = (3, 2, 4, 3, 2, 3, 1, 2)  # 20 samples in 8 shards


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch with one thread: those that wait for one another make small models slow where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dataset that `server` serves."""
    return make_dataset(tmp_path_factory.mktemp("remote") / "shards", REMOTE_COUNTS)


@pytest.fixture
def server(served: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """An HTTP server for a dataset; what fails is tried again at once."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'crossmae[dev]'")
    monkeypatch.setattr("training.stream.fetch._PAUSES", (0.05,))
    with FileServer(served) as server:
        yield server
