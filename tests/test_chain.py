"""From base to export on tiny random models of nine families that are not Llama, each by one recipe of all stages.

Stages run in this process, one after another, as their own processes would run them.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tercet import pipeline, stage
from tercet.cli.main import main
from tercet.models import tiny
from tercet.models.classes import classifier_class
from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.models.hf_folder import load_config
from tercet.models.miniature import build, miniature
from tercet.models.opening import open_policy
from tercet.recipe import Recipe
from tercet.stage import StageJob
from tercet.store import Artifact, Store
from tercet.track import Tracker

THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and message.reasoning_content %}"
    "<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
FAMILIES = {  # which layout each is read in
    "olmo3": "forest",
    "gemma3_text": "forest",
    "qwen3": "forest",
    "qwen3_moe": "forest",
    "gpt_neox": "forest",
    "gpt_oss": "forest",
    "cohere2": "forest",
    "lfm2": "forest",
    "bloom": "padded",
}
RECIPE = {
    "name": "chain",
    "seed": 3,
    "placement": {"threads": 1, "micro_tokens": 1024},
    "stage": {
        "rows": {"kind": "synth", "generator": "words@1", "rows": 6},
        "prompts": {"kind": "synth", "generator": "constraints@1", "rows": 4},
        "test": {"kind": "synth", "generator": "words@1", "split": "test", "rows": 2},
        "benchmark": {"kind": "benchmark", "tasks": ["words@1"], "items": ["test"]},
        "pairs": {"kind": "pair_mix", "sources": []},
        "sft": {"kind": "sft", "model": "base", "rows": "rows", "batch": 3, "num_epochs": 1},
        "dpo": {"kind": "dpo", "model": "sft", "pairs": "pairs", "batch": 3},
        "reward": {"kind": "reward_model", "model": "sft", "pairs": "pairs", "batch": 2, "holdout": 0.0},
        "ppo": {"kind": "ppo", "model": "dpo", "value": "reward", "prompts": "prompts", "passes": 1},
        "grpo": {"kind": "grpo", "model": "dpo", "prompts": "prompts"},
        "eval-ppo": {"kind": "eval", "model": "ppo", "benchmark": "benchmark", "max_new_tokens": 4},
        "eval-grpo": {"kind": "eval", "model": "grpo", "benchmark": "benchmark", "max_new_tokens": 4},
    },
}
TRAINING = {"learning_rate": 1e-3, "max_length": 512}
ROUNDS = {"rounds": 1, "batch": 2, "num_generations": 2, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory):
    """A folder with the pairs and one store for all families, whose data are the same."""
    folder = tmp_path_factory.mktemp("chain")
    lines = [
        {"prompt": f"say {word}", "chosen": word, "rejected": word.upper()} for word in ("amber", "basil", "cedar")
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    yield folder
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)


def base_folder(kind: str, folder: Path) -> Path:
    """A random model of a family with a tokenizer of bytes, as transformers writes it."""
    special = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258, "max_position_embeddings": 1024}
    model = build(miniature(CONFIG_MAPPING[kind](), vocab_size=259, **special))
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    tiny.write_tokenizer(folder)
    if kind == "qwen3":
        (folder / "chat_template.jinja").write_text(THINKING)
    return folder


def made(recipe: Recipe, store: Store) -> dict[str, Artifact]:
    """Every artifact of a recipe; what is missing is made here."""
    found: dict[str, Artifact] = {}
    environment = dict(os.environ)
    for name, node in pipeline.graph(recipe, store).items():
        if (there := store.find(name, node.key)) is None:
            draft = store.draft(name, node.key)
            draft.open()
            inputs = {need: str(found[need].path) for need in node.inputs}
            stage._run(StageJob.of(recipe, name, node, inputs, {}), recipe, draft, Tracker(draft.path))
            there = store.find(name, node.key)
        assert there is not None
        found[name] = there
    os.environ.clear()
    os.environ.update(environment)
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_stage_makes_what_transformers_reads(kind, shared, tmp_path):
    document = json.loads(json.dumps(RECIPE)) | {"base": {"model": str(base_folder(kind, tmp_path / kind))}}
    for name in ("sft", "dpo", "reward", "ppo", "grpo"):
        document["stage"][name] |= TRAINING | (ROUNDS if name in ("ppo", "grpo") else {})
    document["stage"]["pairs"]["sources"] = [{"path": str(shared / "pairs.jsonl"), "adapter": "prompt_pair"}]
    recipe = Recipe.model_validate(document).resolved()
    store = Store(shared / "runs")
    artifacts = made(recipe, store)
    ids = torch.tensor([[7, 40, 41, 42, 9, 100, 4, 5, 6, 11, 12, 30]])
    forest = pack_forest([Tree(ids[0, :3].tolist(), [Leaf(ids[0, 3:].tolist(), [True] * 9)])])
    for name in ("ppo", "grpo"):
        assert ("padded" in artifacts[name].metrics) == (FAMILIES[kind] == "padded")
        out = tmp_path / name
        assert main(["export", artifacts[name].path.name, str(out), "--store", str(store.root)]) == 0
        model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, dtype=torch.float32)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        with torch.no_grad():
            wanted = model.eval()(input_ids=ids).logits[0].log_softmax(-1)[2:-1].gather(1, ids[0, 3:, None])[:, 0]
            found, _ = open_policy(artifacts[name].payload)(forest)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    check_reward_model(artifacts["reward"].payload)


def check_reward_model(folder: Path) -> None:
    """The reward model is read by transformers' class of its family, or by ours where it has none."""
    kind = classifier_class(load_config(folder))
    reader = AutoModelForSequenceClassification if kind.__module__.startswith("transformers.") else kind
    model, report = reader.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"]
    assert torch.isfinite(model.eval()(input_ids=torch.tensor([[7, 8, 9]])).logits).all()
