"""Rows become the tokens they always were, once: kept by content, read by every rank, and only while a step asks."""

from __future__ import annotations

import json
import shutil
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.models.chat import Chat, ChatError
from tercet.models.forest import Leaf, Tree
from tercet.models.hf_folder import load_tokenizer
from tercet.recipe import DPOSpec, Placement, RewardModelSpec, SFTSpec
from tercet.rows import Message, Pair, Row, read_pairs, read_rows, write_table
from tercet.store import Store, source_digest
from tercet.train.batch import Limit, TruncationError, cut, trained, within
from tercet.train.dpo import PAIRS
from tercet.train.rl.rollout import PROMPTS
from tercet.train.sft import ANSWERS, TURNS
from tercet.train.tokens import PART, Rule, Tokens, batches, dropped_thoughts, prepare, write

CONTENT = st.one_of(
    st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"]), max_size=12),
    st.lists(st.sampled_from(["<|im_end|>", "\n", " ", "12", "né", "👩‍🚀", "a b"]), max_size=4).map("".join),
)
EXCHANGES = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3)


def turns(exchanges: list[tuple[str, str]], system: str | None = None) -> tuple[Message, ...]:
    parts = [part for ask, answer in exchanges for part in (Message("user", ask), Message("assistant", answer))]
    return tuple(parts if system is None else [Message("system", system), *parts])


def by_hand(chat: Chat, messages: tuple[Message, ...]) -> tuple[list[int], list[bool]]:
    """Ids and mask the slow way: every border is rendered, and every offset is looked at."""
    text = chat.text(messages)
    encoding = chat.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    closing = chat.text((Message("user", "a"), Message("assistant", "b"))).partition("b")[2].rpartition("b")[2]
    begins, mask = [begin for begin, _ in encoding.offsets], [False] * len(encoding)
    for turn, message in enumerate(messages):
        if message.role == "assistant":
            head = chat.text(messages[:turn], generation_prompt=True)
            closed = chat.text(messages[: turn + 1])
            end = len(closed) - len(closing) + len(closing.rstrip())
            first, last = bisect_left(begins, len(head)), bisect_left(begins, end)
            mask[first:last] = [True] * (last - first)
    return encoding.ids, mask


@pytest.fixture(scope="module", params=["own", "tulu3"])
def template(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tiny_chat(tiny_folder, template) -> Chat:
    return Chat(load_tokenizer(tiny_folder), template)


@pytest.fixture(scope="module")
def smol_chat(smollm, template) -> Chat:
    return Chat(load_tokenizer(smollm), template)


@pytest.fixture(scope="module")
def chat(tiny_folder) -> Chat:
    return Chat(load_tokenizer(tiny_folder))


@settings(max_examples=40)
@given(st.lists(st.tuples(EXCHANGES, st.none() | CONTENT), min_size=1, max_size=4), st.sampled_from([1, 2]))
def test_many_at_once_are_encoded_as_one_by_one_and_as_by_hand(tiny_chat, talks, threads):
    rows = [turns(*talk) for talk in talks]
    found = list(tiny_chat.encode_all(((i, row, f"row {i}") for i, row in enumerate(rows)), threads))
    assert [key for key, _ in found] == list(range(len(rows)))
    assert [one for _, one in found] == [tiny_chat.encode(row) for row in rows]
    assert [(one.token_ids, one.mask) for _, one in found] == [by_hand(tiny_chat, row) for row in rows]


@settings(max_examples=60)
@given(EXCHANGES, st.none() | CONTENT)
def test_a_real_tokenizer_is_masked_as_by_hand(smol_chat, exchanges, system):
    messages = turns(exchanges, system)
    encoded = smol_chat.encode(messages)
    assert (encoded.token_ids, encoded.mask) == by_hand(smol_chat, messages)


def test_real_rows_are_masked_as_by_hand(smol_chat, shared_data):
    from tercet.rows_file import read_file

    lines = read_file(shared_data / "train" / "gsm8k" / "train.jsonl.gz")
    rows = [turns([(line["question"], line["answer"])]) for _, line in zip(range(200), lines, strict=False)]
    found = smol_chat.encode_all(((None, row, "row") for row in rows), 2)
    assert [(one.token_ids, one.mask) for _, one in found] == [by_hand(smol_chat, row) for row in rows]


def test_errors_among_many_name_their_row(chat):
    rows = [(i, turns([("a", "b")]) if i != 70 else (Message("user", "lonely"),), f"rows, row {i}") for i in range(90)]
    with pytest.raises(ChatError, match=r"(?s)^rows, row 70: nothing to train.*lonely"):
        list(chat.encode_all(rows, 2))


def context(folder: Path, threads: int = 2):
    """What `prepare` reads of a context: the store around a draft, and the threads."""
    placement = Placement(threads=threads)
    return SimpleNamespace(store=Store(folder), recipe=SimpleNamespace(placement=placement))


def kept(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / ".cache" / "tokens").glob("[!.]*.arrow"))


