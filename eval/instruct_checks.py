"""Does a story meet the requirements of its instruction? Checked by program, no judge needed.

    check_story(record, story)     {check: 0 to 1} for each requirement of the instruction
    passes_all(scores)             whether all of them are met

    words       the fraction of the required words that the story uses, in any inflection
    sentence    the required sentence stands in it, word for word and whole
    dialogue    where required, somebody speaks
    ending      where required, it ends badly
    summary     recall x (1 - copied): the fraction of the summary's content words that the story
                uses, less where it repeats the summary's own 5-grams

Where the true story is one of storybook.py's, the generated one is parsed and compared with it:
`features`, all that are required; `characters`, those that the instruction names; `holds`, who has
what in the end, where there is a summary. A story that contradicts itself passes none of them.
"""

import re
from functools import cache

from nanostories.dataset import instruct, storybook_parser
from nanostories.dataset.storybook import VALUES, split_sentences
from nanostories.text.words import contains_word, lemmas, ngrams, split_words, unique_content_words

CHECKS = ("words", "sentence", "dialogue", "ending", "summary", "features", "characters", "holds")
UNREQUESTED = ("dialogue unrequested", "ending unrequested")
MIN_SUMMARY = 0.5  # score that passes: a plot is told in other words than its summary

_GOOD = "happy glad proud smile laugh hug love friend fun thank safe joy enjoy good best"
_BAD = """sad cry tear never lose lost alone lonely angry hurt die dead gone scared afraid sorry
    break broken empty bad dark late cross lie nobody"""
GOOD, BAD = frozenset(_GOOD.split()), frozenset(_BAD.split())
# What may stand before a whole sentence: nothing, a line's end, a quote, a sentence's end.
_BEFORE = re.compile(r"(^\s*|[\n\"“']|[.!?…:\"”'’]\s+)\Z")
_MARKS = ".!?…\"”'’"
_SLOTS = {word for values in VALUES.values() for word in values}
_parse = cache(storybook_parser.parse_story)


def passes_all(scores):
    """Whether every score of `check_story` passes."""
    return all(score >= (MIN_SUMMARY if name == "summary" else 1) for name, score in scores.items())


def check_story(record, story):
    """{one of CHECKS: 0 to 1} of what an instruct.Record requires of a story, a str."""
    features, used = record.entries("features"), split_words(story)
    words = [word for word in record.entries("words") if split_words(word)]
    scores = {
        "words": [contains_word(word, used) for word in words],
        "sentence": [contains_sentence(one, story) for one in record.values("sentence")],
        "dialogue": [instruct.has_dialogue(story)] if "Dialogue" in features else [],
        "ending": [ends_badly(story)] if "BadEnding" in features else [],
        "summary": [summary_score(one, story) for one in record.values("summary")],
    }
    if true := _parse(record.story):
        scores |= _exact_scores(record, true, _parse(story))
    return {name: sum(some) / len(some) for name, some in scores.items() if some}


def find_unrequested(record, story):
    """{one of UNREQUESTED: bool}: dialogue or a bad ending, where the instruction has none."""
    features, occurs = record.entries("features"), {}
    if "Dialogue" not in features:
        occurs["dialogue unrequested"] = instruct.has_dialogue(story)
    if "BadEnding" not in features:
        occurs["ending unrequested"] = ends_badly(story)
    return occurs


def contains_sentence(sentence, story):
    """Whether the sentence stands in the story word for word, as a whole sentence."""
    # It ends with a mark, its own or the next one.
    after = re.compile(rf"\Z|[{_MARKS}]" + r"|\s" * (sentence[-1:] in _MARKS))
    return any(
        _BEFORE.search(story[: match.start()]) and after.match(story, match.end())
        for match in re.finditer(re.escape(sentence), story)
    )


def summary_score(summary, story, n=5):
    """How much of a summary a story tells, 0 to 1: the recall of its content words, times the
    fraction of its n-grams of words (of all its words, if fewer) that the story does not copy."""
    words, used = unique_content_words(summary), split_words(story)
    recall = sum(contains_word(word, used) for word in words) / max(1, len(words))
    n = min(n, len(split_words(summary)))
    grams, story_grams = ngrams(split_words(summary), n), set(ngrams(used, n))
    copied = sum(gram in story_grams for gram in grams) / max(1, len(grams))
    return recall * (1 - copied)


def ends_badly(story):
    """Whether a story ends badly: of storybook's stories exactly, of others as `sounds_bad`."""
    parsed = _parse(story)
    return parsed.facts["ending"] == "bad" if parsed else sounds_bad(story)


def sounds_bad(story):
    """Whether the last two sentences have more bad words than good: right for 95 % of storybook."""
    last = [lemmas(word) for word in split_words(" ".join(split_sentences(story)[-2:]))]
    good, bad = (sum(bool(forms & kind) for forms in last) for kind in (GOOD, BAD))
    return bad > good


# ---- storybook's stories, exactly --------------------------------------------------------------


def _exact_scores(record, true, story):
    """{check: [whether `story`, a GeneratedStory or None, passes]}, [] if not required."""
    features, mentioned = record.entries("features"), set(split_words(record.prompt()))
    names = {name for name in true.facts["characters"]
             if name.istitle() and name.lower() in mentioned}  # fmt: skip
    read = story is not None
    return {
        "features": features and [read and set(features) <= set(story.features)],
        "characters": names and [read and names <= set(story.facts["characters"])],
        "holds": record.has_fields(["summary"]) and [read and _same_owners(true, story, mentioned)],
    }


def _same_owners(true, story, mentioned):
    """Whether the same characters hold the same things in the end. A word that the instruction does
    not mention, such as what the shy rabbit was fed, is the story's to choose."""
    expected, actual = (
        [f"{who} {what}".split() for who, what in one.facts["holds"].items()]
        for one in (true, story)
    )
    return [len(words) for words in expected] == [len(words) for words in actual] and all(
        word == other or (word in _SLOTS and word.lower() not in mentioned)
        for words, others in zip(expected, actual, strict=True)
        for word, other in zip(words, others, strict=True)
    )
