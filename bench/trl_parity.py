"""TRL's side of bench/parity.py: one trainer a case, its own collator and its own `compute_loss`, then backward.

Says its versions, then reads the names of cases from standard input, one a line. For each it leaves the gradients in a
file and answers with one line of JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.utils import pad

Job = dict[str, Any]
Rows = list[dict[str, Any]]
MONITORED = {"kl": "kl", "clip_share": "clip_ratio/region_mean"}  # our names of what both measure
TEXT = Dataset.from_list(
    [{"prompt": "a", "chosen": "b", "rejected": "c"}]
)  # what a trainer is made with, not its batch


class ReadyDPO(DPOTrainer):
    """TRL's trainer on ready tokens."""

    def _prepare_dataset(self, dataset: Dataset, *rest: object, **options: object) -> Dataset:
        return dataset


class ReadyKTO(KTOTrainer):
    """TRL's trainer on ready tokens."""

    def _prepare_dataset(self, dataset: Dataset, *rest: object, **options: object) -> Dataset:
        return dataset


def main() -> None:
    """Answer until there is no further question."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the trainers print is no answer
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    versions = {package.__name__: package.__version__ for package in (trl, transformers, torch, datasets)}
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        case = job["cases"][line.strip()]
        trainer, inputs = TRAINERS[case["trainer"]](job, case)
        trainer.model.train()  # as `train` does before it asks for a loss
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        slopes = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        save_file(slopes, job["gradients"])
        measured = getattr(trainer, "_metrics", {"train": {}})["train"]
        more = {ours: measured[name][-1] for ours, name in MONITORED.items() if name in measured}
        print(json.dumps({"loss": loss.item(), "metrics": more}), file=answers, flush=True)
        del trainer, inputs, loss, slopes
        gc.collect()  # a trainer refers to itself


def dpo(job: Job, case: Job) -> tuple[Any, dict[str, Any]]:
    """DPO and its kin; the reference's log-probabilities are computed by TRL, with its reference model."""
    rows = case["rows"]
    trainer = ReadyDPO(
        model=causal(job, "policy"),
        ref_model=causal(job, "reference"),
        args=DPOConfig(**settings(job, rows), max_length=None, **case["options"]),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["policy"]),
    )
    return trainer, trainer.data_collator(rows)


def kto(job: Job, case: Job) -> tuple[Any, dict[str, Any]]:
    """KTO; the mismatched answers come with the rows."""
    rows = case["rows"]
    trainer = ReadyKTO(
        model=causal(job, "policy"),
        ref_model=causal(job, "reference"),
        args=KTOConfig(**settings(job, rows), max_length=None, **case["options"]),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["policy"]),
    )
    return trainer, trainer.data_collator(rows)


def cpo(job: Job, case: Job) -> tuple[Any, dict[str, Any]]:
    """SimPO, which TRL keeps in its CPO trainer."""
    return _older(CPOTrainer, CPOConfig, job, case)


def orpo(job: Job, case: Job) -> tuple[Any, dict[str, Any]]:
    """ORPO."""
    return _older(ORPOTrainer, ORPOConfig, job, case)


def _older(trainer_class: Any, config: Any, job: Job, case: Job) -> tuple[Any, dict[str, Any]]:
    """Trainers of the older layout tokenise on their own: they are made on one text, and get their batch here."""
    rows = case["rows"]
    trainer = trainer_class(
        model=causal(job, "policy"),
        args=config(**settings(job, rows), max_length=4096, remove_unused_columns=False, **case["options"]),
        train_dataset=TEXT,
        processing_class=AutoTokenizer.from_pretrained(job["policy"]),
    )
    features = []
    for row in rows:
        feature = {}
        for side in ("chosen", "rejected"):
            prompt, answer = row["prompt_ids"], row[f"{side}_ids"]
            feature[f"{side}_input_ids"] = prompt + answer
            feature[f"{side}_attention_mask"] = [1] * len(prompt + answer)
            feature[f"{side}_labels"] = [-100] * len(prompt) + answer
        features.append(feature)
    return trainer, trainer.data_collator(features)


