"""GGUF files: read back by transformers' own reader, by the gguf package and by ours."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFReader, TokenType, dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tercet.models import gguf
from tercet.models.base_layout import save_model
from tercet.models.export.gguf import export_gguf
from tercet.models.export.gguf_tokenizer import CUTS, cut_of
from tercet.models.headers import BaseError
from tercet.models.hf_folder import load_model, load_tokenizer, quiet

SIZES = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "pad_token_id": 256,
}
GEMMA = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 64}  # transformers reads no other head
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": 64},
    "Qwen2": {},
    "Qwen3": {"head_dim": 128},
    "Gemma2": GEMMA,
    "Gemma3": {**GEMMA, "num_hidden_layers": 6},
    "Olmo": {},
    "Olmo2": {},
}
READ_BY_TRANSFORMERS = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Gemma3")


def silent(done: int, total: int, note: str) -> None:
    """No progress is shown."""


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A random model of a family with norms that are not all one, as a stage leaves it."""

    def folder(family: str, **changes):
        torch.manual_seed(0)
        kind = "Gemma3Text" if family == "Gemma3" else family
        with quiet():
            config = getattr(transformers, f"{kind}Config")(**{**SIZES, **FAMILIES[family], **changes})
            model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                elif "embed" not in name:
                    parameter.mul_(4)
        model.config.architectures = [type(model).__name__]
        save_model(tmp_path / "model", model.config, model.state_dict(), source=tiny_folder)
        return tmp_path / "model", model

    return folder


IDS = torch.tensor([[257, 72, 101, 108, 108, 111, 258]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits[..., :259]


@pytest.mark.parametrize("family", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_same_logits_back(family, folder, tmp_path):
    source, model = folder(family)
    export_gguf(source, tmp_path / "model.gguf", "tiny", "f16", silent)
    with quiet():
        read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).eval()
    wanted = logits(model)
    assert wanted.std() > 0.05
    torch.testing.assert_close(logits(read), wanted, rtol=0, atol=0.02 * wanted.std().item())


@pytest.mark.parametrize("family", ["Olmo", "Olmo2"])
def test_olmo_has_the_tensors_of_its_family_with_rows_in_llama_cpps_order(family, folder, tmp_path):
    source, model = folder(family)
    export_gguf(source, tmp_path / "model.gguf", "tiny", "f16", silent)
    reader = GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    own = model.model.layers[1].self_attn.q_proj.weight.detach().numpy()
    if family == "Olmo":  # row 2i of a head is row i of its first half, row 2i + 1 of its second
        own = np.concatenate([own[h * 16 + i + half * 8][None] for h in range(4) for i in range(8) for half in (0, 1)])
    np.testing.assert_array_equal(tensors["blk.1.attn_q.weight"], own.astype(np.float16))
    extra = {"blk.0.post_attention_norm.weight", "blk.0.post_ffw_norm.weight", "blk.0.attn_q_norm.weight"}
    assert (extra <= tensors.keys()) == (family == "Olmo2")


@pytest.mark.parametrize(("kind", "error"), [("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 2e-2), ("q4_0", 0.3)])
def test_our_own_reader_gives_the_weights_back_as_exactly_as_the_precision_allows(kind, error, folder, tmp_path):
    source, model = folder("Llama")
    size = export_gguf(source, tmp_path / "model.gguf", "tiny", kind, silent)
    assert size == (tmp_path / "model.gguf").stat().st_size
    (tmp_path / "back").mkdir()
    gguf.convert(tmp_path / "model.gguf", tmp_path / "back", silent)
    back = load_model(tmp_path / "back", torch.float32)
    for ours, theirs in zip(back.parameters(), model.parameters(), strict=True):
        scale = theirs.abs().max()
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=0.0 if theirs.dim() == 1 else error)
    ours, theirs = load_tokenizer(tmp_path / "back"), load_tokenizer(source)
    text = "Hello, wörld! <|im_start|>user\n1234"
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.chat_template == theirs.chat_template


def test_matrices_have_the_precision_asked_for_and_vectors_are_exact(folder, tmp_path):
    source, _ = folder("Llama", intermediate_size=80)  # rows of 80 cannot be cut into blocks of 32
    export_gguf(source, tmp_path / "model.gguf", "tiny", "q4_0", silent)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_llama_3s_positions_are_factors_of_its_own_rotary_frequencies(folder, tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    source, model = folder("Llama", rope_parameters=rope)
    export_gguf(source, tmp_path / "model.gguf", "tiny", "f16", silent)
    [factors] = [one.data for one in GGUFReader(tmp_path / "model.gguf").tensors if one.name == "rope_freqs.weight"]
    plain = 5e5 ** -(np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / factors, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-5)


def test_what_ends_generation_and_the_template_stand_in_the_file(folder, tmp_path):
    source, _ = folder("Qwen3")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 5]}))
    export_gguf(source, tmp_path / "model.gguf", "tiny", "f16", silent)
    fields = {key: field.contents() for key, field in GGUFReader(tmp_path / "model.gguf").fields.items()}
    assert fields["tokenizer.ggml.eos_token_id"] == 258
    assert fields["tokenizer.ggml.eot_token_id"] == 5
    assert fields["tokenizer.chat_template"] == load_tokenizer(source).chat_template
    assert len(fields["tokenizer.ggml.tokens"]) == 264
    assert fields["tokenizer.ggml.token_type"][256:] == [TokenType.CONTROL] * 3 + [TokenType.UNUSED] * 5
    assert fields["general.architecture"] == "qwen3"


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding windows"),
        ("Llama", {"mlp_bias": True}, "biases in the feed-forward layers"),
        ("Llama", {"hidden_act": "gelu"}, "the activation gelu"),
        ("Gemma2", {"query_pre_attn_scalar": 5}, "query_pre_attn_scalar 5 with heads of 256"),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rotary positions"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused_and_nothing_is_left(family, changes, told, folder, tmp_path):
    source, _ = folder(family, **changes)
    with pytest.raises(BaseError, match=told):
        export_gguf(source, tmp_path / "model.gguf", "tiny", "f16", silent)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_another_family_is_refused_with_those_that_are_written(tiny_folder, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(tiny_folder, source, copy_function=shutil.copyfile)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps(config | {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]})
    )
    with pytest.raises(BaseError, match=r"families gemma, gemma2, gemma3, llama, .*; this is GPTNeoXForCausalLM"):
        export_gguf(source, tmp_path / "model.gguf", "tiny", "f16", silent)


