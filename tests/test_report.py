"""The report of a run: one page, with the pictures it should have, whatever names the dataset holds."""

import base64
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from shards_spec.dataset import read_dataset, write_dataset
from shards_spec.sample import FBANK_SHAPE, member_names
from shards_spec.tables import read_table, shard_schema, write_table
from tests.datasets import make_dataset
from tests.pages import Page
from tests.runs import train
from tools.pages.curves import curve, step_scale
from tools.pages.pictures import audio_triple, outline, valid_rows
from tools.pages.report import Report, page
from tools.report import main
from training.checkpoint import TrainState, save_checkpoint, write_json
from training.evaluate import main as evaluate
from training.model import CrossMAE, config_to_dict, crossmae_tiny, with_variant
from training.run_folder import read_step_log

HOSTILE_KEY = "<script>alert('key')</script>\u202e"
HOSTILE_LABEL = "\"><img src=x onerror=alert(1)> & 'speech'"
METRICS = ["loss", "contrast", "cdt_visual", "cdt_audio", "emb_visual", "emb_audio", "grad_norm", "lr"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Every key and every class name is hostile."""
    folder = make_dataset(tmp_path_factory.mktemp("data") / "shards", (3, 2))
    for path in sorted(folder.glob("shard-*.parquet")):
        table, facts = read_table(path)
        rows = [row | {"key": HOSTILE_KEY + row["key"]} for row in table.to_pylist()]
        write_table(path, rows, shard_schema(member_names()), {k: v for k, v in facts.items() if k != "spec_version"})
    classes = [{"index": i, "mid": f"/m/{i}", "name": HOSTILE_LABEL} for i in range(8)]
    write_dataset(folder, replace(read_dataset(folder), classes=classes))
    return folder


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "a <b>run"
    settings = ["--steps=3", "--batch-size=2", "--log-every=1", "--workers=0", "--optimizer.lr=1e-3"]
    train(f"--data={dataset}", f"--out={run}", *settings)
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(trained, tmp_path / trained.name)


def built(run, *arguments):
    main([str(run), *arguments])
    return Page((run / "report.html").read_text(encoding="utf-8"))


def refused(capsys, *arguments):
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1
    return said.err


def test_the_page(run):
    found = built(run, "--samples=3")
    assert [a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert not {"script", "link", "iframe", "object", "b"} & {tag for tag, _ in found.tags}
    addresses = [v for _, a in found.tags for k, v in a.items() if k in {"src", "href", "xlink:href", "srcset"}]
    assert all(address.startswith("data:image/") for address in addresses)
    assert not [name for _, a in found.tags for name in a if name.startswith("on")]
    for key in METRICS:  # a curve each, over log and linear steps, with its last value
        assert f" {key}" in found.text
    assert len(found.all("svg", "curve")) == 2 * (len(METRICS) + 2)
    assert "a <b>run" in found.text and "crossmae-tiny · crossmae" in found.text
    assert f"{read_step_log(run / 'metrics.jsonl')[-1]['loss']:.4g}" in found.text
    assert "From the training set" in found.text


def test_pictures(run):
    images = built(run, "--samples=3").images()
    captions = [
        f"{what}, {which}" for what in ("frame", "spectrogram") for which in ("masked", "reconstruction", "original")
    ]
    assert [caption for caption, _ in images] == 3 * captions
    for i in range(0, len(images), 3):
        masked, rebuilt, original = (pixels for _, pixels in images[i : i + 3])
        assert masked.shape == ((224, 224, 4) if i % 6 == 0 else (128, 998, 4))
        hidden = masked[..., 3] == 0
        assert 0.7 < hidden.mean() < 0.8
        assert (masked[~hidden] == original[~hidden]).all()
        assert (rebuilt[~hidden] == original[~hidden]).all()
        assert (rebuilt[hidden] != original[hidden]).any(axis=-1).mean() > 0.9
        assert (rebuilt[..., 3] == 255).all()
        assert (masked[hidden] == masked[hidden][0]).all()  # nothing of the hidden patches is left in the file


def test_attentive_tokens_are_outlined_among_the_visible(run):
    found = built(run, "--samples=1")
    paths = found.all("path", "attentive")
    assert len(paths) == 2  # on the frame and on the spectrogram
    masked = dict(found.images())["frame, masked"][..., 3] == 0
    corners = [tuple(map(int, part.split("h")[0].split())) for part in paths[0]["d"].split("M")[1:] if "h" in part]
    for x, y in corners:  # a line along the top or the bottom of a visible patch
        assert not (masked[min(y, 223), x] and masked[max(y - 1, 0), x])


def test_hostile_names_stay_text(run):
    found = built(run, "--samples=2")
    assert found.text.count(HOSTILE_KEY) == 2
    assert found.text.count(HOSTILE_LABEL) == 2
    raw = (run / "report.html").read_text()
    assert "<script" not in raw and "<img src=x" not in raw


def test_equal_facts_give_equal_bytes_and_the_samples_grow_at_the_end(run, tmp_path):
    pages = []
    for samples in (1, 1, 9):
        main([str(run), f"--samples={samples}", f"--out={tmp_path / 'page.html'}"])
        pages.append((tmp_path / "page.html").read_text())
    assert pages[0] == pages[1]
    sources = [[a["src"] for a in Page(text).all("img")] for text in pages]
    assert len(sources[2]) == 5 * 6  # the dataset has no more than five
    assert sources[0] == sources[2][:6]
    assert not (run / "report.html").exists()


def test_retrieval_is_shown_where_it_was_evaluated(run, dataset, capsys):
    assert "R@10" not in built(run, "--samples=0").text
    evaluate(
        ["retrieval", f"--data={dataset}", f"--checkpoint={run}", f"--out={run / 'retrieval.json'}", "--workers=0"]
    )
    result = json.loads((run / "retrieval.json").read_text())
    text = built(run, "--samples=0").text
    assert "audio → image" in text and "among 5 samples" in text and "the training set." in text
    assert f"{result['audio_to_image']['recall']['1']:.1f}{result['audio_to_image']['recall']['5']:.1f}100.0" in text
    assert "chance20.0100.0100.03.0" in text
    (run / "retrieval.json").write_text('{"pool": 5}')
    capsys.readouterr()
    assert "retrieval.json is not what evaluate.py retrieval writes" in refused(capsys, run, "--samples=0")


def test_a_variant_without_pixels_says_so(run):
    """The same run folder, as if trained with another variant."""
    shutil.rmtree(run / "checkpoints")
    config = json.loads((run / "config.json").read_text())
    model = with_variant(crossmae_tiny(), "cl-av")
    config |= {"variant": "cl-av", "model": config_to_dict(model)}
    write_json(run / "config.json", config)
    state = TrainState(step=3, fingerprint="other", seed=0, epoch=0, cursor=0, next_shard="", next_offset=0)
    save_checkpoint(run, state, model=CrossMAE(model), optimizer={}, config=config, keep=1)
    found = built(run, "--samples=1")
    captions = ["frame, masked", "frame, original", "spectrogram, masked", "spectrogram, original"]
    assert [caption for caption, _ in found.images()] == captions
    assert "no pixel decoder" in found.text and "not trained on" in found.text


def test_mistakes_are_answered_in_one_line(run, tmp_path, capsys, monkeypatch):
    assert "does not exist" in refused(capsys, tmp_path / "nowhere")
    assert "no run folder" in refused(capsys, tmp_path)
    assert "--samples must be at least 0" in refused(capsys, run, "--samples=-1")
    assert "page.html: the folder" in refused(capsys, run, "--out", tmp_path / "missing" / "page.html")
    assert "is no dataset" in refused(capsys, run, "--data", tmp_path)
    config = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", config | {"data": ["moved/away"]})
    assert "moved/away is not there" in refused(capsys, run)
    main([str(run), "--samples=0"])  # as the message offers
    capsys.readouterr()
    metrics = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("{broken\n" + metrics)
    assert "metrics.jsonl is damaged" in refused(capsys, run, "--samples=0")
    (run / "metrics.jsonl").unlink()
    assert "metrics.jsonl is missing" in refused(capsys, run, "--samples=0")
    shutil.rmtree(run / "checkpoints")  # killed before its first
    assert "has no checkpoint" in refused(capsys, run)


def test_a_damaged_sample_is_named(run, dataset, tmp_path, capsys):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    for tar in copy.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    said = refused(capsys, run, "--data", copy)
    assert "shard-00000" in said and "crc32" in said


def test_curves_of_long_runs_stay_small():
    steps = range(1, 100_001)
    values = [10 / step**0.5 + (step % 7) / 100 for step in steps]
    for log_x in (True, False):
        drawn = curve(steps, values, name="loss", log_x=log_x, log_y=True)
        assert len(drawn) < 20_000 and 'class="band"' in drawn
    assert 'class="band"' not in curve([1, 2, 3], [3.0, 2.0, 1.0], name="loss", log_x=False)


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-9])
def test_curves_of_one_point_or_one_value(value):
    for steps in ([1], [5, 6, 700]):
        for log_x in (True, False):
            for from_zero in (True, False):
                drawn = curve(steps, [value] * len(steps), name="x", log_x=log_x, log_y=True, from_zero=from_zero)
                assert "nan" not in drawn and "inf" not in drawn


def test_ticks_are_round_and_few():
    assert step_scale([10, 20_000], is_log=True).ticks() == [10, 100, 1000, 10_000]
    assert step_scale([2, 40], is_log=True).ticks() == [3, 10, 30]
    assert step_scale([10, 60], is_log=True).ticks() == [10, 20, 50]
    assert step_scale([10, 20_000], is_log=False).ticks() == [0, 5000, 10_000, 15_000, 20_000]
    for last in (11, 37, 99, 640, 123_456):
        for is_log in (True, False):
            assert 3 <= len(step_scale([10, last], is_log=is_log).ticks()) <= 6


def test_values_that_are_no_numbers_leave_gaps(trained):
    lines = [
        {"step": 1, "loss": 2.0, "mfu": 0.4},
        {"step": 2, "loss": float("nan"), "note": "<i>"},
        {"step": 3, "loss": 1.0},
    ]
    config = json.loads((trained / "config.json").read_text())
    report = Report(
        name="x",
        config=config,
        step=3,
        epochs=None,
        parameters=1,
        metrics=lines,
        dataset=None,
        samples=[],
        retrieval=None,
    )
    found = Page(page(report))
    assert len(found.all("svg", "curve")) == 4 and " mfu" in found.text


def test_outline_joins_neighbours():
    cells = np.zeros((3, 3), bool)
    cells[1, 1:] = True  # two cells, side by side: six sides, none between them
    assert sorted(outline(cells, 16)[1:].split("M")) == sorted(
        ["16 16h16", "32 16h16", "16 32h16", "32 32h16", "16 16v16", "48 16v16"]
    )


def test_spectrograms_rise_to_the_right_and_low_is_at_the_bottom():
    fbank = np.zeros(FBANK_SHAPE, np.float16)
    fbank[:500] = -10
    fbank[100:110, 3] = 9  # early and low
    assert valid_rows(fbank) == 500
    nothing = np.zeros((64, 8), bool)
    marked = nothing.copy()
    marked[1, 0] = True
    triple = audio_triple(fbank.astype(np.float32), None, nothing, marked, valid=500)
    assert (triple.original.width, triple.original.height) == (500, 128)
    assert triple.original.outline == "M16 112h16M16 128h16M16 112v16M32 112v16"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(triple.original.uri.split(",")[1]))).convert("L"))
    assert (pixels[124, 100:110] > 100).all() and pixels[:120].max() < 10
    assert triple.reconstruction is None
