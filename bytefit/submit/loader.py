"""The head of a record's script: modules out of a text at its end, imported from memory.

This source stands at the beginning of the script, so it knows the standard library only. Nothing is written to disk, and nothing of bytefit
is imported from anywhere else: a module that the script lacks is an error, even where bytefit is installed.
"""

from __future__ import annotations

import base64
import bz2
import importlib
import json
import sys
from collections.abc import Sequence
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType

PACKAGE = "bytefit"
ENTRY = "bytefit.submit.alone"


class Memory(MetaPathFinder, ExecutionLoader):
    """Finds and loads the modules of the package in a dictionary of sources.

    Lines in tracebacks are those of the modules as they are unpacked.
    """

    def __init__(self, script: Path, sources: dict[str, str]):
        self.script, self.sources = script, sources

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != PACKAGE:
            return None
        if fullname not in self.sources and not self.is_package(fullname):
            raise ModuleNotFoundError(f"{self.script.name} holds no module {fullname}", name=fullname)
        return spec_from_loader(fullname, self)

    def is_package(self, fullname: str) -> bool:
        return any(name.startswith(f"{fullname}.") for name in self.sources)

    def get_source(self, fullname: str) -> str:
        """A package that is only passed through is empty (``closure.py``)."""
        return self.sources.get(fullname, "")

    def get_filename(self, fullname: str) -> str:
        return str(self.script / self.place(fullname))

    def place(self, fullname: str) -> str:
        """The file that a module stands in when it is unpacked."""
        return fullname.replace(".", "/") + ("/__init__.py" if self.is_package(fullname) else ".py")

    def unpack(self, folder: Path) -> None:
        """Write the modules as files, to be read."""
        for name, source in self.sources.items():
            file = folder / self.place(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)


def start(script: str, payload: str) -> None:
    """Run the record: ``payload`` is JSON (modules, and settings of the record), compressed, in base 85."""
    packed = json.loads(bz2.decompress(base64.b85decode(payload)))
    memory = Memory(Path(script).absolute(), packed["sources"])
    if sys.argv[1:2] == ["--unpack"] and len(sys.argv) == 3:
        memory.unpack(Path(sys.argv[2]))
        return
    sys.meta_path.insert(0, memory)
    importlib.import_module(ENTRY).enter(memory.script, packed["settings"])
