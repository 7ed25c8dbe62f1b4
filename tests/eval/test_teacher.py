"""The teacher as author: its prompts, paid for once, and taken by prepare.py."""

import json
import re
import sys
from collections import Counter

import numpy as np
import pytest
from chat_server import ChatServer, completion

import eval.teacher as script
import prepare
from configs import UserError
from eval.llm import client
from nanostories.dataset import instruct, sources
from nanostories.dataset.instruct import FEATURES

STORY = 'There was a {2} {1}. "Hello," it said. Nobody could {0} it, so it went home, all alone.'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)


def main(monkeypatch, capsys, server, path, *arguments):
    url = server.url if server else "http://127.0.0.1:9/v1"
    words = [f"--out={path}", "--judge=tiny", f"--base_url={url}", *arguments]
    monkeypatch.setattr(sys, "argv", ["eval.teacher", *words])
    script.main()
    return capsys.readouterr().out


def author(body, number):
    words = re.findall(r'the (?:verb|noun|adjective) "(\w+)"', body["messages"][0]["content"])
    return "\n" + STORY.format(*words) + "\n"


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_draws_are_uniform_and_seeded():
    """Chi-squared tests of 40,000 draws: words of each kind, and all 64 sets of features."""
    kinds = {
        "verb": [f"v{i}" for i in range(50)], "noun": [f"n{i}" for i in range(70)],
        "adjective": [f"a{i}" for i in range(30)],
    }  # fmt: skip
    drawn = [script.draw_prompt(kinds, 3, number)[:2] for number in range(40_000)]
    sets = Counter(tuple(features) for _, features in drawn)
    assert len(sets) == 64 and () in sets and tuple(FEATURES) in sets
    counts = [sets, *(Counter(words[i] for words, _ in drawn) for i in range(3))]
    for count, cells in zip(counts, (64, 50, 70, 30), strict=True):
        expected = len(drawn) / cells
        chi = sum((n - expected) ** 2 for n in count.values()) / expected
        assert len(count) == cells and abs(chi - (cells - 1)) < 4 * np.sqrt(2 * (cells - 1))
    # Word and word, and word and features, have nothing to do with each other.
    pairs = Counter((words[0], words[1]) for words, _ in drawn)
    assert len(pairs) > 3400
    is_a0 = [words[2] == "a0" for words, features in drawn if "Twist" in features]
    assert abs(np.mean(is_a0) - 1 / 30) < 0.006
    assert script.draw_prompt(kinds, 3, 7)[:2] == drawn[7] != script.draw_prompt(kinds, 4, 7)[:2]


def test_prompts_ask_for_what_was_drawn():
    prompt = script.prompt_of(["decorate", "thunder", "ancient"], ["Dialogue", "BadEnding"])
    assert prompt.startswith(
        "Write a short story (3-5 paragraphs) which only uses very simple words"
    )
    assert 'the verb "decorate", the noun "thunder" and the adjective "ancient"' in prompt
    features = prompt[prompt.index("following features: ") :]
    assert (
        "at least one dialogue, the story has a bad ending. " in features
        and "moral" not in features
    )
    assert "features" not in script.prompt_of(["a", "b", "c"], [])
    assert set(script.WORDING["features"]) == set(FEATURES)


def test_stories_for_plain_and_instruct_training(tmp_path, monkeypatch, capsys):
    path = tmp_path / "stories.jsonl"
    with ChatServer(author) as server:
        text = main(monkeypatch, capsys, server, path, "--count=60")
        assert "60 stories (0 cut off or empty, left out)" in text and len(server.bodies) == 60
        first = path.read_text()
        # A second call asks for nothing; a larger count only for the rest.
        main(monkeypatch, capsys, server, path, "--count=60")
        assert len(server.bodies) == 60 and path.read_text() == first
        main(monkeypatch, capsys, server, path, "--count=80")
        assert len(server.bodies) == 80 and path.read_text().startswith(first)
        assert all(body["temperature"] == 1 for body in server.bodies)
    kinds = script.read_words()
    for number, row in enumerate(rows(path)):
        words, features, prompt = script.draw_prompt(kinds, 0, number)
        made = row["instruction"]
        assert made["words"] == words and made["features"] == features and row["source"] == "tiny"
        assert made["prompt:"] == prompt == script.prompt_of(words, features)
        assert row["story"] == STORY.format(*words)
    assert [row["story"] for row in rows(path)] == list(sources.read(str(path)))
    records = [instruct.parse_record(text) for text in sources.read(f"instruct:{path}")]
    assert any(record.has_fields(["words", "features"]) for record in records)
    assert all(set(record.entries("words")) <= set(row["instruction"]["words"])
               for record, row in zip(records, rows(path), strict=True))  # fmt: skip
    for source in (str(path), f"instruct:{path}"):
        prepare.prepare(
            prepare.Settings(source=source, tokenizer="bytes", val_fraction=0.1, workers=1,
                             out=str(tmp_path / sources.slug(source)))
        )  # fmt: skip
        assert "train: 7" in capsys.readouterr().out


