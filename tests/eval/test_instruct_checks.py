"""What of an instruction a story does: eval/instruct_checks.py, with eval/bootstrap.py."""

import re
from collections import Counter

import numpy as np
import pytest

from eval.bootstrap import difference, ratio
from eval.instruct_checks import (
    check_story,
    contains_sentence,
    ends_badly,
    passes_all,
    sounds_bad,
    summary_score,
)
from nanostories.dataset import storybook, storybook_parser
from nanostories.dataset.instruct import StoryFacts, make_instruction, make_record, parse_record

STORY = """Once upon a time, there was a big red bus. It was careful on the road.

"Can I come with you?" asked the bus. The car said yes. They decorated the town."""


def scores_of(story=STORY, **fields):
    return check_story(make_instruction(**fields), story)


def test_words():
    assert scores_of(words="decorate, road, bus") == {"words": 1}
    assert scores_of(words="decorate, car, sad") == {"words": 2 / 3}
    assert scores_of("He was careful.", words="car") == {"words": 0}
    assert not passes_all(scores_of(words="road, sad")) and passes_all(
        scores_of(words="road, come")
    )


@pytest.mark.parametrize(
    ("sentence", "stands"),
    [
        ("The car said yes.", True),
        ('"Can I come with you?" asked the bus.', True),
        ("The car said yes", True),
        ("the car said yes.", False),  # word for word
        ("car said yes.", False),  # whole
        ("The car said yes. They", False),
        ("The car", False),
        ("Can I come with you?", True),
        ("The car said ye", False),
        ("he car said yes.", False),
        ("The car said no.", False),
        ("It was careful on the road. Can", False),
    ],
)
def test_sentence(sentence, stands):
    assert contains_sentence(sentence, STORY) is stands
    assert scores_of(sentence=sentence) == {"sentence": float(stands)}


def test_dialogue_and_ending():
    assert scores_of(features="Dialogue") == {"dialogue": 1}
    assert scores_of("He ran home.", features="Dialogue") == {"dialogue": 0}
    assert scores_of("He ran home.", features="Twist") == {}  # only a reader can tell
    assert scores_of("They lost. He was sad. He cried.", features="bad ending") == {"ending": 1}
    assert scores_of("He was sad. Then he smiled. All were happy.", features="BadEnding") == {
        "ending": 0
    }


def test_rule_of_thumb_for_endings():
    right = Counter(
        (story.facts["ending"] == "bad") == sounds_bad(story.text)
        for story in storybook.stories(1500, seed=9)
    )
    assert 0.94 <= right[True] / 1500 < 0.96
    for story in storybook.stories(200):  # where it can be known, it is
        assert ends_badly(story.text) == (story.facts["ending"] == "bad")


def test_summary():
    plot = "A bus asks a car to come along on the road."
    assert summary_score(plot, STORY) == 1 and summary_score(plot, "A car and a bus.") == 2 / 5
    assert summary_score(plot, "Tom sat.") == 0
    # A copied summary is no plot.
    assert summary_score(plot, f"{plot} The end.") == 0
    # Three of its four runs of five words stand there as they are.
    assert (
        summary_score("The bus asks a car to come along.", "The bus asks a car to come home.")
        == 1 / 4
    )
    assert (
        summary_score("They ran.", "They ran.") == 0
        and summary_score("They ran.", "Tom ran home.") == 1
    )
    assert summary_score("", "Tom ran.") == 0


def test_repeated_fields_all_count():
    record = parse_record("Summary: A bus.\nSummary: A cow.\nWords: bus\nWords: cow\nStory: ")
    assert check_story(record, "The bus went.") == {"words": 0.5, "summary": 0.5}


# ---- storybook, exactly ------------------------------------------------------------------------


def records(count=400):
    return [
        make_record(StoryFacts(s.text, tuple(s.words), tuple(s.features), s.summary), 1)
        for s in storybook.stories(count, seed=4)
    ]


def test_true_stories_comply():
    required = Counter()
    for record in records():
        result = check_story(record, record.story)
        assert passes_all(result), (record, result)
        required.update(result)
        assert ("holds" in result) == record.has_fields(["summary"])
        assert ("features" in result) == record.has_fields(["features"])
    assert set(required) == {
        "words", "sentence", "dialogue", "ending", "summary", "features", "characters", "holds",
    }  # fmt: skip
    assert min(required.values()) > 30


def test_other_stories_do_not():
    all_records = records()
    shifted = [*all_records[7:], *all_records[:7]]
    results = [check_story(a, b.story) for a, b in zip(all_records, shifted, strict=True)]
    assert sum(map(passes_all, results)) < 0.08 * len(results)


def one(plot, ending, **fields):
    """A story of a plot, and the checks of an instruction made of it for another text."""
    story = next(
        s for s in storybook.stories(3000) if (s.plot, s.facts["ending"]) == (plot, ending)
    )
    given = {"summary": story.summary, "features": ", ".join(story.features)}
    text = make_instruction(**{name: given[name] for name in fields if fields[name]}).prompt()
    return story, lambda other: check_story(parse_record(text + story.text), other)