def talk(number: int) -> Row:
    exchanges = [(f"ask {number}", "yes " * (number % 7))] * (1 + number % 2)
    return Row(
        f"r{number}", turns(exchanges), f"s{number % 3}", verifier="gsm8k@1" if number % 4 else "", reference="1"
    )


@pytest.fixture
def rows_file(tmp_path) -> Path:
    write_table(tmp_path / "rows.parquet", [talk(i) for i in range(2 * PART + 5)])
    return tmp_path / "rows.parquet"


def test_conversations_come_back_as_they_were_made(chat, rows_file, tmp_path):
    tokens = prepare(rows_file, chat, TURNS, context(tmp_path))
    rows = read_rows(rows_file)
    assert len(tokens) == len(rows)
    for number in (0, 1, 2, 3, PART - 1, PART, 2 * PART, 2 * PART + 4):
        ids, mask = by_hand(chat, rows[number].messages)
        end = len(mask) - mask[::-1].index(True)
        tree = tokens.tree(number)
        assert tree == Tree([], [Leaf(ids[:end], mask[:end])])
        assert repr(tree.leaves[0].mask[-1]) == "True", "digests of trees are made of what Python writes"
        assert type(tree.leaves[0].token_ids[0]) is int
        assert tokens.name(number) == rows[number].id
        assert tokens.sources[tokens.source_R[number]] == rows[number].source


def test_pairs_and_prompts_come_back_as_they_were_made(chat, rows_file, tmp_path):
    asked = (Message("user", "which?"),)
    ends = [(*asked, Message("assistant", text)) for text in ("this", "that one")]
    write_table(tmp_path / "pairs.parquet", [Pair("p", *ends, source="s"), Pair("q", *ends[::-1], source="s")])
    tokens = prepare(tmp_path / "pairs.parquet", chat, PAIRS, context(tmp_path))
    for number, pair in enumerate(read_pairs(tmp_path / "pairs.parquet")):
        tree = tokens.tree(number)
        assert tree.trunk == chat.prompt_ids(asked)
        for leaf, side in zip(tree.leaves, (pair.chosen, pair.rejected), strict=True):
            assert leaf.token_ids == chat.pair(asked, side[-1].content)[1]
            assert leaf.mask == [True] * len(leaf.token_ids)
    prompts = prepare(rows_file, chat, PROMPTS, context(tmp_path))
    rows = list(read_rows(rows_file))
    assert [prompts.tree(i).leaves[0].token_ids for i in range(9)] == [chat.prompt_ids(r.prompt) for r in rows[:9]]
    assert len(prompts) == len(rows)


