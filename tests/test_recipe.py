from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tercet.recipe import KINDS, EvalSpec, MixSpec, Placement, Recipe, RecipeError, dump, file, gate, key_lines, load

GOOD = """
name = "small"
seed = 17
[base]
model = "tiny:"
[stage.words]
kind = "synth"
generator = "words@1"
rows = 40
[stage.items]
kind = "synth"
generator = "words@1"
rows = 20
split = "test"
[stage.benchmark]
kind = "benchmark"
tasks = ["words@1"]
items = ["items"]
[stage.sft-data]
kind = "mix"
sources = [
    { stage = "words", rows = 30 },  # thirty
    { path = "more.jsonl" },
]
against = ["benchmark"]
[stage.sft]
kind = "sft"
model = "base"
rows = "sft-data"
learning_rate = 1e-3
[stage.before]
kind = "eval"
model = "base"
benchmark = "benchmark"
[stage.after]
kind = "eval"
model = "sft"
benchmark = "benchmark"
require = ["words >= before - 0.01", "words >= 0.0"]
[stage.page]
kind = "report"
evals = ["before", "after"]
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "recipe.toml") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return str(caught.value)


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_a_recipe_is_ordered_by_need_and_then_as_it_is_written(write):
    recipe = load(write(GOOD))
    assert recipe.order() == ["base", "words", "items", "benchmark", "sft-data", "sft", "before", "after", "page"]
    assert recipe.needs("after") == ["sft", "benchmark", "before"]
    assert recipe.needs("sft-data") == ["benchmark", "words"]
    assert recipe.folder == write(GOOD).parent


def test_stages_written_upside_down_still_run_inputs_first():
    stage = {
        "mixed": {"kind": "mix", "sources": [{"stage": "words"}]},
        "words": {"kind": "synth", "generator": "words@1", "rows": 3},
    }
    recipe = Recipe.model_validate({"name": "r", "base": {"model": "tiny:"}, "stage": stage})
    assert recipe.order() == ["words", "mixed"]


def test_what_show_prints_loads_to_the_same_recipe(write):
    recipe = load(write(GOOD))
    assert load(write(dump(recipe), "again.toml")) == recipe


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_survives_show(tmp_path_factory, text):
    recipe = Recipe.model_validate({"name": text, "base": {"model": "tiny:"}, "stage": {}})
    assert tomllib.loads(dump(recipe))["name"] == text


def test_seed_falls_back_to_the_recipe(write):
    recipe = load(write(GOOD), ["stage.items.seed=3"])
    assert recipe.seed_of("items") == 3
    assert recipe.seed_of("words") == recipe.seed_of("base") == 17


@pytest.mark.parametrize(
    ("wrong", "right", "says"),
    [
        ("learning_rat = 1e-3", "learning_rate = 1e-3", "did you mean 'learning_rate'"),
        ("rows = 4.5", "rows = 40", "valid integer"),
        ('rows = "40"', "rows = 40", "valid integer"),
        ("rows = 0", "rows = 40", "greater than or equal to 1"),
        ('generator = "wrods@1"', 'generator = "words@1"', "did you mean 'words@1'"),
        ('kind = "sfft"', 'kind = "sft"', "did you mean 'sft'"),
        ("learning_rate = nan", "learning_rate = 1e-3", "finite"),
        ('{ pathh = "more.jsonl" }', '{ path = "more.jsonl" }', "did you mean 'path'"),
        ('rows = "sft-dat"', 'rows = "sft-data"', "known: base, words"),
        ('model = "words"', 'model = "sft"', "of that kind: base, sft"),
        ('evals = ["before", "aftr"]', 'evals = ["before", "after"]', "unknown stage 'aftr'"),
        ('require = ["words > before"]', 'require = ["words >= before - 0.01", "words >= 0.0"]', "TASK >= 0.3"),
        (
            'require = ["words >= befor"]',
            'require = ["words >= before - 0.01", "words >= 0.0"]',
            "unknown stage 'befor'",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(write, wrong, right, says):
    text = GOOD.replace(right, wrong, 1)
    message = complaint(write(text))
    assert says in message
    assert f"recipe.toml, line {line_of(text, wrong)}:" in message


def test_unknown_key_lists_what_is_allowed(write):
    message = complaint(write(GOOD.replace("split =", "splitt =")))
    assert "allowed keys: generator, kind, rows, seed, split" in message


def test_an_unknown_key_inside_a_table_lists_the_keys_of_that_table(write):
    text = GOOD.replace("learning_rate = 1e-3", "learning_rate = 1e-3\nlora = { rank = 4 }")
    assert (
        "unknown key 'rank' in [stage.sft.lora]; allowed keys: adapter, alpha, quantize, r, target_modules"
        in complaint(write(text))
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("per_device_train_batch_size = 4", "here `batch` is global"),
        ("max_seq_length = 512", "here `max_length`; allowed keys: batch, "),
        ("lora_r = 16", "here `lora.r`"),
    ],
)
def test_a_key_of_another_framework_is_answered_with_ours(write, line, says):
    message = complaint(write(GOOD.replace("learning_rate = 1e-3", f"learning_rate = 1e-3\n{line}")))
    assert f"unknown key {line.split()[0]!r} in [stage.sft]: {says}" in message


def test_a_round_is_no_step_and_no_epoch(write):
    for key in ("steps", "num_epochs"):
        assert "`rounds`" in complaint(write(RL), f"stage.rlvr.{key}=3")


def tables(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A model and those of the tables in it."""
    inner = {found for field in model.model_fields.values() for found in file._models(field.annotation)}
    return {model}.union(*map(tables, inner))


