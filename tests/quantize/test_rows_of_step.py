from llama_edge.quantize.rows_of_step import rows_of_step


def test_every_sequence_comes_once_an_epoch_and_each_epoch_has_its_order() -> None:
    rows = [row for step in range(6) for row in rows_of_step(9, step, 3, seed=0)]
    epochs = rows[:9], rows[9:]
    assert [sorted(epoch) for epoch in epochs] == [list(range(9))] * 2
    assert epochs[0] != epochs[1]
    assert rows_of_step(9, 4, 3, seed=0) == rows[12:15]
    assert rows_of_step(9, 0, 3, seed=1) != rows[:3]


def test_a_step_may_span_two_epochs() -> None:
    rows = [row for step in range(5) for row in rows_of_step(5, step, 2, seed=0)]
    assert sorted(rows) == sorted([*range(5)] * 2)


def test_a_short_text_is_seen_as_a_whole() -> None:
    assert sorted(rows_of_step(2, 3, 8, seed=0)) == [0, 1]
