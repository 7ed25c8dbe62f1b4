"""A user's own text as it is: any script, table, packing, encoding, file name and white space."""

import csv
import gzip
import io
import json
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from test_prepare import EOT, prepared, stories_of, write

from configs import UserError
from nanostories.dataset import formats, readers, storybook, tokenizer
from nanostories.dataset.cleaning import is_finished
from nanostories.dataset.near_duplicates import StoryReader, jaccard, shingles
from nanostories.dataset.shards import STORY, Writer
from nanostories.dataset.sources import Source, read, slug

ROOT = Path(__file__).resolve().parent.parent.parent
STORIES = [
    "Once there was a cat, “Mia”.\n\nShe was happy.",
    "एक समय की बात है।",
    "从前有一只猫。",
    'He said, "no".\tAnd left 🐉.',
    "كان يا ما كان، هل تعرف؟",
]


def cleaning(folder, split="train"):
    return json.loads((folder / "manifest.json").read_text())["splits"][split]["cleaning"]


def kept(folder):
    return sorted(stories_of(folder, "train") + stories_of(folder, "val"))


# ---- how stories end ----

POEMS = [
    "रात हुई, चाँद आया",
    "Roses are red\nViolets are blue",
    "And so they went on...",
    "It rained (a little)",
    "The dog ran home.\n\nThe End",
    "从前有一只猫",
]


def test_own_stories_are_kept_however_they_end(tmp_path):
    assert kept(prepared(tmp_path, write(tmp_path / "a.txt", POEMS))) == sorted(POEMS)


def test_tinystories_are_judged_by_their_endings(tmp_path):
    source = write(tmp_path / "TinyStories-mine.txt", ["One.", "Two.", "Cut", *POEMS])
    out = prepared(tmp_path, source)
    assert cleaning(out)["truncated"] == 6
    assert cleaning(prepared(tmp_path, source, keep_unfinished=True))["truncated"] == 0
    (tmp_path / "tinystories").mkdir()
    folder = write(tmp_path / "tinystories" / "a.txt", ["One.", "Two.", "猫。", "Cut"])
    assert cleaning(prepared(tmp_path, folder))["truncated"] == 1  # translations, too
    deep = str(tmp_path / "tinystories" / "**" / "*.txt")
    assert cleaning(prepared(tmp_path, deep))["truncated"] == 1
    (tmp_path / "tinystories" / "mine").mkdir()
    other = write(tmp_path / "tinystories" / "mine" / "a.txt", ["One.", "Two.", "Cut", *POEMS])
    assert cleaning(prepared(tmp_path, other))["truncated"] == 0
    assert cleaning(prepared(tmp_path, other, keep_unfinished=False))["truncated"] == 4


@pytest.mark.parametrize(
    ("ends", "finished"),
    [
        ("। ॥ 。 ！ ？ ؟ ۔ ։ ። … ‥ ། ៕ ။ . ! ?", True),
        ("」 』 ） 】 》 ) ] } » ” ’ \" ' .“ 。」 .) !« .* ._", True),
        ("🐉 !🐉 ♥\ufe0f .\u200f", True),
        ("The⎵End the⎵end THE⎵END The⎵End⎵🎉 ~⎵The⎵End⎵~", True),
        (", ; : ، ؛ ， 、 ： ； ፣ ( [ “ « — - and में की 猫 the⎵friend ,“ said⎵“", False),
    ],
)
def test_endings_of_any_script(ends, finished):
    for end in ends.replace("⎵", "_").split():
        assert bool(is_finished(f"A story {end.replace('_', ' ') if len(end) > 2 else end}")) is (
            finished
        ), end


def test_a_near_empty_result_says_which_rule_and_how_to_turn_it_off(tmp_path, capsys):
    source = write(tmp_path / "tinystories.txt", ["One.", "Two.", *(f"No {i}" for i in range(50))])
    prepared(tmp_path, source)
    assert "most are truncated: --keep_unfinished" in capsys.readouterr().out
    for stories, settings, hint in (
        (["No", "Nor"], {"keep_unfinished": False}, "--keep_unfinished"),
        (["No.", "Nor."], {"min_length": 9}, "--min_length=0"),
        ([""] * 3, {}, "no text"),
    ):
        with pytest.raises(UserError, match=hint) as error:
            prepared(tmp_path, write(tmp_path / "b.txt", stories), **settings)
        assert "\n" not in str(error.value)


