"""The reward model: a Bradley-Terry scorer on preference pairs (paper §5.4.1, T36).

The score is that of each answer's last token, whose place is known here. Users of the exported folder search for it
(transformers takes the last token that is no padding), so its padding token must not be an end token.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tercet.algos.preference import bradley_terry
from tercet.device.mesh import mesh
from tercet.journal import write_json
from tercet.models.chat import Chat, open_chat
from tercet.models.classifier import load_classifier
from tercet.models.forest import Forest
from tercet.models.policy import Policy, Scorer
from tercet.recipe import RewardModelSpec
from tercet.rows import RowError, pair_from
from tercet.store import Artifact, Context
from tercet.train.batch import Batch, Trees, order, schedule
from tercet.train.checks import check_inputs, check_schedule
from tercet.train.compared import Compared
from tercet.train.dpo import encode_pairs
from tercet.train.export import card, open_to_train, write_folder
from tercet.train.loop import Loss, TrainingError, fit, start
from tercet.train.packing import Budget
from tercet.train.preference_accuracy import accuracies, by_subset, subset_pairs
from tercet.train.prefetch import tree_steps
from tercet.train.reference import per_leaf
from tercet.train.sums import Sum
from tercet.train.tokens import dropped_thoughts, stored

READ = """
## How to read a score
Render a conversation with the chat template, cut what follows its last end-of-turn token, and pad on the right: the
score is the one logit at the last token that is no padding.
"""


def run(spec: RewardModelSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Train a scalar head and the whole model on pairs; measure accuracy on held-out pairs and on the test sets."""
    with mesh(ctx.recipe.placement) as ranks:
        source = inputs[spec.model].payload
        check_inputs(spec, inputs, ctx.recipe.placement)
        chat = open_chat(source)
        path = inputs[spec.pairs].payload / "pairs.parquet"
        trees = encode_pairs(spec, path, chat, out, ranks, ctx)
        margins = rating_margins(path, trees, spec.margin) if spec.margin else None
        tests = {name: subset_pairs(inputs[name].payload / "pairs.parquet", chat, ctx) for name in spec.tests}
        train, held = split(trees, spec, ctx.seed)
        total = schedule(len(train), spec.batch, spec.num_epochs, spec.steps)
        check_schedule(spec, total)
        pad_id = padding(chat)
        policy, ranks, cost = open_to_train(source, ranks, ctx, trees)
        scorer = open_scorer(source, pad_id, ctx.seed, like=policy)
        del policy  # it has only shown how its family reads
        state = start(scorer, spec, ranks, ctx)
        values = partial(_margins, train, margins) if margins is not None else None
        steps = tree_steps(train, spec, ctx, ranks, range(state.step, total), values)
        fit(state, steps, Compared(scores_of, compared), spec, ctx, total=total)
        budget = Budget.of(ctx.recipe.placement, spec)
        score = partial(per_leaf, state.trainable.module, budget=budget, ranks=ranks)
        kept = by_subset(held, score(held)) if len(held) else None
        tested = {name: by_subset(pairs, score(pairs)) for name, pairs in tests.items()}
        write_folder(state.trainable, scorer.model.config, source, out, card(spec, inputs, ctx, TASK) + READ)
        if ranks.first:
            set_padding(out, chat, pad_id)
            write_json(out / "tercet" / "accuracy.json", accuracies(kept, tested), sort_keys=True)
        return {
            "steps": float(state.step),
            "pairs": float(len(train)),
            "held_out": float(len(held)),
            "accuracy": kept.overall.value if kept else 0.0,
            **{f"accuracy_{name}": one.overall.value for name, one in tested.items()},
            **dropped_thoughts(spec, path),
            **cost,
        }


TASK = "text-classification"  # of the folder's card


