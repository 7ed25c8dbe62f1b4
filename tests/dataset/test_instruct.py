"""The Instruct record: read, asked for, made, and kept apart."""

import json
import string
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from beside import beside
from hypothesis import assume, given
from hypothesis import strategies as st

from configs import UserError
from nanostories.dataset import instruct, sources, storybook
from nanostories.dataset.instruct import (
    FEATURES,
    FIELD_PROBABILITIES,
    LABELS,
    Record,
    StoryFacts,
    drop_one_field,
    facts_from_json,
    make_instruction,
    make_record,
    parse_record,
)  # fmt: skip
from nanostories.text.words import contains_word, split_words

TEXT = """
Random sentence: The bus felt sad.
Features: Dialogue, bad ending
Words: come, road, sad
Summary: A bus becomes jealous of a car.

It is a shiny one.
Summary: They become friends.
Story: \n
Once upon a time, there was a bus.

"Come with me," said the car. Story: a word.
Story: so it was.
"""

# ---- reading -----------------------------------------------------------------------------------


def test_parse():
    record = parse_record(TEXT)
    assert record.fields == (
        ("sentence", "The bus felt sad."),
        ("features", "Dialogue, BadEnding"),
        ("words", "come, road, sad"),
        ("summary", "A bus becomes jealous of a car.\n\nIt is a shiny one."),
        ("summary", "They become friends."),
    )
    assert record.story.startswith("Once upon") and record.story.endswith("Story: so it was.")
    assert record.entries("words") == ["come", "road", "sad"]
    assert len(record.values("summary")) == 2 and record.trailing == ()
    assert record.has_fields(["words", "summary"])
    assert not drop_one_field(record, ["words"], 0).has_fields(["words"])
    assert record.prompt().endswith("They become friends.\nStory: \n\n")


@pytest.mark.parametrize("label", ["Sentence", "Random sentence"])
def test_both_names_of_the_sentence(label):
    record = parse_record(f"{label}: He ran.\nStory: He sat. He ran.")
    assert record.fields == (("sentence", "He ran."),)
    assert record.prompt() == "Random sentence: He ran.\nStory: \n\n"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("BadEnding", "BadEnding"),
        ("bad ending, moral value", "BadEnding, MoralValue"),
        ("Bad Ending,plot twist , Twist", "BadEnding, Twist, Twist"),
        ("moral_value", "MoralValue"),
        ("Dialogue, ", "Dialogue"),
        ("Dialogue, Humour", "Dialogue, Humour"),  # unknown ones stay
    ],
)
def test_features_are_spelt_one_way(written, read):
    assert parse_record(f"Features: {written}\nStory: He ran.").values("features") == [read]


def test_a_summary_after_the_story_is_no_part_of_it():
    record = parse_record("Words: a, b\nStory: \n\nOne.\n\nTwo.\nSummary: Both\nof them.\n")
    assert record.story == "One.\n\nTwo."
    assert record.trailing == (("summary", "Both\nof them."),) and not record.has_fields(
        ["summary"]
    )
    assert record.text() == "Words: a, b\nStory: \n\nOne.\n\nTwo."
    assert instruct.split_story("One.\nSummary: Two.") == ("One.", "Summary: Two.")
    assert instruct.split_story("One. Summary: no line begins so.")[1] == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No field at all.",
        "Words: a, b\nOnce.",
        "Well.\nWords: a\nStory: Once.",
        "Words: a\nStory: Once.\nSummary: It.\nStory: Twice.",  # a separator is missing
        "Story: \n\n Summary: it\n\nOnce.",
    ],
)
def test_what_is_no_record(text):
    assert parse_record(text) is None


