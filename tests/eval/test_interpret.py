"""python -m eval.interpret: its results of a trained run, its page, and what it refuses."""

import base64
import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import nltk
import numpy as np
import planted
import pytest
import tiny
import torch
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from tiny import settings_for

from configs import UserError
from eval import interpret
from eval.interpretability import hooks, page
from eval.interpretability.hooks import TaggedStory, Unit
from nanostories.text import wordnet
from nanostories.text.pos_tags import POS
from nanostories.training import checkpoint, export

HOSTILE = 'Tom saw </script><img src=x onerror="document.title=1"> & a "cat". Tom saw &lt;b&gt; it.'


def call(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["interpret.py", "--device=cpu", *map(str, words)])
        interpret.main()


@pytest.fixture(scope="module")
def run(data, nltk_data, tmp_path_factory):
    """A tiny run, interpreted with a text that would be a script, if it could."""
    out = tmp_path_factory.mktemp("interpret") / "tiny"
    tiny.train(settings_for(data, out))
    (out / "text.txt").write_text(HOSTILE)
    few = ("--stories=24", "--head_stories=8", "--top_neurons=2", "--random_neurons=1")
    call(out, *few, "--neurons=1:77", f"--text=FILE:{out / 'text.txt'}")
    return out


def results_of(run):
    return json.loads((run / "eval" / "interpret.json").read_text())


def test_what_it_writes(run):
    results = results_of(run)
    heads, shown = results["heads"], results["shown_neurons"]
    assert [(row["layer"], row["head"]) for row in heads] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert "".join(results["text"]["tokens"][1:]) == HOSTILE and results["stories"] == 24
    assert results["checkpoint"]["step"] == 30 and len(results["stories_sha256"]) == 64
    for row in [*heads, *shown]:
        rises = row["ablation_loss"]
        assert rises.keys() <= {"all", *POS} and rises["all"]["n"] == 8
        assert {"noun", "verb", "mark"} <= rises.keys()
    places = {(row["layer"], row["neuron"]): row["shown_as"] for row in shown}
    assert places[1, 77] == "requested"
    assert {places[0, 0], places[1, 0]} <= {"first", "most coherent"}
    best = [row for row in shown if row["rank"] == 1]
    assert [row["shown_as"] for row in best] == ["most coherent"]
    facts = results["neurons"]
    for row in shown:  # readable ones are so on held-out stories
        assert row["readable"] == (row["coherence_held_out"] > facts["threshold"])
    assert facts["mean_coherence_random_weights"]["mean"] != facts["mean_coherence"]["mean"]
    assert facts["readable_random_weights"]["n"] == facts["mean_coherence"]["n"] == 256
    assert facts["examples"] == 12 and [len(row) for row in facts["coherence"]] == [128, 128]
    [top] = best
    assert top["coherence"] == pytest.approx(max(map(max, facts["coherence"])), abs=1e-4)
    for row in shown:
        for one in row["examples"]:
            assert len(one["tokens"]) == len(one["values"]) and "ids" not in one
            # The story's highest is the window's; its first token, if it is there, is left out.
            first = one["tokens"][0] == "<|endoftext|>"
            assert one["values"][one["peak"]] == max(one["values"][first:])


def test_the_same_again(run, tmp_path):
    """Called once more, it writes the same bytes."""
    torch.manual_seed(99)  # what else was drawn before does not matter
    before = {x: (run / "eval" / f"interpret.{x}").read_bytes() for x in ("json", "html")}
    few = ("--stories=24", "--head_stories=8", "--top_neurons=2", "--random_neurons=1")
    call(run, *few, "--neurons=1:77", f"--text=FILE:{run / 'text.txt'}")
    for kind, content in before.items():
        assert (run / "eval" / f"interpret.{kind}").read_bytes() == content