def test_who_has_what_and_who_is_who():
    story, scores_of_story = one("lost", "good", summary=True)
    assert scores_of_story(story.text) == {"summary": 1, "characters": 1, "holds": 1} | {
        "summary": pytest.approx(0.87, abs=0.15)
    }
    x, y = (name for name in story.facts["characters"])
    thing = story.facts["objects"][0]
    renamed = story.text.replace(x, "Zelda")  # nobody of the grammar: the story cannot be read
    assert scores_of_story(renamed)["characters"] == 0 and scores_of_story(renamed)["holds"] == 0
    other = next(
        s for s in storybook.stories(3000)
        if s.plot == "lost" and s.facts["ending"] == "good" and x not in s.text
    )  # fmt: skip
    assert (
        scores_of_story(other.text)["characters"] == 0 and scores_of_story(other.text)["holds"] == 0
    )
    # One of the two named children is not enough.
    girls, boys = storybook.VALUES["X"][:18], storybook.VALUES["X"][18:]
    other = next(name for name in (girls if y in girls else boys) if name not in story.text)
    changed = story.text.replace(y, other)
    assert not storybook_parser.find_errors(changed) and scores_of_story(changed)["characters"] == 0
    # A toy of another colour is not the required one.
    old, new = thing.split()[0], {"red": "blue"}.get(thing.split()[0], "red")
    changed = re.sub(rf"an? {old}\b", f"a {new}", story.text).replace(old, new)
    assert not storybook_parser.find_errors(changed) and x in changed and y in changed
    assert scores_of_story(changed)["holds"] == 0 and scores_of_story(changed)["characters"] == 1


def test_nobody_is_not_somebody():
    """A toy that is never found, and the same toy in the same hands, are not the same end."""
    story, scores_of_story = one("lost", "bad", summary=True)
    (x, she), *_ = story.facts["characters"].items()
    old = story.facts["holds"]["nobody"].split()  # as in "red kite"
    good = next(
        s for s in storybook.stories(3000)
        if s.plot == "lost" and s.facts["ending"] == "good" and x not in s.text
        and next(iter(s.facts["characters"].values())) == she
    )  # fmt: skip
    ((y, new),) = good.facts["holds"].items()
    text = good.text.replace(y, x)
    for word, other in zip(new.split(), old, strict=True):
        article = "an" if other[0] in "aeiou" else "a"
        text = re.sub(rf"\ban? {word}\b", f"{article} {other}", text).replace(word, other)
    assert not storybook_parser.find_errors(text) and storybook_parser.parse_story(text).facts[
        "holds"
    ] == {x: " ".join(old)}
    assert scores_of_story(story.text)["holds"] == 1 and scores_of_story(text)["holds"] == 0


def test_what_is_not_mentioned_is_free():
    story, scores_of_story = one("friend", "good", summary=True)
    (animal,), (snack,) = story.facts["holds"], story.facts["holds"].values()
    assert animal in story.summary and snack.split()[-1] not in story.summary
    old = snack.split()[-1]
    new = next(word for word in storybook.VALUES["SNACK"] if word != old and word not in story.text)
    assert scores_of_story(story.text.replace(old, new))["holds"] == 1


def test_features_and_endings_are_read_off_the_story():
    story, scores_of_story = one("promise", "bad", features=True)
    assert scores_of_story(story.text) == {"dialogue": 1, "ending": 1, "features": 1}
    good = next(
        s for s in storybook.stories(3000) if (s.plot, s.facts["ending"]) == ("promise", "good")
    )
    assert scores_of_story(good.text) == {"dialogue": 1, "ending": 0, "features": 0}
    assert scores_of_story("It was sad. He cried.") == {"dialogue": 0, "ending": 1, "features": 0}


# ---- intervals ---------------------------------------------------------------------------------


def test_intervals_against_theory():
    rng = np.random.default_rng(0)
    passes = rng.random(400) < 0.3
    got = ratio(passes, np.ones(400))
    half = 1.96 * np.sqrt(passes.mean() * (1 - passes.mean()) / 400)
    assert got["mean"] == passes.mean() and got["n"] == 400
    assert got["low"] == pytest.approx(passes.mean() - half, abs=0.006)
    assert got["high"] == pytest.approx(passes.mean() + half, abs=0.006)
    assert got == ratio(passes, np.ones(400)) != ratio(passes, np.ones(400), seed=1)


def test_intervals_cover_the_truth():
    """Stories of one prompt are resampled together: stories of a prompt that are all alike."""
    rng, inside = np.random.default_rng(1), 0
    for _ in range(200):
        passes = 5 * (rng.random(100) < 0.4)  # five stories to each prompt, the same
        got = ratio(passes, np.full(100, 5))
        inside += got["low"] <= 0.4 <= got["high"]
    assert 180 <= inside <= 200


def test_intervals_of_nothing():
    assert ratio(np.zeros(3), np.zeros(3)) is None
    got = ratio(np.array([1, 0, 0]), np.array([1, 0, 0]))  # one prompt alone could have it
    assert (got["mean"], got["n"]) == (1, 1)
    assert difference((np.ones(3), np.ones(3)), (np.zeros(3), np.zeros(3))) is None


def test_differences_are_paired():
    rng = np.random.default_rng(2)
    hard = rng.random(300) < 0.5  # both fail where it is hard
    one, other = hard.astype(float), hard * (rng.random(300) < 0.9)
    gap = difference((one, np.ones(300)), (other, np.ones(300)))
    assert gap["mean"] == pytest.approx(one.mean() - other.mean()) and gap["low"] > 0
    alone = ratio(one, np.ones(300))
    assert gap["high"] - gap["low"] < (alone["high"] - alone["low"]) / 2
