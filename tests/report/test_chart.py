from __future__ import annotations

import math

import pytest

from bytefit.report.chart import HEIGHT, NUM_COLOURS, WIDTH, Curve, colour_of, line_chart, round_ticks, stretches, tick_text
from bytefit.report.curves import learning_rate_curve, loss_curve, running_bits_per_byte, throughput_curve
from tests.report.html import Page


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    lines = Page(svg).all("polyline")
    return [[tuple(float(part) for part in pair.split(",")) for pair in line["points"].split()] for line in lines]


def test_a_chart_puts_values_where_its_frame_says() -> None:
    curves = [Curve("<b>", 0, [0.0, 5.0, 10.0], [1.0, 3.0, 2.0]), Curve("other", 1, [2.0, 4.0], [1.5, 1.5], faint=True)]
    svg = line_chart(curves, x_label="seconds & more", y_label="bits")
    (chart,) = Page(svg).all("svg")
    left, right, x_low, x_high, bottom, top, y_low, y_high = map(float, chart["data-frame"].split())
    assert (x_low, x_high, y_low, y_high) == (0, 10, 1, 3)
    assert 0 <= left < right <= WIDTH
    assert 0 <= top < bottom <= HEIGHT
    faint, first = points_of(svg)  # what is faint is drawn first, and so lies behind
    assert first == [(left, bottom), ((left + right) / 2, top), (right, (top + bottom) / 2)]
    assert faint[0] == pytest.approx((left + 0.2 * (right - left), bottom - 0.25 * (bottom - top)), abs=0.06)
    assert [line["class"] for line in Page(svg).all("polyline")] == ["curve c1 faint", "curve c0"]
    assert [line["data-label"] for line in Page(svg).all("polyline")] == ["other", "<b>"]
    assert chart["aria-label"] == "bits against seconds & more"


def test_a_given_range_is_kept_and_single_points_are_left_out() -> None:
    single = Curve("single", 1, [99.0], [99.0])
    svg = line_chart([Curve("a", 0, [0.0, 1.0], [2.0, 2.0]), single], x_label="x", y_label="y", y_range=(0.0, 4.0))
    (((_, first), (_, second)),) = points_of(svg)
    bottom, top = map(float, Page(svg).all("svg")[0]["data-frame"].split()[4:6])
    assert first == second == (bottom + top) / 2
    assert line_chart([single], x_label="x", y_label="y") == ""
    flat = line_chart([Curve("a", 0, [0.0, 1.0], [2.0, 2.0])], x_label="x", y_label="y")
    assert all(math.isfinite(value) for line in points_of(flat) for point in line for value in point)


def test_colours_repeat_dashed() -> None:
    looks = [colour_of(number) for number in range(2 * NUM_COLOURS)]
    assert len(set(looks)) == len(looks)
    assert looks[NUM_COLOURS] == f"{looks[0]} dashed"


@pytest.mark.parametrize(("low", "high", "ticks"), [(0, 10, [0, 2, 4, 6, 8, 10]), (1.31, 1.76, [1.4, 1.5, 1.6, 1.7]), (3, 3, [3])])
def test_ticks_are_round(low, high, ticks) -> None:
    assert round_ticks(low, high) == ticks


def test_tick_texts_are_short() -> None:
    assert [tick_text(value) for value in (0.25, 9000.0, 42_500.0, 120_000.0)] == ["0.25", "9000", "42.5k", "120k"]


@pytest.mark.parametrize("count", [0, 1, 199, 200, 201, 1847])
def test_stretches_cover_everything_once(count) -> None:
    parts = stretches(count)
    assert len(parts) <= 200
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    assert len({part.stop - part.start for part in parts[:-1]}) <= 1


def metrics(count: int) -> list[dict[str, float]]:
    """A step a tenth of a second, 100 tokens each, with a pause of ten seconds in the middle; the loss is 2 bits after a bad start."""
    return [
        {
            "step": i + 1,
            "seconds": 0.1 * (i + 1) + (10 if i >= count // 2 else 0),
            "loss": math.log(2) * (50 if i < count // 20 else 2),
            "lr_scale": 1 - i / count,
            "tokens": 100 * (i + 1),
        }
        for i in range(count)
    ]


def test_training_curves() -> None:
    held = metrics(1000)
    seconds, bits = loss_curve(held)
    assert bits == pytest.approx([2.0] * len(bits))
    assert seconds[0] > held[49]["seconds"]
    assert seconds[-1] == pytest.approx(held[-1]["seconds"], abs=0.5)
    _, factors = learning_rate_curve(held)
    assert factors == sorted(factors, reverse=True)
    assert sum(factors) / len(factors) == pytest.approx(sum(record["lr_scale"] for record in held) / 1000)
    _, speeds = throughput_curve(held)
    assert sorted(speeds)[1:] == pytest.approx([1000.0] * (len(speeds) - 1))
    assert min(speeds) == pytest.approx(1000 / 11)  # the stretch of ten steps with the pause in it
    assert loss_curve([]) == throughput_curve([]) == ([], [])


def test_running_bits_per_byte_ends_at_the_score() -> None:
    blocks = [(100, 10.0 + i, 40 + i % 7) for i in range(450)]
    megabytes, so_far, alone = running_bits_per_byte(blocks)
    assert len(megabytes) == len(so_far) == len(alone) == 150
    assert megabytes[-1] == pytest.approx(sum(block[2] for block in blocks) / 1e6)
    assert so_far[-1] == pytest.approx(sum(block[1] for block in blocks) / math.log(2) / sum(block[2] for block in blocks))
    assert so_far[0] == alone[0] == pytest.approx((10 + 11 + 12) / math.log(2) / (40 + 41 + 42))
    assert alone[-1] == pytest.approx(sum(b[1] for b in blocks[-3:]) / math.log(2) / sum(b[2] for b in blocks[-3:]))


def test_running_bits_per_byte_without_text() -> None:
    assert running_bits_per_byte([]) == ([], [], [])
    megabytes, so_far, alone = running_bits_per_byte([(1, 3 * math.log(2), 0), (10, 5 * math.log(2), 10)])
    assert megabytes == [1e-05]
    assert so_far == [pytest.approx(0.8)]  # the end of a document costs bits and is no text
    assert alone == [pytest.approx(0.5)]
