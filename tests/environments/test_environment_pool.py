"""Episodes played in processes of their own: what they answer, their limits, and what becomes of the others."""

from __future__ import annotations

import pytest

from tercet.environments.names import EnvironmentNameError, code_of, where
from tercet.environments.pool import EnvironmentPlayError, EnvironmentPool
from tercet.recipe import GRPOSpec, RecipeError
from tercet.rows import Message, Row

OWN = '''
import os, signal, time

class Count:
    """Counts its actions; does harm where it is told to."""

    def __init__(self, most=3):
        self.most, self.seen = most, []

    async def reset(self, row):
        self.seen = [row.id]
        if row.id == "hang":
            time.sleep(60)
        return [{"role": "system", "content": "count"}, "go"]

    def close(self):
        with open(__file__ + ".closed", "a") as file:
            file.write(self.seen[0])

    def step(self, action):
        self.seen.append(action)
        if action == "hang":
            time.sleep(60)
        if action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "raise":
            raise ValueError("no such move")
        if action == "nothing":
            return [], 0.0, False, {}
        if action == "infinite":
            return "?", float("inf"), False, {}
        if action == "moody":
            return str(time.time_ns()), 0.0, False, {}
        return " ".join(self.seen), 0.5, len(self.seen) > self.most, {"seen": len(self.seen)}
'''


@pytest.fixture
def pool(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    made = EnvironmentPool(f"{file}:Count", {"most": 3}, seconds=2.0, workers=1)
    yield made
    made.close()


def rows(*names):
    return {number: Row(name, (Message("user", "x"),)) for number, name in enumerate(names)}


def test_episodes_go_side_by_side_and_each_keeps_its_own_state(pool):
    pool.check()
    begun = pool.reset(rows("a", "b"))
    assert begun[0].messages == (Message("system", "count"), Message("user", "go"))
    assert not begun[0].done
    first = pool.step({0: "one", 1: "uno"})
    assert [first[number].messages[0].content for number in (0, 1)] == ["a one", "b uno"]
    assert first[0].reward == 0.5
    assert pool.step({1: "due"})[1].messages[0].content == "b uno due"
    assert pool.step({0: "two"})[0].info == '{"seen": 3}'
    last = pool.step({0: "three"})[0]
    assert last.done
    assert not last.fault


@pytest.mark.parametrize(
    ("action", "outcome", "said"),
    [
        ("hang", "timeout", "longer than 2 s"),
        ("die", "error", "died"),
        ("raise", "error", "no such move"),
        ("nothing", "error", "gave no turn and did not end"),
        ("infinite", "error", "expected a finite number"),
    ],
)
def test_what_breaks_ends_its_own_episode_and_the_others_go_on_where_they_were(pool, action, outcome, said):
    pool.reset(rows("a", "b"))
    pool.step({0: "one", 1: "uno"})
    broken = pool.step({0: action})[0]
    assert (broken.done, broken.outcome) == (True, outcome)
    assert said in broken.fault
    assert pool.step({1: "due"})[1].messages[0].content == "b uno due"


def test_a_beginning_that_hangs_leaves_the_episodes_beside_it_whole(pool):
    begun = pool.reset(rows("a", "hang", "b"))
    assert [begun[number].outcome for number in range(3)] == ["graded", "timeout", "graded"]
    after = pool.step({0: "one", 2: "uno"})
    assert [after[number].messages[0].content for number in (0, 2)] == ["a one", "b uno"]


def test_episodes_that_a_limit_ended_are_closed_and_their_numbers_free(pool, tmp_path):
    pool.reset(rows("a", "b"))
    pool.step({0: "one"})
    pool.finish()
    assert (tmp_path / "own.py.closed").read_text() == "ab"
    pool.reset(rows("c"))
    assert pool.step({0: "one"})[0].messages[0].content == "c one"


def test_an_episode_that_does_not_repeat_itself_is_not_played_on_with_another_past(pool):
    pool.reset(rows("a", "b"))
    pool.step({1: "moody"})
    pool.step({0: "die"})
    assert "played again it went otherwise" in pool.step({1: "due"})[1].fault


def test_a_class_that_cannot_be_used_is_refused_with_the_reason(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("class Half:\n    def reset(self, row): ...\n")
    for name, said in (("Half", "has no step"), ("Whole", "has no 'Whole'")):
        pool = EnvironmentPool(f"{file}:{name}", {}, seconds=20.0, workers=1)
        with pytest.raises(EnvironmentPlayError, match=said):
            pool.check()
        pool.close()


def test_names_are_ours_of_a_file_or_of_a_package(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    assert where("guess@1") == "tercet.environments.guess:Guess"
    assert where("own.py:Count", tmp_path) == f"{tmp_path / 'own.py'}:Count"
    assert where("package.module:Game") == "package.module:Game"
    for wrong in ("chess@1", "package.module", "a b:Game"):
        with pytest.raises(EnvironmentNameError, match="expected calculator@1"):
            where(wrong)


def test_an_edit_of_a_users_environment_changes_the_key_and_a_missing_file_is_named(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    spec = GRPOSpec(model="m", prompts="p", rounds=1, environment="own.py:Count")
    before = code_of(spec, tmp_path)
    (tmp_path / "own.py").write_text(OWN + "\n")
    assert code_of(spec, tmp_path) != before
    assert code_of(spec.model_copy(update={"environment": "guess@1"}), tmp_path) == {}
    with pytest.raises(RecipeError, match="there is no file"):
        code_of(spec.model_copy(update={"environment": "gone.py:Count"}), tmp_path)


def test_an_edit_of_a_task_set_that_is_played_changes_the_key(tmp_path, monkeypatch):
    (tmp_path / "a_set.py").write_text("1")
    monkeypatch.syspath_prepend(tmp_path)
    spec = GRPOSpec(
        model="m", prompts="p", rounds=1, environment="verifiers@1", environment_args={"taskset": "me/a-set@1"}
    )
    before = code_of(spec, tmp_path)
    (tmp_path / "a_set.py").write_text("2")
    assert list(before) == ["verifiers@1 me/a-set@1"]
    assert code_of(spec, tmp_path) != before
    bundled = spec.model_copy(update={"environment_args": {"taskset": "not-installed"}})  # or the package's own
    assert code_of(bundled, tmp_path) == {}
