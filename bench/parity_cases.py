"""What bench/parity.py compares: the models, pairs and rollouts, and every loss with Tercet's side of it.

Tercet's side is the stages' own code: trees, packed forests, batches, reference table, losses. What one optimiser step
does before it descends is done here by hand: backward through each batch's total, one division by the whole weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tercet.device.mesh import Mesh
from tercet.device.shard import Trainable
from tercet.models import tiny
from tercet.models.chat import Chat
from tercet.models.forest import Forest, Leaf, Tree
from tercet.models.hf_folder import load_tokenizer
from tercet.recipe import DPOSpec, GRPOSpec
from tercet.rows import Message
from tercet.train.batch import Batch, batches
from tercet.train.compared import Compared
from tercet.train.dpo import answer_sums, preference_loss
from tercet.train.export import open_policy
from tercet.train.kto import Labels, mismatch, mismatched, of_labels
from tercet.train.loop import Loss
from tercet.train.packing import Budget
from tercet.train.reference import Table, answer_logps
from tercet.train.reward_model import open_scorer, padding, reward_loss
from tercet.train.rl.grpo import grpo_loss

TEMPERATURE = 0.8
LIMIT = 4096  # tokens of a pass without gradient
SHARPER = 4.0  # the tiny model's random weights times this: log-ratios to the reference become nats, not thousandths
# the reference's weights are the policy's plus noise of this share of each tensor's standard deviation
DRIFT = {"tiny": 0.3, "real": 0.02}
TEXTS = (
    ("What is two plus three?", "Two plus three is five.", "It is six, I think, or perhaps seven."),
    ("Name a colour of the rainbow.", "Green.", "The rainbow has many."),
    ("Write one line about the sea.", "The sea keeps its own time, and lends it to no one.", "Sea."),
    ("Is water wet?", "Most people would say so.", "No! Water is dry, dry as dust, and that is that."),
)
Rows = list[dict[str, Any]]
World = dict[str, Any]


@dataclass
class Case:
    """One loss: TRL's trainer, options and rows; Tercet's module, batches and loss; what differs by design."""

    name: str
    trainer: str
    options: dict[str, Any]
    rows: Rows
    ours: Callable[[], Found]
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)


class Found(NamedTuple):
    """A loss, its gradients by parameter, and what the loss measured on the way."""

    loss: float
    slopes: dict[str, Tensor]
    metrics: dict[str, float]


def prepare(folder: Path, model: str, seed: int, dtype: str) -> World:
    """Folders of the policy, a reference that has drifted from it and a scorer; pairs and rollouts as tokens."""
    policy_folder = Path(model).resolve()
    if model == "tiny":
        policy_folder = random_llama(folder / "policy", seed)
    drift = DRIFT["tiny" if model == "tiny" else "real"]
    chat = Chat(load_tokenizer(policy_folder))
    source = torch.Generator().manual_seed(seed)
    reference = open_policy(policy_folder)
    with torch.no_grad():
        for value in reference.parameters():
            value.add_(drift * value.std() * torch.randn(value.shape, generator=source))
    reference.model.save_pretrained(folder / "reference")
    padding_rows = {"policy_padding": reference.model.get_input_embeddings().padding_idx}
    pad_id = padding(chat)
    scorer = open_scorer(policy_folder, pad_id, seed)
    scorer.model.save_pretrained(folder / "scorer")
    padding_rows["scorer_padding"] = scorer.model.get_input_embeddings().padding_idx
    world = {"policy": policy_folder, "reference": folder / "reference", "scorer": folder / "scorer", "seed": seed}
    pairs = []
    for asked, chosen, rejected in TEXTS:
        prompt_ids, chosen_ids = chat.pair([Message("user", asked)], chosen)
        pairs.append({"prompt_ids": prompt_ids, "chosen_ids": chosen_ids})
        pairs[-1]["rejected_ids"] = chat.pair([Message("user", asked)], rejected)[1]
    world |= {"padding": padding_rows, "dtype": getattr(torch, dtype)}
    return world | {"pad_id": pad_id, "pairs": pairs, "rollouts": rollouts(pairs, world, source)}


def random_llama(folder: Path, seed: int) -> Path:
    """The tests' model, with weights large enough to have opinions."""
    tiny.build(folder, seed)
    policy = open_policy(folder)
    with torch.no_grad():
        for value in policy.parameters():
            value.mul_(SHARPER if value.dim() > 1 else 1.0)
    policy.model.save_pretrained(folder)
    return folder


