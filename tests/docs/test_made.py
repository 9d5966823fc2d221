"""What a command writes into README and docs is what stands there; and the pictures can be made."""

from __future__ import annotations

import filecmp
import re
import shutil
import subprocess
import sys

import pytest

from tests.browser import CHROMIUM
from tests.docs.pages import PAGES, ROOT


def test_rendering_again_changes_nothing(tmp_path) -> None:
    """Every figure in README and docs between marks, every table and chart comes from the results that are kept."""
    shutil.copy(ROOT / "README.md", tmp_path)
    for name in ("docs", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, tmp_path / "benchmarks" / "render.py"], check=True, cwd=ROOT)
    pages = ["README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*") if path.is_file())]
    made = [str(path.relative_to(tmp_path)) for path in (tmp_path / "docs").rglob("*") if path.is_file()]
    assert sorted(made) == sorted(pages[1:])
    assert filecmp.cmpfiles(ROOT, tmp_path, pages, shallow=False)[1:] == ([], [])


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_pictures_are_made_from_a_run(tiny_run, tmp_path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "pictures.py", tiny_run.path, "--out", tmp_path]
    subprocess.run(command, check=True, cwd=ROOT)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(made) == {path.name for path in (ROOT / "docs" / "pictures").glob("*.webp")}
    for name, data in made.items():
        assert data[:4] == b"RIFF"
        assert data[8:12] == b"WEBP"
        assert len(data) > 10_000, name  # an empty page is smaller
