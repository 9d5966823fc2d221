"""The README's view of the systems: none is left out, and each seed is drawn."""

from __future__ import annotations

from bytefit.recipes import AS_SUBMITTED, SYSTEMS

PUBLISHED = {
    "systems": {
        "pr693": {"headline": "sliding", "seeds": {"1": {"packed": 1.2, "sliding": 1.1}, "2": {"packed": 1.3, "sliding": 1.2}}},
    }
}


def test_every_system_keeps_its_row_until_it_is_measured() -> None:
    from render_overview import overview

    table = overview({"pr693": [1.9, 2.0, 2.1], "pr693" + AS_SUBMITTED: [1.85]}, PUBLISHED).splitlines()
    assert table[2] == "| `pr693` | 2.000 (3) | 1.850 (1) | 1.1500 (2) |"
    assert {f"| `{name}` | not measured | not measured | – |" for name in SYSTEMS if name != "pr693"} <= set(table)
    assert "| `pocket` | not measured | – | – |" in table


def test_best_comes_first_and_every_seed_has_a_mark() -> None:
    from render_overview import REPAIRED, SUBMITTED, overview_picture

    drawn = overview_picture({"pr128": [2.0, 2.1], "pocket": [1.6], "pr128" + AS_SUBMITTED: [2.2, 2.3, 2.4]}, 300)
    assert drawn.index(">pocket<") < drawn.index(">pr128<")
    in_legend = 1
    assert drawn.count(f'fill="{REPAIRED}"') == 3 + in_legend
    assert drawn.count(f'stroke="{SUBMITTED}"') == 3 + in_legend