def rollouts(pairs: Rows, world: World, source: torch.Generator) -> Rows:
    """Three answers a prompt: log-probabilities that the policy has moved away from, some tokens a tool's."""
    policy, reference = open_policy(world["policy"]), open_policy(world["reference"])
    rows = []
    for pair in pairs:
        for answer in (pair["chosen_ids"], pair["rejected_ids"], pair["chosen_ids"][::-1]):
            mask = [1] * len(answer)
            mask[1:3] = [0] * len(mask[1:3]) if len(answer) > 5 else mask[1:3]
            rows.append({"prompt_ids": pair["prompt_ids"], "completion_ids": answer, "mask": mask})
    with torch.no_grad():
        for row in rows:
            whole = Tree(row["prompt_ids"], [Leaf(row["completion_ids"], [True] * len(row["mask"]))])
            forest = batches([whole], Budget(1), Mesh())[0].forest
            now, base = (model(forest, temperature=TEMPERATURE)[0] for model in (policy, reference))
            noise = torch.randn(3, len(now), generator=source)
            row["old_logps"] = (now + 0.3 * noise[0]).tolist()
            row["sampled_logps"] = (now + 0.3 * noise[0] + 0.6 * noise[1]).tolist()
            row["reference_logps"] = base.tolist()
            row["advantage"] = float(noise[2, 0])
    return rows


def cases(world: World) -> list[Case]:
    """Every loss that both sides have."""
    return [*preferences(world), *rewards(world), *policies(world)]


def preferences(world: World) -> Iterator[Case]:
    """Losses on pairs."""
    pairs = world["pairs"]
    one = partial(pair_case, world)
    yield one("dpo", "dpo", {"loss_type": ["sigmoid"], "beta": 0.1}, pairs, {"beta": 0.1})
    yield one("dpo_norm", "dpo", {"loss_type": ["sigmoid_norm"], "beta": 5.0}, pairs, {"beta": 5.0})
    yield one("ipo", "dpo", {"loss_type": ["ipo"], "beta": 0.1}, pairs, {"beta": 0.1})
    simpo = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 0.6}
    ours = {"beta": 2.0, "gamma_beta_ratio": 0.3}
    yield one("simpo", "cpo", simpo, pairs, ours)
    smooth = {"label_smoothing": 0.1}
    note = "TRL's simpo_gamma is gamma; gamma_beta_ratio is gamma / beta"
    yield one("simpo, smoothed", "cpo", simpo | smooth, pairs, ours | smooth, note=note)
    anchored = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.1}
    note = "TRL averages the anchor over all tokens of a batch, Tercet over answers: chosen answers of one length here"
    yield one("dpo + nll", "dpo", anchored, alike(pairs), {"loss": "dpo", "beta": 0.1, "sft_weight": 0.5}, note=note)
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.5, "beta": 0.1}
    note = (
        "TRL pairs each prompt of a batch with the answer before its own; here its rows carry Tercet's mismatched "
        "answers, the next pair's chosen ones, so that the two KLs are means over the same answers"
    )
    yield one("kto", "kto", weights, unpaired(pairs), weights, pairs=pairs, note=note)
    yield single_answers(world, weights, note.replace("the next pair's chosen ones", "the next row's"))
    note = (
        "TRL's NLL counts the prompt and averages over all tokens of a batch, Tercet's counts answers and averages "
        "over them: prompts of one token and chosen answers of one length here, where the two are the same number"
    )
    yield one("orpo", "orpo", {"beta": 0.2}, alike(opened(pairs)), {"odds_weight": 0.2}, note=note)


