"""The page that runs the model in the browser: its text is Python's, and it makes no request."""

import codecs
import json
from collections import Counter

import numpy as np
import pytest
import torch
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from configs import ROOT, UserError
from model import GPT, GPTConfig
from nanostories.dataset.tokenizer import GPT2_PATTERN, build
from nanostories.inference.decoder import Decoder
from nanostories.inference.generate import generate, request_seeds
from nanostories.inference.healing import Healer
from nanostories.page import fill
from nanostories.training import checkpoint, export
from nanostories.training.export_html import html_page, javascript_pattern
from nanostories.training.huggingface import LoadedModel
from nanostories.training.int8 import quantize_rows

# Whole words, and what needs healing: within a word, after a blank; and no English at all.
PROMPTS = [
    "Once upon a time", "", "Lily and Ben went to the park. They", "The litt", "One day, Tom saw ",
    '"Help!" said the', "Sue\n\n", "Tom’s café 🙂 was", "The cat's na", "1234 and 5 ", "日本の",
    "Mom said, “No", "They were sad because", "In the forest lived a", "Max was a big do",
    "At the beach,", "She wanted to", "Every day the frog", "The old man gave", "It was raini",
]  # fmt: skip
SENT = "Network.requestWillBeSent"
RUN = """
const [request, done] = arguments;
(async () => {
  const [lines, start] = [[], performance.now()];
  const signal = new AbortController().signal;
  for await (const line of engine.story(request, signal)) lines.push(line);
  return { lines, seconds: (performance.now() - start) / 1000 };
})().then(done, (error) => done({ error: error.message }));
"""


@pytest.fixture(scope="module")
def boxed():
    """The model in pretrained/, with the weights that its page has."""
    loaded = checkpoint.load_run(ROOT / "pretrained")
    round_weights(loaded.model)
    return loaded


@torch.no_grad()
def round_weights(model):
    """Give a GPT the weights that its page has, in place."""
    for weight in model.parameters():
        if weight.ndim == 2:
            rounded, scale = quantize_rows(weight)
            weight.copy_(rounded * scale[:, None])


