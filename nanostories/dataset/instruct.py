"""The record of TinyStories-Instruct: an instruction, and a story that follows it.

    Features: Dialogue, BadEnding
    Words: come, road, sad
    Random sentence: The bus felt sad.
    Summary: A bus becomes jealous of a car.
    Story:

    Once upon a time, there was a big red bus. ...

An instruction is any subset of the four fields in any order: `words` that the story must use in
some form, a `sentence` that it must contain (never its first), its `features`, and a `summary`.

In the real file a value may have several lines, and a field may occur twice. Where the instruction
has no Summary, the file has one after the story: it is kept as `trailing`, and is not trained on.
Both "Sentence:", as in the paper's slides, and the file's "Random sentence:" are read.
"""

import difflib
import random
import re
from dataclasses import dataclass, replace
from hashlib import blake2b

from nanostories.dataset import storybook
from nanostories.text.words import STOP_WORDS, dictionary_lemmas

LABELS = dict(words="Words", sentence="Random sentence", features="Features", summary="Summary")
# How often the real file's instructions have a field: words and sentence as counted in its
# validation part; features from Dialogue's frequency there (35 %) and among 50 real prompts (27 of
# the 38 with features); summary as in those 50 (37; the other 13 have it after the story).
FIELD_PROBABILITIES = {"words": 0.61, "sentence": 0.30, "features": 0.49, "summary": 0.74}
FEATURES = ("Dialogue", "BadEnding", "MoralValue", "Twist", "Foreshadowing", "Conflict")

_FIELD_OF_LABEL = {label: name for name, label in LABELS.items()} | {"Sentence": "sentence"}
_LABEL = re.compile(rf"^({'|'.join(_FIELD_OF_LABEL)}|Story):[^\S\n]*", re.MULTILINE)
# A line of a story may begin "Sentence:" or "Story:"; only these four follow it in the file.
_TRAILING_LABEL = re.compile(rf"^({'|'.join(LABELS.values())}):[^\S\n]*", re.MULTILINE)
_SPELLINGS = {name.lower(): name for name in FEATURES} | {"plottwist": "Twist"}
# Speech in quotes ends with a mark inside them; a word in quotes ("zoom") is not speech.
_SPEECH = re.compile(r"[\"“][^\"“”]+[.,!?…—-]['’]?[\"”]")


@dataclass(frozen=True)
class Record:
    """One record. Raises ValueError for a value that would be read back differently: with blanks at
    an end, or a line that begins like a field."""

    fields: tuple  # (name, value) pairs in order, names of LABELS
    story: str = ""  # "" where only the instruction is known
    trailing: tuple = ()  # the fields after the story

    def __post_init__(self):
        for name, value in self.fields + self.trailing:
            if name not in LABELS or (name == "features" and value != _normalize_features(value)):
                raise ValueError(f"no field '{name}' of the value {value!r:.60}")
            # The first line of a value follows its label, so only the others can be labels.
            if _LABEL.search(f" {value}") or value != value.strip():
                raise ValueError(f"a line begins like a field, or blanks end it: {value!r:.60}")
        if _TRAILING_LABEL.search(self.story) or self.story != self.story.strip():
            raise ValueError(f"a line begins like a field, or blanks end it: {self.story!r:.60}")

    def values(self, name):
        return [value for field, value in self.fields if field == name]

    def entries(self, name):
        """The entries of the comma-separated values of the fields of this name, list of str."""
        entries = (entry.strip() for value in self.values(name) for entry in value.split(","))
        return [entry for entry in entries if entry]

    def has_fields(self, names):
        return set(names) <= {name for name, _ in self.fields}

    def prompt(self):
        """The text before the story."""
        return _format_fields(self.fields) + "Story: \n\n"

    def text(self):
        return self.prompt() + self.story


def _format_fields(fields):
    return "".join(f"{LABELS[name]}: {value}\n" for name, value in fields)


def parse_record(text):
    """The Record of a text; None where it is none: no "Story:", text before the first field, or two
    records in one."""
    text = text.lstrip()
    start = next((label for label in _LABEL.finditer(text) if label[1] == "Story"), None)
    if start is None or not _LABEL.match(text):
        return None
    story, rest = split_story(text[start.end() :])
    try:
        fields = _parse_fields(_LABEL, text[: start.start()])
        return Record(fields, story, _parse_fields(_TRAILING_LABEL, rest))
    except ValueError:  # it would be read back differently
        return None


def split_story(text):
    """(story, rest) of the text after "Story:"; the rest begins with a field, or is ""."""
    label = _TRAILING_LABEL.search(text)
    end = label.start() if label else len(text)
    return text[:end].strip(), text[end:]