SPECS = set().union(*map(tables, [Recipe, *KINDS.values()]))


@pytest.mark.parametrize("name", file.HINTS)
def test_every_hint_names_keys_that_exist_with_values_that_they_take(name):
    found = re.findall(r"`([\w.]+)(?: = \"(\w+)\")?`", file.HINTS[name])
    assert found or file.HINTS[name].startswith("no key: ")
    for path, value in found:
        fields = [spec.model_fields[path.split(".")[-1]] for spec in SPECS if path.split(".")[-1] in spec.model_fields]
        assert fields, path
        assert all(any(part in spec.model_fields for spec in SPECS) for part in path.split("."))
        takes = [
            str in (kind := get_args(field.annotation) or (field.annotation,)) or value in kind for field in fields
        ]
        assert not value or any(takes), f"{path} = {value}"


def test_no_hint_is_for_a_key_that_every_training_stage_has():
    trained = [spec for spec in KINDS.values() if spec.parallel]
    assert len(file.HINTS) > 100
    assert not [name for name in file.HINTS if all(name in spec.model_fields for spec in trained)]


def test_missing_key_points_to_its_table_and_says_what_it_is_for(write):
    message = complaint(write(GOOD.replace("rows = 20\n", "")))
    assert f"line {line_of(GOOD, '[stage.items]')}: [stage.items] lacks the key 'rows' (How many rows.)" in message


def test_a_stage_without_kind_is_answered_with_the_kinds(write):
    assert "lacks the key 'kind'; one of model, synth, mix, pair_mix" in complaint(
        write(GOOD.replace('kind = "report"\n', ""))
    )


UNPAIRED = """
name = "labels"
[base]
model = "tiny:"
[stage.marked]
kind = "unpaired_mix"
sources = [{ path = "kto.jsonl", adapter = "kto" }]
[stage.tuned]
kind = "dpo"
loss = "kto"
model = "base"
pairs = "marked"
"""


def test_labelled_answers_are_for_the_kto_loss_alone_and_the_refusal_says_why(write):
    assert load(write(UNPAIRED)).needs("tuned") == ["base", "marked"]
    why = 'these answers have a label each and no partner: `loss = "kto"` of a dpo stage learns from them'
    for loss in ("dpo", "dpo_norm", "simpo", "orpo"):
        message = complaint(write(UNPAIRED.replace('kto"\nmodel', f'{loss}"\nmodel')))
        assert f"line {line_of(UNPAIRED, 'pairs =')}: stage 'tuned' needs a stage of kind" in message
        assert why in message
    reward = UNPAIRED.replace('kind = "dpo"\nloss = "kto"', 'kind = "reward_model"')
    assert "what compares two answers (other losses, reward models) needs pairs" in complaint(write(reward))
    rows = UNPAIRED.replace('kind = "dpo"\nloss = "kto"', 'kind = "sft"').replace("pairs =", "rows =")
    assert "bad answers are no targets of SFT" in complaint(write(rows))


