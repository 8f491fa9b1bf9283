"""How examples are spread over classes."""

import numpy as np

from polytrain.class_counts import ClassCounts


def test_classes_are_counted_in_words():
    counts = ClassCounts(("a", "b", "c"), {"train": np.array([5, 1, 9]), "val": np.array([1, 0, 2])}, {"train": 4})
    assert counts.summary() == (
        "3 classes; examples in train: largest class 9, median 5, smallest 1; 1 class without any in val; "
        "without a class in train: 4"
    )


def test_bars_stand_from_the_largest_class_to_the_smallest():
    counts = ClassCounts(("a", "b", "c"), {"train": np.array([5, 1, 9])}, {})
    assert counts.rows() == [2, 0, 1]
    pixels = np.asarray(counts.drawn())
    blue = (pixels == (0x00, 0x72, 0xB2)).all(axis=2).sum(axis=1)
    lengths = [int(length) for length in blue[blue > 0][::13]]
    assert lengths == sorted(lengths, reverse=True)


def test_of_a_thousand_classes_the_largest_and_the_smallest_are_listed():
    numbers = np.arange(1000)
    counts = ClassCounts([f"class {n}" for n in numbers], {"train": numbers, "val": numbers % 2}, {})
    rows = counts.rows()
    assert rows[0] == 999
    assert rows[-1] == 0
    assert rows.count(None) == 1
    assert counts.drawn().height < 700