def test_few_stories_held_out_are_noted(tmp_path, capsys):
    """And a split that was held out of another source has read nothing itself."""
    source = write(tmp_path / "a.txt", [f"No {i}." for i in range(40)])
    prepared(tmp_path, source)
    printed = capsys.readouterr().out
    assert "stories in val tell little" in printed and "val: read" not in printed
    other = write(tmp_path / "b.txt", [f"Nor {i}." for i in range(40)])
    prepared(tmp_path, source, val_source=str(other))
    printed = capsys.readouterr().out
    assert "val: read 40" in printed and "tell little" not in printed


# ---- formats ----


def write_text(path, stories, encoding="utf-8"):
    path.write_bytes(f"\n{EOT}\n".join(stories).encode(encoding))


def write_jsonl(path, stories, encoding="utf-8"):
    lines = (json.dumps({"text": story}, ensure_ascii=False) for story in stories)
    path.write_bytes("\n".join(lines).encode(encoding))


def write_table(path, stories, encoding="utf-8", delimiter=",", column="text", end="\r\n"):
    with open(path, "w", newline="", encoding=encoding) as file:
        table = csv.writer(file, delimiter=delimiter, lineterminator=end)
        table.writerow(["id", column, "title"])
        table.writerows([i, story, 'a "title", here'] for i, story in enumerate(stories))


def write_tsv(path, stories, encoding="utf-8"):
    write_table(path, stories, encoding, "\t")


def write_json(path, stories, encoding="utf-8"):
    path.write_bytes(
        json.dumps([{"story": s} for s in stories], ensure_ascii=False).encode(encoding)
    )


WRITERS = {
    "txt": write_text,
    "jsonl": write_jsonl,
    "csv": write_table,
    "tsv": write_tsv,
    "json": write_json,
}


def pack(path, codec):
    if codec == "gz":
        packed = gzip.compress(path.read_bytes())
    else:
        packed = pyarrow.compress(path.read_bytes(), "zstd", asbytes=True)
    path.with_name(f"{path.name}.{codec}").write_bytes(packed)
    return str(path.with_name(f"{path.name}.{codec}"))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("codec", ["", "gz", "zst"])
def test_every_format_encoding_and_packing(tmp_path, monkeypatch, kind, encoding, codec):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 7)
    monkeypatch.setattr(formats, "CHUNK", 11)  # so that reading meets every boundary
    path = tmp_path / f"a.{kind.upper() if not codec else kind}"
    WRITERS[kind](path, STORIES, encoding)
    source = Source(pack(path, codec) if codec else str(path))
    assert list(read(source.name)) == STORIES
    assert 0 < sum(block.weight for block in source.blocks()) <= source.total()


def test_utf_16_big_endian_and_marks_in_the_middle(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xfe\xff" + f"One.{EOT}Two.".encode("utf-16-be"))
    assert list(read(str(path))) == ["One.", "Two."]
    path.write_bytes(f"\ufeffOne.{EOT}\n\ufeffTwo.{EOT}\ufeff".encode())  # files joined by `cat`
    assert list(read(str(path))) == ["One.", "Two."]
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"text": "One."}\n\ufeff{"text": "\ufeffTwo."}\n'.encode())
    assert list(read(str(path))) == ["One.", "Two."]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("column", ["text", "Story", " TEXT "])
def test_a_column_is_found_whatever_its_case(tmp_path, delimiter, column):
    write_table(tmp_path / "a.csv", STORIES, "utf-8", delimiter, column, end="\n")
    assert list(read(str(tmp_path / "a.csv"))) == STORIES


def test_a_column_is_named(tmp_path):
    write_table(tmp_path / "a.csv", STORIES, column="body")
    (tmp_path / "b.jsonl").write_text('{"text": "no", "Body": "One."}\n{"Body": null}')
    assert list(read(str(tmp_path / "a.csv"), text_column="body")) == STORIES
    assert list(read(str(tmp_path / "b.jsonl"), text_column="body")) == ["One.", ""]
    assert len(kept(prepared(tmp_path, str(tmp_path / "a.csv"), text_column="body"))) == 5
    with pytest.raises(
        UserError, match="no 'text' or 'story', only id, body, title; --text_column"
    ):
        list(read(str(tmp_path / "a.csv")))
    with pytest.raises(UserError, match="no 'plot', only id, body, title"):
        list(read(str(tmp_path / "a.csv"), text_column="plot"))


