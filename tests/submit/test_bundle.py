"""What goes into the script: which modules, what of them, and how many bytes."""

from __future__ import annotations

import ast
import io
import tokenize
from dataclasses import replace

import pytest

from bytefit.artifact.pack import room_for_code
from bytefit.cli import main
from bytefit.errors import UserError
from bytefit.recipes import find_recipe
from bytefit.submit import closure as closures
from bytefit.submit.bundle import script_for, settings_of, with_room_for_code
from bytefit.submit.closure import ROOT, closure
from bytefit.submit.loader import ENTRY
from bytefit.submit.packages import PURPOSES, needed, requirements
from bytefit.submit.strip import stripped

UNNEEDED = """
    bytefit.cli bytefit.report bytefit.audit bytefit.recipes.pocket bytefit.recipes.baseline bytefit.data.build bytefit.data.embedded
    bytefit.data.documents bytefit.score.coder bytefit.score.prove bytefit.score.compressors bytefit.score.generate bytefit.run.pipeline
    bytefit.run.details bytefit.submit.bundle bytefit.submit.record
""".split()


@pytest.mark.parametrize("name", UNNEEDED)
def test_the_script_has_nothing_that_it_does_not_need(name) -> None:
    sources = closure(ENTRY).sources
    assert ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py").exists() or ROOT.joinpath(*name.split(".")[1:]).is_dir()
    assert not [module for module in sources if f"{module}.".startswith(f"{name}.")]


def test_closure_of_a_small_program(write, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(closures, "ROOT", tmp_path)
    files = {
        "__init__.py": "import nowhere",
        "a.py": "from __future__ import annotations\nimport numpy as np\nfrom bytefit.p.b import thing\nfrom bytefit import q\n",
        "p/__init__.py": "from bytefit import unused\n",
        "p/b.py": "def f():\n    if True:\n        from bytefit.c import late\n    from torch.nn import functional\n",
        "q/__init__.py": "from bytefit.q.inner import x\n",
        "q/inner.py": "import json\n",
        "c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from bytefit.unused import y\nimport bytefit.d\n",
        "d.py": "import bytefit.a\n",
        "unused.py": "",
    }
    for name, text in files.items():
        write(name, text)
    found = closure("bytefit.a")
    assert list(found.sources) == ["bytefit.a", "bytefit.c", "bytefit.d", "bytefit.p.b", "bytefit.q", "bytefit.q.inner"]
    assert found.packages == {"numpy", "torch.nn"}
    assert found.sources["bytefit.d"] == files["d.py"]
    with pytest.raises(ModuleNotFoundError, match=r"no module bytefit\.gone"):
        closure("bytefit.gone")


def test_stripping_keeps_behaviour() -> None:
    source = '''"""Of the module."""
from __future__ import annotations
import dataclasses
from typing import get_type_hints
# a comment

@dataclasses.dataclass(frozen=True)
class Point:
    """Of the class."""
    x: int = 1  # kept: fields are read by their annotations
    text: str = "# not a comment"

    def total(self, *more: int, by: float = 2.0, **rest: int) -> float:
        """Of the function."""
        "not a docstring"
        return (self.x + sum(more)) * by

class Empty(Exception):
    """Nothing else."""

def silent() -> None:
    """Nothing else."""

async def later(a: int) -> int:
    """Later."""
    return a
found = Point(2).total(3, by=1.5), Point().text, [*get_type_hints(Point)], silent(), issubclass(Empty, Exception)
'''
    text = stripped(source)
    first, second = {}, {}
    exec(compile(source, "first", "exec"), first)
    exec(compile(text, "second", "exec"), second)
    assert second["found"] == first["found"] == (7.5, "# not a comment", ["x", "text"], None, True)
    assert not any(mark in text for mark in ("Of the", "a comment\n", "Nothing else", "float", "-> "))
    assert second["Point"].total.__defaults__ == first["Point"].total.__defaults__


def without_reading_matter(tree: ast.AST) -> ast.AST:
    """Docstrings as they are dropped by ``-OO``, and functions without annotations: written apart from the code that is tested."""

    class Drop(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            self.generic_visit(node)
            body = getattr(node, "body", None)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                match body:
                    case [ast.Expr(value=ast.Constant(value=str())), *rest]:
                        node.body = rest or ([] if isinstance(node, ast.Module) else [ast.Pass()])
            if isinstance(node, ast.FunctionDef):
                node.returns = None
            if isinstance(node, ast.arg):
                node.annotation = None
            return node

    return Drop().visit(tree)


def test_every_module_stays_the_same_program() -> None:
    for name, source in closure(ENTRY).sources.items():
        text = stripped(source)
        assert ast.dump(ast.parse(text)) == ast.dump(without_reading_matter(ast.parse(source))), name
        assert len(text) < len(source)
        assert not [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT]
        asserts = [sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code))) for code in (text, source)]
        assert asserts[0] == asserts[1]


def test_the_script_is_one_for_all_seeds() -> None:
    recipe = find_recipe("pocket", "tiny")
    script = script_for(recipe)
    assert script_for(replace(recipe, seed=99_999, pack=replace(recipe.pack, code_bytes=12_345))) == script
    assert script_for(replace(recipe, score=replace(recipe.score, stride=16))) != script
    assert "seed" not in settings_of(recipe)
    assert max(map(ord, script.decode())) < 128


def test_room_for_code(capsys) -> None:
    recipe = find_recipe("pr578", "full")
    room = with_room_for_code(recipe).pack
    assert room.code_bytes == room_for_code(len(script_for(recipe)))
    assert room.artifact_bytes == 16_000_000 - room.code_bytes
    assert with_room_for_code(with_room_for_code(recipe)).pack == room
    assert [room_for_code(size) for size in (0, 1, 256, 257)] == [256, 512, 512, 768]  # the same for sizes that are a little apart
    fitted = replace(recipe, model=replace(recipe.model, vocab_size=32_768))
    for dtype in ("float32", "bfloat16"):
        assert len(script_for(fitted, dtype)) <= room.code_bytes
    with pytest.raises(UserError, match=r"of code leave nothing of budget_bytes 20,000 to the artifact"):
        with_room_for_code(find_recipe("pocket", "tiny"))
    assert main(["show", "pocket", "--count-code", "--json"]) == 0
    assert f'"code_bytes": {room_for_code(len(script_for(find_recipe("pocket"))))}' in capsys.readouterr().out


def test_every_package_is_needed_and_known() -> None:
    found = needed(closure(ENTRY).packages)
    assert set(found) == {package for package, _ in PURPOSES.values()}
    assert "torch==" in requirements(found)
    assert "+" not in requirements(found)
    assert requirements({"a": ("1.2+cpu", "")}) == "a==1.2\n"
    with pytest.raises(KeyError, match="torchvision"):
        needed(["torch.nn", "torchvision"])
