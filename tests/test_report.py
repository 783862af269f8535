"""The report of runs: one page, with the pictures it should have, whatever names the dataset holds, and whatever is
missing of a run."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from shards_spec.dataset import read_dataset, write_dataset
from shards_spec.sample import member_names
from shards_spec.tables import read_table, shard_schema, write_table
from tests.datasets import make_dataset
from tests.pages import Page
from tests.refusals import longest_file
from tests.runs import train
from tools.report import main
from tools.reporting import examples
from tools.reporting.runs import read_metrics, run_names
from tools.reporting.samples import first_numbers
from training.checkpoint import TrainState, save_checkpoint, write_json
from training.evaluate import main as evaluate
from training.evaluation.features import embed_dataset, load_model
from training.evaluation.localization import ciou, ground_truth, heatmaps, predicted_region
from training.evaluation.retrieval import partner_ranks
from training.methods.crossmae import CrossMAE, config_to_dict, crossmae_tiny, with_variant
from training.run_folder import read_step_log
from training.stream.index import open_index

HOSTILE_KEY = "<script>alert('key')</script>\u202e"
HOSTILE_LABEL = "\"><img src=x onerror=alert(1)> & 'speech'"
LOSSES = ["loss", "contrast", "cdt_visual", "cdt_audio", "emb_visual", "emb_audio"]
CAPTIONS = [
    "frame, original",
    "frame, masked",
    "spectrogram, original",
    "spectrogram, masked",
    "frame, reconstruction",
    "frame, attentive tokens",
    "spectrogram, reconstruction",
    "spectrogram, attentive tokens",
]
BOX = [0.25, 0.25, 0.75, 0.75]


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
    main([str(run), "--pool=0", *arguments])
    return Page((run / "report.html").read_text(encoding="utf-8"))


def refused(capsys, *arguments):
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1
    return said.err


def as_variant(run, variant):
    """Makes a run folder that of another variant, untrained."""
    shutil.rmtree(run / "checkpoints")
    config = json.loads((run / "config.json").read_text())
    model = with_variant(crossmae_tiny(), variant)
    config |= {"variant": variant, "model": config_to_dict(model)}
    write_json(run / "config.json", config)
    state = TrainState(step=3, fingerprint="other", seed=0, epoch=0, cursor=0, next_shard="", next_offset=0)
    save_checkpoint(run, state, model=CrossMAE(model), optimizer={}, config=config, keep=1)
    return run


def test_the_page(run):
    found = built(run, "--samples=3")
    assert [a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert not {"script", "link", "iframe", "object", "b"} & {tag for tag, _ in found.tags}
    addresses = [v for _, a in found.tags for k, v in a.items() if k in {"src", "href", "xlink:href", "srcset"}]
    assert all(address.startswith("data:image/") for address in addresses)
    assert not [name for _, a in found.tags for name in a if name.startswith("on")]
    assert all(a["alt"] for a in found.all("img")) and all(a["aria-label"] for a in found.all("svg", "curve"))
    places = [found.text.index(f" {key}") for key in [*LOSSES, "grad_norm"]]
    assert places == sorted(places)  # the losses first
    assert "a <b>run" in found.text and "crossmae-tiny · crossmae" in found.text
    assert f"{read_step_log(run / 'metrics.jsonl')[-1]['loss']:.4g}" in found.text
    assert "From the training set" in found.text


def test_any_number_of_metrics_is_drawn_and_nothing_else(run):
    lines = read_step_log(run / "metrics.jsonl")
    for line in lines:
        line |= {"target_std_image": 0.5, "parts": {"encoder": 1.0}, "note": "<i>", "broken": float("nan"), "none": 0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = built(run, "--samples=0")
    assert "target_std_image" in found.text and "parts/encoder" in found.text
    assert "broken" not in found.text and "<i>" not in found.text
    numbers = {k for line in lines for k, v in line.items() if isinstance(v, int | float) and v and v == v}
    drawn = numbers - {"step", "epoch", "cursor", "seconds"} | {"parts/encoder"}
    assert len(found.all("svg", "curve")) == 2 * len(drawn)  # over linear and logarithmic steps


def test_pictures(run):
    images = built(run, "--samples=3").images()
    queries = [i for i, (alt, _) in enumerate(images) if "queries" in alt]
    shown = images[: queries[0]]
    assert [caption for caption, _ in shown] == 3 * CAPTIONS
    for i in range(0, len(shown), 8):
        for original, masked, rebuilt, attentive in ((0, 1, 4, 5), (2, 3, 6, 7)):
            original, masked, rebuilt, attentive = (
                shown[i + j][1].astype(int) for j in (original, masked, rebuilt, attentive)
            )
            assert original.shape == ((224, 224, 4) if original.shape[0] == 224 else (128, 499, 4))
            hidden = masked[..., 3] == 0
            assert 0.7 < hidden.mean() < 0.8
            apart = [np.abs(other - original)[..., :3].mean(axis=-1) for other in (masked, rebuilt)]
            assert apart[0][~hidden].mean() < 25 < apart[0][hidden].mean()  # WebP is not exact, on noise least of all
            assert apart[1][hidden].mean() > apart[1][~hidden].mean() + 5
            assert (rebuilt[..., 3] == 255).all() and attentive.shape == original.shape


def test_attentive_tokens_are_outlined_among_the_visible(run):
    found = built(run, "--samples=1")
    frame, sound = found.all("path", "attentive")[:2]
    masked = {caption: pixels[..., 3] == 0 for caption, pixels in found.images()}
    for path, hidden in ((frame, masked["frame, masked"]), (sound, masked["spectrogram, masked"])):
        corners = [tuple(map(int, part.split("h")[0].split())) for part in path["d"].split("M")[1:] if "h" in part]
        assert corners
        for x, y in corners:  # a line along the top or the bottom of a visible patch
            assert not (hidden[min(y, len(hidden) - 1), x] and hidden[max(y - 1, 0), x])


def test_hostile_names_stay_text(run):
    found = built(run, "--samples=2", "--pool=5")
    assert found.text.count(HOSTILE_KEY) >= 2 and found.text.count(HOSTILE_LABEL) == 2
    raw = (run / "report.html").read_text()
    assert "<script" not in raw and "<img src=x" not in raw


def test_equal_facts_give_equal_bytes_and_the_samples_grow_at_the_end(run, tmp_path):
    pages = []
    for samples in (1, 1, 9):
        main([str(run), f"--samples={samples}", "--pool=4", f"--out={tmp_path / 'page.html'}"])
        pages.append((tmp_path / "page.html").read_text())
    assert pages[0] == pages[1]
    sources = [[a["src"] for a in Page(text).all("img")] for text in pages]
    assert sources[0][:8] == sources[2][:8]
    originals = [alt for alt, _ in Page(pages[2]).images() if alt == "frame, original"]
    assert len(originals) == 5  # the dataset has no more than five
    assert not (run / "report.html").exists()


# -------------------------------------------------------------------- results


def test_results_are_shown_beside_baselines_and_the_paper(run, dataset):
    assert "R@10" not in built(run, "--samples=0").text
    evaluate(["retrieval", f"--data={dataset}", f"--checkpoint={run}", "--workers=0"])
    (written,) = (run / "evaluation").glob("*.json")
    result = json.loads(written.read_text())
    rows = {row[0]: row[1:] for row in built(run, "--samples=0").rows if row}
    ours = result["metrics"]["audio -> image"]
    assert rows["audio → image"][:2] == [f"{ours['R@1']:.1f}", f"{ours['R@5']:.1f}"]
    assert rows["chance"][0] == "20.0"
    assert rows["CrossMAE ViT-B, Flickr-SoundNet, audio → image in the paper"][:3] == ["16.8", "45.2", "64.0"]


def test_best_and_worst_classes_confusions_and_intervals_are_shown(run):
    (run / "evaluation").mkdir()
    classes = {f"class {i:02d}": {"count": 7, "AP": 99.0 - i} for i in range(30)}
    result = {
        "task": "t",
        "protocol_name": "top-1",
        "metrics": {"audio": {"top-1": 12.5}},
        "classes": {"audio": classes},
    }
    result |= {"intervals": {"audio": {"top-1": [10.04, 15]}}}
    result |= {"confusion": {"audio": {"cat": {"cat": 9, "dog": 5, "cow": 1}, "dog": {"cat": 3}}}}
    (run / "evaluation" / "t.json").write_text(json.dumps(result))
    found = built(run, "--samples=0")
    for shown in (["class 00", "7", "99.0"], ["class 09", "7", "90.0"], ["class 20", "7", "79.0"], ["cat", "dog", "5"]):
        assert shown in found.rows, shown
    assert "class 15" not in found.text and ["cat", "cat", "9"] not in found.rows
    assert "best of 30" in found.text and "worst of 30" in found.text and "top-1 10.0 to 15.0" in found.text


def test_results_of_any_form_are_shown(run):
    (run / "evaluation").mkdir()
    odd = {
        "task": "odd",
        "metrics": {"mAP": 12.5, "deep": {"er": {"x": 3}}},
        "paper": None,
        "baselines": {"b": {"mAP": None}},
        "classes": {"x": 3, "y": {"z": 1, "w": {"count": 1}}},
        "confusion": [],
        "intervals": {"x": {"y": [1], "z": 2}, "w": None},
    }
    (run / "evaluation" / "odd.json").write_text(json.dumps(odd))
    (run / "evaluation" / "broken.json").write_text("{")
    (run / "evaluation" / "empty.json").write_text("{}")
    found = built(run, "--samples=0")
    assert ["a <b>run", "12.5", "–"] in found.rows and ["deep", "–", "3"] in found.rows
    assert "broken.json cannot be read" in found.text and "empty.json holds no metrics" in found.text


# -------------------------------------------------------------------- several runs


def test_several_runs_side_by_side(run, tmp_path, monkeypatch):
    other = as_variant(shutil.copytree(run, tmp_path / "other"), "cl-av")
    for folder, value in ((run, 10.0), (other, 20.0)):
        (folder / "evaluation").mkdir()
        result = {"task": "t", "data": "d", "step": 3, "metrics": {"row": {"R@1": value, "median rank": value}}}
        result["paper"] = {"theirs, row": {"R@1": 99.0}}
        (folder / "evaluation" / "t.json").write_text(json.dumps(result))
    monkeypatch.chdir(tmp_path)
    main([str(run), str(other), "--samples=1", "--pool=5"])
    text = (tmp_path / "report.html").read_text()
    found = Page(text)
    assert "2 runs" in found.text
    table = found.rows[next(i for i, row in enumerate(found.rows) if row == ["", "R@1", "median rank"]) :]
    assert table[1:5] == [
        ["row"],
        ["a <b>run", "10.0", "10.0"],
        ["other", "20.0", "20.0"],
        ["theirs in the paper", "99.0", "–"],
    ]
    assert text.count('<td class="best">20.0</td>') == 1 and text.count('<td class="best">10.0</td>') == 1
    assert ["variant", "crossmae", "cl-av"] in found.rows  # what differs
    captions = [alt for alt, _ in found.images()]
    assert captions[:8] == CAPTIONS  # of the first run
    assert captions[8:10] == ["frame, attentive tokens", "spectrogram, attentive tokens"]  # same masks, no pixels
    assert "there is no pixel decoder" in found.text
    loss = next(a for a in found.all("svg", "curve") if a["aria-label"].startswith("Loss:"))
    assert loss["aria-label"].count("at step 1") == 2
    assert len(text) < 3e6


def test_runs_are_named_apart(tmp_path):
    assert run_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert run_names([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    with pytest.raises(ValueError, match="given twice"):
        run_names([tmp_path / "a", tmp_path / "b" / ".." / "a"])


# -------------------------------------------------------------------- what is missing


def test_a_variant_without_pixels_says_so(run):
    found = built(as_variant(run, "cl-av"), "--samples=1")
    captions = [caption for caption in CAPTIONS if "reconstruction" not in caption]
    assert [caption for caption, _ in found.images()] == captions  # and no queries
    assert "no pixel decoder" in found.text and "another dataset than the training set" in found.text


def test_what_is_missing_is_left_out_and_said(run, tmp_path, capsys):
    config = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", config | {"data": ["moved/away"]})
    found = built(run)
    assert "moved/away is not there" in found.text and not found.images() and found.all("svg", "curve")
    assert "moved/away is not there" in capsys.readouterr().err
    (run / "metrics.jsonl").unlink()
    assert "metrics.jsonl is missing" in built(run, "--samples=0").text
    weights = next((run / "checkpoints").iterdir()) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    (weights.parent / "optimizer.pt").unlink()  # what is copied to look at needs none
    found = built(run, "--samples=0")
    assert "model.safetensors is no whole safetensors file" in found.text and not found.all("svg", "curve")
    weights.unlink()
    assert "lacks model.safetensors" in built(run, "--samples=0").text
    shutil.rmtree(run / "checkpoints")  # killed before its first
    assert "has no checkpoint yet" in built(run, "--samples=0").text


def test_damaged_lines_of_metrics_are_left_out_and_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n{broken\n{"step": 3}\n[4]\n{"step": 2}\n{"step": 5}\n{"step": 6, "hal')
    notices = []
    assert [line["step"] for line in read_metrics(path, notices)] == [1, 3, 5]
    assert notices == [f"{path}: 3 of 6 lines are damaged or out of order and left out: line 2, 4, 5"]


def test_a_damaged_sample_is_named(run, dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    for tar in copy.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    found = built(run, "--data", str(copy), "--pool=5")
    assert "shard-00000" in found.text and "crc32" in found.text
    assert not found.images() and found.all("svg", "curve")


def test_mistakes_are_answered_in_one_line(run, tmp_path, capsys):
    assert "does not exist" in refused(capsys, tmp_path / "nowhere")
    assert "no run folder" in refused(capsys, tmp_path)
    assert "--samples must be at least 0" in refused(capsys, run, "--samples=-1")
    assert "page.html: the folder" in refused(capsys, run, "--out", tmp_path / "missing" / "page.html")
    assert "is a folder" in refused(capsys, run, "--out", tmp_path)
    assert "is no dataset" in refused(capsys, run, "--data", tmp_path)
    assert "given twice" in refused(capsys, run, run)
    assert "no run given" in refused(capsys)


# -------------------------------------------------------------------- examples


def test_a_full_disk_is_one_line_and_the_older_page_stays(run, capsys):
    (run / "report.html").write_text("older")
    with longest_file(1000), pytest.raises(SystemExit) as ended:
        main([str(run), "--pool=0", "--samples=0"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"python -m tools.report: error: {run / 'report.html'}: File too large\n"
    assert (run / "report.html").read_text() == "older" and not list(run.glob("*.tmp"))


def test_retrieval_examples_are_the_most_similar(run, dataset):
    index, loaded = open_index(dataset), load_model(run, torch.device("cpu"))
    numbers = np.array([3, 0, 4, 1], np.int64)
    found = examples.retrieve(loaded, index, numbers, queries=2, run=0, thumbnails=examples.Thumbnails(index))
    assert [(f.asks_for, f.pool, len(f.hits)) for f in found] == 2 * [("image", 4, 4)] + 2 * [("sound", 4, 4)]
    embedded = embed_dataset(index, loaded, numbers=numbers, workers=0)
    audio, image = (x / x.norm(dim=1, keepdim=True) for x in (embedded.audio, embedded.image))
    for query, one in enumerate(found[:2]):
        assert one.key == embedded.keys[query]
        assert [hit.similarity for hit in one.hits] == pytest.approx(sorted((audio[query] @ image.T).tolist())[::-1])
        (place,) = [i for i, hit in enumerate(one.hits, start=1) if hit.is_partner]
        assert place == one.rank == partner_ranks(audio, image)[query]


def test_localization_is_shown_where_there_are_boxes(run, dataset, monkeypatch):
    boxes = iter([{}, {"boxes": [BOX]}, {"boxes": [[1, 1, 0, 0]]}, {"boxes": None}, {"boxes": [BOX, BOX]}])
    monkeypatch.setattr(examples, "read_metadata", lambda index, numbers: boxes)
    found = built(run, "--samples=0", "--pool=5")
    shown = [alt for alt, _ in found.images() if alt.startswith("heatmap")]
    assert len(shown) == 2
    index, loaded = open_index(dataset), load_model(run, torch.device("cpu"))
    numbers = first_numbers(index, 5)
    for number, alt in zip((numbers[1], numbers[4]), shown, strict=True):
        (stored,) = examples.read_samples(index, numbers[numbers == number])
        tokens = loaded.encode_image(torch.from_numpy(stored.frame)[None]).tokens
        pooled = loaded.encode_audio(torch.from_numpy(stored.fbank)[None]).pooled
        score = ciou(predicted_region(heatmaps(tokens, pooled)), ground_truth([tuple(BOX)], "vggss")[None])
        assert alt == f"heatmap of the sound, cIoU {float(score[0]):.2f}"


def test_no_folder_of_a_run_is_written_to_but_the_report(run):
    before = set(run.rglob("*"))
    built(run, "--samples=1", "--pool=5")
    assert set(run.rglob("*")) - before == {run / "report.html"}