def test_fifty_real_prompts_lose_nothing():
    prompts = json.loads(beside("data", "instruct", "instruct_prompts_50.json").read_text())
    assert len(prompts) == 50
    seen = Counter()
    for prompt in prompts:
        record = parse_record(prompt)
        assert record.prompt() == prompt + "\n\n" and not record.story
        assert {name for name in record.entries("features")} <= set(FEATURES)
        assert len(record.fields) == prompt.count("\n")
        seen.update(name for name, _ in record.fields)
        seen["twice"] += len(record.values("summary")) > 1
    assert set(seen) == {*LABELS, "twice"} and seen["twice"] == 13


# Values as people write them, and as they do not.
ANY = st.text(st.characters(codec="utf-8"), max_size=40).map(str.strip)
PLAIN = st.text(string.ascii_letters + " .,\n\"':", max_size=40).map(str.strip)
VALUES = ANY | PLAIN | st.sampled_from(["", "Story: x", "a\nWords: b", "Summary", "Summary:", "\n"])


@given(st.lists(st.tuples(st.sampled_from(sorted(LABELS)), VALUES), max_size=5), VALUES, VALUES)
def test_round_trip(fields, story, after):
    trailing = (("summary", after),) if after else ()
    fields = [
        (name, instruct._normalize_features(v) if name == "features" else v) for name, v in fields
    ]
    try:
        record = Record(tuple(fields), story, trailing)
    except ValueError:
        assume(False)
    assert parse_record(record.text()) == replace(record, trailing=())
    end = "".join(f"\n{LABELS[name]}: {value}" for name, value in trailing)
    assert parse_record(record.text() + end) == record


LINES = st.sampled_from(
    ["Words: ", "Features: ", "Features: Twist,, bad ending ,", "Summary:", "Sentence: a", "Story:",
     "Random sentence: He ran.", "Story: \n\n", " Summary: x", "", "\u2028", "\x0b", "a, b"]
)  # fmt: skip


@given(st.lists(LINES | VALUES, max_size=12).map("\n".join))
def test_what_is_read_can_be_written(text):
    """Whatever the text: it is no record, or one that reads the same when it is written."""
    record = parse_record(text)
    assert record is None or parse_record(record.text()) == replace(record, trailing=())


# ---- asking ------------------------------------------------------------------------------------


def test_make_instruction():
    record = make_instruction(
        words="come,road", sentence="He ran.", features="bad ending", summary=" A bus. "
    )
    assert record.prompt() == (
        "Words: come,road\nRandom sentence: He ran.\nFeatures: BadEnding\nSummary: A bus.\n"
        "Story: \n\n"
    )
    assert make_instruction(features="Dialogue,plot twist").entries("features") == [
        "Dialogue",
        "Twist",
    ]
    with pytest.raises(ValueError, match="no feature 'dialog'; did you mean Dialogue"):
        make_instruction(features="dialog")
    with pytest.raises(ValueError, match="no feature 'zzz'; there are Dialogue, BadEnding"):
        make_instruction(features="zzz")
    assert make_instruction(summary="Story: the end").values("summary") == ["Story: the end"]
    for value in ("a\nWords: b", "a\nStory: b"):
        with pytest.raises(ValueError, match="begins like another field"):
            make_instruction(summary=value)


# ---- making ------------------------------------------------------------------------------------


def made(count=600, seed=0):
    stories = storybook.stories(count)
    return [
        (s, make_record(StoryFacts(s.text, tuple(s.words), tuple(s.features), s.summary), seed))
        for s in stories
    ]


def test_made_of_known_facts():
    for story, record in made():
        assert record.story == story.text and record.fields
        assert parse_record(record.text()) == record
        assert record.entries("words") in ([], story.words)
        assert record.entries("features") in ([], story.features)
        assert record.values("summary") in ([], [story.summary])


def test_the_sentence_is_never_the_first():
    places = Counter()
    for story, record in made():
        sentences = storybook.split_sentences(story.text)
        for sentence in record.values("sentence"):
            assert sentence in story.text and sentence != sentences[0]
            places[round(10 * sentences.index(sentence) / (len(sentences) - 1))] += 1
    assert sorted(places) == list(range(1, 11))  # all over, from the second to the last
    for story in ("The dog ran.", "The dog ran. The dog ran."):  # there is none to ask for
        assert not any(
            make_record(StoryFacts(story), seed).has_fields(["sentence"]) for seed in range(20)
        )


