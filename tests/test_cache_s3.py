"""Datasets in S3, against a server on this machine; skipped where moto or s3fs is not installed."""

import pytest
import torch

from tests.datasets import make_dataset
from training.stream.cache_folder import FetchError
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.order import Place, SampleStream
from training.stream.shares import rank_shares

_NEEDS = "tests of s3:// need more than CI installs: pip install 'crossmae[remote]' 'moto[server]'"
s3fs = pytest.importorskip("s3fs", reason=_NEEDS)
moto_server = pytest.importorskip("moto.server", reason=_NEEDS)
boto3 = pytest.importorskip("boto3", reason=_NEEDS)

COUNTS = (3, 2, 4, 3)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A dataset in a bucket: its folder, its URL and a client."""
    for name, value in {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "key", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()  # they would go on with the endpoint of the test before
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    folder = make_dataset(tmp_path / "shards", COUNTS)
    for path in folder.iterdir():
        client.upload_file(str(path), "bucket", f"shards/{path.name}")
    yield folder, "s3://bucket/shards", client
    server.stop()


def batches(index):
    shares = rank_shares(SampleStream(index.counts, seed=1, window=2), Place(), steps=8, batch_size=3)
    for batch in load(index, shares, seed=1, batch_size=3, workers=0):
        yield batch.keys, batch.image.clone(), batch.fbank.clone()


def test_the_same_batches_as_from_the_folder(bucket, tmp_path):
    folder, url, _ = bucket
    remote = open_index(url, cache_dir=tmp_path / "cache", cache_size="10MB")
    for ours, theirs in zip(batches(remote), batches(open_index(folder)), strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1]) and torch.equal(ours[2], theirs[2])


def test_a_missing_object_is_named(bucket, tmp_path):
    _, url, client = bucket
    client.delete_object(Bucket="bucket", Key="shards/shard-000001.tar")
    remote = open_index(url, cache_dir=tmp_path / "cache")
    with pytest.raises(FetchError, match=r"^s3://bucket/shards/shard-000001\.tar cannot be fetched: there is no such"):
        list(batches(remote))
    with pytest.raises(FetchError, match=r"^s3://bucket/none/dataset\.json cannot be fetched"):
        open_index("s3://bucket/none", cache_dir=tmp_path / "cache")