def test_pairs_and_labelled_answers_are_mixed_into_labelled_answers(write):
    more = '[stage.pairs]\nkind = "pair_mix"\nsources = [{ path = "pairs.jsonl" }]\n'
    both = UNPAIRED.replace("sources = [", 'sources = [{ stage = "pairs" }, ') + more
    assert load(write(both)).needs("marked") == ["pairs"]
    back = UNPAIRED + '[stage.again]\nkind = "pair_mix"\nsources = [{ stage = "marked" }]\n'
    assert "needs a stage of kind" in complaint(write(back))


def test_several_mistakes_are_named_at_once(write):
    message = complaint(write(GOOD.replace("rows = 40", 'rows = "x"').replace("split", "splitt")))
    assert len(message.splitlines()) == 2


def test_a_circle_of_stages_is_named(write):
    text = GOOD.replace('{ stage = "words", rows = 30 }', '{ stage = "again" }')
    text += '[stage.again]\nkind = "mix"\nsources = [{ stage = "sft-data" }]\n'
    assert "sft-data -> again -> sft-data" in complaint(write(text))


def test_a_source_names_a_stage_or_a_path(write):
    assert "exactly one" in complaint(write(GOOD.replace('{ path = "more.jsonl" }', "{ rows = 3 }")))


def test_a_stage_cannot_take_the_base_models_name(write):
    assert "rename the stage" in complaint(write(GOOD + '[stage.base]\nkind = "report"\nevals = ["before"]\n'))


@pytest.mark.parametrize("name", ["a b", "../x", "ü", ""])
def test_stage_names_are_safe_as_folder_names(write, name):
    assert "rename the stage" in complaint(write(GOOD + f'[stage."{name}"]\nkind="report"\nevals=["before"]\n'))


def test_missing_and_broken_files_are_named(write, tmp_path):
    assert "no such recipe file" in complaint(tmp_path / "absent.toml")
    assert "line 2" in complaint(write('name = "x"\nseed = = 3\n'))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in complaint(tmp_path / "binary.toml")


def test_extends_merges_by_table(write):
    write(GOOD, "parent.toml")
    child = write('extends = "parent.toml"\nname = "child"\n[stage.sft]\nnum_epochs = 7\n')
    recipe = load(child)
    assert recipe.name == "child"
    assert recipe.stage["sft"].num_epochs == 7
    assert recipe.stage["sft"].learning_rate == 1e-3


def test_extends_replaces_a_stage_whose_kind_changes(write):
    write(GOOD, "parent.toml")
    child = '[stage.words]\nkind = "mix"\nsources = [{ stage = "items" }]\n'
    assert isinstance(load(write(f'extends = "parent.toml"\n{child}')).stage["words"], MixSpec)


def test_a_mistake_in_the_extended_file_is_named_there(write):
    write(GOOD.replace("rows = 40", "rowz = 40"), "parent.toml")
    assert re.search(r"parent\.toml, line \d+: unknown key 'rowz'", complaint(write('extends = "parent.toml"\n')))


def test_extends_in_a_circle_or_to_nowhere_is_refused(write):
    write('extends = "b.toml"\n', "a.toml")
    assert "b.toml -> a.toml -> b.toml" in complaint(write('extends = "a.toml"\n', "b.toml"))
    assert "line 1: extends 'c.toml'" in complaint(write('extends = "c.toml"\n'))
    assert "one relative path" in complaint(write("extends = [1]\n"))


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("stage.sft.learning_rate=2e-4", ("stage", "sft", "learning_rate"), 2e-4),
        ("name=plain words", ("name",), "plain words"),
        ('name="quoted"', ("name",), "quoted"),
        ("stage.benchmark.tasks=['a@1', 'b@1']", ("stage", "benchmark", "tasks"), ("a@1", "b@1")),
        ("stage.sft-data.dedupe=false", ("stage", "sft-data", "dedupe"), False),
        ("placement.ranks = 2", ("placement", "ranks"), 2),
    ],
)
def test_set_takes_toml_values_and_bare_strings(write, override, path, value):
    found = load(write(GOOD), [override])
    for key in path:
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert found == value


def test_set_reaches_into_a_list(write):
    assert load(write(GOOD), ["stage.sft-data.sources.0.rows=5"]).stage["sft-data"].sources[0].rows == 5