def test_fields_come_as_often_as_in_the_real_file():
    """Words and sentence as counted in its validation part; a summary in front as in 50 prompts."""
    assert (FIELD_PROBABILITIES["words"], FIELD_PROBABILITIES["sentence"]) == (0.61, 0.30)
    # Dialogue is asked for in 35 % there, and in 27 of the 38 of these prompts with features.
    assert FIELD_PROBABILITIES["features"] == round(0.35 * 38 / 27, 2)
    assert FIELD_PROBABILITIES["summary"] == 37 / 50


def test_any_subset_in_any_order():
    records = [record for _, record in made(2000)]
    share = Counter(name for record in records for name, _ in record.fields)
    none = np.prod(
        [1 - share for share in FIELD_PROBABILITIES.values()]
    )  # then it is one of the four
    for name in LABELS:
        assert share[name] / len(records) == pytest.approx(
            FIELD_PROBABILITIES[name] + none / 4, abs=0.04
        )
    orders = Counter(tuple(name for name, _ in record.fields) for record in records)
    assert len({frozenset(order) for order in orders}) == 15  # every subset but that of nothing
    twos = [order for order in orders if set(order) == {"words", "summary"}]
    assert len(twos) == 2 and min(orders[order] for order in twos) > 0.3 * sum(
        map(orders.get, twos)
    )
    assert {order[0] for order in orders if len(order) == 4} == set(LABELS)


def test_a_function_of_seed_and_story_alone():
    first = [record for _, record in made(200)]
    assert first == [record for _, record in made(200)]
    assert first != [record for _, record in made(200, seed=1)]
    story = next(storybook.stories(1)).text
    assert make_record(StoryFacts(story), 5) == make_record(StoryFacts(f"\n{story}  "), 5)


STORY = """Once upon a time, Tom wanted a kite. He ran to his mum's shop.

"Mum, can I have the red kite?" asked Tom. She gave it to him, and Tom smiled."""


def test_made_of_a_story_alone():
    drawn, named = Counter(), Counter()
    for seed in range(300):
        record = make_record(StoryFacts(STORY), seed)
        drawn.update(record.entries("words"))
        named.update(name for name, _ in record.fields)
        assert record.entries("features") in ([], ["Dialogue"]) and not record.values("summary")
        for words in record.values("words"):
            assert len(words.split(", ")) == 3
    assert set(named) == {"words", "sentence", "features"}
    assert {"want", "run", "ask", "give", "smile"} <= set(drawn)  # verbs, in their base forms
    assert {"kite", "time", "shop"} <= set(drawn) and "red" in drawn
    assert not {"tom", "mum", "the", "once", "s"} & set(drawn)  # no names, no function words
    assert all(contains_word(word, split_words(STORY)) for word in drawn)
    assert make_record(StoryFacts("Tom sat. Tom ate."), 0).entries("features") == []


def test_speech():
    for text in ('"Hi," he said.', "“Stop!” he said.", 'He said, "Why?"', "“Well…” he said."):
        assert instruct.has_dialogue(text), text
    for text in ("He said hi.", 'The "big" dog.', "It's Tom's.", "“zoom” it went"):
        assert not instruct.has_dialogue(text), text


def test_what_cannot_stand_in_a_record_is_not_made_into_one():
    for story in ("", "   ", "He ran.\nSummary: He sat."):
        assert make_record(StoryFacts(story), 0) is None
    # A field's value that would be read as another one.
    for seed in range(20):
        record = make_record(StoryFacts(STORY, summary="He ran.\nWords: a, b"), seed)
        assert record is None or not record.has_fields(["summary"])


