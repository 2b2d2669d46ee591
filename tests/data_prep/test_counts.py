"""Counts of parts, put together."""

from data_prep.counts import EXAMPLES, Counts, Example


def test_the_examples_shown_do_not_depend_on_which_part_they_stand_in() -> None:
    examples = [Example(f"{number:02d}", "eval.txt: words", "text") for number in range(3 * EXAMPLES)]
    for parts in (1, 2, 3):
        counted = [Counts(contaminated=examples[part::parts][::-1]) for part in range(parts)]
        assert Counts.sum(reversed(counted)).contaminated == examples[:EXAMPLES]
