"""The card of a model, data set or report: metadata that the Hub understands, and a body for people.

Everything comes from the records of the store: lineage, data sheets, evaluations with their task cards.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tercet.cli import licences
from tercet.hub import is_local
from tercet.inline import score
from tercet.outside import without_userinfo
from tercet.recipe import kinds_of
from tercet.records import Score, read_scores, stated_licences, summary_of
from tercet.store import Artifact, Store

LARGE = "100M<n<1B"
GENERATION, CLASSIFICATION = "text-generation", "text-classification"
SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
    10**8: "10M<n<100M",
}
_HUB = re.compile(r"(?:hf:)?(\w[\w.-]*/\w[\w.-]*)(?:/.*)?")


@dataclass(frozen=True)
class Form:
    """How a model is written out. Example: `Form("adapter", adapted="org/base", where="me/mine")`."""

    kind: str = "folder"  # or adapter, gguf
    adapted: str = ""  # what an adapter belongs on
    where: str = "DIR"  # folder or hub id, for the lines that load it
    file: str = ""  # of a GGUF


def model_card(artifact: Artifact, store: Store, form: Form) -> str:
    """What the model is, how it was made, from which data, under which licence, how it scored and how to load it."""
    from huggingface_hub import ModelCardData

    line = store.lineage(artifact)
    base = str(next((one.record["spec"]["model"] for one in line if one.kind == "base"), ""))
    known, parts = licences.base_of(base), stated_licences(line)
    terms, evaluations = licences.of_model(base, parts), dict(_evaluations(artifact, store))
    reads = artifact.kind in kinds_of("reward model")
    data = ModelCardData(
        license=str(terms.licence),
        license_name=terms.name or None,
        license_link=terms.link or None,
        base_model=known.hub or None,
        base_model_relation=_relation(artifact, form) if known.hub else None,
        datasets=hub_data(line) or None,
        language=list(known.language) or None,
        pipeline_tag=CLASSIFICATION if reads else GENERATION,
        library_name="peft" if form.kind == "adapter" else "gguf" if form.kind == "gguf" else "transformers",
        tags=["tercet", *_trained(line), *(["lora"] if form.kind == "adapter" else [])],
        model_name=artifact.name,
        eval_results=_results(evaluations) or None,
    )
    body = (
        _environment()
        .get_template("card.md.j2")
        .render(
            artifact=artifact,
            base=without_userinfo(base),
            form=form,
            lineage=line,
            data=_data(line),
            said=terms.said,
            scores=_score_rows(evaluations),
            limits=_limits(artifact, line, evaluations),
            reads=reads,
            settings=[(one, _json(one.record["spec"])) for one in line if one.kind != "base"],
        )
    )
    return _with_metadata(data.to_dict(), body)


def data_card(artifact: Artifact, file: Path, where: str) -> str:
    """What a data set holds, source by source, with licences; `file` is its table."""
    sheet = summary_of(artifact.payload)
    parts = stated_licences([artifact])
    terms, rows = licences.of_data(parts), int(sheet.get("rows", artifact.metrics.get("rows", 0)))
    data = {
        "license": terms.licence,
        "size_categories": [next((name for most, name in SIZES.items() if rows < most), LARGE)],
        "task_categories": [GENERATION],
        "tags": ["tercet", artifact.kind.replace("_", "-")],
        "configs": [{"config_name": "default", "data_files": file.name}],
    }
    body = (
        _environment()
        .get_template("data_card.md.j2")
        .render(
            artifact=artifact,
            rows=rows,
            sheet=sheet,
            said=terms.said,
            where=where,
            data=_data([artifact]),
            file=file.name,
            settings=_json(artifact.record["spec"]),
        )
    )
    return _with_metadata(data, body)


def space_card(artifact: Artifact, title: str) -> str:
    """The head of a static Space: the report is its page."""
    data: dict[str, Any] = {"title": title[:60], "emoji": "📊", "colorFrom": "gray", "colorTo": "blue", "sdk": "static"}
    data |= {"app_file": "index.html", "pinned": False, "tags": ["tercet"]}
    return _with_metadata(
        data, f"# {title}\n\nThe report `{artifact.path.name}` of Tercet; `index.html` is the page.\n"
    )


def docker_card(title: str, models: Mapping[str, str]) -> str:
    """The head of a Space that runs `tercet play`, and whose models it shows."""
    data: dict[str, Any] = {"title": title[:60], "emoji": "🔎", "colorFrom": "purple", "colorTo": "green"}
    data |= {"sdk": "docker", "app_port": 7860, "pinned": False, "tags": ["tercet"]}
    ids = [place.partition("@")[0] for place in models.values()]
    if shown := [one for one in ids if _HUB.fullmatch(one)]:
        data["models"] = shown
    table = "\n".join(f"| {_cell(name)} | `{_cell(place)}` |" for name, place in models.items())
    return _with_metadata(
        data,
        f"# {title}\n\nModels made with Tercet answer the same prompt side by side, token by token, with verdicts. "
        "The page is\nread-only: nothing that visitors type is kept. Private models need the secret `HF_TOKEN`.\n\n"
        f"| column | model |\n|---|---|\n{table}\n",
    )


def hub_data(line: list[Artifact]) -> list[str]:
    """The hub ids of the sources in a lineage."""
    paths = [source["path"] for one in line for source in one.record["spec"].get("sources", []) if source["path"]]
    return list(dict.fromkeys(found[1] for path in paths if not is_local(path) and (found := _HUB.fullmatch(path))))


def _relation(artifact: Artifact, form: Form) -> str | None:
    """What the Hub calls the way from base to model; a base that was only copied has none."""
    if form.kind == "adapter":
        return "adapter"
    if artifact.kind in kinds_of("weights", "reward model") and artifact.kind not in ("base", "model"):
        return "finetune"
    return "quantized" if form.kind == "gguf" else None


def _trained(line: list[Artifact]) -> list[str]:
    """The kinds of training in a lineage, as tags."""
    made = [one.kind for one in line if one.kind in kinds_of("weights", "reward model")]
    return list(dict.fromkeys(kind.replace("_", "-") for kind in made if kind not in ("base", "model")))


def _evaluations(artifact: Artifact, store: Store) -> Iterator[tuple[str, Mapping[str, Score]]]:
    """Every evaluation of this very model in the store."""
    for evaluation in store:
        used = evaluation.kind == "eval" and evaluation.inputs.get(artifact.name) == artifact.key
        if used and evaluation.record["spec"]["model"] == artifact.name:
            yield evaluation.path.name, read_scores(evaluation.payload)


def _results(evaluations: Mapping[str, Mapping[str, Score]]) -> list[Any]:
    """The scores as the Hub's `model-index` has them, each with how it was asked."""
    from huggingface_hub import EvalResult

    found = []
    for name, scores in evaluations.items():
        for task, one in scores.items():
            source = one.card.data[0] if one.card.data and not isinstance(one.card.data, dict) else None
            known = source and not is_local(source.path) and _HUB.fullmatch(source.path)
            if not math.isfinite(one.score):
                continue
            asked = {"n": one.n, "stderr": one.stderr, "shots": one.card.shots, "verifier": one.card.verifier}
            asked |= {"judge": one.card.judge, "temperature": one.card.sampling.temperature, "evaluation": name}
            result = EvalResult(
                task_type=GENERATION,
                dataset_type=known[1] if known else task,
                dataset_name=one.card.name or task,
                dataset_config=(source.subset or None) if source and known else None,
                dataset_split=(source.split or None) if source and known else None,
                dataset_revision=(source.revision or None) if source and known else None,
                metric_type=one.metric,
                metric_value=one.score,
                metric_name=f"{task}: {one.metric}",
                metric_args={key: value for key, value in asked.items() if value not in (None, "")},
            )
            found.append(result)
    return found