def test_a_file_is_made_once_for_the_same_content_and_again_for_any_other(chat, tiny_folder, rows_file, tmp_path):
    calls = []

    def counted(chat: Chat, path: Path, threads: int):
        calls.append(path.name)
        yield from TURNS.trees(chat, path, threads)

    rule = Rule("counted@1", counted)
    source_digest(rows_file, tmp_path / ".cache")  # ranks are processes: their names differ where threads' do not
    with ThreadPoolExecutor(4) as pool:  # as ranks do, and stages of several runs
        found = list(pool.map(lambda _: prepare(rows_file, chat, rule, context(tmp_path)), range(4)))
    assert calls == ["rows.parquet"]
    assert len({repr(tokens.tree(3)) for tokens in found}) == 1
    shutil.copy(rows_file, tmp_path / "same.parquet")
    prepare(tmp_path / "same.parquet", chat, rule, context(tmp_path, threads=1))
    prepare(rows_file, Chat(load_tokenizer(tiny_folder)), rule, context(tmp_path))
    assert len(calls) == len(kept(tmp_path)) == 1
    write_table(tmp_path / "other.parquet", [talk(1)])
    prepare(tmp_path / "other.parquet", chat, rule, context(tmp_path))
    prepare(rows_file, Chat(load_tokenizer(tiny_folder), "tulu3"), rule, context(tmp_path))
    prepare(rows_file, chat, rule._replace(name="counted@2"), context(tmp_path))
    assert len(calls) == len(kept(tmp_path)) == 4


def test_what_fails_leaves_no_file(chat, tmp_path):
    write_table(tmp_path / "rows.parquet", [*(talk(i) for i in range(3)), Row("bad", (Message("user", "lonely"),))])
    for _ in range(2):
        with pytest.raises(ChatError, match=r"(?s)rows.parquet, row 3 \(bad\): nothing to train"):
            prepare(tmp_path / "rows.parquet", chat, TURNS, context(tmp_path))
    assert list((tmp_path / ".cache" / "tokens").iterdir()) == []


def test_no_rows_are_no_trees(chat, tmp_path):
    write(tmp_path / "none.arrow", batches(iter(())))
    trees, table = within(Tokens(tmp_path / "none.arrow"), Limit(4, "cut", 0.0))
    assert (len(trees), list(trees), table["sources"]) == (0, [], {})


LEAF = st.integers(1, 9).flatmap(
    lambda size: st.builds(Leaf, st.just(list(range(size))), st.lists(st.booleans(), min_size=size, max_size=size))
)
FORKS = st.lists(
    st.builds(Tree, st.lists(st.integers(0, 9), max_size=6), st.tuples(LEAF, LEAF)), min_size=1, max_size=8
)


@given(FORKS, st.integers(1, 14), st.sampled_from(["drop", "cut", "error"]))
def test_the_length_policy_is_that_of_trees_taken_one_by_one(tmp_path, trees, most, overlong):
    write(tmp_path / "t.arrow", batches((f"r{i}", f"s{i % 2}", tree) for i, tree in enumerate(trees)))
    tokens, limit = Tokens(tmp_path / "t.arrow"), Limit(most, overlong, 1.0)
    expected, table = [], {}
    for i, tree in enumerate(trees):
        count = table.setdefault(
            f"s{i % 2}", dict.fromkeys(("rows", "lost_rows", "cut_rows", "tokens", "lost_tokens"), 0)
        )
        fits = len(tree.trunk) + max(len(leaf.token_ids) for leaf in tree.leaves) <= most
        shorter = tree if fits else cut(tree, most)
        stays = fits or (overlong == "cut" and trained(shorter))
        count["rows"] += 1
        count["tokens"] += tree.num_tokens
        count["lost_rows"] += not stays
        count["cut_rows"] += stays and not fits
        count["lost_tokens"] += tree.num_tokens - (shorter.num_tokens if stays else 0)
        expected += [shorter] if stays else []
    long = sum(count["lost_rows"] + count["cut_rows"] for count in table.values())
    if (overlong == "error" and long) or not expected:
        with pytest.raises(TruncationError):
            within(tokens, limit)
        return
    found, counted = within(tokens, limit)
    assert counted["sources"] == table
    assert [Tree(tree.trunk, list(tree.leaves)) for tree in found] == [Tree(t.trunk, list(t.leaves)) for t in expected]
    assert [tree.num_tokens for tree in found[::-1]] == [tree.num_tokens for tree in expected[::-1]]


