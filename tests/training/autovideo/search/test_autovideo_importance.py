"""Importance of choices: what mattered is first, what did not is near nothing, and little is said of little."""

import random

import pytest

from training.autovideo.search.importance import FEWEST, importance


def drawn(toy, count: int) -> tuple[list, list[dict]]:
    space = toy.space()
    choices = [space.sample(random.Random(n)) for n in range(count)]
    return choices, [space.encode(choice) for choice in choices]


def test_what_mattered_comes_first_conditions_included(toy):
    choices, rows = drawn(toy, 150)
    # The learning rate matters where the net is deep, which half of the candidates are; nothing else does.
    values = [
        (1.0 if choice["net:toy/deep.lr"] > 3e-4 else 0.0) if choice["net"] == "toy/deep" else 0.5 for choice in choices
    ]
    found = importance(rows, values, repeats=5)
    first, *others = found.columns
    assert first.name == "net:toy/deep.lr"
    assert found.explained > 0.8
    assert first.mean > 0.5
    assert all(abs(column.mean) < 0.15 for column in others if not column.name.startswith("net"))
    assert {column.name for column in found.columns} == set(toy.space().columns())
    assert "150 trials" in found.note
    assert importance(rows, values, repeats=5) == found
    assert found.to_dict()["columns"][0]["name"] == first.name


def test_shuffled_values_are_called_noise(toy):
    choices, rows = drawn(toy, 60)
    values = [float(choice["net"] == "toy/deep") for choice in choices]
    assert importance(rows, values, repeats=3).columns[0].name.startswith("net")
    random.Random(0).shuffle(values)
    found = importance(rows, values, repeats=3)
    assert found.explained <= 0.1
    assert all(column.mean < 0.2 for column in found.columns)
    values = [random.Random(n).random() for n in range(60)]
    assert "the figures are noise" in importance(rows, values, repeats=3).note


def test_of_few_or_equal_trials_nothing_is_said(toy):
    _, rows = drawn(toy, FEWEST + 1)
    values = [float(n) for n in range(FEWEST + 1)]
    assert importance(rows, values, repeats=1).columns
    few = importance(rows[: FEWEST - 1], values[: FEWEST - 1])
    assert (few.columns, few.explained, few.trials) == ((), None, FEWEST - 1)
    assert few.note == "too few trials: 9 finished, at least 10 are needed"
    assert importance(rows[:FEWEST], [float("nan"), *values[1:FEWEST]]).trials == FEWEST - 1  # finite ones count
    assert "the same value" in importance(rows, [0.5] * len(rows)).note
    assert "the same candidate" in importance([rows[0]] * len(rows), values).note


def test_wrong_tables_are_refused(toy):
    _, rows = drawn(toy, FEWEST)
    with pytest.raises(ValueError, match="10 rows and 9 values"):
        importance(rows, [0.1 * n for n in range(9)])
    with pytest.raises(ValueError, match="different columns"):
        importance([*rows[1:], {"x": 1.0}], [0.1 * n for n in range(10)])
