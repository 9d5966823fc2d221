"""Progress in a log file."""

from __future__ import annotations

from bytefit.progress import progress_bar, say


def test_a_bar_in_a_log_is_lines_that_nothing_wipes(capsys) -> None:
    """No returns to the start of a line, which are noise in a file; what is said between stands by itself."""
    with progress_bar(total=2, desc="working", mininterval=0.0, delay=0.0) as bar:
        bar.update()
        say("half of it")
        bar.update()
    said = capsys.readouterr().err
    assert "\r" not in said
    lines = said.splitlines()
    assert "half of it" in lines
    assert [line for line in lines if line.startswith("working:") and "1/2" in line]
    assert [line for line in lines if line.startswith("working:") and "2/2" in line]
    assert all(line == line.strip() != "" for line in lines)