def pair_case(  # noqa: PLR0913
    world: World,
    name: str,
    trainer: str,
    options: dict[str, Any],
    rows: Rows,
    ours: dict[str, Any],
    *,
    pairs: Rows | None = None,
    note: str = "",
) -> Case:
    """A loss on pairs; `pairs` where TRL's rows are not pairs."""
    spec = DPOSpec(model="base", pairs="pairs", **{"loss": name.partition(",")[0], **ours})
    return Case(name, trainer, options, rows, partial(prefer, world, pairs or rows, spec), note)


def unpaired(pairs: Rows) -> Rows:
    """Each pair as two examples of KTO, both mismatched with the next pair's chosen answer."""
    others = [*pairs[1:], pairs[0]]
    return [
        {
            "prompt_ids": pair["prompt_ids"],
            "completion_ids": pair[f"{side}_ids"],
            "KL_completion_ids": other["chosen_ids"],
            "label": side == "chosen",
        }
        for side in ("chosen", "rejected")
        for pair, other in zip(pairs, others, strict=True)
    ]


def single_answers(world: World, weights: dict[str, Any], note: str) -> Case:
    """KTO on rows of which each has one answer and a label: three good ones and a bad one here."""
    good = [number != 1 for number in range(len(world["pairs"]))]
    chosen = [pair["chosen_ids" if one else "rejected_ids"] for pair, one in zip(world["pairs"], good, strict=True)]
    keys = ("prompt_ids", "completion_ids", "KL_completion_ids", "label")
    asked = [pair["prompt_ids"] for pair in world["pairs"]]
    rows = [
        dict(zip(keys, row, strict=True)) for row in zip(asked, chosen, [*chosen[1:], chosen[0]], good, strict=True)
    ]
    spec = DPOSpec(model="base", pairs="unpaired", loss="kto", **weights)
    return Case("kto, unpaired", "kto", weights, rows, partial(labelled, world, rows, spec), note)


def labelled(world: World, rows: Rows, spec: DPOSpec) -> Found:
    """As `prefer`, of rows with one answer each."""
    trees = [
        Tree(row["prompt_ids"], [Leaf(row["completion_ids"], [True] * len(row["completion_ids"]))]) for row in rows
    ]
    others = mismatched(trees, range(len(trees)), LIMIT)
    reference = open_policy(world["reference"], world["dtype"])
    table = Table(answer_logps(reference, trees, Mesh()), [answer_logps(reference, others, Mesh())])
    kl = mismatch(others, table, Trainable(open_policy(world["policy"]), torch.float32, Mesh()), 0, Budget(LIMIT))
    good_R, weights = np.array([row["label"] for row in rows]), (spec.desirable_weight, spec.undesirable_weight)
    labels = Labels(good_R, np.arange(len(rows)), weights)

    def values(items: list[int], _forest: Forest) -> dict[str, Tensor]:
        return labels.sides(items) | {"reference_L": table.answers[items].reshape(-1), "kl": kl}

    policy = open_policy(world["policy"], world["dtype"])
    found = learned(policy, halves(trees, values), Compared(answer_sums, partial(of_labels, spec=spec)))
    return found._replace(metrics=found.metrics | {"kl": float(kl)})


def alike(pairs: Rows) -> Rows:
    """The pairs with chosen answers cut to one length."""
    least = min(len(pair["chosen_ids"]) for pair in pairs)
    return [pair | {"chosen_ids": pair["chosen_ids"][:least]} for pair in pairs]


