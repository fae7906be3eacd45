from hypothesis import given
from hypothesis import strategies as st

from streamer import sequence
from streamer.sequence import SequenceSet


@given(st.lists(st.integers(0, 60)))
def test_behaves_as_a_set(numbers):
    ours, model = SequenceSet(), set()
    for number in numbers:
        assert ours.add(number) == (number not in model)
        model.add(number)
    assert {n for n in range(62) if n in ours} == model
    assert ours.missing == (max(model) - min(model) + 1 - len(model) if model else 0)


@given(st.sets(st.integers(0, 60)), st.randoms(use_true_random=False))
def test_holds_no_more_than_where_runs_begin_and_end_and_comes_back_from_it(numbers, rng):
    ours = SequenceSet()
    for number in rng.sample(sorted(numbers), len(numbers)):
        ours.add(number)
    starts = sorted(n for n in numbers if n - 1 not in numbers)
    ends = sorted(n + 1 for n in numbers if n + 1 not in numbers)
    packed = [0, *(edge for run in zip(starts, ends, strict=True) for edge in run)]
    assert ours.pack() == packed
    assert SequenceSet.unpack(packed).pack() == packed


def test_memory_is_bounded_by_giving_up_the_oldest_gap(monkeypatch):
    monkeypatch.setattr(sequence, "MAX_RANGES", 3)
    ours = SequenceSet()
    for number in (0, 2, 4, 6, 8):
        ours.add(number)
    assert len(ours._starts) == 3
    assert 1 in ours  # given up: a late arrival is treated as counted
    assert 7 not in ours
    assert ours.missing == 4  # 1, 3, 5 and 7, whether given up or not
    assert SequenceSet.unpack(ours.pack()).missing == 4
