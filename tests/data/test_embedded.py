from __future__ import annotations

from bytefit.data.embedded import MAX_DOCTEST_LINES, _short_doctests, module_document, module_files, thin


def test_modules_of_python_and_of_the_dependencies_are_found() -> None:
    names = [name for name, _ in module_files()]
    assert names == sorted(names)
    assert {"json.decoder", "argparse", "torch.nn.functional", "sympy.core.expr", "numpy.linalg", "numpy"} <= set(names)
    assert not any(".tests." in name for name in names)


def test_document_holds_the_docstrings_in_order(write) -> None:
    file = write(
        "m.py", '"""Top."""\nclass A:\n    """Class."""\n    def f(self):\n        """Method."""\nx = "not this"\ndef g(): "Last."\n'
    )
    assert module_document(("pkg.m", file)) == "pkg.m\n\nTop.\n\nClass.\n\nMethod.\n\nLast."
    assert module_document(("broken", write("b.py", "def ("))) == ""


def test_long_doctests_are_cut_and_repeats_left_out() -> None:
    text = "Before\n" + "\n".join(f">>> f({i})\n{i}" for i in range(20)) + "\n\nAfter"
    short = _short_doctests(text)
    assert short.startswith("Before")
    assert short.endswith("After")
    assert short.count(">>>") <= MAX_DOCTEST_LINES
    paragraph = "A paragraph that is long enough to be noticed when it comes back later on. " * 3
    first, second = (
        f"{name}\n\n{paragraph}\n\n" + f"{name} has words of its own, plenty of them to be kept. " * 8 for name in ("one", "two")
    )
    kept = list(thin(iter([first, second])))
    assert paragraph.strip() in kept[0]
    assert paragraph.strip() not in kept[1]