def test_two_ranks_and_the_stage_after_them_share_one_file(workspace, launch):
    running = launch(workspace, "sft", "placement.ranks=2", "placement.threads=1", "stage.sft.steps=1")
    assert running.process.wait(timeout=240) == 0, running.output.read_text(encoding="utf-8")
    (name,) = kept(workspace.store.root)
    file = workspace.store.root / ".cache" / "tokens" / name
    made = file.stat().st_mtime_ns
    workspace.run_stage("sft", workspace.store.root / "again", sft={"steps": 2})
    assert (kept(workspace.store.root), file.stat().st_mtime_ns) == ([name], made)
    lines = (workspace.store.root / "again.draft" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


# --- conversations that take several texts ----------------------------------------------------------------------------

REWRITES = (
    "{% for m in messages %}{% if m.role == 'user' %}U{{ m.content }}{% else %}A"
    "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A{% endif %}"
)


def rewriting_chat(folder: Path) -> Chat:
    """The template leaves the thoughts of earlier turns out."""
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = REWRITES
    return Chat(tokenizer)


def test_rows_with_different_numbers_of_texts_stand_in_one_file(tiny_folder, rows_file, tmp_path):
    chat = rewriting_chat(tiny_folder)
    think = "<think>t</think>"
    talks = [[("q", "a"), ("r", "b")], [("q", f"{think}a"), ("r", "b")], [(c, f"{think}{c}") for c in "xyz"]]
    write_table(rows_file, [Row(f"r{i}", turns(talk), "s") for i, talk in enumerate(talks)])
    tokens = prepare(rows_file, chat, TURNS, context(tmp_path))
    assert tokens.num_split == 2
    assert [len(tokens.tree(row).leaves) for row in range(3)] == [1, 2, 3]
    words = [[bytes(t for t in leaf.token_ids if t < 256).decode() for leaf in tokens.tree(2).leaves]]
    assert words == [[f"{think}x", "xUyA<think>t</think>y", "xUyAyUzA<think>t</think>z"]]
    assert bytes(tokens.tree(2).trunk).decode() == "UxA"
    trained_words = [
        "".join(chr(t) for t, on in zip(leaf.token_ids, leaf.mask, strict=True) if on and t < 256)
        for leaf in tokens.tree(2).leaves
    ]
    assert trained_words == [f"{think}x", f"{think}y", f"{think}z"]
    kept, _ = within(tokens, Limit(10_000, "error", 0.0))
    assert [tree.num_tokens for tree in kept] == tokens.sizes_RS.sum(axis=1).tolist()


def test_thoughts_are_left_out_where_the_recipe_says_so(tiny_folder, rows_file, tmp_path):
    chat = rewriting_chat(tiny_folder)
    talk = turns([("q", "<think>t</think>a"), ("r", "<think>t</think>b")])
    write_table(rows_file, [Row("r", talk, "s")])
    ((_, _, tree),) = ANSWERS.trees(chat, rows_file, 1)
    assert bytes(t for t in tree.leaves[0].token_ids if t < 256).decode() == "UqAaUrAb"
    spec = SFTSpec(model="base", rows="rows", thinking="drop")
    assert dropped_thoughts(spec, rows_file) == {"dropped_thoughts": 2.0}
    pair = Pair("p", talk, (*talk[:-1], Message("assistant", "c")), "s")
    write_table(tmp_path / "pairs.parquet", [pair, replace(pair, id="q")])
    for drops in (DPOSpec, RewardModelSpec):
        assert dropped_thoughts(drops(model="base", pairs="p", thinking="drop"), tmp_path / "pairs.parquet") == {
            "dropped_thoughts": 4.0
        }
        assert not dropped_thoughts(drops(model="base", pairs="p"), tmp_path / "pairs.parquet")
    assert "thinking" not in SFTSpec(model="base", rows="rows").model_dump()
