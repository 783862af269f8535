"""The parts of which pages are made: tables, curves, pictures, the document."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from shards_spec.sample import FBANK_SHAPE
from tests.pages import Page
from tools.pages.curves import Series, curves, step_scale
from tools.pages.metrics import metric_groups
from tools.pages.panels import Panel, curves_section
from tools.pages.pictures import Sound, as_picture, brighten, frame_cells, heat, hide, outline, valid_rows
from tools.pages.tables import Spread, flatten, results_table
from tools.pages.web_page import document, legend, notices, run_colour, section
from tools.reporting.queries import cross_attention, shown_queries, spread
from training.methods.shared.blocks import CrossAttention
from training.methods.shared.patches import FBANK_GRID


def rows_of(html):
    return Page(html).rows


def curve(steps, values, **options):
    return curves([Series(steps=steps, values=values)], name="loss", **options)


# -------------------------------------------------------------------- tables


def test_a_table_marks_the_best_and_never_a_reference():
    rows = [
        {"name": "chance", "kind": "reference", "R@1": 99.0, "rank": 4},
        {"name": "a", "run": 0, "R@1": 22.84, "rank": 5},
        {"name": "b", "run": 1, "R@1": 22.76, "rank": 4, "mAP": 3},
        {"name": "c", "run": 2, "R@1": None},
    ]
    html = results_table(rows, better={"R@1": "higher", "rank": "lower", "mAP": "higher"})
    assert rows_of(html) == [
        ["", "R@1", "rank", "mAP"],
        ["a", "22.8", "5", "–"],
        ["b", "22.8", "4", "3"],  # as printed: no better and no worse than a
        ["c", "–", "–", "–"],
        ["chance", "99.0", "4", "–"],
    ]
    assert html.count('class="best"') == 1 and '<td class="best">4</td>' in html


def test_a_table_of_seeds_and_headings():
    rows = [
        {"name": "a <b>", "x/R@1": Spread(mean=22.84, spread=0.417, count=3), "y/R@1": 0.1234, "x/R@5": 1e-5},
        {"name": "b", "x/R@1": Spread(mean=3.0, spread=0.0, count=1), "y/R@1": float("nan"), "x/R@5": 1234},
    ]
    assert rows_of(results_table(rows, titles={"x": "audio → image"}, head="variant")) == [
        ["", "audio → image", "y"],
        ["variant", "R@1", "R@5", "R@1"],
        ["a <b>", "22.8 ± 0.4", "1e-5", "0.123"],
        ["b", "3.00", "1,234", "–"],
    ]


def test_rows_under_a_heading_are_compared_among_themselves():
    rows = [
        {"name": "paper", "kind": "reference", "group": "up", "v": 9},
        {"name": "chance", "kind": "reference", "v": 0},
        {"name": "a", "group": "up", "v": 1},
        {"name": "a", "group": "down", "v": 5},
        {"name": "b", "group": "up", "v": 2},
        {"name": "b", "group": "down", "v": 3},
    ]
    html = results_table(rows, better={"v": "higher"})
    names = [row[0] for row in rows_of(html)]
    assert names == ["", "up", "a", "b", "paper", "down", "a", "b", "chance"]
    assert html.count('class="best"') == 2 and 'class="best">2<' in html and 'class="best">5<' in html


def test_a_table_of_many_metrics_is_turned():
    row = {"name": "a"} | {f"m{i}": i for i in range(12)}
    found = rows_of(results_table([row, {"name": "b", "m3": 7}]))
    assert found[0] == ["", "a", "b"] and found[4] == ["m3", "3", "7"] and len(found) == 13
    assert results_table([]) == "" and results_table([{"name": "a"}]) == ""


def test_nested_numbers_become_paths():
    assert flatten({"a": {"b": 1, "c": {"d": 2.5}}, "e": 3, "t": "x", "l": [1], "f": True}) == {
        "a/b": 1,
        "a/c/d": 2.5,
        "e": 3,
    }


# -------------------------------------------------------------------- the document


def test_a_page_is_composed_of_parts():
    panel = Panel(title="Loss <i>", series=[Series(steps=[1, 2], values=[2.0, 1.0], spread=[0.1, 0.2], name="<u>")])
    parts = [
        section("A <i>", results_table([{"name": "<u>", "x": 1}]), note="note"),
        section("Empty", ""),
        curves_section("Curves", [("", [panel]), ("Nowhere", [])], names=["<u>", "v"]),
        notices(["<i>gone"]),
    ]
    found = Page(document(title="T <i>", style="", sections=parts))
    assert "Empty" not in found.text and "Nowhere" not in found.text
    assert found.text.count("<i>") == 4 and not {"i", "u"} & {tag for tag, _ in found.tags}
    assert len(found.all("polygon", "band")) == 2  # the spread, on both axes


def test_runs_keep_their_colours_apart():
    assert len({run_colour(i) for i in range(18)}) == 18
    assert legend(["alone"]) == "" and Page(legend(["a", "b"])).text == "ab"


# -------------------------------------------------------------------- curves


def test_curves_of_long_runs_stay_small():
    steps = range(1, 100_001)
    values = [10 / step**0.5 + (step % 7) / 100 for step in steps]
    for log_x in (True, False):
        drawn = curve(steps, values, log_x=log_x, log_y=True)
        assert len(drawn) < 20_000 and 'class="band"' in drawn
    assert 'class="band"' not in curve([1, 2, 3], [3.0, 2.0, 1.0], log_x=False)


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-9])
def test_curves_of_one_point_or_one_value(value):
    for steps in ([1], [5, 6, 700]):
        for log_x in (True, False):
            for from_zero in (True, False):
                drawn = curve(steps, [value] * len(steps), log_x=log_x, log_y=True, from_zero=from_zero)
                assert "nan" not in drawn and "inf" not in drawn


def test_curves_of_several_runs_share_their_axes():
    short = Series(name="a", steps=[1, 2], values=[4.0, 3.0], colour="run-0")
    long = Series(name="b", steps=[1, 100], values=[2.0, 1.0], colour="run-1")
    drawn = Page(curves([short, long], name="loss", log_x=False))
    ends = [(float(a["cx"]), float(a["cy"])) for a in drawn.all("circle")]
    assert ends[0][0] < 60 and ends[1][0] == 312  # step 2 and step 100 of the same axis
    assert ends[0][1] < ends[1][1]  # 3 stands above 1
    assert {a["class"] for a in drawn.all("g")} == {"run-0", "run-1"}


def test_ticks_are_round_and_few():
    assert step_scale([10, 20_000], is_log=True).ticks() == [10, 100, 1000, 10_000]
    assert step_scale([2, 40], is_log=True).ticks() == [3, 10, 30]
    assert step_scale([10, 60], is_log=True).ticks() == [10, 20, 50]
    assert step_scale([10, 20_000], is_log=False).ticks() == [0, 5000, 10_000, 15_000, 20_000]
    for last in (11, 37, 99, 640, 123_456):
        for is_log in (True, False):
            assert 3 <= len(step_scale([10, last], is_log=is_log).ticks()) <= 6


def test_metrics_are_grouped_and_what_is_no_number_leaves_a_gap():
    lines = [
        {"step": 1, "loss": 2.0, "mfu": 0.4, "effective_rank": 3, "bad_samples": 0},
        {"step": 2, "loss": float("nan"), "note": "x"},
        {"step": 3, "loss": 1.0, "grad_norms": {"encoder": 2.0}},
    ]
    groups = {name: [panel.key for panel in panels] for name, panels in metric_groups([lines, lines[2:]])}
    assert groups == {
        "Losses": ["loss"],
        "Optimizer": ["grad_norms/encoder"],
        "Data and speed": ["mfu"],
        "Diagnostics": ["effective_rank"],
    }
    loss = metric_groups([lines, lines[2:]])[0][1][0]
    assert [(list(s.steps), list(s.values)) for s in loss.series] == [([1, 3], [2.0, 1.0]), ([3], [1.0])]
    assert metric_groups([[]]) and not any(panels for _, panels in metric_groups([[]]))


# -------------------------------------------------------------------- pictures


def test_outline_joins_neighbours():
    cells = np.zeros((3, 3), bool)
    cells[1, 1:] = True  # two cells, side by side: six sides, none between them
    assert sorted(outline(cells, 16, 16, columns=48)[1:].split("M")) == sorted(
        ["16 16h16", "32 16h16", "16 32h16", "32 32h16", "16 16v16", "48 16v16"]
    )
    assert sorted(outline(cells, 16, 16, columns=40)[1:].split("M")) == sorted(
        ["16 16h16", "32 16h8", "16 32h16", "32 32h8", "16 16v16", "40 16v16"]
    )


def test_spectrograms_rise_to_the_right_and_low_is_at_the_bottom():
    fbank = np.zeros(FBANK_SHAPE, np.float16)
    fbank[:500] = -10
    fbank[100:110, 3] = 9  # early and low
    assert valid_rows(fbank) == 500
    sound = Sound(valid=500, low=-10, high=9)
    pixels = sound.pixels(fbank.astype(np.float32))
    assert pixels.shape == (128, 250, 3)
    assert (pixels[124, 50:55] > 180).all() and pixels[:120].max() < 10
    marked = np.zeros((64, 8), bool)
    marked[1, 0] = True
    assert sound.outline(marked) == "M8 112h8M8 128h8M8 112v16M16 112v16"
    cells = sound.cells(marked)
    assert cells.shape == (128, 250) and cells[112:, 8:16].all() and cells.sum() == 128


def test_what_is_laid_upon_pictures():
    pixels = np.full((224, 224, 3), 200, np.uint8)
    cells = np.zeros((14, 14), bool)
    cells[0, 0] = True
    here = frame_cells(cells)
    assert here[:16, :16].all() and here.sum() == 256
    masked = hide(pixels, here)
    assert (masked[here] == 0).all() and (masked[~here] == [200, 200, 200, 255]).all()
    bright = brighten(pixels, here)
    assert (bright[here] == 200).all() and (bright[~here] == 110).all()
    values = here.astype(np.float32)
    hot = heat(pixels, values)
    assert (hot[~here][:, 0] == hot[~here][:, 2]).all()  # no heat: grey
    assert hot[0, 0, 0] > hot[0, 0, 2] and hot[0, 0].sum() > hot[100, 100].sum()  # warm, and lighter
    unseen = heat(pixels, values, ~here)
    assert (unseen[here] < 100).all() and (unseen[~here] == hot[~here]).all()


def test_pictures_are_small_and_true():
    generator = np.random.default_rng(0)
    smooth = np.kron(generator.integers(0, 256, (7, 7, 3)), np.ones((32, 32, 1))).astype(np.uint8)
    picture = as_picture(smooth)
    decoded = Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1])))
    assert decoded.size == (picture.width, picture.height) == (224, 224) and len(picture.uri) < 20_000
    assert np.abs(np.asarray(decoded.convert("RGB")).astype(int) - smooth).mean() < 4


# -------------------------------------------------------------------- queries


def test_cross_attention_is_what_the_module_computes():
    torch.manual_seed(0)
    module = CrossAttention(32, 24, 4)
    x, context = torch.randn(2, 5, 32), torch.randn(2, 7, 24)
    weights = cross_attention(module, x, context)
    assert weights.shape == (2, 4, 5, 7)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 5))
    values = module.kv(context)[..., 32:].unflatten(-1, (4, 8)).transpose(1, 2)
    made = x + module.proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(made, module(x, context))


def test_spread_of_queries():
    assert spread(torch.full((6, 4), 0.25)) == 0
    assert spread(torch.eye(8)) == 1
    half = torch.zeros(2, 4)
    half[0, :2], half[1, 1:3] = 0.5, 0.5
    assert spread(half) == 0.5


def test_queries_shown_lie_in_the_four_quarters_of_the_sound():
    places = [divmod(number, FBANK_GRID[1]) for number in shown_queries(FBANK_GRID, 40)]
    assert places == [(10, 2), (10, 6), (30, 2), (30, 6)]