def _score_rows(evaluations: Mapping[str, Mapping[str, Score]]) -> list[tuple[str, ...]]:
    """The scores as a table's rows."""
    return [
        (task, one.metric, score(one.score, one.stderr), str(one.n), _asked(one), name)
        for name, scores in evaluations.items()
        for task, one in scores.items()
    ]


def _asked(one: Score) -> str:
    """How a task was asked, in a few words."""
    shots = "" if one.card.shots is None else f"{one.card.shots}-shot"
    return ", ".join(part for part in (shots, one.card.verifier, one.card.judge and f"judge {one.card.judge}") if part)


def _limits(artifact: Artifact, line: list[Artifact], evaluations: Mapping[str, Mapping[str, Score]]) -> list[str]:
    """What a user should not expect, as far as the records tell."""
    found = [] if evaluations else ["It was not evaluated."]
    skills = {one.card.skill.lower() for scores in evaluations.values() for one in scores.values()}
    if not any("safe" in skill for skill in skills):
        found.append("Its safety was not measured.")
    lengths = [one.record["spec"]["max_length"] for one in line if one.record["spec"].get("max_length")]
    if lengths:
        found.append(f"It was trained on at most {max(lengths):,} tokens at once.")
    small = [task for scores in evaluations.values() for task, one in scores.items() if one.n < 100]
    if small:
        found.append(f"Fewer than 100 items were asked of {', '.join(dict.fromkeys(small))}: read the errors.")
    return found


def _data(line: list[Artifact]) -> list[str]:
    """The sources of every mixture in the lineage, and the generators."""
    found = []
    for artifact in line:
        spec = artifact.record["spec"]
        if artifact.kind == "synth":
            found.append(f"- `{artifact.name}`: {spec['rows']} rows of the generator `{spec['generator']}`")
        for source in spec.get("sources", []):
            if source["path"]:
                pinned = f" at revision {source['revision']}" if source["revision"] else ""
                found.append(f"- `{source['path']}` {source['subset']} {source['split']}{pinned}".replace("  ", " "))
    return list(dict.fromkeys(found))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _cell(value: Any) -> str:
    """A text that stays inside its cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    found.filters["cell"] = _cell
    return found


def _with_metadata(data: Mapping[str, Any], body: str) -> str:
    """YAML between its marks, then the body."""
    from huggingface_hub import CardData

    return f"---\n{CardData(**data).to_yaml()}\n---\n\n{body}"