def test_the_page_in_a_browser(run, browser):
    """Choose a head and a neuron, point at tokens: what is shown is what the model computes."""
    results = results_of(run)
    find = lambda css: browser.find_elements(By.CSS_SELECTOR, css)  # noqa: E731
    text = lambda css: find(css)[0].text  # noqa: E731
    browser.get((run / "eval" / "interpret.html").as_uri())
    # The hostile text is text: no element of its own, no script, nothing loaded.
    assert browser.title == "Heads and neurons of tiny" and not find("img")
    shown = browser.execute_script("return document.getElementById('text').textContent")
    assert shown == "<|endoftext|>" + HOSTILE
    assert len(find("#small button")) == 2 and "Layer 0, head 0" in text("#head-name")
    # A layer, then a head, are chosen by clicks.
    find("#layers button")[1].click()
    find("#small button")[1].click()
    assert text("#head-name").startswith("Layer 1, head 1")
    assert find("#small button")[1].get_attribute("aria-pressed") == "true"
    # Pointing at a token shows what it attends to, in the very weights of the model.
    loaded = checkpoint.load_run(run)
    ids = torch.tensor([[loaded.tokenizer.eot, *loaded.tokenizer.encode(HOSTILE)]])
    weights = hooks.attention_patterns(loaded.model, ids, 1)[0, 1]
    tokens, at = results["text"]["tokens"], 20
    spans = find("#text span")
    ActionChains(browser).move_to_element(spans[at]).perform()
    lines = text("#tip").splitlines()
    assert tokens[at].strip() in lines[0] and results["text"]["pos"][at] in lines[0]
    best = weights[at].sort(descending=True).values.tolist()[: len(lines) - 1]
    assert [float(line.split()[0]) for line in lines[1:]] == pytest.approx(best, abs=6e-4)
    assert "on" in spans[at].get_attribute("class")
    # The other way round: what attends to it.
    find("#as-key")[0].click()
    ActionChains(browser).move_to_element(spans[at]).perform()
    best = weights[:, at].sort(descending=True).values.tolist()
    assert float(text("#tip").splitlines()[1].split()[0]) == pytest.approx(best[0], abs=6e-4)
    # The map shows the same of the place that is pointed at.
    cell, labels = browser.execute_script("return [cell, labels]")
    left, top = browser.execute_script(
        "const map = document.getElementById('map'); map.scrollIntoView()\n"
        "const box = map.getBoundingClientRect(); return [box.left, box.top]"
    )
    place = [round(left + labels + 5.5 * cell), round(top + labels + 9.5 * cell)]
    moves = ActionChains(browser)
    moves.w3c_actions.pointer_action.move_to_location(*place)
    moves.perform()
    shown = re.search(r"4 back: ([\d.]+)", text("#tip"))
    assert float(shown[1]) == pytest.approx(weights[9, 5].item(), abs=6e-4)
    # By keyboard, too: to the left of the column that was pointed at.
    browser.execute_script("document.getElementById('text').focus()")
    ActionChains(browser).send_keys(Keys.ARROW_LEFT).perform()
    assert browser.execute_script("return state.token") == 4
    # A button that is pressed keeps the focus.
    find("#small button")[0].send_keys(Keys.ENTER)
    assert text("#head-name").startswith("Layer 1, head 0")
    assert browser.switch_to.active_element == find("#small button")[0]
    # Rows of the tables choose as well, and columns sort them.
    find("#heads tbody tr")[0].click()
    assert text("#head-name").startswith("Layer 0, head 0")
    column = next(b for b in find("#heads th button") if b.text == "loss rise")
    column.click()
    cells = [row.find_elements(By.TAG_NAME, "td")[9].text for row in find("#heads tbody tr")]
    assert [float(x) for x in cells] == sorted(map(float, cells), reverse=True)
    assert find("th[aria-sort=descending]") == [column.find_element(By.XPATH, "..")]
    find("#heads tbody tr")[1].send_keys(Keys.ENTER)
    assert find("#heads tbody tr")[1].get_attribute("class") == "on"
    # A neuron: its examples, shaded by its values, which pointing shows.
    i = next(i for i, row in enumerate(results["shown_neurons"]) if row["shown_as"] == "requested")
    find("#shown tbody tr")[i].click()
    assert text("#neuron-name") == "Layer 1, neuron 77, requested"
    one = results["shown_neurons"][i]["examples"][0]
    words = find("#examples li")[0].find_elements(By.TAG_NAME, "span")
    assert len(words) == len(one["tokens"])
    ActionChains(browser).move_to_element(words[one["peak"]]).perform()
    assert text("#tip").endswith(f": {one['values'][one['peak']]:.3f}")
    assert "0.85" in words[one["peak"]].get_attribute("style")
    # At a phone's width nothing is wider than the screen, but what scrolls by itself.
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True})  # fmt: skip
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert browser.get_log("browser") == []