def reward(job: Job, case: Job) -> tuple[Any, dict[str, Any]]:
    """The reward model."""
    rows = case["rows"]
    tokenizer = AutoTokenizer.from_pretrained(job["policy"])
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(case["pad_id"])
    scorer = AutoModelForSequenceClassification.from_pretrained(job["scorer"], num_labels=1, dtype=torch.float32)
    trainer = RewardTrainer(
        model=padded(scorer, job["scorer_padding"]),
        args=RewardConfig(**settings(job, rows), max_length=None, disable_dropout=True, **case["options"]),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return trainer, trainer.data_collator(rows)


def grpo(job: Job, case: Job) -> tuple[Any, dict[str, Any]]:
    """GRPO and its kin on ready rollouts, as the trainer's own generation would hand them over."""
    rows = case["rows"]
    trainer = GRPOTrainer(
        model=causal(job, "policy"),
        reward_funcs=lambda completions, **rest: [0.0] * len(completions),
        args=GRPOConfig(**settings(job, rows), num_generations=len(rows), **case["options"]),
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
        processing_class=AutoTokenizer.from_pretrained(job["policy"], padding_side="left"),
    )
    trainer.current_gradient_accumulation_steps = 1  # transformers sets it when it starts to train
    inputs = rollouts(rows, trainer.processing_class.pad_token_id)
    if "importance_cap" in case:  # as with vLLM, whose log-probabilities differ from the trainer's
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
        gaps = inputs["old_per_token_logps"] - inputs.pop("sampling_per_token_logps")
        inputs["importance_sampling_ratio"] = gaps.exp().clamp(max=case["importance_cap"])
    return trainer, inputs


def rollouts(rows: Rows, pad_id: int) -> dict[str, Tensor]:
    """Prompts padded on the left, completions on the right."""

    def table(key: str, dtype: torch.dtype, value: float = 0, side: str = "right") -> Tensor:
        return pad([torch.tensor(row[key], dtype=dtype) for row in rows], value, side)

    ones = [{name: [1] * len(row[f"{name}_ids"]) for name in ("prompt", "completion")} for row in rows]
    mask = {name: [torch.tensor(one[name]) for one in ones] for name in ("prompt", "completion")}
    trained = table("mask", torch.long)
    return {
        "prompt_ids": table("prompt_ids", torch.long, pad_id, "left"),
        "prompt_mask": pad(mask["prompt"], 0, "left"),
        "completion_ids": table("completion_ids", torch.long, pad_id),
        "completion_mask": pad(mask["completion"], 0, "right"),
        "tool_mask": trained,
        "advantages": torch.tensor([row["advantage"] for row in rows]),
        "old_per_token_logps": table("old_logps", torch.float32),
        "ref_per_token_logps": table("reference_logps", torch.float32),
        "sampling_per_token_logps": table("sampled_logps", torch.float32),
        "num_items_in_batch": trained.sum(),
    }


def settings(job: Job, rows: Rows) -> Job:
    """Arguments for any of the peer's configs: fp32, one batch of all rows, nothing logged or saved."""
    return {
        "output_dir": str(Path(job["gradients"]).parent / "trl"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": len(rows),
        "gradient_accumulation_steps": 1,
    }


def causal(job: Job, which: str) -> PreTrainedModel:
    """A causal LM in the job's precision."""
    return padded(
        AutoModelForCausalLM.from_pretrained(job[which], dtype=getattr(torch, job["dtype"])), job["policy_padding"]
    )


def padded(model: PreTrainedModel, row: int | None) -> PreTrainedModel:
    """The model with another row of its embeddings without gradient: transformers takes the padding token's."""
    embeddings: Any = model.get_input_embeddings()
    embeddings.padding_idx = row
    return model


TRAINERS = {"dpo": dpo, "kto": kto, "cpo": cpo, "orpo": orpo, "reward": reward, "grpo": grpo}

if __name__ == "__main__":
    main()