def test_facts_in_either_place():
    theirs = {
        "summary": " A. ",
        "instruction": {"prompt:": "", "words": ["a", "b"], "features": []},
    }
    assert facts_from_json("S.", theirs) == StoryFacts("S.", ("a", "b"), (), "A.")
    for wrong in ({"words": "a, b"}, {"words": ["a", None]}, {"features": 7}, {"summary": [1]}):
        with pytest.raises(TypeError):
            facts_from_json("S.", wrong)
    assert facts_from_json("S.", {"words": ["a", " "]}).words == ("a",)
    ours = {"words": ["a"], "features": ["Twist"], "text": "S."}
    assert facts_from_json("S.", ours) == StoryFacts("S.", ("a",), ("Twist",), "")
    assert facts_from_json("S.", {}) == StoryFacts("S.")


def test_apart():
    names = ("words", "summary")
    kept = Counter()
    for _, record in made():
        other = drop_one_field(record, names, 7)
        assert not other.has_fields(names) and other.story == record.story
        assert other == drop_one_field(record, names, 7)
        if record.has_fields(names):
            gone = set(record.fields) - set(other.fields)
            kept[next(iter(gone))[0]] += 1
            assert [field for field in record.fields if field not in gone] == list(other.fields)
        else:
            assert other == record
    assert min(kept.values()) > 0.35 * sum(kept.values()) and set(kept) == set(names)


# ---- as a source -------------------------------------------------------------------------------


def test_sources_of_made_records(tmp_path):
    name = "instruct:storybook"
    assert sources.slug(name) == "instruct-storybook" and sources.is_instruct(name)
    assert sources.slug("instruct:tinystories") != sources.slug("tinystories-instruct")
    texts = list(sources.read(name, stories=30, split="train"))
    stories = list(sources.read("storybook", stories=30, split="train"))
    assert [parse_record(text).story for text in texts] == stories
    assert any(parse_record(text).has_fields(["summary"]) for text in texts)  # its facts came along

    record = {"story": STORY, "summary": "Tom gets a kite.", "source": "GPT-4"}
    record["instruction"] = {"prompt:": "Write.", "words": ["kite", "shop"], "features": ["Twist"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "a.json").write_text(json.dumps([record]))
    (tmp_path / "a.txt").write_text(STORY)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "a.parquet")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.json", "data00.json")
    for kind in ("jsonl", "json", "txt", "parquet", "tar.gz"):
        source = f"instruct:{tmp_path}/a.{kind}"
        records = [parse_record(*sources.read(source, seed=seed)) for seed in range(40)]
        assert all(one.story == STORY for one in records)
        words = {tuple(one.entries("words")) for one in records}
        assert (words == {(), ("kite", "shop")}) == (kind != "txt")
        assert any(one.has_fields(["summary"]) for one in records) == (kind != "txt")
    lone = record | {"story": "Tom \ud83d ran. He \ud83d sat."}
    lone["instruction"] = {"words": ["\ud83d"], "features": []}
    (tmp_path / "lone.json").write_text(json.dumps([lone]))
    [text] = sources.read(f"instruct:{tmp_path}/lone.json")
    assert parse_record(text).story == "Tom � ran. He � sat."
    record["instruction"]["words"] = 7
    (tmp_path / "b.json").write_text(json.dumps([record]))
    with pytest.raises(UserError, match=r"b\.json': the words, features or summary"):
        list(sources.read(f"instruct:{tmp_path}/b.json"))


def test_real_stories(tmp_path):
    stories = list(sources.read(str(beside("data", "tinystories", "valid_v2.txt"))))[:1000]
    records = [make_record(StoryFacts(story), 0) for story in stories]
    assert sum(record is None for record in records) <= 1
    for record in filter(None, records):
        said = split_words(record.story)
        assert all(contains_word(word, said) for word in record.entries("words")), record
        assert all(one in record.story for one in record.values("sentence"))
        assert parse_record(record.text()) == record
