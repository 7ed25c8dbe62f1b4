"""Penalties against repetition and stop strings: the results of transformers on the same logits."""

import pytest
import torch
from tiny import LAYOUTS, random_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    StopStringCriteria,
)

from nanostories.dataset.tokenizer import build
from nanostories.inference.decoder import Decoder
from nanostories.inference.generate import StopStrings, beam_search, generate, request_seeds
from nanostories.inference.sampling import penalize
from nanostories.training.export import export
from nanostories.training.huggingface import LoadedModel

EOT = 256
PROMPTS = [[EOT, *text.encode()] for text in ("abab", "Once upon", "zz", "The end. The e")]
PENALTIES = [
    {"repetition_penalty": 1.3}, {"repetition_penalty": 0.5}, {"no_repeat_ngram": 1},
    {"no_repeat_ngram": 2}, {"no_repeat_ngram": 3, "repetition_penalty": 1.1},
]  # fmt: skip


@pytest.fixture(scope="module", params=["gpt2", "neo"])
def pair(request, tmp_path_factory):
    """(our model, transformers' of the same weights, its tokenizer)."""
    model, tokenizer = random_model(**LAYOUTS[request.param]), build("bytes")
    out = tmp_path_factory.mktemp("hub") / "model"
    loaded = LoadedModel(model, tokenizer, 48, [EOT], "", {"model": "random", "folder": ""})
    export(loaded, out)
    return model, AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 99])
@pytest.mark.parametrize("penalty", [1.0, 1.7, 0.4])
def test_scores_are_those_of_the_processors(n, penalty):
    """Rows of different lengths, from 1 on, with many repetitions; what follows a row is noise."""
    torch.manual_seed(n)
    lengths = torch.tensor([1, 2, 3, 7, 12, 40, 40])
    history, scores = torch.randint(2, (7, 40)), torch.randn(7, 9) * 3
    scores[2, 1] = float("-inf")
    expected = scores.clone()
    for row, length in enumerate(lengths.tolist()):
        ids, one = history[row : row + 1, :length], scores[row : row + 1]
        one = RepetitionPenaltyLogitsProcessor(penalty)(ids, one)
        expected[row] = NoRepeatNGramLogitsProcessor(n)(ids, one)
    got = penalize(scores, history, lengths, penalty, n)
    assert torch.equal(got, expected) and (n == 99 or (got < -1e9).sum() > 2)


def test_a_row_without_any_token_left_is_not_held_to_it():
    scores, history = torch.randn(2, 3), torch.tensor([[0, 1, 2], [0, 1, 1]])
    got = penalize(scores, history, torch.tensor([3, 3]), no_repeat_ngram=1)
    assert torch.equal(got[0], scores[0]) and got[1, :2].isinf().all() and got[1, 2] == scores[1, 2]


def options_of(penalties):
    """The same for transformers."""
    names = {"repetition_penalty": "repetition_penalty", "no_repeat_ngram": "no_repeat_ngram_size"}
    return {names[name]: value for name, value in penalties.items()}


def expected_ids(hub_model, prompt, **options):
    ids = torch.tensor([prompt])
    options |= {"attention_mask": torch.ones_like(ids), "pad_token_id": EOT, "max_length": 48}
    ids = hub_model.generate(ids, do_sample=False, **options)[0, len(prompt) :].tolist()
    return [i for i in ids if i != EOT]


@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
def test_greedy_stories_are_those_of_transformers(pair, penalties):
    model, hub_model, _ = pair
    ours = generate(
        Decoder(model), PROMPTS, EOT, [0] * 4, temperature=0, batch_size=3, penalties=penalties
    )
    for prompt, story in zip(PROMPTS, ours, strict=True):
        assert story.ids == expected_ids(hub_model, prompt, **options_of(penalties))