def _parse_fields(label, text):
    """The (name, value) pairs of a text of fields, each of which begins with a match of `label`."""
    _, *parts = label.split(text)  # "", label, value, label, value, ...
    fields = []
    for label_text, value in zip(parts[::2], map(str.strip, parts[1::2]), strict=True):
        name = _FIELD_OF_LABEL[label_text]
        fields.append((name, _normalize_features(value) if name == "features" else value))
    return tuple(fields)


def _normalize_features(features):
    """A list of features, the known ones spelled as in the file: "bad ending" is BadEnding."""
    names = [name.strip() for name in features.split(",") if name.strip()]
    return ", ".join(_SPELLINGS.get(re.sub(r"[\s_-]", "", name).lower(), name) for name in names)


def make_instruction(words="", sentence="", features="", summary=""):
    """The Record of an instruction, its fields in this order. words, features: comma-separated, the
    features in any spelling. ValueError for an unknown feature, or a value with another field."""
    pairs = zip(LABELS, (words, sentence, features, summary), strict=True)
    fields = [(name, value) for name, value in pairs if value.strip()]
    record = parse_record(_format_fields(fields) + "Story:")
    if not record or record.story or len(record.fields) != len(fields):
        raise ValueError("a line within a field's value begins like another field")
    for name in record.entries("features"):
        if name not in FEATURES:
            near = difflib.get_close_matches(name, FEATURES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FEATURES)}"
            raise ValueError(f"no feature '{name}'; {hint}")
    return record


@dataclass(frozen=True)
class StoryFacts:
    """A story and what is known of it; `make_record` makes up the rest."""

    story: str
    words: tuple = ()
    features: tuple = ()
    summary: str = ""


def facts_from_json(story, row):
    """The StoryFacts of a story and the JSON object it came in: `summary`, `words` and `features`,
    beside it or, as in TinyStories_all_data, the latter two in `instruction`. Raises TypeError
    where they are not lists of str, or the summary is not a str."""
    row = row | (row.get("instruction") or {})
    words, features = (row.get(name) or [] for name in ("words", "features"))
    if not isinstance(words, list) or not isinstance(features, list):
        raise TypeError("words and features are lists")
    words, features = (tuple(filter(str.strip, entries)) for entries in (words, features))
    return StoryFacts(story, words, features, str.strip(row.get("summary") or ""))


def make_record(facts, seed):
    """A Record of a story, a pure function of the seed and its StoryFacts: a random subset of its
    fields, by FIELD_PROBABILITIES but at least one, in random order. Unknown words become a verb, a
    noun and an adjective of the story, unknown features Dialogue, if there is any. None for a story
    that cannot be in a record, or of which no field is known."""
    story = facts.story.strip()
    rng = story_rng(story, seed)
    sentences = storybook.split_sentences(story)
    # Only sentences that are in the story verbatim: a line break within one is lost in the split.
    later = [one for one in sentences[1:] if one != sentences[0] and one in story]
    values = {
        "words": ", ".join(facts.words or sample_words(story, rng)),
        "sentence": rng.choice(later) if later else "",
        "features": ", ".join(facts.features or ["Dialogue"] * has_dialogue(story)),
        "summary": facts.summary,
    }
    known = [(name, value) for name, value in values.items() if value]
    chosen = [(name, value) for name, value in known if rng.random() < FIELD_PROBABILITIES[name]]
    if known and not chosen:
        chosen = [rng.choice(known)]
    rng.shuffle(chosen)
    record = parse_record(_format_fields(chosen) + f"Story: \n\n{story}")
    intact = record and record.story == story and len(record.fields) == len(chosen)
    return record if intact and chosen else None


def story_rng(story, seed, purpose=b"build"):
    """A random.Random that depends on the seed, the story and the purpose."""
    salt = seed.to_bytes(8, "little", signed=True)
    return random.Random(blake2b(story.encode(), salt=salt, person=purpose).digest())


def sample_words(story, rng):
    """A verb, a noun and an adjective of the story in their base forms, as far as it has them."""
    bases = {"VERB": set(), "NOUN": set(), "ADJ": set()}
    words = re.findall(r"(?<![-'’\w])[a-z]{3,}(?![-'’\w])", story)  # no names, no parts of words
    for word in set(words) - STOP_WORDS:
        for part, forms in dictionary_lemmas(word).items():
            bases.get(part, set()).update(forms)
    sample = []
    for forms in bases.values():
        if rest := sorted(forms - STOP_WORDS - set(sample)):
            sample.append(rng.choice(rest))
    return sample


def has_dialogue(story):
    return bool(_SPEECH.search(story))


def drop_one_field(record, names, seed):
    """The record without a random one of the fields `names`, if it has all of them."""
    if not record.has_fields(names):
        return record
    dropped = story_rng(record.story, seed, b"apart").choice(names)
    return replace(record, fields=tuple(pair for pair in record.fields if pair[0] != dropped))
