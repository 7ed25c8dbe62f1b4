"""What belongs together: both ways, balanced, and no fact in two prompts."""

import re
from collections import Counter

import pytest

from eval.prompts import relations, templates
from eval.prompts.relations import both_ways

ALL = relations.make(10**6, 1337)
GROUPS = [(kind, group) for kind in relations.KINDS
          for group in templates.read_table("relations.toml")[kind]]  # fmt: skip


def rows_of(group):
    return [tuple(row.split(": ")) for row in group["rows"].strip().split("\n")]


@pytest.mark.parametrize("kind", relations.KINDS)
def test_enough_of_each_kind(kind):
    prompts = [one for one in relations.make(640, 1337) if one.kind == kind]
    assert 640 <= sum(len(prompt.pairs) // 2 for prompt in prompts) < 700 and len(prompts) >= 45
    few = [one for one in relations.make(60, 1337) if one.kind == kind]
    assert 60 <= sum(len(prompt.pairs) // 2 for prompt in few) < 120 and few == prompts[: len(few)]


def test_by_hand():
    lines = both_ways([("dog", "woof"), ("cow", "moo")], ["The <1> said <2>.", "<2>, said a <1>."])
    assert lines == ["The dog said [woof|moo].", "The cow said [moo|woof].",
                     "[woof|moo], said a dog.", "[moo|woof], said a cow."]  # fmt: skip


def test_how_frequent_words_are_cancels():
    """The right sentences of a question have the very words of the wrong ones."""
    for prompt in ALL:
        for one, other in zip(prompt.pairs[::2], prompt.pairs[1::2], strict=True):
            right, wrong = (
                Counter(" ".join(side).split()) for side in zip(one, other, strict=True)
            )
            assert sum(right.values()) and one[0] != one[1], prompt.rule
            plain = [
                Counter("".join(side).replace(",", "")) for side in zip(one, other, strict=True)
            ]
            assert right == wrong or plain[0] == plain[1], (prompt.rule, one, other)


def test_no_fact_in_two_prompts():
    seen = Counter()
    for kind, group in GROUPS:
        prompts = [one for one in ALL if one.rule == group["rule"]]
        for thing, value in rows_of(group):
            both = [re.compile(rf"\b{part}\b") for part in (thing, value)]
            holding = [prompt for prompt in prompts if any(
                all(part.search(prompt.text + right) for part in both) for right, _ in prompt.pairs
            )]  # fmt: skip
            assert len(holding) == 1, (kind, thing, value)
            seen[kind] += 1
    assert seen["facts"] > 150 and seen["reasoning"] > 130


def test_the_tables():
    """Each thing and each value once in a group; each sentence has both, and no slip of English."""
    for _, group in GROUPS:
        rows = rows_of(group)
        if not group.get("opposites"):
            for side in zip(*rows, strict=True):
                assert len(set(side)) == len(side), (group["rule"], side)
        else:
            pairs = zip(rows[::2], rows[1::2], strict=True)
            assert all(a[0] != b[0] and a[1] != b[1] for a, b in pairs), group["rule"]
        for frame in group["frames"].strip().split("\n"):
            assert frame.count("<1>") == 1 <= frame.count("<2>") and frame == frame.strip()


def test_made_by_the_seed():
    assert relations.make(90, 1) == relations.make(90, 1) != relations.make(90, 2)