def opened(pairs: Rows) -> Rows:
    """The pairs with prompts of one token: the rest of the prompt is the beginning of both answers."""
    return [
        {"prompt_ids": pair["prompt_ids"][:1]}
        | {side: pair["prompt_ids"][1:] + pair[side] for side in ("chosen_ids", "rejected_ids")}
        for pair in pairs
    ]


def prefer(world: World, rows: Rows, spec: DPOSpec) -> Found:
    """Preference tuning's own steps: the reference first, kto's KL over all pairs, batches, the loss."""
    trees = [fork(row) for row in rows]
    others = mismatched(trees, range(len(trees)), LIMIT)
    reference = open_policy(world["reference"], world["dtype"])
    table = Table(answer_logps(reference, trees, Mesh()), [answer_logps(reference, others, Mesh())])
    policy = open_policy(world["policy"], world["dtype"])
    kl = torch.zeros(())
    if spec.loss == "kto":
        kl = mismatch(others, table, Trainable(open_policy(world["policy"]), torch.float32, Mesh()), 0, Budget(LIMIT))

    def values(items: list[int], _forest: Forest) -> dict[str, Tensor]:
        return {"reference_L": table.answers[items].reshape(-1), "kl": kl}

    found = learned(policy, halves(trees, values), partial(preference_loss, spec=spec))
    return found._replace(metrics=found.metrics | {"kl": float(kl)})


def fork(row: dict[str, Any]) -> Tree:
    """A prompt with its two answers."""
    return Tree(row["prompt_ids"], [Leaf(row[key], [True] * len(row[key])) for key in ("chosen_ids", "rejected_ids")])


def rewards(world: World) -> Iterator[Case]:
    """The reward model, with one fresh head on both sides."""
    sides = ("chosen_ids", "rejected_ids")
    rows = [{side: pair["prompt_ids"] + pair[side] for side in sides} for pair in world["pairs"]]
    more = {"pad_id": world["pad_id"]}
    note = "TRL's model is given the embedding row without gradient: transformers freezes the padding token's"
    yield Case("reward", "reward", {}, rows, partial(score, world, None), note, more)
    rated = [row | {"margin": 0.5 * number} for number, row in enumerate(rows)]
    margins = torch.tensor([row["margin"] for row in rated])
    yield Case("reward, margin", "reward", {}, rated, partial(score, world, margins), more=more)


def score(world: World, margins: Tensor | None) -> Found:
    """The reward stage's scorer and loss."""
    scorer = open_scorer(world["policy"], world["pad_id"], world["seed"])

    def values(items: list[int], _forest: Forest) -> dict[str, Tensor]:
        return {} if margins is None else {"margin_B": margins[items]}

    return learned(scorer, halves([fork(row) for row in world["pairs"]], values), reward_loss)


def policies(world: World) -> Iterator[Case]:
    """GRPO and its kin: one set of rollouts for all."""
    rows = world["rollouts"]
    longest = max(len(row["completion_ids"]) for row in rows)
    common = {"beta": 0.05, "temperature": TEMPERATURE, "max_completion_length": longest}
    common["use_bias_correction_kl"] = False
    clip = {"epsilon": 0.2, "epsilon_high": 0.28}
    ours = {"clip_low": 0.2, "clip_high": 0.28}
    sequence = {"reduction": "sequence_mean"}
    capped = "TRL clamps the weight to an absolute epsilon_high; Tercet's clip_high is that minus 1"
    short = {"epsilon": 0.02, "epsilon_high": 0.03}
    corrected = "TRL multiplies the KL by the ratio unless use_bias_correction_kl is off, as in all of these"
    ratio = "TRL computes the capped ratio where it generates, outside its loss: it is handed over ready"
    listed = (
        ("grpo", {"loss_type": "grpo", **clip}, {**ours, **sequence}, corrected),
        ("dapo", {"loss_type": "dapo", **clip}, {**ours, "reduction": "token_mean"}, ""),
        ("bnpo", {"loss_type": "bnpo", **clip}, {**ours, "reduction": "token_mean"}, "one batch: the same as dapo"),
        ("dr_grpo", {"loss_type": "dr_grpo", **clip}, {**ours, "reduction": "constant"}, ""),
        (
            "cispo",
            {"loss_type": "cispo", "epsilon_high": 1.28},
            {"loss": "cispo", "clip_low": 1.0, "clip_high": 0.28},
            capped,
        ),
        (
            "gspo",
            {"loss_type": "grpo", "importance_sampling_level": "sequence", **short},
            {"loss": "gspo", "clip_low": 0.02, "clip_high": 0.03, **sequence},
            "",
        ),
        ("grpo, capped", {"loss_type": "grpo", **clip}, {**ours, **sequence, "importance_cap": 1.5}, ratio),
    )
    for name, options, mine, note in listed:
        fixed = {"kl_beta": 0.05, "temperature": TEMPERATURE, "max_new_tokens": longest, "rounds": 1}
        spec = GRPOSpec(model="base", prompts="rows", **fixed, **mine)
        more = {"importance_cap": spec.importance_cap} if spec.importance_cap else {}
        yield Case(name, "grpo", common | options, rows, partial(reinforce, world, spec), note, more)


