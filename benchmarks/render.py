"""Render docs/results.md, the README's picture and what stands between marks in other pages from the committed results.

python benchmarks/render.py
"""

from __future__ import annotations

import json
import statistics
from html import escape
from pathlib import Path
from typing import Any

from record import hardware
from render_ablation import ablation_section
from render_docs import classes_table, with_outputs
from render_forms import forms_section
from render_overview import headlines, overview, overview_picture
from render_published import published_section
from render_quant import codec_section, fit_section, gptq_section, rate_section, tax_section
from render_score import adapt_section
from render_systems import dagger, gpu_section, newest, peers_section, scaling_section, system_figures, systems_section, why_classes_fail

from bytefit.model.inspect import num_parameters
from bytefit.recipes import SYSTEMS, find_recipe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def read_lines(name: str) -> list[dict[str, Any]]:
    """A line of JSON a run; none where nothing was measured."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def provenance(record: dict[str, Any]) -> str:
    machine = record.get("machine") or record["summaries"][0]["hardware"]
    where = f"{hardware([{'machine': machine}])}, {machine['threads']} threads"
    return f"`{record['command']}` at commit `{record['commit'][:10]}`; {where}.{of_an_earlier_pocket(record)}"


def of_an_earlier_pocket(record: dict[str, Any]) -> str:
    """A word where the models were those of ``pocket`` and ``pocket`` is now another."""
    was, now = record.get("num_parameters"), num_parameters(find_recipe("pocket").model)
    if was in (None, now) or record.get("recipe", "pocket") != "pocket":
        return ""
    return f" Of an earlier `pocket`, with {was:,} parameters; today's has {now:,}."


def mean(summaries: list[dict[str, Any]], key: str) -> float:
    return statistics.fmean(summary[key] for summary in summaries)


def pocket_section(title: str, record: dict[str, Any]) -> list[str]:
    runs = record["summaries"]
    first = runs[0]
    lines = [
        f"## {title}",
        "",
        provenance(record),
        f"Dataset hash `{first['dataset_sha256'][:16]}`, {first['val_bytes']:,} bytes of validation text.",
        "",
        "| seed | float | packed | packed, sliding | learning | artifact bytes | steps | tokens | training s | proof |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for run in runs:
        learning = "–" if run["val_bpb_adapted"] is None else f"{run['val_bpb_adapted']:.4f}"
        proof = f"{run['proof_bytes_in']:,} → {run['proof_bytes_out']:,}, {'restored' if run['proof_restored'] else 'NOT restored'}"
        lines.append(
            f"| {run['seed']} | {run['val_bpb_float']:.4f} | {run['val_bpb_full']:.4f} | {run['val_bpb_sliding']:.4f} | {learning} "
            f"| {run['artifact_bytes']:,} | {run['steps']:,} | {run['tokens_seen']:,} | {run['train_seconds']:.1f} "
            f"| {proof} |"
        )
    if "wall_seconds" in record:
        lines += ["", f"{record['wall_seconds']:.0f} s in all: {record['wall_seconds_include']}."]
    lines += ["", "The compressors on the same text, bits per byte: "
              + ", ".join(f"{name} {value:.3f}" for name, value in first["compressors_bpb"].items()) + ".", ""]  # fmt: skip
    return lines


def slices_section(record: dict[str, Any]) -> list[str]:
    """The table's artifacts on other slices of the validation text, the megabyte that no choice has seen among them."""
    lines = [
        "## Text that no choice has seen",
        "",
        provenance(record),
        "The parts and the window of `pocket` were chosen on the first 300 kB of the validation text ([log](log.md)). Here artifacts of "
        "the table of systems are scored on the megabyte of the table, its first half (which is what the contest's own scripts above were "
        "scored on), and the megabyte after it; how hard a text is the compressors show.",
        "",
        "| | text | bytes | sliding | by its own protocol |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        name = f"`{row['recipe']}`, seed {row['seed']}"
        lines.append(f"| {name} | {row['text']} | {row['bytes']:,} | {row['sliding']:.4f} | {row['own']:.4f} |")
    for text, found in record["compressors"].items():
        best = min(found, key=found.__getitem__)
        lines.append(f"| {best}, the best of {len(found)} compressors | {text} | | | {found[best]:.4f} |")
    return [*lines, ""]


def throughput_section(record: dict[str, Any]) -> list[str]:
    no_bf16 = record["machine"].get("cpu_bf16") == "none"
    lines = [
        f"## Training throughput: `{record['recipe']}`, lab size" + (", a processor without bf16" if no_bf16 else ""),
        "",
        provenance(record),
        f"One step of {record['num_parameters']:,} parameters (a vocabulary of {find_recipe(record['recipe']).model.vocab_size:,}) on "
        f"{record['batch_tokens']:,} tokens in windows of {record['seq_len']}, against the plain spelling of the same network "
        "(`benchmarks/plain.py`); interleaved, medians.",
        "",
        "| variant | ms a step | tokens/s | against plain | first step, s (compiled graphs may come from the cache) |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        lines.append(
            f"| {row['variant']} | {row['milliseconds']:.1f} | {row['tokens_per_second']:,} | {row['speedup']:.2f}× "
            f"| {row['first_step_seconds']:.1f} |"
        )
    return [*lines, ""]


def muon_section(record: dict[str, Any]) -> list[str]:
    lines = [
        "## Muon's step",
        "",
        provenance(record),
        "All hidden matrices of a recipe; interleaved, medians. The last column is the largest distance of a matrix's first update from "
        "the formula in float64, relative to the update: bf16 rounding has the same size in both.",
        "",
        "| matrices of | form | ms a step | against torch's | distance from float64 |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        for name, form in row["forms"].items():
            lines.append(
                f"| {row['recipe']}, {row['size']} ({row['matrices']}) | {name} | {form['median_ms']:.1f} "
                f"| {form['times_torchs_speed']:.2f}× | {form['distance_from_float64']:.4f} |"
            )
    return [*lines, ""]


def full_size_section(record: dict[str, Any]) -> list[str]:
    lines = [
        "## Contest sizes on a CPU",
        "",
        provenance(record),
        f"{record['steps']} optimizer steps on 4,096 tokens each, eager: that the recipes run, not how fast. "
        f"Every parameter moved, but for those named. {of_which_rate(record)}",
        "",
        "| recipe | parameters | losses | peak memory, GB | did not move |",
        "| --- | ---: | --- | ---: | --- |",
    ]
    for row in record["rows"]:
        losses = ", ".join(f"{loss:.4f}" for loss in row["losses"])
        still = ", ".join(f"`{name}`" for name in row["parameters_that_did_not_move"]) or "–"
        lines.append(f"| {row['recipe']} | {row['num_parameters']:,} | {losses} | {row['peak_memory_gb']:.2f} | {still} |")
    return [*lines, ""]


def of_which_rate(record: dict[str, Any]) -> str:
    """How large the steps were. Results from before the warm-down was shortened with them do not hold it."""
    scales = [scale for row in record["rows"] for scale in row.get("lr_scales", ())]
    if scales:
        rates = f"factors of {min(scales):g} to {max(scales):g} on the learning rates"
        return f"The schedule was shortened with the steps: {rates}, under which a loss may well rise at first."
    return (
        "They were taken at almost no learning rate: the recipes' warm-downs of 1,200 to 4,000 steps were left as they are, and these "
        "steps are their last. The losses say that the recipes compute, not that they learn."
    )


def full_artifact_section(record: dict[str, Any]) -> list[str]:
    vocabulary = record["rows"][0]["summary"]["tokenizer"]["vocab_size"]
    lines = [
        "## Contest size from training to proof, on a CPU",
        "",
        provenance(record),
        "The full-size recipes with a few steps of training, so that the weights are real: packed into 16,000,000 bytes, loaded, scored "
        "under the system's own protocol, and a slice of the text restored. Their scores mean nothing after so few steps. The vocabulary "
        f"is the web text's, {vocabulary:,}, so that there are more parameters than with the contest's 1,024. Every row holds its command.",
        "",
        "| recipe | parameters | steps | artifact bytes | seconds to load | bits per byte | proof | audit |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for row in record["rows"]:
        s = row["summary"]
        proof = f"{s['proof_bytes_in']:,} → {s['proof_bytes_out']:,}, {'restored' if s['proof_restored'] else 'NOT restored'}"
        audit = "no class fails" if not row["audit_fails"] else f"fails in {', '.join(map(str, row['audit_fails']))}"
        lines.append(
            f"| {row['recipe']} | {s['num_parameters']:,} | {s['steps']} | {s['artifact_bytes']:,} | {row['seconds_to_load']:.1f} "
            f"| {s['val_bpb']:.3f} | {proof} | {audit} |"
        )
    return [*lines, "", *why_classes_fail(record["rows"]), ""]


def picture(record: dict[str, Any]) -> str:
    """A bar chart of bits per byte, readable on light and dark pages."""
    runs = record["summaries"]
    rows = [("bytefit pocket", mean(runs, "val_bpb")), *sorted(runs[0]["compressors_bpb"].items(), key=lambda item: item[1])]
    longest = max(value for _, value in rows)
    height = 34 * len(rows) + 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" font-family="system-ui, sans-serif" font-size="15">',
        "<style>text{fill:#57606a}@media(prefers-color-scheme:dark){text{fill:#c9d1d9}}</style>",
        f'<text x="8" y="22">bits per byte of {runs[0]["val_bytes"] / 1e6:.2f} MB of English text (lower is better)</text>',
    ]
    for i, (name, value) in enumerate(rows):
        y, width = 40 + 34 * i, 470 * value / longest
        colour = "#2e6fdb" if i == 0 else "#9aa4b2"
        parts.append(f'<text x="130" y="{y + 17}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="140" y="{y}" width="{width:.1f}" height="24" rx="4" fill="{colour}"/>')
        parts.append(f'<text x="{148 + width:.1f}" y="{y + 17}">{value:.3f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def contest_section(record: dict[str, Any]) -> list[str]:
    lines = [
        "## Byte accounting with the contest's tokenizers",
        "",
        f"`{record['command']}` at commit `{record['commit'][:10]}`: bytes of the same documents, counted three ways.",
        "",
        "| tokenizer | raw bytes | byte table | the rule, token by token | what the detokeniser writes |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        counts = (row["raw_bytes"], row["counted_by_table"], row["counted_by_the_rule"], row["bytes_the_detokeniser_writes"])
        lines.append(f"| {row['tokenizer']} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    return [*lines, ""]


def headline(record: dict[str, Any]) -> str:
    """The README's first figures."""
    runs = record["summaries"]
    best = min(runs[0]["compressors_bpb"].items(), key=lambda item: item[1])
    seconds, threads = mean(runs, "train_seconds"), runs[0]["hardware"]["threads"]
    text = f"{runs[0]['val_bytes'] / 1e6:.2f} MB of English text that it was not trained on"
    most = max(run["artifact_bytes"] for run in runs)
    return (
        f"**{mean(runs, 'val_bpb'):.3f} bits per byte** on {text}, from {seconds:.0f} s of training on {threads} CPU cores, everything "
        f"in at most **{most:,} bytes** (mean of {len(runs)} seeds; {best[0]}, the best of five compressors on the same text, "
        f"takes {best[1]:.3f}). "
        f"It learns from each document while it reads it, and so does the decoder; without that it is {mean(runs, 'val_bpb_sliding'):.3f}. "
        "Numbers, commands and hardware: [docs/results.md](docs/results.md)."
    )


def write_between(path: Path, what: str, text: str) -> None:
    """Put text between a page's marks."""
    mark = f"<!-- {what}: written by make results -->\n"
    before, rest = path.read_text().split(mark)
    _, after = rest.split("<!-- end -->", 1)
    path.write_text(f"{before}{mark}{text}\n<!-- end -->{after}")


def main() -> None:
    lines = [
        "# Results",
        "",
        "Rendered by `make results` from `benchmarks/results/`. Every measured table names its command and commit, and its hardware where "
        "that matters. What *web text* is, [data.md](data.md) says; *learning* is a score under `adapt` or `documents` "
        "([scoring.md](scoring.md)).",
        "",
    ]
    web, embedded, throughput = read("pocket_web"), read("pocket_embedded"), read("throughput")
    if web:
        lines += pocket_section("`pocket` on web text", web)
        (ROOT / "docs" / "pictures").mkdir(exist_ok=True)
        (ROOT / "docs" / "pictures" / "pocket.svg").write_text(picture(web))
        write_between(ROOT / "README.md", "headline", headline(web))
    if embedded:
        lines += pocket_section("`pocket` on the embedded corpus (`make demo`)", embedded)
    without_units = read("pocket_embedded_fp32")
    if without_units:
        lines += pocket_section("The same on a processor without matrix units for bf16, in fp32", without_units)
    ablation, gpu = read_lines("ablation"), read_lines("gpu")
    steps = json.loads((RESULTS / "systems_steps.json").read_text())
    systems = newest(read_lines("systems"), steps)
    if systems:
        lines += systems_section(systems, steps)
        lines += forms_section(systems, read_lines("systems_again"), steps)
    published = read("published")
    if systems and published:
        lines += published_section(published, systems, lambda rows: dagger(rows, steps))
        scores = headlines(systems, steps)
        write_between(ROOT / "README.md", "systems", overview(scores, published))
        (ROOT / "docs" / "pictures" / "systems.svg").write_text(overview_picture(scores, systems[0]["seconds"]))
    peers = read("peers")
    if peers:
        lines += peers_section(peers)
    slices = read("slices")
    if slices:
        lines += slices_section(slices)
    for name in SYSTEMS:
        write_between(ROOT / "docs" / "systems" / f"{name}.md", "figures", system_figures(name, systems, steps, gpu))
    scaling, between = read_lines("scaling"), [row for row in systems if row["name"] == "pocket" and not dagger([row], steps)]
    if scaling and between:
        lines += scaling_section(scaling, between, ROOT / "docs" / "pictures")
    if ablation:
        lines += ablation_section(ablation, read_lines("step_times"), ROOT / "docs" / "pictures")
    lines += gpu_section(gpu)
    for measured in (throughput, read("throughput_pr1171"), read("throughput_fp32")):
        if measured:
            lines += throughput_section(measured)
    muon, full_size = read("muon"), read("full_size")
    if muon:
        lines += muon_section(muon)
    if full_size:
        lines += full_size_section(full_size)
    full_artifact = read("full_artifact")
    if full_artifact:
        lines += full_artifact_section(full_artifact)
    tax, rate, fit = read("tax"), read("rate"), read("fit")
    if tax:
        lines += tax_section(tax, provenance)
    if rate:
        lines += rate_section(rate, provenance, ROOT / "docs" / "pictures")
    if fit:
        lines += fit_section(fit, read("fit_full"), provenance)
    adapt = read("adapt")
    if adapt:
        lines += adapt_section(adapt, read("adapt_1mb"), provenance)
    gptq, codec = read("gptq"), read("codec")
    if gptq:
        lines += gptq_section(gptq, provenance)
    if codec:
        lines += codec_section(codec, provenance)
    contest = read("contest_bytes")
    if contest:
        lines += contest_section(contest)
    (ROOT / "docs" / "results.md").write_text("\n".join(lines) + "\n")
    write_between(ROOT / "docs" / "rules.md", "classes", classes_table())
    quickstart = read("quickstart")
    if quickstart:
        page = ROOT / "docs" / "quickstart.md"
        page.write_text(with_outputs(page.read_text(), quickstart))


if __name__ == "__main__":
    main()
