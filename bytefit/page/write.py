"""``page``: one HTML file that holds an artifact, and the JavaScript that decodes and runs it."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2

from bytefit.artifact.codecs import CODECS
from bytefit.artifact.container import Section, read_sections, write_container
from bytefit.artifact.load import Artifact, load_artifact
from bytefit.errors import UserError
from bytefit.files import read_bytes, write_bytes
from bytefit.page.lacks import lacking_parts, lacking_tokenizer
from bytefit.score.compressed import default_protocol
from bytefit.score.windows import Sliding

# The modules, each after those that it imports.
MODULES = """
    container code_stream weights layout linear rotary language_model normaliser merge tokenizer artifact generate reader labels slices
    continue_box surprise_box page
""".split()
_BROWSER_CODECS = ("stored", "zlib")  # what every browser can expand


@dataclass(frozen=True)
class Page:
    """A page that was written.

    Attributes:
        size: bytes of the page.
        artifact: what it holds.
        recompressed: the sections that stand in the page under another codec, because no browser can expand theirs.
    """

    size: int
    artifact: Artifact
    recompressed: list[str]


def write_page(path: Path, out: Path) -> Page:
    """Write the page of the artifact at ``path``.

    Raises:
        UserError: the artifact does not load, or has a part that the page lacks; the message names it.
    """
    artifact = load_artifact(path)
    lacking = lacking_parts(artifact.model.config) + lacking_tokenizer(artifact.tokenizer)
    if lacking:
        raise UserError(f"the page lacks a part of {path}: {', '.join(lacking)}; bytefit generate runs it")
    held, recompressed = browser_artifact(read_bytes(path))
    page = _render(artifact, held, recompressed).encode()
    write_bytes(out, page)
    return Page(len(page), artifact, recompressed)


def browser_artifact(data: bytes) -> tuple[bytes, list[str]]:
    """The same artifact with codecs that browsers know, and the kinds of the sections that were recompressed for it.

    Sections that are stored or compressed with zlib stay as they are, byte for byte: with ``pack.codec="context"`` all codes. What the
    others hold stays the same too; only its compression changes.
    """
    sections, changed = [], []
    for section in read_sections(data):
        if section.codec.name not in _BROWSER_CODECS:
            changed.append(section.kind)
            section = _with_zlib(section)
        sections.append(section)
    return write_container(sections), changed


def _with_zlib(section: Section) -> Section:
    raw = section.expand(section.raw_size)  # the artifact has been loaded, so that its sizes are known to be right
    return Section(section.kind, CODECS["zlib"], CODECS["zlib"].compress(raw), len(raw))


def page_script() -> str:
    """All modules as one: between them imports fall away, and so does the word ``export``."""
    sources = [(files("bytefit") / "page" / "js" / f"{name}.mjs").read_text(encoding="utf-8") for name in MODULES]
    return "\n".join(re.sub(r"^import .*\n|^export ", "", source, flags=re.MULTILINE) for source in sources)


def _render(artifact: Artifact, held: bytes, recompressed: list[str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bytefit", "page"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    context_note, learning_note = _protocol_notes(artifact)
    return environment.get_template("page.html").render(
        name=" ".join(str(artifact.notes[key]) for key in ("recipe", "size") if key in artifact.notes),
        size=artifact.size,
        sha256=artifact.sha256,
        parts=artifact.parts,
        recompressed=recompressed,
        num_parameters=sum(parameter.numel() for parameter in artifact.model.parameters()),
        vocab_size=artifact.tokenizer.vocab_size,
        context_note=context_note,
        learning_note=learning_note,
        style=(files("bytefit") / "page" / "page.css").read_text(encoding="utf-8"),
        script=page_script(),
        artifact=base64.b64encode(held).decode(),
    )


def _protocol_notes(artifact: Artifact) -> tuple[str, str]:
    """What a token sees, as js/reader.mjs gives it, and what the page leaves out of the artifact's own protocol."""
    protocol, learning_note = default_protocol(artifact), ""
    if not isinstance(protocol, Sliding):
        learning_note = "This model was packed to learn from the text while it reads; the page does not. "
    fewest = protocol.window - protocol.stride + 1
    return f"the {fewest} to {protocol.window} tokens before it (at the start all there are)", learning_note