def random_model(bos_ids=(256,), **config):
    """A LoadedModel of random weights, sharp enough that its choices differ."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=257, block_size=96, n_layer=3, n_head=2, n_embd=24, **config))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.15)
    round_weights(model.eval())
    return LoadedModel(
        model, build("bytes"), max_length=96, bos_ids=[*bos_ids], out_dir="", provenance={}
    )


def open_page(browser, loaded, path, title="A model"):
    path.write_text(html_page(loaded, title), encoding="utf-8")
    browser.get(path.as_uri())
    by_id = lambda name: browser.find_element(By.ID, name)  # noqa: E731
    WebDriverWait(browser, 20, 0.02).until(lambda _: by_id("generate").is_enabled())
    browser.set_script_timeout(120)
    return by_id


def in_the_page(browser, prompt, temperature=0, top_p=1, seed=1, tokens=200):
    """(text after the prompt, the lines of the answer) of a story in the page."""
    request = {"prompt": prompt, "temperature": temperature, "top_p": top_p, "seed": seed,
               "max_new_tokens": tokens}  # fmt: skip
    answer = browser.execute_async_script(RUN, request)
    assert "error" not in answer, answer
    return "".join(line.get("text", "") for line in answer["lines"]), answer["lines"]


def in_python(loaded, prompts, tokens=200):
    """The greedy text after each prompt, as sample.py shows it."""
    tokenizer, ids = loaded.tokenizer, [loaded.encode_prompt(prompt) for prompt in prompts]
    typed = [len(tokenizer.decode_bytes(some)) for some in ids]
    completions = generate(
        Decoder(loaded.model), ids, tokenizer.eot, request_seeds(1, len(ids)), temperature=0,
        max_new_tokens=tokens, max_length=loaded.max_length, heal=Healer(tokenizer, temperature=0),
    )  # fmt: skip
    whole = [some + one.ids for some, one in zip(ids, completions, strict=True)]
    return [tokenizer.decode_bytes(some)[n:] for some, n in zip(whole, typed, strict=True)]


def assert_equal_text(browser, loaded, prompts, tokens):
    for prompt, expected in zip(prompts, in_python(loaded, prompts, tokens), strict=True):
        text, lines = in_the_page(browser, prompt, tokens=tokens)
        # A character that the last token cut is not shown.
        assert text == codecs.getincrementaldecoder("utf-8")("replace").decode(expected), prompt
        assert lines[0] == {"seed": 1, "prompt": prompt} and "end" in lines[-1]


# ---- the same text -----------------------------------------------------------------------------


def test_greedy_text_is_pythons(boxed, browser, tmp_path):
    open_page(browser, boxed, tmp_path / "story.html")
    assert_equal_text(browser, boxed, PROMPTS[::3], 30)


@pytest.mark.slow
def test_greedy_text_is_pythons_for_twenty_prompts(boxed, browser, tmp_path):
    open_page(browser, boxed, tmp_path / "story.html")
    assert_equal_text(browser, boxed, PROMPTS, 200)


@pytest.mark.parametrize(
    "config",
    [
        {"positions": "learned"},
        {"positions": "rope", "gelu": "erf"},
        {"window": 8, "scale_attention": False, "qkv_bias": False, "bos_ids": []},  # GPT-Neo's
    ],
    ids=["learned", "rotary", "gpt-neo"],
)
def test_every_architecture(browser, tmp_path, config):
    loaded = random_model(**config)
    open_page(browser, loaded, tmp_path / "story.html")
    assert_equal_text(browser, loaded, ["", "A b", "Mia"], 80)


def test_probabilities_are_the_models_own(boxed, browser, tmp_path):
    open_page(browser, boxed, tmp_path / "story.html")
    _, lines = in_the_page(browser, "Once upon a", tokens=3)
    ids = boxed.encode_prompt("Once upon a")
    for line in (line for line in lines if "text" in line):
        with torch.no_grad():
            p = boxed.model(torch.tensor([ids]))[0, -1].softmax(-1)
        likeliest = p.topk(5)
        assert [q for _, q in line["others"]] == pytest.approx(likeliest.values.tolist(), rel=1e-4)
        texts = [boxed.tokenizer.decode([i]) for i in likeliest.indices.tolist()]
        assert [text for text, _ in line["others"]] == texts
        assert line["p"] == pytest.approx(p.max().item(), rel=1e-4)
        ids.append(int(p.argmax()))


# ---- its parts ---------------------------------------------------------------------------------


def evaluate(browser, tokenizer, expression, *arguments):
    """The value of an expression of model.js, in which the arguments are `arguments[1:]`."""
    settings = {
        "config": {}, "max_length": 8, "bos_ids": [], "tensors": {},
        "tokens": [token.decode("latin-1") for token in tokenizer.tokens],
        "pattern": javascript_pattern(tokenizer.patterns[1]),
    }  # fmt: skip
    source = (ROOT / "nanostories" / "page" / "model.js").read_text("utf-8")
    script = f"const defaults = arguments[0];\n{source}\nreturn {expression};"
    return browser.execute_script(script, settings, *arguments)


def test_tokens_are_pythons(boxed, browser):
    texts = [*PROMPTS, "I'LL go, I’ll; DON'T ſ'ſ", " \n \n  x", "\r\n\r\n", "a\u00a0b\u2003c\x85d",
             "\ufeffx", "e\u0301 日本語12345 ½", "<|endoftext|>", "''''s", "x" * 60, "\t\tTab ",
             "🙂" * 5, "!!!\n\n\n", "fin.\n ", "fin\x85", "fin\ufeff"]  # fmt: skip
    for tokenizer in (boxed.tokenizer, build("gpt2")):
        expected = [tokenizer.encode_prompt(text) for text in texts]
        assert evaluate(browser, tokenizer, "arguments[1].map(encodePrompt)", texts) == expected
    assert build("gpt2").patterns == GPT2_PATTERN != boxed.tokenizer.patterns


def test_what_is_drawn(browser):
    """sample() draws as often as the probabilities say, and within top_p alone."""
    scores = np.log([0.5, 0.3, 0.1, 0.06, 0.04]).tolist()

    def draws(temperature, top_p):
        expression = (
            "((random, scores) => Array.from({ length: 20000 }, () => "
            "sample(scores, arguments[2], random)))"
            "(randomNumbers(7), Float32Array.from(arguments[1]))"
        )
        request = {"temperature": temperature, "top_p": top_p}
        counts = Counter(evaluate(browser, build("bytes"), expression, scores, request))
        return [counts[i] / 20000 for i in range(5)]

    assert draws(1, 1) == pytest.approx([0.5, 0.3, 0.1, 0.06, 0.04], abs=0.012)
    squares = np.array([0.5, 0.3, 0.1, 0.06, 0.04]) ** 2
    assert draws(0.5, 1) == pytest.approx((squares / squares.sum()).tolist(), abs=0.012)
    assert draws(1, 0.85) == pytest.approx([5 / 9, 3 / 9, 1 / 9, 0, 0], abs=0.012)
    assert draws(1, 0.4) == [1, 0, 0, 0, 0] == draws(0, 1)


# ---- the page ----------------------------------------------------------------------------------


def test_the_page_in_a_browser(boxed, browser, tmp_path):
    browser.get_log("performance")
    by_id = open_page(browser, boxed, tmp_path / "story.html", "A box <b>")
    wait = WebDriverWait(browser, 20, 0.02)

    def find(css):
        return browser.find_elements(By.CSS_SELECTOR, css)

    def fill_in(name, value):
        by_id(name).clear()
        by_id(name).send_keys(value)

    def generated(count):
        wait.until(lambda _: len(find("li")) == count and by_id("generate").is_enabled())
        return browser.execute_script("return document.querySelector('.story').textContent")

    assert browser.title == "A box <b> – nanoStories" and by_id("status").text == ""

    # A story by keyboard; the same seed gives it again, and another one another.
    fill_in("prompt", "Once upon a time")
    fill_in("max_new_tokens", "40")
    fill_in("seed", "4")
    by_id("prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    first = generated(1)
    assert first.startswith("Once upon a time") and len(find(".token")) == 40
    assert by_id("status").text == "at the maximum length"
    by_id("generate").click()
    assert generated(2) == first
    fill_in("seed", "5")
    by_id("generate").click()
    assert generated(3) != first

    # A token's probability and the alternatives.
    ActionChains(browser).move_to_element(find(".token")[3]).perform()
    wait.until(lambda _: by_id("tip").is_displayed())
    assert len(by_id("tip").text.split("%")) == 7

    # Stop, in the middle; the page reacts while the model computes.
    fill_in("max_new_tokens", "500")
    browser.execute_script(
        "new MutationObserver((_, observer) => {"
        "  if (document.querySelectorAll('li:first-child .token').length !== 4) return;"
        "  document.getElementById('stop').click(); observer.disconnect(); "
        "}).observe(document.getElementById('stories'), { subtree: true, childList: true })"
    )
    by_id("generate").click()
    generated(4)
    assert 4 <= len(find("li:first-child .token")) < 20
    assert "· stopped" in find("li:first-child .settings")[0].text

    # A prompt too long for the model is refused in words, and any characters are welcome.
    browser.execute_script("document.getElementById('prompt').value = 'frog '.repeat(600)")
    by_id("generate").click()
    wait.until(lambda _: by_id("error").text)
    assert "but the model ends at 512" in by_id("error").text and len(find("li")) == 4
    fill_in("max_new_tokens", "5")
    browser.execute_script("document.getElementById('prompt').value = '<i>日本</i> \\ud83d\\ude42'")
    by_id("generate").click()
    assert generated(5).startswith("<i>日本</i> 🙂") and by_id("error").text == ""

    # On a phone nothing is wider than the screen.
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    assert browser.get_log("browser") == []

    # Of all that, nothing went over a network, and the browser would not let it.
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == SENT]
    sent = [url for url in sent if not url.startswith(("data:", "chrome:"))]  # the icon; a new tab
    assert sent == [(tmp_path / "story.html").as_uri()]
    blocked = "fetch('https://example.com').then(() => done('sent'), () => done('blocked'))"
    assert browser.execute_async_script(f"const done = arguments[0]; {blocked}") == "blocked"


@pytest.mark.parametrize("where", ["half", "end"])
def test_a_file_that_was_cut_off(boxed, browser, tmp_path, where):
    page = html_page(boxed, "cut")
    page = page[: len(page) // 2 if where == "half" else page.rindex('<script class="weights"')]
    (tmp_path / "cut.html").write_text(page, encoding="utf-8")
    browser.get((tmp_path / "cut.html").as_uri())
    alert = browser.find_element(By.ID, "error")
    WebDriverWait(browser, 20, 0.02).until(lambda _: alert.text)
    assert alert.text == "The file is incomplete: load it again."
    assert not browser.find_element(By.ID, "generate").is_enabled()


def test_the_command(tmp_path, capsys):
    out = tmp_path / "story.html"
    export.main([str(ROOT / "pretrained"), "--to=html", f"--out={out}"])
    assert "send it to a friend" in capsys.readouterr().out
    assert out.read_text(encoding="utf-8").count('class="weights"') > 1
    with pytest.raises(UserError, match="exists already"):
        export.main([str(ROOT / "pretrained"), "--to=html", f"--out={out}"])
    with pytest.raises(UserError, match="to must be"):
        export.main([str(ROOT / "pretrained"), "--to=exe"])


def test_text_in_the_settings_stays_text():
    """What looks like a place to fill in, or like the script's end, in a title does nothing."""
    page = fill("server.js", {"title": "{engine}</script>{weights}"}, weights="<!-- end -->")
    assert '"{engine}\\u003c/script>{weights}"' in page
    assert page.count("async function* story") == 1 and page.count("<!-- end -->") == 1