@pytest.mark.parametrize("penalties", [{}, PENALTIES[0], *PENALTIES[2:]], ids=str)
def test_beams_are_those_of_transformers(pair, penalties):
    model, hub_model, _ = pair
    options = options_of(penalties) | {"num_beams": 3, "early_stopping": True}
    for prompt in PROMPTS:
        ours = beam_search(Decoder(model), prompt, EOT, 3, penalties=penalties)
        assert ours.ids == expected_ids(hub_model, prompt, **options)


@pytest.mark.parametrize("strings", [["b"], ["aba", "bab", "ab"], [" the", "é", "end."], ["xyz"]])
def test_stop_strings_are_those_of_transformers(strings, tmp_path):
    """After every token of many texts: at the end, across tokens, inside the last one."""
    texts = ["abba ab the bab", "the end. The end", "caf\u00e9s the theme", "Th\u00e9 bb xyzz"]
    tokenizer = build("bpe", 290, texts * 20)
    tokenizer.save(tmp_path / "tokenizer.json")
    stop = StopStrings(strings, tokenizer)
    hub_tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    criteria, answers = StopStringCriteria(hub_tokenizer, strings), []
    torch.manual_seed(0)
    random = torch.randint(256, tokenizer.eot, (20, 30)).tolist()  # merged tokens alone
    for ids in [[tokenizer.eot, *tokenizer.encode(text)] for text in texts] + random:
        for end in range(1, len(ids) + 1):
            answers.append(stop(ids[:end]))
            assert answers[-1] == criteria(torch.tensor([ids[:end]]), None).item(), ids[:end]
    assert any(answers) and not all(answers)


@pytest.mark.parametrize("letters", [range(97, 110), range(110, 123)])
def test_a_story_ends_with_its_stop_string(pair, letters):
    """The string stays in the story, as do the other characters of its last token."""
    model, hub_model, tokenizer = pair
    strings = [*map(chr, letters), "x1", "é"]
    decoder, stop = Decoder(model), StopStrings(strings, build("bytes"))
    ours = generate(decoder, PROMPTS, EOT, [0] * 4, temperature=0, stop=stop, batch_size=3)
    assert ours != generate(decoder, PROMPTS, EOT, [0] * 4, temperature=0)
    for prompt, story in zip(PROMPTS, ours, strict=True):
        options = {"stop_strings": strings, "tokenizer": tokenizer}
        assert story.ids == expected_ids(hub_model, prompt, **options)
        searched = beam_search(decoder, prompt, EOT, 3, stop=stop)
        assert not any(stop(prompt + searched.ids[:n]) for n in range(1, len(searched.ids)))
        assert searched.ended or stop(prompt + searched.ids) or len(prompt + searched.ids) == 48


def test_stories_do_not_depend_on_the_batch(pair):
    decoder, prompts, seeds = Decoder(pair[0]), PROMPTS * 4, request_seeds(7, 16)
    options = {"temperature": 1.5, "penalties": {"repetition_penalty": 1.4, "no_repeat_ngram": 2}}
    alone = [
        generate(decoder, [prompt], EOT, [seed], **options)[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert generate(decoder, prompts, EOT, seeds, batch_size=5, **options) == alone
    plain = generate(decoder, prompts, EOT, seeds, temperature=1.5)
    assert plain != alone
    for off in ({"repetition_penalty": 1.0, "no_repeat_ngram": 0}, {"no_repeat_ngram": 0}):
        assert generate(decoder, prompts, EOT, seeds, temperature=1.5, penalties=off) == plain


def test_round_sizes_generate_the_same(pair, run_in_round_sizes):
    """What a GPU computes, free slots and columns included, without its graphs."""
    decoder, prompts, seeds = Decoder(pair[0]), PROMPTS * 5, request_seeds(7, 20)
    penalties = {"repetition_penalty": 1.4, "no_repeat_ngram": 2}
    options = {"temperature": 1.5, "batch_size": 6, "penalties": penalties}
    expected = generate(decoder, prompts, 10, seeds, **options)

    run_in_round_sizes()
    assert generate(decoder, prompts, 10, seeds, **options) == expected
