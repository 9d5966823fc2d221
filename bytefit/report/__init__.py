"""What a run looks like: the closing scoreboard and ``report.html``."""