def test_what_was_cut_off_is_left_out_and_what_was_paid_for_stays(tmp_path, monkeypatch, capsys):
    path = tmp_path / "stories.jsonl"

    def author_(body, number):
        cut = (completion("There was", "length"), completion(" "), completion("A cat sat."))
        return cut[number % 3]

    with ChatServer(author_) as server:
        options = ("--count=9", "--max_calls=6", "--concurrency=1")
        with pytest.raises(UserError, match="stopped at max_calls, 6"):
            main(monkeypatch, capsys, server, path, *options)
        assert "2 stories (4 cut off or empty, left out)" in capsys.readouterr().out
        assert len(rows(path)) == 2
        main(monkeypatch, capsys, server, path, *options)
        assert len(server.bodies) == 9 and len(rows(path)) == 3


def test_the_stories_of_a_million_are_written_at_once(tmp_path, monkeypatch, capsys):
    """At Ctrl-C: only those whose replies are cached are looked for."""
    path, words = tmp_path / "stories.jsonl", script.read_words()
    with ChatServer(author) as server:
        main(monkeypatch, capsys, server, path, "--count=3")
        settings = script.Settings(judge="tiny", base_url=server.url, out=str(path), count=10**6)
        drawn, draw = [], script.draw_prompt
        monkeypatch.setattr(script, "draw_prompt", lambda *of: drawn.append(of[2]) or draw(*of))
        with client.Client(settings, f"{path}.replies", script.WORDING["version"]) as cached:
            assert script.write_stories(cached, words, settings) == (3, 0)
    assert len(rows(path)) == 3 == len(server.bodies) and drawn == [0, 1, 2, 0, 1, 2]


def test_a_refusal_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    path = tmp_path / "stories.jsonl"
    path.write_text("mine\n")
    refused = (401, b"", {})
    with (
        ChatServer(lambda body, number: refused) as server,
        pytest.raises(UserError, match="refused, 401"),
    ):
        main(monkeypatch, capsys, server, path, "--count=3")
    assert path.read_text() == "mine\n" and "0 stories (0 cut off" in capsys.readouterr().out


def test_dry_run(tmp_path, monkeypatch, capsys):
    path = tmp_path / "stories.jsonl"
    options = ("--count=30", "--dry_run", "--price_out=1")
    text = main(monkeypatch, capsys, None, path, *options)
    assert text.count("--- story ") == 10 == text.count("Write a short story")
    assert "30 calls" in text and "21,000 to write, cost at most about 0.02" in text
    assert not list(tmp_path.iterdir())
    with ChatServer(author) as server:
        main(monkeypatch, capsys, server, path, "--count=7")
        text = main(monkeypatch, capsys, server, path, *options)
        assert "23 calls (7 cached replies)" in text and len(server.bodies) == 7


# ---- the words ---------------------------------------------------------------------------------


def test_simple_words():
    kinds = script.read_words()
    assert [len(words) for words in kinds.values()] == [700, 500, 300]
    every = [word for words in kinds.values() for word in words]
    assert len(set(every)) == 1500 and all(word.isalpha() and word.islower() for word in every)
    assert {"dog", "tree", "house"} <= set(kinds["noun"][:100])
    assert {"run", "play", "say"} <= set(kinds["verb"][:60])
    assert {"big", "happy", "small"} <= set(kinds["adjective"][:30])
    assert not {"lily", "tim", "the", "ran", "dogs", "everyone"} & set(every)


def test_words_are_chosen_by_frequency_and_part_of_speech(nltk_data):
    """By hand: "run" is a verb three times and a noun once; "x" is no word, "crap" for no child."""
    counts = Counter({("run", "verb"): 3, ("run", "noun"): 1, ("dog", "noun"): 2, ("x", "noun"): 9,
                     ("cat", "noun"): 5, ("big", "adjective"): 1, ("crap", "noun"): 7})  # fmt: skip
    chosen = script.choose_words(counts)
    assert chosen == {"noun": ["cat", "dog"], "verb": ["run"], "adjective": ["big"]}


@pytest.mark.parametrize("text", ["", "noun: a\nverb: b", "verb:\nnoun: a\nadjective: b"])
def test_a_file_of_words_that_is_none(tmp_path, text):
    (tmp_path / "words.txt").write_text(text)
    with pytest.raises(UserError, match="has no line"):
        script.read_words(tmp_path / "words.txt")
    with pytest.raises(UserError, match="cannot be read"):
        script.read_words(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count=0"], "count must be at least 1"), (["--words=nowhere"], "cannot be read"),
        (["--judge="], "--judge=<model>"), (["--max_cost=1"], "needs prices"),
    ],
)  # fmt: skip
def test_errors(tmp_path, monkeypatch, capsys, arguments, message):
    with pytest.raises(UserError, match=message):
        main(monkeypatch, capsys, None, tmp_path / "a.jsonl", *arguments)
    assert not list(tmp_path.iterdir())
