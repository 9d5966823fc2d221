"""A recipe from a file, where its name would stand."""

from __future__ import annotations

import json

import pytest

from tests.cli.test_cli import run


def test_a_recipe_of_a_run_is_run_again(tiny_run, capsys) -> None:
    """Every run has its recipe in a file, which is as good as a name; options replace what it says."""
    code, out, _ = run(capsys, "show", tiny_run.recipe, "--json")
    assert code == 0
    assert json.loads(out)["recipe"] == json.loads(tiny_run.recipe.read_text())
    code, out, _ = run(capsys, "show", tiny_run.recipe, "--set", "model.dim=40", "--seed", "9", "--json")
    assert code == 0
    there = json.loads(out)["recipe"]
    assert (there["model"]["dim"], there["seed"]) == (40, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../elsewhere"}, "name '../elsewhere' must be a word without slashes"),
        ({"size": "huge"}, "size: 'huge' is not one of"),
        ({"speed": 3}, "unknown key 'speed'"),
    ],
)
def test_a_file_that_holds_no_recipe_is_named(tiny_run, tmp_path, capsys, change, message) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(json.loads(tiny_run.recipe.read_text()) | change))
    code, out, err = run(capsys, "run", file)
    assert (code, out) == (2, "")
    assert f"{file}: " in err
    assert message in err
