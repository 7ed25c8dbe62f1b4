"""
The teacher as author: stories asked of a strong model, the way the data set itself was made.

    export JUDGE_API_KEY=...
    python -m eval.teacher --judge=gpt-4o --count=1000 --out=stories.jsonl --dry_run
    python -m eval.teacher --judge=gpt-4o --count=1000 --out=stories.jsonl
    python prepare.py --source=stories.jsonl                  # then train on them,
    python prepare.py --source=instruct:stories.jsonl         # or on instructions for them

Each prompt names a verb, a noun and an adjective of simple_words.txt and some of the six features,
drawn uniformly and by the seed: story number i is asked the same whatever the count. So a larger
count, or a second call after a stop, asks only for what is not there. Each line of the file is a
story with its words, features and prompt, as in TinyStories_all_data.

Replies are kept in <out>.replies as they come; limits and key are those of eval/llm/client.py.
"""

import json
import random
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from configs import UserError, load, run
from eval import simple_words
from eval.llm import client, endpoint
from nanostories.dataset.instruct import FEATURES
from nanostories.storage import atomic_file

VERSION = "teacher-1"  # of the prompt


@dataclass(frozen=True)
class Settings:
    out: str = "stories.jsonl"  # the file of stories
    count: int = 100  # how many
    words: str = ""  # a file of words: lines "noun: ...", "verb: ...", "adjective: ..."
    seed: int = 0  # of the words and features
    judge: str = ""  # the model that writes, as its server calls it
    base_url: str = "https://api.openai.com/v1"  # the server; its key is $JUDGE_API_KEY
    allow_http: bool = False  # plain http to another machine too: others can read and change it
    judge_temperature: float = 1.0  # of the model that writes
    max_tokens: int = 700  # of a story
    extra: str = ""  # more of the request, as JSON: '{"reasoning_effort": "low"}'; null: leave out
    concurrency: int = 4  # calls at a time
    tries: int = 6  # of a call that fails for the moment
    timeout: float = 120.0  # seconds for a reply
    max_calls: int = 0  # new calls of this command at the most; 0: any number
    max_cost: float = 0.0  # what this command may spend; 0: anything
    price_in: float = 0.0  # of a million tokens read by the model
    price_out: float = 0.0  # of a million tokens written by it
    dry_run: bool = False  # print ten prompts, the calls, tokens and cost; call nothing


SAID = {
    "Dialogue": "the story should contain at least one dialogue",
    "BadEnding": "the story has a bad ending",
    "MoralValue": "the story has a moral value",
    "Twist": "something unexpected happens in the story",
    "Foreshadowing": "the story hints early at what happens later",
    "Conflict": "the story has some form of conflict in it",
}


def draw(kinds, seed, number):
    """
    (words, features) of story `number`: a verb, a noun and an adjective, and a subset of FEATURES,
    all equally likely; a pure function of its arguments.
    """
    rng = random.Random(f"{seed} {number}")
    words = [rng.choice(kinds[kind]) for kind in ("verb", "noun", "adjective")]
    return words, [name for name in FEATURES if rng.random() < 0.5]


def prompt_of(words, features):
    """The paper's kind of prompt (its section 2, and the example printed there)."""
    verb, noun, adjective = words
    asked = ", ".join(SAID[name] for name in features)
    return (
        "Write a short story (3-5 paragraphs) which only uses very simple words that a 3 year old "
        f'child would likely understand. The story should use the verb "{verb}", the noun "{noun}" '
        f'and the adjective "{adjective}". '
        + (f"The story should have the following features: {asked}. " if asked else "")
        + "Remember to only use simple words! Reply with the story alone, without a title."
    )


class Author:
    """What is asked for each story number, and what came of it."""

    def __init__(self, settings):
        self.settings = settings
        self.kinds = simple_words.read(settings.words or simple_words.PATH)

    def asked(self, number):
        """(words, features, prompt) of a story number."""
        words, features = draw(self.kinds, self.settings.seed, number)
        return words, features, prompt_of(words, features)

    def messages(self, number):
        """The conversation that asks for a story."""
        return [{"role": "user", "content": self.asked(number)[2]}]

    def rows(self, service):
        """The line of each story that is there, in order, as a dict; None of one that is faulty."""
        for number in range(self.settings.count):
            kept = service.kept(self.messages(number), number)
            if kept is None:
                continue
            if kept["finish"] == "length" or not kept["reply"].strip():
                yield None
                continue
            words, features, prompt = self.asked(number)
            made = {"prompt:": prompt, "words": words, "features": features}
            row = {"story": kept["reply"].strip(), "instruction": made}
            yield row | {"source": self.settings.judge}

    def write(self, service):
        """Write all stories that are there; returns (written, cut off or empty)."""
        if not any(self.rows(service)):  # a file that was there is not emptied by a wrong key
            return 0, sum(1 for _ in self.rows(service))
        written = faulty = 0
        with atomic_file(self.settings.out) as part, open(part, "w", encoding="utf-8") as file:
            for row in self.rows(service):
                if row:
                    file.write(json.dumps(row) + "\n")
                written, faulty = written + bool(row), faulty + (row is None)
        return written, faulty


def plan(author, service, settings):
    """Print what --dry_run promises."""
    for number in range(min(10, settings.count)):
        print(f"--- story {number}\n{author.messages(number)[0]['content']}\n")
    new = [
        number
        for number in range(settings.count)
        if not (service and service.kept(author.messages(number), number))
    ]
    read = sum(endpoint.tokens_of(author.messages(number)) for number in new)
    print(endpoint.promise(settings, len(new), settings.count - len(new), read))


def main():
    settings, _ = load(Settings)
    if settings.count < 1:
        raise UserError("count must be at least 1")
    endpoint.check(settings)
    author, path = Author(settings), Path(f"{settings.out}.replies")
    if settings.dry_run:
        with client.kept_before(settings, path, VERSION) as service:
            plan(author, service, settings)
        return
    with client.Client(settings, path, VERSION) as service:
        try:
            numbers = range(settings.count)
            told = service.each(
                lambda i: service.ask(author.messages(i), i), numbers, settings.count
            )
            with closing(told):
                for _ in told:
                    pass
        finally:  # what was paid for is there, whatever ended it
            written, faulty = author.write(service)
            print(f"{settings.out}: {written} stories ({faulty} cut off or empty, left out)")
            print(f"{settings.judge}: {service.spent()}")


if __name__ == "__main__":
    run(main)
