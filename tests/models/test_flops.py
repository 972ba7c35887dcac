"""Operations are counted as one counts them by hand, and as torch counts them while they run; generators' accounts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Lfm2Config, Lfm2ForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from tercet.models.flops import ModelSize, attended_pairs, forward_flops, model_size, training_flops
from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.models.generate import LocalGenerator
from tercet.models.lora import adapt
from tercet.models.score import Question, score
from tercet.recipe import LoraSpec
from tercet.rows import Message, Sampling, speed_of


def config(**changes) -> LlamaConfig:
    values = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3}
    values |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "pad_token_id": 0}
    return LlamaConfig(**values | changes)


def forest(multiple: int = 1):
    """Six tokens: a trunk of three, leaves of two and one; three trained tokens."""
    return pack_forest([Tree([1, 2, 3], [Leaf([4, 5], [True, True]), Leaf([6], [True])])], multiple)


@pytest.mark.parametrize("tied", [True, False])
def test_the_size_is_what_one_counts_by_hand(tied):
    """A layer: queries and output 8 x 8, keys and values 8 x 4, three of 8 x 16; the head 11 x 8."""
    size = model_size(LlamaForCausalLM(config(tie_word_embeddings=tied)))
    assert size == ModelSize(linear=3 * (2 * 64 + 2 * 32 + 3 * 128), attention=3 * 2 * 4, head=88)


def test_a_layer_of_another_kind_has_no_attention_and_its_convolution_is_no_expert():
    """A convolution of 8 channels and 3 taps between projections 8 x 24 and 8 x 8; one layer of attention."""
    kinds = {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False}
    values = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    size = model_size(Lfm2ForCausalLM(Lfm2Config(vocab_size=11, num_hidden_layers=3, **values, **kinds)))
    assert size == ModelSize(linear=2 * (24 + 192 + 64) + 2 * 64 + 2 * 32 + 3 * 3 * 128, attention=2 * 4, head=88)


def test_a_scorer_has_no_head():
    assert model_size(LlamaForSequenceClassification(config(num_labels=1))) == ModelSize(1728, 24, 0)


@pytest.mark.parametrize("multiple", [1, 64], ids=["plain", "filled up"])
def test_pairs_are_the_own_past_and_the_whole_trunk(multiple):
    """The trunk 3 x 4 / 2; the leaves 2 x 3 / 2 + 2 x 3 and 1 + 3."""
    assert attended_pairs(forest(multiple)) == 6 + 9 + 4


def test_a_forest_costs_what_one_computes_by_hand():
    """Forward 2 x 1728 x 6 + 2 x 88 x 3 + 4 x 24 x 19 = 20,736 + 528 + 1,824; backward twice that."""
    size = ModelSize(1728, 24, 88)
    assert forward_flops(size, 6, 19, 3) == 23_088
    assert training_flops(size, forest(64)) == 69_264


def test_frozen_weights_save_the_product_of_their_gradient(tiny_folder):
    size = ModelSize(1728, 24, 88, frozen_linear=1728, frozen_head=88)
    assert training_flops(size, forest()) == 69_264 - 20_736 - 528


def test_adapters_count_and_what_they_adapt_is_frozen(tiny_folder):
    from tercet.train.export import open_policy

    policy = open_policy(tiny_folder)
    plain = model_size(policy)
    adapt(policy, LoraSpec(r=4), torch.float32, 1)
    size = model_size(policy)
    added = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert size == ModelSize(plain.linear + added, plain.attention, plain.head, plain.linear, plain.head)


def test_torch_counts_the_same_while_a_model_runs():
    """Without a mask every query sees every key."""
    model, tokens = LlamaForCausalLM(config(attn_implementation="eager")), 7
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=torch.arange(tokens)[None]).logits.sum()
        forward = counter.get_total_flops()
        loss.backward()
    wanted = forward_flops(model_size(model), tokens, tokens * tokens, tokens)
    assert forward == wanted
    assert counter.get_total_flops() == 3 * wanted


@pytest.fixture(scope="module")
def generator(sharp_folder) -> LocalGenerator:
    found = LocalGenerator.open(sharp_folder, "float32", rows=8)
    found.chat.stops = set()  # every answer is as long as its budget
    return found


def test_a_prompt_is_counted_once_and_every_token_written(generator):
    speed_of(generator)
    prompt, samples, new = list(range(5, 25)), 3, 4
    generator.write([prompt], Sampling(new, 1.0, n=samples))
    size, length = generator.work.size, len(prompt)
    wanted = forward_flops(size, length, length * (length + 1) / 2, samples)  # each sample draws from its logits
    for step in range(1, new):
        wanted += forward_flops(size, samples, samples * (length + step), samples)
    assert generator.work.flops == wanted
    assert generator.work.tokens == length + samples * (new - 1)


def test_what_prompts_share_is_counted_once(generator):
    speed_of(generator)
    shared = [5 + i % 40 for i in range(70)]
    prompts = [[*shared, 50, 51], [*shared, 60]]
    generator.write(prompts, Sampling(1, 0.0))
    assert generator.work.tokens == len(shared) + 2 + 1


def test_options_are_counted_without_their_last_token(generator):
    speed_of(generator)
    context = list(range(5, 15))
    list(score(generator.policy, [Question(context, [[20, 21], [22]])], 1000, generator.work))
    size = generator.work.size
    assert generator.work.tokens == len(context) + 1
    pairs = len(context) * (len(context) + 1) / 2 + 1 + len(context)
    assert generator.work.flops == forward_flops(size, len(context) + 1, pairs, 2)


def test_an_account_is_empty_after_it_was_taken(generator):
    generator.complete([[Message("user", "Hello")]], Sampling(3, 0.0))
    found = speed_of(generator)
    assert found["tokens_per_second"] > 0
    assert found["efficiency"] > 0
    assert speed_of(generator) == {}


def test_what_keeps_no_account_has_no_metrics():
    class Bare:
        pass

    assert speed_of(Bare()) == {}