def rating_margins(path: Path, trees: Trees, share: float) -> Tensor:
    """`share` times each pair's difference of ratings, by row of the file; pairs that are trained on need ratings."""
    used, margins = set(trees.rows.tolist()), []
    for number, (name, value) in enumerate(stored(path)):
        pair = pair_from(value, name)
        if number in used and not (pair.chosen_rating or pair.rejected_rating):
            raise RowError(
                f"{name} ({pair.id}): margin = {share} needs chosen_rating and rejected_rating on every pair, this one "
                "has none; set margin = 0, or leave such pairs out"
            )
        margins.append(share * (pair.chosen_rating - pair.rejected_rating))
    return torch.tensor(margins, dtype=torch.float32)


def split(trees: Trees, spec: RewardModelSpec, seed: int) -> tuple[Trees, Trees]:
    """Train and held-out pairs, fixed by the seed."""
    shuffled = trees[order(len(trees), 0, seed)]
    kept = int(len(shuffled) * spec.holdout)
    if len(shuffled) - kept < 1:
        raise TrainingError(f"{len(shuffled)} pairs with holdout = {spec.holdout} leave none to train on")
    return shuffled[kept:], shuffled[:kept]


def padding(chat: Chat) -> int | None:
    """The tokenizer's own padding token, unless it also ends answers; then another special token, if there is one.

    Otherwise a search for the last token that is no padding would skip the end of an answer, and score too early.
    """
    tokenizer = chat.tokenizer
    ends = {chat.end_id, tokenizer.eos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return tokenizer.pad_token_id
    special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    usable = [number for number in special if number not in ends]
    return min(usable, key=lambda n: ("pad" not in special[n], n == tokenizer.bos_token_id, n), default=None)


def set_padding(folder: Path, chat: Chat, pad_id: int | None) -> None:
    """Let the folder's tokenizer pad with `pad_id`, as its configuration says."""
    if pad_id is None or pad_id == chat.tokenizer.pad_token_id:
        return
    for path in (folder / name for name in ("tokenizer_config.json", "special_tokens_map.json")):
        if path.is_file():
            values = json.loads(path.read_text("utf-8"))
            write_json(path, values | {"pad_token": chat.tokenizer.convert_ids_to_tokens(pad_id)}, sort_keys=True)


def open_scorer(folder: Path, pad_id: int | None, seed: int, *, like: Policy | None = None) -> Scorer:
    """The folder's transformer with a fresh head of variance 1 / (d + 1); `pad_id` goes into its configuration.

    It is read, and its numbers are left on the disk, as those of the policy that it is `like`.
    """
    model = load_classifier(folder, like=like, labels=1)
    model.config.pad_token_id = pad_id
    model.config.architectures = [type(model).__name__]
    size = model.score.weight.shape[1]
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(1, size, generator=source) / (size + 1) ** 0.5)
    return Scorer(model, padded=like is not None and like.padded)


def _margins(trees: Trees, margins: Tensor, places: list[int], _forest: Forest) -> dict[str, Tensor]:
    """Each pair's own margin; `margins` are by row of the file."""
    return {"margin_B": margins[torch.from_numpy(trees.rows[places])]}


def reward_loss(scorer: nn.Module, batch: Batch) -> Loss:
    """-log sigmoid(r(chosen) - r(rejected) - margin), one term per pair."""
    return compared(scores_of(scorer, batch.forest), batch)


def scores_of(scorer: nn.Module, forest: Forest) -> Tensor:
    """Scores (L,) of the answers."""
    scores: Tensor = scorer(forest)
    return scores


def compared(scores: Tensor, batch: Batch) -> Loss:
    """`reward_loss` of the answers' scores (L,)."""
    if batch.forest.num_leaves % 2:  # the empty batch of a rank with nothing left
        return Loss(Sum(scores.sum() * 0.0, 0.0), {})
    chosen, rejected = scores[0::2], scores[1::2]
    losses = bradley_terry(chosen, rejected, batch.values.get("margin_B", 0.0))
    num = float(len(losses))
    margin = (chosen - rejected).detach()
    return Loss(
        Sum(losses.sum(), num), {"accuracy": Sum((margin > 0).float().sum(), num), "margin": Sum(margin.sum(), num)}
    )