def reinforce(world: World, spec: GRPOSpec) -> Found:
    """GRPO's loss on trees of a prompt with its answers."""
    groups: dict[tuple[int, ...], Rows] = {}
    for row in world["rollouts"]:
        groups.setdefault(tuple(row["prompt_ids"]), []).append(row)
    trees = [
        Tree(prompt, [Leaf(row["completion_ids"], [bool(kept) for kept in row["mask"]]) for row in rows])
        for prompt, rows in groups.items()
    ]
    listed = list(groups.values())
    names = {"old_P": "old_logps", "reference_P": "reference_logps", "sampled_P": "sampled_logps"}

    def values(items: list[int], _forest: Forest) -> dict[str, Tensor]:
        rows = [row for i in items for row in listed[i]]
        kept = [[place for place, on in enumerate(row["mask"]) if on] for row in rows]
        found = {
            ours: torch.tensor([row[key][place] for row, places in zip(rows, kept, strict=True) for place in places])
            for ours, key in names.items()
        }
        spread = [row["advantage"] for row, places in zip(rows, kept, strict=True) for _ in places]
        return found | {"advantages_P": torch.tensor(spread)}

    found = learned(open_policy(world["policy"], world["dtype"]), halves(trees, values), partial(grpo_loss, spec=spec))
    if not found.metrics["clip_share"]:
        raise SystemExit(f"{spec.loss}: the clip decided nowhere; this rollout tests nothing")
    return found


def halves(trees: list[Tree], values: Callable[[list[int], Forest], dict[str, Tensor]] | None = None) -> list[Batch]:
    """The trees in at least two batches, as the stages make them."""
    made = batches(trees, Budget(max(sum(tree.num_tokens for tree in trees) // 2, 1)), Mesh(), values)
    if len(made) < 2:
        raise SystemExit(f"{len(trees)} trees made one batch")
    return made


def learned(module: nn.Module, parts: list[Batch], loss: Callable[[nn.Module, Batch], Loss]) -> Found:
    """What one optimiser step does before it descends: backward through each total, one division at the end."""
    total = weight = 0.0
    metrics: dict[str, list[float]] = {}
    for part in parts:
        found = loss(module, part)
        found.objective.total.backward()
        total, weight = total + found.objective.total.item(), weight + found.objective.weight
        for name, value in found.metrics.items():
            entry = metrics.setdefault(name, [0.0, 0.0])
            entry[0], entry[1] = entry[0] + float(value.total), entry[1] + value.weight
    inner: nn.Module = module.model  # type: ignore[assignment]
    slopes = {name: p.grad / weight for name, p in inner.named_parameters() if p.grad is not None}
    return Found(total / weight, slopes, {name: a / b for name, (a, b) in metrics.items() if b})
