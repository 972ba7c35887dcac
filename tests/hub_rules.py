"""What the Hub takes in a card's metadata, written down from its public documentation: nothing of ours is asked."""

from __future__ import annotations

import re

import yaml

LICENCES = {
    "apache-2.0",
    "mit",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "odc-by",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "gemma",
    "unknown",
    "other",
}
ENUMS = {
    "base_model_relation": {"adapter", "merge", "quantized", "finetune"},
    "pipeline_tag": {"text-generation", "text-classification"},
    "library_name": {"transformers", "peft", "gguf"},
    "sdk": {"gradio", "docker", "static"},
    "colorFrom": {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"},
    "colorTo": {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"},
    "size_categories": {"n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B"},
    "task_categories": {"text-generation", "text-classification"},
    "license": LICENCES,
}
REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*")
REQUIRED = {"model": set(), "dataset": set(), "space": {"title", "emoji", "colorFrom", "colorTo", "sdk"}}


def faults(text: str, kind: str = "model") -> list[str]:
    """What the Hub would say against a README."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if not found:
        return ["no metadata"]
    data = yaml.safe_load(found[1])
    needed = REQUIRED[kind] | (
        {"app_port" if data.get("sdk") == "docker" else "app_file"} if kind == "space" else set()
    )
    wrong = [f"{name} is missing" for name in needed - data.keys()]
    for name, allowed in ENUMS.items():
        values = data.get(name, [])
        wrong += [f"{name}: {one!r}" for one in ([values] if isinstance(values, str) else values) if one not in allowed]
    if data.get("license") == "other" and not re.fullmatch(r"[a-z0-9.-]+", data.get("license_name", "")):
        wrong.append("license_name must be given in lower case")
    if data.get("license") == "other" and not re.match(r"https://|LICENSE(\.md)?$", data.get("license_link", "")):
        wrong.append("license_link must be a URL or LICENSE")
    wrong += [f"language: {one!r}" for one in data.get("language", []) if not re.fullmatch(r"[a-z]{2,3}", one)]
    ids = [data["base_model"]] if "base_model" in data else []
    wrong += [
        f"{one!r} is no repository"
        for one in (*ids, *data.get("datasets", []), *data.get("models", []))
        if not REPO.fullmatch(one)
    ]
    wrong += [f"tags: {one!r}" for one in data.get("tags", []) if not isinstance(one, str)]
    return wrong + _model_index(data.get("model-index", []))


def _model_index(index: list) -> list[str]:
    wrong = []
    for model in index:
        wrong += [] if isinstance(model.get("name"), str) else ["model-index: no name"]
        for result in model["results"]:
            has = (result["task"].get("type"), result["dataset"].get("type"), result["dataset"].get("name"))
            wrong += [] if all(isinstance(one, str) and one for one in has) else [f"model-index: {has}"]
            for metric in result["metrics"]:
                fine = isinstance(metric.get("type"), str) and isinstance(metric.get("value"), float | int)
                wrong += [] if fine else [f"model-index: {metric}"]
    return wrong