def test_every_word_of_the_data_is_hostile(run, browser, tmp_path):
    """Whatever string a model, a text or a folder has: on the page it is text, and does nothing."""
    bad = "</script><img src=x onerror='document.title=1'>{nonce}"

    def spoiled(x):
        if isinstance(x, dict):
            return {key: spoiled(value) for key, value in x.items()}
        if isinstance(x, list):
            return [spoiled(value) for value in x]
        return bad if isinstance(x, str) else x

    results, loaded = spoiled(results_of(run)), checkpoint.load_run(run)
    loaded.out_dir = f"out/{bad.replace('/', ' ')}"
    n = len(results["text"]["tokens"])
    patterns = [(torch.ones(2, n, n) / n).tril()] * 2
    path = tmp_path / "hostile.html"
    path.write_text(page.render(results, patterns, loaded))
    browser.get(path.as_uri())
    for css in ("#layers button", "#heads tbody tr", "#neurons button", "#shown tbody tr"):
        browser.find_elements(By.CSS_SELECTOR, css)[-1].click()
    assert browser.find_elements(By.CSS_SELECTOR, "img") == []
    assert browser.title == f"Heads and neurons of {bad.replace('/', ' ')}"
    cells = browser.find_elements(By.CSS_SELECTOR, "#heads td:nth-child(2)")
    assert cells[0].text == bad
    assert browser.get_log("browser") == []


def test_cut_stories_have_the_next_token_for_a_target(run):
    """One longer than the model's training saw ends in the token that follows, not in an end."""
    loaded = checkpoint.load_run(run)
    loaded.max_length, text = 10, "Tom had a cat. The cat had a hat. Tom had the hat."
    ids = [loaded.tokenizer.eot, *loaded.tokenizer.encode(text)]
    [cut] = interpret.tag_stories(loaded, [text], tagged=True)
    assert cut.ids == ids[:10] and cut.next_id == ids[10] and cut.next_pos != "end"
    assert len(cut.pos) == 10
    loaded.max_length = 100
    [whole] = interpret.tag_stories(loaded, [text], tagged=True)
    assert whole.ids == ids and (whole.next_id, whole.next_pos) == (loaded.tokenizer.eot, "end")
    kinds, [mask] = interpret.target_kinds([cut])
    names = [kinds[1:][i] for i in mask[1:].argmax(0)]
    assert names == [*cut.pos[1:], cut.next_pos] and mask[0].all() and (mask[1:].sum(0) == 1).all()


def test_ablation_losses():
    """Two alternating tokens: predicted by the head that knows the one before, and by no other."""
    model, parts = planted.model(), {0: "end", 1: "noun", 5: "verb", 8: "verb"}
    ids = [[0, *(pair * 10)] for pair in itertools.permutations((1, 5, 8), 2)]
    # The first two are not predictable: another part of speech, so that they do not count.
    start = ["end", "other", "other"]
    stories = [TaggedStory(one, [*start, *(parts[i] for i in one[3:])]) for one in ids]
    heads = [Unit("head", 0, h) for h in (planted.PREVIOUS, planted.CONTENT)]
    knows, idles = interpret.ablation_losses(model, heads, stories, seed=0).values()
    assert knows.keys() == idles.keys() == {"all", "noun", "verb", "other", "end"}
    assert min(knows[kind]["mean"] for kind in ("noun", "verb")) > 1 > knows["other"]["mean"]
    assert knows["noun"]["n"] == 4 and knows["noun"]["low"] <= knows["noun"]["mean"]
    assert all(abs(x["mean"]) < 1e-4 for x in idles.values())


