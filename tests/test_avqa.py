"""MUSIC-AVQA: its questions, accuracy by type, and the command on videos whose answers are easy to tell."""

import csv
import json

import numpy as np
import pytest
import torch

from shards_spec.errors import UserError
from shards_spec.sample import FBANK_SHAPE, FRAME_SIZE
from tests.checkpoints import make_checkpoint
from tests.chosen_samples import Chosen, write_samples
from training.evaluate import main as evaluate
from training.evaluation.avqa import AnswerHead, Vocabulary, accuracies
from training.evaluation.heads.avqa_questions import Question, read_questions
from training.evaluation.heads.left_out import LeftOut


def entry(video="00000272", text="Where is the <FL> sounding instrument?", answer="left", **more):
    """As the released files have it."""
    facts = {"video_id": video, "question_id": 50, "question_deleted": 0, "anser": answer, "question_content": text}
    return facts | {"type": '["Audio-Visual", "Temporal"]', "templ_values": '["first"]'} | more


def write_questions(folder, **splits):
    for split in ("train", "val", "test"):
        if splits.get(split, ()) is not None:
            (folder / f"avqa-{split}.json").write_text(json.dumps(splits.get(split, [entry()])))
    return folder


def test_questions_are_read_and_damaged_entries_counted(tmp_path):
    two = entry(
        text="Are there <Object> and <Object> instruments in the video?", templ_values='["piano", "acoustic guitar"]'
    )
    wide = entry(text="Where is the <FL> instrument\uff1f")  # a full-width question mark, as 430 test questions have
    bad = [entry(templ_values="[]"), entry(templ_values="['first']"), entry(templ_values=7), entry(type="Audio")]
    bad += [
        entry(anser=None),
        entry(video=3),
        entry(text=" "),
        "no object",
        entry(text="??"),
        entry(templ_values="[1]"),
    ]
    left_out = LeftOut()
    read = read_questions(write_questions(tmp_path, train=[entry(), *bad, two, wide], val=None), left_out)
    assert read["val"] == [] and len(read["train"]) == 3 and len(read["test"]) == 1
    first, second, third = read["train"]
    assert first.words == ("where", "is", "the", "first", "sounding", "instrument") and first.answer == "left"
    assert first.kind == ("Audio-Visual", "Temporal") and first.video_id == "00000272"
    assert third.words == ("where", "is", "the", "first", "instrument")
    assert second.words[2:5] == ("piano", "and", "acoustic guitar")
    assert len(left_out) == len(bad)
    assert "left out, questions with more <...> than templ_values: 1 (avqa-train.json, entry 1)" in left_out.notes()
    assert any(
        note.startswith("left out, entries whose templ_values is no list of strings: 3") for note in left_out.notes()
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ("{}", "is no JSON list"),
        ("[]", "no usable"),
        ("[" * 9999, "no JSON"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_mistake(tmp_path, content, message):
    write_questions(tmp_path, test=None)
    if content is not None:
        (tmp_path / "avqa-test.json").write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        read_questions(tmp_path, LeftOut())
    assert "\n" not in str(raised.value)


def asked(kind=("Audio", "Counting"), words=("how", "many"), answer="two", video="a"):
    return Question(video_id=video, words=words, answer=answer, kind=kind)


def test_accuracy_by_type():
    questions = [asked(), asked(), asked(("Audio", "Comparative")), asked(("Visual", "Counting"))]
    assert accuracies(torch.tensor([True, False, False, True]), questions) == {
        "accuracy": 50,
        "Audio": pytest.approx(100 / 3),
        "Audio Comparative": 0,
        "Audio Counting": 50,
        "Visual": 100,
        "Visual Counting": 100,
    }


def test_vocabulary_is_of_the_training_questions():
    vocabulary = Vocabulary.of([asked(words=("b", "a"), answer="yes"), asked(answer="no")])
    assert vocabulary.words == {"a": 2, "b": 3, "how": 4, "many": 5} and vocabulary.answers == {"no": 0, "yes": 1}
    encoded = vocabulary.encode([asked(words=("a", "never seen", "b")), asked(words=("b",))])
    assert encoded.tolist() == [[2, 1, 3], [3, 0, 0]]


def test_padding_changes_no_answer():
    torch.manual_seed(0)
    head = AnswerHead(words=9, answers=4, inputs=2, dim=5, hidden=6)
    words, features = torch.tensor([[3, 4, 5]]), torch.randn(1, 2, 5)
    padded = torch.cat([words, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    torch.testing.assert_close(head(words, features), head(padded, features))
    assert not torch.allclose(head(words, features), head(words, -features))


# -------------------------------------------------------------------- evaluate.py avqa

SEEN, HEARD = "What colour is the <Object>?", "Is the <Object> high or low?"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Videos that are red or blue, and high or low, MUSIC-AVQA's files with a question about each, and a run."""
    folder = tmp_path_factory.mktemp("avqa")
    generator = np.random.default_rng(0)
    samples, entries = {}, []
    for number in range(24):
        video, is_red, is_high = f"{number:08d}", bool(generator.integers(2)), bool(generator.integers(2))
        frame = generator.integers(0, 40, (1, FRAME_SIZE, FRAME_SIZE, 3)).astype(np.uint8)
        frame[..., 0 if is_red else 2] += 200
        fbank = generator.normal(-10, 1, FBANK_SHAPE).astype(np.float16)
        fbank[:, slice(64, 128) if is_high else slice(0, 64)] += 12
        keys = [video] if number % 3 else [f"{video}_0", f"{video}_10000"]
        samples |= dict.fromkeys(keys, Chosen(frame, fbank))
        values = {"templ_values": json.dumps([("piano", "violin")[number % 2]])}
        colour, height = ("red", "blue")[not is_red], ("high", "low")[not is_high]
        entries.append(
            [
                entry(video, SEEN, colour, type='["Visual", "Location"]', **values),
                entry(video, HEARD, height, type='["Audio", "Comparative"]', **values),
            ]
        )
    lost = [entry("sa00007434"), entry("sa00007434"), entry("00000000", answer="an answer of no training question")]
    write_questions(
        folder,
        train=[e for pair in entries[:14] for e in pair],
        val=[e for pair in entries[14:17] for e in pair],
        test=[e for pair in entries[17:] for e in pair] + lost,
    )
    return write_samples(folder / "videos", samples).parent, make_checkpoint(folder / "run")


def run_avqa(made, *more):
    folder, run = made
    arguments = [f"--data={folder / 'videos'}", f"--annotations={folder}", f"--checkpoint={run}", "--workers=0"]
    evaluate(["avqa", *arguments, "--hidden=32", "--learning-rate=0.01", *more])
    return json.loads((run / "evaluation" / "avqa-videos.json").read_text())


def test_the_command_learns_easy_answers(made, tmp_path):
    saved = tmp_path / "answers.csv"
    result = run_avqa(made, f"--save-predictions={saved}")
    with saved.open() as file:
        rows = list(csv.DictReader(file))
    right = [row["question + audio + image"] == row["truth"] for row in rows]
    assert result["metrics"]["question + audio + image"]["accuracy"] == pytest.approx(100 * np.mean(right))
    assert result["pool"] == 15 and result["task"] == "avqa"
    assert list(result["baselines"]) == ["most frequent answer", "question only"]
    assert list(result["metrics"]) == ["question + audio + image", "question + audio", "question + image"]
    both, blind = result["metrics"]["question + audio + image"], result["baselines"]["question only"]
    assert both["Audio Comparative"] >= 85 and both["Visual Location"] >= 85 and both["Audio-Visual"] == 0
    assert both["accuracy"] > blind["accuracy"] + 15
    assert (
        result["metrics"]["question + audio"]["Audio"] >= 85 and result["metrics"]["question + image"]["Visual"] >= 85
    )
    notes = result["notes"]
    assert "left out, test questions about videos that the dataset does not have: 2 (sa00007434)" in notes
    assert any(note.startswith("1 test questions have an answer that no training question has") for note in notes)
    assert run_avqa(made, "--cache-features=none")["metrics"] == result["metrics"]


def test_a_dataset_of_other_videos_gets_one_line(made, tmp_path, capsys):
    folder, run = made
    write_questions(tmp_path, train=[entry("elsewhere")])
    arguments = [f"--data={folder / 'videos'}", f"--annotations={tmp_path}", f"--checkpoint={run}", "--workers=0"]
    with pytest.raises(SystemExit) as ended:
        evaluate(["avqa", *arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "none of the videos of the 1 train questions, such as elsewhere" in said
    assert said.count("\n") == 1