@pytest.mark.parametrize(
    "override", ["stage.sft.epoch=2", "nokey", "=3", "seed.x=1", "stage.sft-data.sources.9.rows=1"]
)
def test_a_wrong_override_is_named_as_such(write, override):
    assert f"--set {override}" in complaint(write(GOOD), override)


def test_an_override_of_a_list_takes_the_blame_from_the_file(write):
    assert complaint(write(GOOD), 'stage.page.evals=["nope"]').startswith("--set stage.page.evals")


def test_gates_are_read_in_all_their_forms():
    assert gate("words >= eval-sft - 0.01")[1:] == ("words", True, "eval-sft", -0.01)
    assert gate("words@1 >= base-1 + 1e-2")[1:] == ("words@1", True, "base-1", 0.01)
    assert gate("talk <= before")[1:] == ("talk", False, "before", 0.0)
    assert gate("words>=.3")[1:] == ("words", True, "", 0.3)


def test_gates_and_sources_are_references():
    spec = EvalSpec(model="base", benchmark="benchmark", require=("words >= other - 0.1", "words >= 0.1"))
    assert [ref.name for ref in spec.references()] == ["base", "benchmark", "other"]


def test_recipes_are_frozen(write):
    recipe = load(write(GOOD))
    with pytest.raises(ValidationError):
        recipe.name = "other"


def test_key_lines_follow_every_way_to_write_a_key():
    text = '''# comment = 1
a.b = 1
"quo ted".'x' = """
not = a key
[nor a table]
""" # = no
[t]
k = { x = 1, y = { z = "}" } }
list = [
  1, # ]
  { q = ']' },
]
[[many]]
u = 1
[[many]]
u = 2
[many.sub]
v = 1979-05-27
'''
    expected = {
        ("a",): 2,
        ("a", "b"): 2,
        ("quo ted", "x"): 3,
        ("t",): 7,
        ("t", "k", "y", "z"): 8,
        ("t", "list", 0): 10,
        ("t", "list", 1, "q"): 11,
        ("many",): 15,
        ("many", 0, "u"): 14,
        ("many", 1, "u"): 16,
        ("many", 1, "sub", "v"): 18,
    }
    found = key_lines(text)
    assert {loc: found[loc] for loc in expected} == expected
    assert ("not",) not in found