def archive(*members):
    """The bytes of a .tar of these names and contents, in turn."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in zip(members[::2], members[1::2], strict=True):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def table_of(story):
    """The bytes of a .parquet with one story, of any bytes."""
    file, column = io.BytesIO(), pyarrow.array([story], pyarrow.binary())
    pyarrow.parquet.write_table(pyarrow.table({"text": column.view(pyarrow.string())}), file)
    return file.getvalue()


def test_what_macos_adds_to_an_archive_is_left_out(tmp_path):
    members = ("._a.json", b"\0\5\x16\7", "a.json", b'["One."]', "in/._b.json", b"\0", "in/b.JSON")
    (tmp_path / "a.tar").write_bytes(archive(*members, b'[["Two."], []]'))
    assert list(read(str(tmp_path / "a.tar"))) == ["One.", "Two."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,id\nOne, two.,1\n", "line 2: 3 fields, but the first line has 2"),
        ("a.csv", b'text,id\nOne.,1\n"Two.,2\nThree.,3', "line 4: unexpected end of data"),
        ("a.csv", b'text,id\n"One" he said.,1\n', "line 2: ',' expected after"),
        ("a.csv", b"Once upon a time there was a cat.\nTwo.", "no 'text' or 'story', only Once"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text\nA\0B.", "binary"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"}\n{"text": }\n', "line 4 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n' + b"1" * 5000, "line 2 is not JSON"),
        ("a.txt", "One.".encode("utf-16-le"), "UTF-16 without a byte order mark.*as UTF-8"),
        ("a.json", b'[{"text": "One."}, {"text": "Two."}', "its end is missing"),
        ("a.json", b'[{"text": "One."}, {"text": "Two."},\n', "its end is missing"),
        ("a.tar", archive("a.json", b'["One.",'), "its end is missing"),
        ("a.tar", archive("a.txt", b"One."), "has no .json file.*unpack it"),
        ("a.parquet", b"PAR1", "not a readable parquet file"),
        ("a.parquet", table_of(b"\xff"), "not a readable parquet file"),
        ("a.txt.gz", b"no gzip at all", "damaged archive"),
        ("a.txt.gz", gzip.compress(b"One. " * 9999)[:-9], "damaged archive"),
        ("a.txt.gz", gzip.compress(b"One. " * 9999)[:-8] + b"12345678", "damaged archive"),
        ("a.tar.gz", b"no gzip at all", "damaged archive"),
        ("a.jsonl.zst", b"no zstd at all", "damaged archive"),
        ("a.docx", b"PK", r"is not .txt, .jsonl.*rename it to .txt"),
        ("a.md", b"# A", "rename it to .txt"),
        ("a.parquet.gz", b"", "is not .txt"),
        ("a.zip", b"PK", "is not .txt"),
        ("a.txt.bz2", b"BZ", "is not .txt"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content or (b" " * ("empty" not in message)))
    with pytest.raises(UserError, match=message) as error:
        list(read(str(tmp_path / name)))
    assert "\n" not in str(error.value) and name in str(error.value)


def test_the_line_of_bad_json_in_every_block(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 300)
    monkeypatch.setattr(formats, "CHUNK", 300)
    path = tmp_path / "a.jsonl"
    for number in (1, 2, 57, 100):
        lines = [json.dumps({"text": f"Story {i}."}) for i in range(100)]
        lines[number - 1] = '{"text": "cut'
        path.write_text("\n".join(lines))
        for source in (str(path), pack(path, "gz"), pack(path, "zst")):
            with pytest.raises(UserError, match=f"line {number} is not JSON"):
                list(read(source))


def test_hub_sets_with_several_configs(monkeypatch):
    import datasets

    requests = []

    def load(*names, split, revision):
        requests.append((*names, split))
        return datasets.Dataset.from_dict({"story": ["One."]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read("hub:a/b:en:validation")) == ["One."]
    assert list(read("hub:a/b:validation")) == list(read("hub:a/b")) == ["One."]
    assert requests == [("a/b", "en", "validation"), ("a/b", "validation"), ("a/b", "train")]
    assert slug("hub:a/b:en:train") == "b-en" != slug("hub:a/b:fr:train")
    message = "Config name is missing.\nPlease pick one among the available configs: ['en', 'fr']"

    def fail(*names, **settings):
        raise ValueError(message)

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"hub:NAME:CONFIG:SPLIT.*\['en', 'fr'\]") as error:
        list(read("hub:a/b"))
    assert "\n" not in str(error.value)


NAMES = ["a b.txt", "[x].txt", "a*b?.txt", "…ö漢🐉.txt", "a\nb.txt", "-a.txt", "a:b.txt", "'q'.txt"]


@pytest.mark.parametrize("name", [*NAMES, b"\xff\xfe.txt".decode("utf-8", "surrogateescape")])
def test_file_and_folder_names_with_any_character(tmp_path, monkeypatch, name):
    folder = tmp_path / name.removesuffix(".txt")
    folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    write(folder / name, ["One.", "Two."])
    for source in (str(folder / name), f"~/{folder.name}/{name}", f"~/{folder.name}/*.txt"):
        assert list(read(source)) == ["One.", "Two."]
        monkeypatch.chdir(tmp_path)
        out = prepared(tmp_path, source, out="")
        assert out.parent.name == "data" and len(kept(out)) == 2
        assert json.loads((out / "manifest.json").read_text())["source"] == source


# ---- one enormous line, one enormous word ----


@pytest.mark.parametrize(
    ("name", "unit", "message"),
    [
        ("a.txt", b"The cat sat. ", "cut into parts"),
        ("a.txt", b"a", "without a line end"),
        ("a.jsonl", b"The cat sat. ", "without a line end"),
        ("a.json", b"The cat sat. ", "no object of at most 64 MiB"),
        ("a.txt.gz", b"The cat sat. ", "cut into parts"),
    ],
)
def test_a_line_of_100_mb_takes_bounded_memory(tmp_path, name, unit, message):
    path, lead = (
        tmp_path / name,
        {"a.jsonl": b'{"text": "', "a.json": b'[{"text": "'}.get(name, b""),
    )
    data = lead + unit * (100_000_000 // len(unit))
    path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    del data
    code = "import sys, resource; sys.path.insert(0, sys.argv[1])\n"
    code += "import pyarrow\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    code += "from nanostories.dataset.sources import read\n"
    code += "try: print(sum(map(len, read(sys.argv[2]))))\nexcept Exception as e: print(e)\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    command = [sys.executable, "-c", code, ROOT, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *_, extra = done.stdout.split()
    assert message in done.stdout
    assert int(extra) < 330_000  # KB; the whole as text alone would be 400,000 and more


def test_parts_of_a_long_story_are_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 50)
    monkeypatch.setitem(formats.SEPARATORS, ".txt", (EOT.encode(), 100))
    monkeypatch.setattr(formats, "CHUNK", 40)
    stories = ["Short.", " ".join(f"wörd{i}" for i in range(99)), "Last."]
    write_text(tmp_path / "a.txt", stories)
    for source in (str(tmp_path / "a.txt"), pack(tmp_path / "a.txt", "gz")):
        parts = list(read(source))
        assert parts[0] == "Short." and parts[-1] == "Last." and len(parts) > 8
        assert " ".join(parts[1:-1]) == stories[1]
        assert all(len(part.encode()) <= 150 for part in parts)


@pytest.mark.parametrize("unit", ["a", "=", "\n", "漢", "ab"])
def test_50_000_equal_characters_train_a_bpe_in_seconds(tmp_path, unit):
    stories = [story.text for story in storybook.stories(50)]
    started = time.process_time()
    made = tokenizer.build("bpe", 1000, [*stories, unit * 50_000])
    made.save(tmp_path / "tokenizer.json")
    assert time.process_time() - started < 10
    assert made.decode(made.encode(unit * 50_000)) == unit * 50_000
    assert max(map(len, made.tokens)) <= tokenizer.MAX_TOKEN


# ---- rows ----


def test_markers_at_the_ends_of_rows(tmp_path):
    s, e = "<|startoftext|>", EOT
    rows = [f"{s}One.{e}", f"{s}\nTwo.\n{e}\n", f"Three.{e}{e}", f"{e} {s} Four.", f"{s}{e}", e]
    rows += [f"A {e} B.", f"{s}C {s} D.{e}", " blanks stay "]
    write_jsonl(tmp_path / "a.jsonl", rows)
    expected = [
        "One.",
        "Two.",
        "Three.",
        "Four.",
        "",
        "",
        f"A {e} B.",
        f"C {s} D.",
        " blanks stay ",
    ]
    assert list(read(str(tmp_path / "a.jsonl"))) == expected
    out = prepared(tmp_path, str(tmp_path / "a.jsonl"))
    assert kept(out) == sorted(filter(None, map(str.strip, expected)))
    (tmp_path / "a.txt").write_text(f"{s}One.{e}\n{s}Two.{e}\n")
    assert list(read(str(tmp_path / "a.txt"))) == ["One.", "Two."]


VARIANTS = ["\r\n", "\r", " \n", "\n\n", "\n\n\n", "  ", "\t", "\u00a0", "\u3000", "\u2028", " "]


def test_white_space_makes_no_other_story(tmp_path):
    texts = [f"Tom{i} ran.\nHe fell.\nHe é cried." for i in range(20)]
    variants = [text.replace("\n", space) for space in VARIANTS for text in texts]
    out = prepared(tmp_path, write(tmp_path / "a.jsonl", []) and _jsonl(tmp_path, texts + variants))
    assert len(kept(out)) == 20 and cleaning(out)["duplicate"] + cleaning(out)["in_val"] > 200
    val = write(tmp_path / "val.txt", texts[:5])
    out = prepared(tmp_path, _jsonl(tmp_path, variants), val_source=val)
    assert cleaning(out)["in_val"] == 5 * len(VARIANTS)


def _jsonl(tmp_path, rows):
    write_jsonl(tmp_path / "rows.jsonl", rows)
    return str(tmp_path / "rows.jsonl")


def test_line_ends_do_not_move_a_story_to_another_split(tmp_path):
    texts = [story.text for story in storybook.stories(200)]
    assert sum("\n" in text for text in texts) > 50
    plain = prepared(tmp_path, _jsonl(tmp_path, texts), val_fraction=0.3)
    val = stories_of(plain, "val")
    windows = [text.replace("\n", "\r\n") for text in texts]
    other = prepared(tmp_path, _jsonl(tmp_path, windows), val_fraction=0.3)
    assert [text.replace("\r\n", "\n") for text in stories_of(other, "val")] == val


# ---- how many, how long, how similar ----


def test_min_length(tmp_path):
    out = prepared(
        tmp_path, write(tmp_path / "a.txt", ["1234.", "12345.", "漢字です。"]), min_length=5
    )
    assert (
        cleaning(out)
        == Counter(read=3)
        | dict.fromkeys(["repaired", "empty", "truncated", "duplicate", "in_val"], 0)
        and len(kept(out)) == 3
    )
    out = prepared(tmp_path, write(tmp_path / "a.txt", ["1.", "12345.", "67890."]), min_length=6)
    assert kept(out) == ["12345.", "67890."] and cleaning(out)["short"] == 1


@pytest.mark.parametrize("kind", [*WRITERS, "storybook", "glob", "gz"])
def test_max_stories_takes_the_head_of_any_source(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 900)
    stories = [story.text for story in storybook.stories(40)]
    source = str(tmp_path / f"a.{kind}")
    if kind == "storybook":
        source = kind
    elif kind == "glob":
        write(tmp_path / "1.txt", stories[:7])
        write(tmp_path / "2.txt", stories[7:])
        source = str(tmp_path / "*.txt")
    elif kind == "gz":
        write_text(tmp_path / "a.txt", stories)
        source = pack(tmp_path / "a.txt", "gz")
    else:
        WRITERS[kind](tmp_path / f"a.{kind}", stories)
    for count in (2, 39, 99):
        out = prepared(tmp_path, source, max_stories=count, val_fraction=0.2, stories=40)
        assert kept(out) == sorted(stories[:count])
    val = write(tmp_path / "val.txt", [f"Val {i}." for i in range(9)])
    out = prepared(tmp_path, source, val_source=val, max_stories=5, max_val_stories=3, stories=40)
    assert stories_of(out, "train") == stories[:5]
    assert stories_of(out, "val") == ["Val 0.", "Val 1.", "Val 2."]
    # The tokenizer is made from the same head.
    out = prepared(tmp_path, source, tokenizer="bpe", vocab_size=300, max_stories=5, stories=40)
    assert kept(out) == sorted(stories[:5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_stories": -1}, "max_stories must be 0 or more"),
        ({"min_length": -1}, "min_length"),
        ({"max_val_stories": 5}, "max_val_stories is for a val_source"),
        ({"near_duplicates": "yes"}, "near_duplicates must be keep or drop"),
    ],
)
def test_settings_that_mean_nothing(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, write(tmp_path / "a.txt", ["One.", "Two."]), **settings)


NEAR = (
    "{name} had a red ball. {name} played with the ball in the park all day long. Then {name} lost "
)
NEAR += (
    "the ball, and a kind old man found it under a tree. {name} was very happy and said thank you."
)


@pytest.mark.parametrize(("made_with", "workers"), [("bytes", 1), ("bpe", 2)])
def test_near_duplicates(tmp_path, made_with, workers):
    different = [f"{story.text}" for story in storybook.stories(5)]
    one = NEAR.format(name="Lily")
    similar = [
        one.replace("red", "blue"),
        NEAR.format(name="Tom"),
        one.replace(". ", ".\r\n").upper(),
    ]
    held = [NEAR.format(name="Mia"), "A val story that is unlike all of the others, as it must be."]
    train = write(tmp_path / "train.txt", [different[0], one, *different[1:], *similar])
    val = write(tmp_path / "val.txt", held)
    settings = {"tokenizer": made_with, "vocab_size": 400, "workers": workers}
    settings |= {"near_duplicates": "drop"}
    out = prepared(tmp_path, train, val_source=val, **settings)
    assert stories_of(out, "val") == held and stories_of(out, "train") == different
    assert cleaning(out)["near_duplicate"] == 4
    assert not list(out.glob("*.spill")) and len(list(out.iterdir())) == 6
    # Without a val source, the first one stays.
    out = prepared(tmp_path, train, **settings)
    assert len(kept(out)) == 6 and cleaning(out)["near_duplicate"] in (2, 3)
    # And by default all do.
    assert len(kept(prepared(tmp_path, train))) == 9


def test_no_two_of_the_storybooks_dissimilar_stories_are_dropped(tmp_path):
    texts = [story.text for story in storybook.stories(300)]
    out = prepared(tmp_path, _jsonl(tmp_path, texts), near_duplicates="drop")
    left = kept(out)
    dropped = [text for text in texts if text not in left]
    assert dropped
    sets = {text: shingles(text) for text in texts}
    nearest = [max(jaccard(sets[one], sets[other]) for other in left) for one in dropped]
    assert min(nearest) >= 0.6
    pairs = [jaccard(sets[a], sets[b]) for i, a in enumerate(left) for b in left[:i]]
    assert sum(similarity > 0.75 for similarity in pairs) == 0


def test_many_stories_with_the_same_ends_are_read_again_quickly(tmp_path):
    bytewise, writer = tokenizer.build("bytes"), Writer(tmp_path, "train")
    texts = [f"Once upon a time there was a boy named {i}, and all was well." for i in range(2000)]
    tokens, lengths = bytewise.encode_stories(texts)
    index = np.zeros(len(texts), STORY)
    index["tokens"], index["answer"] = lengths, 1
    writer.add(tokens, index)
    read_again, starts = StoryReader([writer], bytewise), np.cumsum([0, *lengths])
    seconds = []
    for read_one in (lambda i: bytewise.decode(tokens[starts[i] + 1 : starts[i + 1]]), read_again):
        start = time.process_time()
        assert [read_one(i) for i in range(len(texts))] == texts
        seconds.append(time.process_time() - start)
    assert seconds[1] < 8 * seconds[0]
