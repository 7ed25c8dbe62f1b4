"""Sources and cleaning: what goes in comes out in any format; damage is repaired and counted."""

import gzip
import io
import json
import tarfile
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import UserError
from nanostories.dataset import cleaning, readers
from nanostories.dataset.cleaning import clean
from nanostories.dataset.readers import texts
from nanostories.dataset.sources import Source, dataset_folder, read, slug
from nanostories.dataset.tokenizer import EOT

STORIES = [
    "Once upon a time there was a dragon. 🐉",
    "Windows\r\nline ends,\r\n\r\nkept as they are.",
    "Lone\rreturn and tabs\tand “quotes” and café ﬁn &amp; <b>HTML</b>.",
    "Plain.",
]
LITERAL = f"The sign said {EOT} and nobody knew why."


def write_jsonl(path, stories, field="text"):
    path.write_bytes(b"".join(json.dumps({field: s}).encode() + b"\n" for s in stories))


def write_parquet(path, stories, field="text"):
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(stories)), field: stories}), path)


def write_json(path, stories, field="story"):
    path.write_text(json.dumps([{field: s, "summary": "[a], {b}"} for s in stories], indent=2))


def write_all_data(path, stories):
    """The layout of TinyStories_all_data.tar.gz: JSON arrays, two stories a file."""
    with tarfile.open(path, "w:gz") as archive:
        for i in range(0, len(stories), 2):
            instruction = {"prompt:": "Write", "words": ["a"], "features": []}
            rows = [{"story": s, "instruction": instruction} for s in stories[i : i + 2]]
            data = json.dumps(rows).encode()
            info = tarfile.TarInfo(f"data{i:02}.json")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that a file is many of them, and reading meets every boundary."""
    monkeypatch.setattr(readers, "BLOCK_BYTES", 7)


# ---- formats -----------------------------------------------------------------------------------


def test_txt(tmp_path, small_blocks):
    path = tmp_path / "stories.txt"
    path.write_bytes(f"\n<|endoftext|>\r\n{EOT}".join(STORIES[:1] + STORIES).encode())
    assert list(read(str(path))) == [STORIES[0], "", STORIES[0]] + [
        text for story in STORIES[1:] for text in ("", story)
    ]


@pytest.mark.parametrize("lead", ["", "\ufeff", f"{EOT}\n", f"\ufeff {EOT}"])
@pytest.mark.parametrize("tail", ["", "\n", EOT, f"\n{EOT}\n"])
def test_txt_ends(tmp_path, small_blocks, lead, tail):
    # A separator or blanks around the whole are no empty story; a byte order mark is no text.
    path = tmp_path / "stories.txt"
    path.write_bytes((lead + f"\n{EOT}\n".join(STORIES) + tail).encode())
    assert list(read(str(path))) == STORIES


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.text("ab<|e> \né", max_size=9).filter(str.strip), min_size=1, max_size=8),
    st.integers(1, 60),
)
def test_txt_in_blocks_is_txt_whole(tmp_path_factory, stories, size):
    path = tmp_path_factory.mktemp("blocks") / "stories.txt"
    path.write_bytes(EOT.join(stories).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK_BYTES", size)
        blocks = list(Source(str(path)).blocks())
        assert [s for b in blocks for s in texts(b)] == [s.strip() for s in stories]
    # Each block ends at the first separator there is, so that none is longer than it must be.
    whole = path.read_bytes() + EOT.encode()
    assert all(block.stop == whole.find(EOT.encode(), block.start + size) for block in blocks[:-1])


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_jsonl),
        ("a.jsonl", lambda path, stories: write_jsonl(path, stories, "story")),
        ("a.parquet", write_parquet),
        ("a.parquet", lambda path, stories: write_parquet(path, stories, "story")),
        ("a.json", write_json),
        ("TinyStories_all_data.tar.gz", write_all_data),
    ],
)
def test_records(tmp_path, small_blocks, name, write):
    # Formats that need no separator hold any text at all, its separator and its blanks included.
    stories = [*STORIES, LITERAL, "\n\n blanks kept \n", "NUL \0 inside.", ""]
    write(tmp_path / name, stories)
    source = Source(str(tmp_path / name))
    assert list(read(source.name)) == stories
    assert 0 < sum(block.weight for block in source.blocks()) <= source.total()


def test_json_strings_and_nulls(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('"Just a string."\n{"text": null}\n\n{"text": "Two."}')
    assert list(read(str(path))) == ["Just a string.", "", "Two."]


def test_glob_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "c.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) if "c" in name else name)
    assert list(read(str(tmp_path / "*.txt"))) == ["a.txt", "b.txt"]
    assert list(read(str(tmp_path / "*"))) == ["a.txt", "b.txt", "c.jsonl"]
    # A file whose name looks like a glob is that file.
    (tmp_path / "x[1].txt").write_text("brackets")
    assert list(read(str(tmp_path / "x[1].txt"))) == ["brackets"]


def test_storybook_is_seeded():
    one = list(read("storybook", stories=5, seed=1, split="train"))
    assert len(one) == 5 and one == list(read("storybook", stories=5, seed=1, split="train"))
    assert one != list(read("storybook", stories=5, seed=2, split="train"))
    assert not set(one) & set(read("storybook", stories=5, seed=1, split="val"))


# ---- names -------------------------------------------------------------------------------------


def test_slug(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert slug("tinystories-v2") == "tinystories-v2"
    assert slug("hub:roneneldan/TinyStories") == "TinyStories"
    assert slug("hub:roneneldan/TinyStories:validation") == "TinyStories"
    assert slug("some/where/my.stories.txt") == "my"
    assert slug("TinyStories_all_data.tar.gz") == "TinyStories_all_data"
    assert slug("../shared/data/tinystories/train_v[12]_*[adl].txt") == "tinystories"
    assert slug("books/*/part?.txt") == "books"
    assert slug("*.txt") == tmp_path.name
    assert dataset_folder("storybook", "bpe") == "data/storybook-bpe"
    assert dataset_folder("a/my.txt", "out/ts_cpu/tokenizer.json") == "data/my-ts_cpu"
    assert dataset_folder("a/my.txt", "out/ts_cpu") == "data/my-ts_cpu"


def test_pinned():
    assert len(Source("tinystories").pinned().revision) == 40
    assert Source("tinystories", revision="abc").pinned().revision == "abc"
    assert Source("storybook", revision="abc").pinned().revision == ""
    assert Source("hub:a/b", revision="0" * 40).pinned().revision == "0" * 40


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "no source"),
        ("empty.txt", b"", "is empty"),
        ("nul.txt", b"A story.\0 Another.", "binary"),
        ("latin.txt", "Où est l'été, où est né Noël?".encode("latin-1"), "not UTF-8"),
        ("picture.txt", bytes(range(128, 256)) * 9, "not UTF-8"),
        ("utf16.txt", "A story.".encode("utf-16-le"), "binary"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": ', "not JSON"),
        ("keys.jsonl", b'{"title": "a"}', "title"),
        ("number.jsonl", b'{"text": 3}', "not text"),
        ("bad.json", b'[{"story": "a"}, {"story": "b"', "not a whole JSON array"),
        ("bad.parquet", b"PAR1 nonsense", "parquet"),
        ("bad.tar.gz", b"nonsense", "damaged archive"),
        ("cut.tar.gz", None, "damaged archive"),
    ],
)
def test_bad_files_are_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if name == "cut.tar.gz":
        write_all_data(path, [f"{i} " * 5000 for i in range(9)])
        content = path.read_bytes()[:-200]
    if content is not None:
        path.write_bytes(content)
    for strict in (True, False):
        with pytest.raises(UserError, match=message) as error:
            [texts(block, strict=strict) for block in Source(str(path)).blocks()]
        assert "\n" not in str(error.value) and name in str(error.value)


def test_bad_names(tmp_path):
    with pytest.raises(UserError, match="no file matches"):
        next(read(str(tmp_path / "*.txt")))
    with pytest.raises(UserError, match="is a folder"):
        next(read(str(tmp_path)))
    with pytest.raises(UserError, match="did you mean 'tinystories'"):
        next(read("tinystoris"))
    write_parquet(tmp_path / "a.parquet", ["A."], field="title")
    with pytest.raises(UserError, match="no 'text' or 'story', only id, title"):
        next(read(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize("name", ["tinystories", "tinystories-instruct", "hub:owner/name"])
def test_no_network_names_offline_sources(monkeypatch, tmp_path, name):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="--source=storybook or a local file") as error:
        Source(name).pinned().files()
    assert "\n" not in str(error.value)


def test_named_sources_read_the_hubs_files(monkeypatch, tmp_path):
    import huggingface_hub

    requests = []

    def download(repo_id, filename, repo_type, revision, **settings):
        requests.append((repo_id, filename, repo_type, revision))
        (tmp_path / filename).write_text(f"From {filename}.")
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda **request: "cached")
    assert list(read("tinystories-v2")) == ["From TinyStoriesV2-GPT4-valid.txt."]
    assert list(read("tinystories", split="train")) == ["From TinyStories-train.txt."]
    repo, pinned, _ = readers.NAMED["tinystories"]
    assert requests[-1] == (repo, "TinyStories-train.txt", "dataset", pinned)


def test_any_hub_data_set(monkeypatch):
    import datasets

    def load(repo, split, revision):
        rows = {"id": [1, 2], "story": [f"{repo} {split}", f"{revision}"]}
        return datasets.Dataset.from_dict(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read("hub:a/b", revision="r")) == ["a/b train", "r"]
    assert list(read("hub:a/b:validation")) == ["a/b validation", "None"]


# ---- cleaning ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("story", "kept", "rule"),
    [
        ("â€œHi,â€\x9d he said. It wasnâ€™t cold.", "“Hi,” he said. It wasn’t cold.", "repaired"),
        ("The cafÃ© was shut.", "The café was shut.", "repaired"),
        ("It wasn\udc92t cold.", "It wasn’t cold.", "repaired"),
        ("A lone \ud83d half.", "A lone \ufffd half.", "repaired"),
        ("A pair \ud83d\udc09.", "A pair 🐉.", "repaired"),
        (" \n A story. \r\n", "A story.", None),
        ("", None, "empty"),
        (" \r\n\t ", None, "empty"),
        ("And then the", None, "truncated"),
        ("And then,", None, "truncated"),
        ("The end!", "The end!", None),
        ("Really?", "Really?", None),
        ('He said "no."', 'He said "no."', None),
        ("He said “no.”", "He said “no.”", None),
        ("He said 'no'", "He said 'no'", None),
        # Typography, ligatures, HTML, line ends and other scripts are no damage.
        *((story, story, None) for story in (*STORIES[1:], "Ein Märchen.", "Это сказка.")),
    ],
)  # fmt: skip
def test_clean(story, kept, rule):
    counts = Counter()
    assert clean(story, counts) == kept
    assert +counts == Counter([rule] if rule else [])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text("‘’“”–—…'\"a. \n-"))
def test_typography_is_never_damage(text):
    # `clean` skips ftfy for text of these characters alone; ftfy would not change it.
    assert cleaning.ftfy.fix_encoding(text) == text
    assert not (set("‘’“”–—…") ^ {chr(i) for i in cleaning.TYPOGRAPHY})


def test_stray_bytes(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_bytes(b"It wasn\x92t cold. " + b"The sun was warm. " * 10 + EOT.encode() + b"Two.")
    with pytest.raises(UserError, match="not UTF-8 text: byte 0x92 at offset 7"):
        list(read(str(path)))
    counts = Counter()
    (block,) = Source(str(path)).blocks()
    first, second = (clean(text, counts) for text in texts(block))
    assert first.startswith("It wasn’t cold.") and second == "Two."
    assert counts["repaired"] == 1


def test_gzip_is_not_read_as_text(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_bytes(gzip.compress(b"A story."))
    with pytest.raises(UserError, match=r"binary|not UTF-8"):
        list(read(str(path)))
