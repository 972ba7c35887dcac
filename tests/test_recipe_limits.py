"""A recipe from outside may be large and deep up to stated limits; beyond them one error says where, at once."""

from __future__ import annotations

import time

import pytest

from tercet.pipeline import plan, read_mirror
from tercet.recipe import Recipe, RecipeError, load
from tercet.recipe.limits import DEPTH, EXTENDED, FILE_BYTES, LISTED, MARKS, NAME, STAGES
from tercet.store import Store

HEAD = 'name = "x"\n[base]\nmodel = "tiny:"\n'
MIX = '[stage.{name}]\nkind = "mix"\nsources = [{{ {source} }}]\n'


def complaint(tmp_path, text: str, overrides=()) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return str(caught.value)


def chain(count: int) -> str:
    stages = [MIX.format(name="s0", source='path = "rows.jsonl"')]
    stages += [MIX.format(name=f"s{number}", source=f'stage = "s{number - 1}"') for number in range(1, count)]
    return HEAD + "".join(stages)


def test_a_chain_of_stages_written_upside_down_loads_and_plans_without_recursion(tmp_path):
    text = chain(2000)
    stages = text.removeprefix(HEAD).split("[stage.")[1:]
    path = tmp_path / "recipe.toml"
    path.write_text(HEAD + "".join(f"[stage.{stage}" for stage in reversed(stages)), encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    began = time.process_time()
    recipe = load(path)
    assert recipe.order() == [f"s{number}" for number in range(2000)]
    assert [line.name for line in plan(recipe, Store(tmp_path / "runs"))] == recipe.order()
    assert time.process_time() - began < 4, "about 0.8 s; four times the stages must not take sixteen times that"


DEEP = {
    "lists": ("a = " + "[" * (DEPTH + 1), "line 4: more than 32 brackets nest"),
    "inline tables": ("a = " + "{ a = " * (DEPTH + 1), "line 4: more than 32 brackets nest"),
    "a dotted key": ("\n" + "a." * DEPTH + "a = 1", "line 5: a key of more than 32 parts"),
    "a header": ("[" + "a . " * DEPTH + "a]", "line 4: a key of more than 32 parts"),
    "lists below a dotted key": ("a." * 20 + "a = " + "[" * 20 + "]" * 20, "nests more than 32 tables and lists"),
    "values": ("a = [" + "1," * (MARKS + 1) + "]", "line 4: more than 200,000 keys, values and brackets"),
}


@pytest.mark.parametrize("what", DEEP)
def test_depth_and_number_of_values_are_limited(tmp_path, what):
    text, says = DEEP[what]
    assert says in complaint(tmp_path, HEAD + text)


def test_brackets_in_texts_and_comments_are_not_counted(tmp_path):
    text = f"""x = "{"[" * 99}" # {"[" * 99}\ny = '''{"a." * 99}'''\nz = \"\"\"{"{" * 99}\\\"\"\"\"\n"""
    assert "unknown key 'x' in [base]" in complaint(tmp_path, HEAD + text)


def test_a_file_is_limited_in_bytes_and_the_number_of_stages_is_limited(tmp_path):
    assert "larger than 4 MiB" in complaint(tmp_path, HEAD + "#" * FILE_BYTES)
    many = "".join(f"[stage.s{number}]\n" for number in range(STAGES + 1))
    assert "10,001 stages; a recipe may have 10,000" in complaint(tmp_path, HEAD + many)


VALUES = {
    "2**63": "a whole number of 64 bits",
    "9" * 5000: "not valid TOML",
    "inf": "expected a finite number",
    "nan": "expected a finite number",
    '"\\u0000"': "holds the character U+0000",
    '"\\u001b[2J"': "holds the character U+001B",
    '{ "\\u0007" = 1 }': "holds the character U+0007",
}


@pytest.mark.parametrize("value", VALUES, ids=[name[:20] for name in VALUES])
def test_a_value_that_no_recipe_means_is_named_with_its_line(tmp_path, value):
    text = HEAD + f"template_args = {{ a = {value.replace('2**63', str(2**63))} }}\n"
    assert VALUES[value] in (said := complaint(tmp_path, text))
    assert "recipe.toml, line 4" in said or "at line 4" in said or value == "9" * 5000
    assert said.isprintable()


@pytest.mark.parametrize(
    "override",
    ["base.date=\x1b", "a" + ".a" * DEPTH + "=1", "base.template_args={ a = 99999999999999999999 }", "\udcff=1"],
)
def test_an_override_has_the_same_limits(tmp_path, override):
    assert complaint(tmp_path, chain(1), [override]).startswith("--set ")


def test_an_override_with_brackets_without_end_is_a_text(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(chain(1), encoding="utf-8")
    assert load(path, ["name=" + "[" * 5000]).name == "[" * 5000


@pytest.mark.parametrize("name", ["a" * (NAME + 1), "../x", "a/b", "a.b", "-a", "CON ", "A\u0301"])
def test_a_stage_name_that_is_no_folder_is_refused(tmp_path, name):
    assert "rename the stage" in complaint(tmp_path, HEAD + MIX.format(name=f'"{name}"', source='path = "x"'))


def test_names_that_differ_by_case_alone_are_refused(tmp_path):
    text = HEAD + MIX.format(name="Sft", source='path = "x"') + MIX.format(name="sft", source='path = "x"')
    assert "'sft' differs from 'Sft' by its case alone" in complaint(tmp_path, text)


def test_a_message_lists_the_first_of_many(tmp_path):
    assert complaint(tmp_path, chain(90).replace('"s0"', '"s_"')).count(", s") == LISTED - 1
    assert "and 71 more" in complaint(tmp_path, chain(90).replace('"s0"', '"s_"'))
    wrong = complaint(tmp_path, chain(90).replace("sources", "sourcez"))
    assert wrong.count("\n") == LISTED
    assert wrong.endswith("more of such")
    circle = HEAD + "".join(MIX.format(name=f"s{one}", source=f'stage = "s{(one + 1) % 90}"') for one in range(90))
    assert "s0 -> s1 -> " in (said := complaint(tmp_path, circle))
    assert len(said) < 400


def test_recipes_extend_each_other_up_to_a_limit(tmp_path):
    for number in range(EXTENDED + 1):
        (tmp_path / f"{number}.toml").write_text(f'extends = "{number + 1}.toml"\n', encoding="utf-8")
    (tmp_path / f"{EXTENDED + 1}.toml").write_text(HEAD, encoding="utf-8")
    assert "more than 16 recipes extend each other" in complaint(tmp_path, 'extends = "0.toml"\n')


def test_a_mirror_file_has_the_same_limits(tmp_path):
    (tmp_path / "mirror.toml").write_text("a = " + "[" * 9999, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mirror\.toml, line 1: more than 32 brackets"):
        read_mirror(tmp_path / "mirror.toml")


def test_a_recipe_made_in_memory_has_the_same_names():
    stages = {"a" * 200: {"kind": "mix", "sources": [{"path": "x"}]}}
    with pytest.raises(RecipeError, match="rename the stage"):
        Recipe.model_validate({"name": "r", "base": {"model": "tiny:"}, "stage": stages}).order()