KEYS = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,4}", fullmatch=True), st.text(st.characters(codec="utf-8"), max_size=3)
)
VALUES = st.recursive(
    st.one_of(st.integers(-9, 9), st.booleans(), st.text(st.characters(codec="utf-8"), max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_every_value_of_any_document_has_a_line(document):
    from tercet.recipe.file import _key, to_toml

    text = "".join(f"{_key(key)} = {to_toml(value)}\n" for key, value in document.items())
    assert tomllib.loads(text) == document
    lines = key_lines(text)
    assert {loc for loc in lines if len(loc) == 1} == {(key,) for key in document}
    assert all(lines[key,] == number for number, key in enumerate(document, 1))


RL = """
name = "rl"
[base]
model = "tiny:"
[stage.rows]
kind = "synth"
generator = "words@1"
rows = 4
[stage.rlvr]
kind = "grpo"
model = "base"
prompts = "rows"
rounds = 2
batch = 8
preset = "gspo"
clip_low = 0.1
betas = [0.9, 0.95]
monitor = { stop = ["kl", "gap"], kl = 2.0 }
extra = [{ verifier = "format@1", weight = 0.5 }]
"""


def test_a_preset_fills_in_what_the_recipe_does_not_say_and_show_says_it_all(write):
    spec = load(write(RL)).stage["rlvr"]
    assert (spec.loss, spec.clip_low, spec.clip_high, spec.minibatches) == ("gspo", 0.1, 4e-4, 4)
    assert (spec.betas, spec.monitor.stop, spec.extra[0].weight) == ((0.9, 0.95), ("kl", "gap"), 0.5)
    assert load(write(RL), ["stage.rlvr.preset=dapo", "stage.rlvr.minibatches=2"]).stage["rlvr"].clip_high == 0.28
    shown = load(write(dump(load(write(RL))), "shown.toml"))
    assert shown == load(write(RL))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stage.rlvr.minibatches=3", "batch = 8 prompts cannot be cut into minibatches = 3 equal parts"),
        ("stage.rlvr.num_generations=1", "greater than or equal to 2"),
        ("stage.rlvr.in_flight=true", 'in_flight needs engine = "vllm" and lag of at least 1'),
        ("stage.rlvr.overlong_tokens=4096", "overlong_tokens = 4096 must be below max_new_tokens = 2048"),
        ("stage.rlvr.preset=grop", "dr_grpo"),
        ("stage.rlvr.engine=sglang", "allowed: local, vllm"),
        ("placement.engine_url=http://h:1", "unknown key 'engine_url' in [placement]: here `placement.engine.urls`"),
        ('placement.engine={ urls = ["http://h:1"] }', 'servers of their own; set engine.placement = "apart"'),
        ('placement.engine={ placement = "apart", urls = ["h:1"] }', "'h:1' is no address of a server"),
    ],
)
def test_settings_of_rollouts_that_do_not_fit_are_refused(write, override, says):
    assert says in complaint(write(RL), override)


def test_an_engine_beside_a_trainer_has_one_card(write):
    several = ["placement.engine.tensor_parallel_size=2"]
    load(write(RL), several)  # nothing has an engine
    with pytest.raises(RecipeError, match=r"stage 'rlvr': an engine beside a trainer has one card.*apart"):
        load(write(RL), [*several, "stage.rlvr.engine=vllm"]).order()
    load(write(RL), [*several, "stage.rlvr.engine=vllm", "placement.engine.placement=apart"]).order()


def test_the_engine_of_the_placement_is_that_of_stages_that_name_none(write):
    recipe = load(write(RL), ["placement.engine.kind=vllm"])
    assert recipe.stage["rlvr"].engine == "vllm"
    assert load(write(RL)).stage["rlvr"].engine == "local"
    named = ["placement.engine.kind=vllm", "stage.rlvr.engine=local"]
    assert load(write(RL), named).stage["rlvr"].engine == "local"
    assert load(write(RL), ["placement.engine.kind=sglang"]).stage["rlvr"].engine == "local"  # it cannot have that
    assert load(write(dump(recipe), "again.toml")) == recipe


def test_scale_multiplies_rows_steps_and_rounds_and_leaves_benchmarks(write):
    recipe = load(write(GOOD.replace("learning_rate", "steps = 5\nlearning_rate")), ["scale=0.5"])
    assert recipe.stage["words"].rows == 20
    assert recipe.stage["items"].rows == 20  # the benchmark's
    assert recipe.stage["sft-data"].sources[0].rows == 15
    assert (recipe.stage["sft"].rows, recipe.stage["sft"].steps) == ("sft-data", 2)
    assert load(write(dump(recipe), "again.toml")) == recipe
    assert load(write(GOOD), ["scale=0.001"]).stage["words"].rows == 1
    assert load(write(RL), ["scale=3"]).stage["rlvr"].rounds == 6
    for bad in ("0", "-1", "much", "true"):
        assert "scale must be a number above 0" in complaint(write(GOOD), f"scale={bad}")


def test_groups_of_ranks_are_equally_large():
    with pytest.raises(ValidationError, match="replicate 4 x context 1 x tensor 1 do not make 6 ranks"):
        Placement(ranks=6, mesh={"replicate": 4})
    with pytest.raises(ValidationError, match="replicate 2 x shard 2 x context 1 x tensor 1 do not make 6 ranks"):
        Placement(ranks=6, mesh={"replicate": 2, "shard": 2})
    assert Placement(ranks=6, mesh={"replicate": 3}).shape.shard == 2
    assert Placement(ranks=6).shape.model_dump() == {"replicate": 1, "shard": 6, "context": 1, "tensor": 1}
    shapes = {"{}": [4, 8, 1, 1], '{"replicate": 1}': [1, 32, 1, 1], '{"shard": 16}': [2, 16, 1, 1]}
    shapes |= {
        '{"tensor": 8}': [4, 1, 1, 8],
        '{"tensor": 16}': [2, 1, 1, 16],
        '{"tensor": 2, "context": 2}': [4, 2, 2, 2],
    }
    for mesh, wanted in shapes.items():
        assert list(dict(Placement(nodes=4, gpus=8, mesh=json.loads(mesh)).shape).values()) == wanted
    with pytest.raises(ValidationError, match="compile exclude each other"):
        Placement(ranks=2, mesh={"tensor": 2}, compile=True)
    assert "mesh" not in Placement(ranks=6).model_dump(), "recipes that were written down before stay as they are"
