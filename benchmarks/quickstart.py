"""Runs the commands of docs/quickstart.md in a folder of their own, as a reader would, and keeps what they print.

    python benchmarks/quickstart.py && make results

``make results`` puts the output under each command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import provenance, write
from render_docs import console_commands

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    made_by, steps = provenance(), []
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "README.md", folder)
        shutil.copytree(ROOT / "docs", Path(folder) / "docs")
        for command in console_commands((ROOT / "docs" / "quickstart.md").read_text()):
            start = time.perf_counter()
            done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{command}: exit code {done.returncode}\n{done.stderr[-1000:]}")
            seconds = time.perf_counter() - start
            steps.append({"command": command, "output": done.stdout, "seconds": round(seconds, 1)})
            print(f"{seconds:6.1f} s  {command}", file=sys.stderr)
    write(ROOT / "benchmarks" / "results" / "quickstart.json", made_by | {"steps": steps})


if __name__ == "__main__":
    main()