def test_a_text_too_long_for_the_page(run, monkeypatch, capsys):
    """It is cut, and a line says so: where the model's context ends, or the page's room."""
    loaded = checkpoint.load_run(run)
    text = "Tom had a cat. " * 40
    [story] = interpret.tag_stories(loaded, [text], tagged=True)
    shown = interpret.cut_for_page(loaded, story, text)
    assert len(shown.ids) == len(shown.pos) == loaded.max_length == 128
    assert capsys.readouterr().out == "of the text, the first 127 tokens are shown\n"
    monkeypatch.setattr(interpret, "MAX_WEIGHTS", 4 * 50 * 51 // 2)
    assert len(interpret.cut_for_page(loaded, story, text).ids) == 50
    [story] = interpret.tag_stories(loaded, ["Tom had a cat."], tagged=True)
    capsys.readouterr()
    assert interpret.cut_for_page(loaded, story, "Tom had a cat.").ids == story.ids
    assert capsys.readouterr().out == ""


def test_patterns_on_the_page():
    """Rows j <= i, one after the other, in 65,535ths: to half of that exact."""
    patterns = torch.rand(2, 7, 7).tril()
    patterns /= patterns.sum(-1, keepdim=True)
    for head, text in zip(patterns, page.pack(patterns), strict=True):
        values = np.frombuffer(base64.b64decode(text), "<u2") / 65535
        rows = np.split(values, np.cumsum(range(1, 7)))
        for i, row in enumerate(rows):
            assert row.sum() == pytest.approx(1, abs=1e-4)
            assert row == pytest.approx(head[i, : i + 1].numpy(), abs=1 / 131070 + 1e-7)


def test_the_patterns_of_a_page_are_read_back(run):
    """For the study's report: of each layer and head, a row for each token of the text."""
    layers, results = page.read_patterns(Path(run) / "eval" / "interpret.html"), results_of(run)
    n, heads = len(results["text"]["tokens"]), results["model"]["n_head"]
    assert [layer.shape for layer in layers] == [(heads, n, n)] * results["model"]["n_layer"]
    for layer in layers:
        assert layer.sum(-1) == pytest.approx(1, abs=2e-3) and not np.triu(layer, 1).any()


def test_a_published_model_on_a_text_file(run, tmp_path, monkeypatch, capsys):
    """A folder as transformers writes it, stories of a file, and no tagger: a line says so."""
    monkeypatch.setattr(sys, "argv", ["checkpoint"])
    export.main([str(run), f"--out={tmp_path / 'hf'}"])
    monkeypatch.chdir(tmp_path)
    stories = [f"Tom had {n} cats. He fed {n} cats." for n in range(9)]
    Path("mine.txt").write_text("<|endoftext|>".join(stories))
    wordnet._tagger.cache_clear()
    monkeypatch.setattr(nltk.data, "path", [])
    few = ("--head_stories=4", "--top_neurons=1", "--random_neurons=0", "--text=Tom had cats.")
    call("--init_from=hf", "--source=mine.txt", *few)
    wordnet._tagger.cache_clear()
    assert "parts of speech are left out: NLTK's" in capsys.readouterr().out
    results = json.loads(Path("out/published/hf/eval/interpret.json").read_text())
    assert results["stories"] == 9 and results["source"] == "mine.txt"
    assert results["text"]["pos"] is None and "top_pos" not in results["heads"][0]
    assert results["heads"][0]["ablation_loss"].keys() == {"all"}


@pytest.mark.parametrize("words, why", [
    (["--neurons=2:0"], "there is no neuron 2:0: the model has layers 0 to 1 of neurons 0 to 127"),
    (["--neurons=0:128"], "there is no neuron 0:128"),
    (["--neurons=7"], "layer:neuron, with commas, not '7'"),
    (["--text=FILE:nowhere.txt"], "'nowhere.txt' cannot be read"),
    (["--text=   "], "the text is empty"),
    (["--head_stories=3"], "head_stories must be at least 4"),
    (["--random_neurons=-1"], "must be 0 or more"),
    (["--stories=3"], "has fewer than four stories"),
])  # fmt: skip
def test_wrong_settings(run, words, why, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True, ignore=shutil.ignore_patterns("eval"))
    with pytest.raises(UserError, match=re.escape(why)) as error:
        call(copy, *words)
    assert "\n" not in str(error.value) and not (copy / "eval").exists()


def test_a_published_model_has_no_stories_of_its_own(run, tmp_path):
    export.main([str(run), f"--out={tmp_path / 'hf'}"])
    with pytest.raises(UserError, match="name some with --source"):
        call(f"--init_from={tmp_path / 'hf'}")