TEXT = ["Hello world, it's a test of 12345 numbers and wörds. " * 3, "Another line\n\nwith  spaces\tand tabs"]


def trained(cuts: list[str], *, whole: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    splits = [pre_tokenizers.Split(Regex(cut), "isolated") for cut in cuts]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def model_of(tokenizer: PreTrainedTokenizerFast) -> dict:
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]


@pytest.mark.parametrize(("name", "whole"), CUTS)
def test_the_way_text_is_cut_is_found_from_what_a_tokenizer_does(name, whole):
    tokenizer = trained(CUTS[name, whole], whole=whole)
    assert cut_of(tokenizer, model_of(tokenizer)) == name


def test_two_spellings_of_one_way_have_one_name():
    tokenizer = trained(CUTS["gpt-2", False], whole=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert cut_of(tokenizer, model_of(tokenizer)) == "gpt-2"
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert cut_of(tokenizer, model_of(tokenizer)) == "smollm"


def test_a_way_that_llama_cpp_does_not_know_is_refused():
    tokenizer = trained([r"\p{L}{1,2}|\P{L}+"], whole=False)
    with pytest.raises(BaseError, match=r"cuts text in ways that it knows by name \(gpt-2, smollm"):
        cut_of(tokenizer, model_of(tokenizer))


def test_pieces_with_bytes_are_written_as_sentencepiece_with_scores_in_order_of_merges(folder, tmp_path):
    source, _ = folder("Llama", vocab_size=272)
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    vocab |= {text: 259 + i for i, text in enumerate(["▁", "a", "b", "ab", "▁ab", "▁a"])}
    merges = [("a", "b"), ("▁", "ab"), ("▁", "a")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<s>", "</s>")])
    tokenizer.save(str(source / "tokenizer.json"))
    values = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    (source / "tokenizer_config.json").write_text(json.dumps(values | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    export_gguf(source, tmp_path / "model.gguf", "tiny", "f16", silent)
    fields = {key: field.contents() for key, field in GGUFReader(tmp_path / "model.gguf").fields.items()}
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"] is True
    scores = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"], strict=True))
    assert scores["ab"] > scores["▁ab"] > scores["▁a"] > scores["a"]
    types = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    assert [types[text] for text in ("<unk>", "<s>", "<0x0A>", "ab", "[PAD270]")] == [
        TokenType.UNKNOWN,
        TokenType.CONTROL,
        TokenType.BYTE,
        TokenType.NORMAL,
        TokenType.UNUSED,
    ]


def test_four_bits_are_the_nearest_of_their_block(folder, tmp_path):
    source, model = folder("Llama")
    export_gguf(source, tmp_path / "model.gguf", "tiny", "q4_0", silent)
    [down] = [one for one in GGUFReader(tmp_path / "model.gguf").tensors if one.name == "blk.0.ffn_down.weight"]
    found = dequantize(down.data, GGMLQuantizationType.Q4_0)
    own = model.model.layers[0].mlp.down_proj.weight.detach().numpy()
    steps = np.abs(own.reshape(64, 3, 32)).max(-1, keepdims=True) / 8
    assert (np.abs(found - own).reshape(64, 3, 32) <= steps * 1.01).all()
