"""python -m eval.instruct: tables of compliance from runs, and what it refuses."""

import json
import sys

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import settings_for

import eval.instruct as script
import prepare
from configs import UserError
from eval import harness
from nanostories.dataset import instruct, storybook
from nanostories.inference.generate import Completion


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that have learnt next to nothing, of a control and of what is held out."""
    top = tmp_path_factory.mktemp("instruct")
    prepare.prepare(
        prepare.Settings(
            source="instruct:storybook", tokenizer="bpe", vocab_size=512, stories=300,
            val_fraction=0.2, out=str(top / "data"), workers=1, hold_out="words+summary",
        )
    )  # fmt: skip
    for name, data in (("control", "data"), ("ood", "data-without-words+summary")):
        settings = settings_for(str(top / data), top / name, max_iters=3, block_size=400,
                                row_tokens=800)  # fmt: skip
        tiny.train(settings)
    return top


def main(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eval.instruct", *map(str, arguments)])
    script.main()
    return capsys.readouterr().out


def test_two_models_beside_each_other(runs, capsys, monkeypatch):
    options = ("--prompts=20", "--max_new_tokens=30", "--num_samples=2", "--temperature=1")
    text = main(capsys, monkeypatch, runs / "ood", f"--beside={runs / 'control'}", *options)
    assert text.startswith(f"20 instructions of {runs}/data-without-words+summary, 2 story(s)")
    beside = read(runs / "ood", "instruct-beside-control")
    assert not (runs / "control" / "eval").exists()
    # Each alone says the same, of the same instructions.
    for name, result in (("ood", beside), ("control", beside["beside"])):
        assert "less" not in main(capsys, monkeypatch, runs / name, *options)
        alone = read(runs / name, "instruct")
        assert alone["checks"] == result["checks"] and alone["checkpoint"] == result["checkpoint"]
        lines = (runs / name / "eval" / "instruct.jsonl").read_text().splitlines()
        lines = [json.loads(line) for line in lines]
        assert len(lines) == 40 and str(runs / name) in text
        assert all(line["prompt"].endswith("Story: \n\n") for line in lines)
        # Of the pair, both kinds are among the instructions, whatever the model was trained on.
        both = [
            instruct.parse_record(line["prompt"]).has_fields(["words", "summary"]) for line in lines
        ]
        checks = alone["checks"]
        assert checks["joint, words+summary"]["model"]["n"] == sum(both) / 2 > 0
        assert checks["joint, others"]["model"]["n"] == 20 - sum(both) / 2 > 0
        required = sum("words" in line["checks"] for line in lines) / 2
        assert checks["words"]["model"]["n"] == required
        mean = sum(line["checks"].get("words", 0) for line in lines) / (2 * required)
        assert checks["words"]["model"]["mean"] == pytest.approx(mean)
        assert checks["joint"]["true"] == {"mean": 1, "low": 1, "high": 1, "n": 20}
        assert checks["joint"]["model"]["mean"] < 0.5 > checks["joint"]["shuffled"]["mean"]
        assert checks["ended"]["model"]["n"] == 20 and alone["checkpoint"]["step"] == 3
        assert alone["seed"] == 1337 and "val_000.bin" in alone["data"]
    gaps = beside["beside"]["difference"]
    parts = ("", ", words+summary", ", others")
    assert set(gaps) == {"own", *(f"{name}{part}" for name in ("met", "joint") for part in parts)}
    means = [beside["checks"]["joint"]["model"]["mean"]]
    means.append(beside["beside"]["checks"]["joint"]["model"]["mean"])
    assert gaps["joint"]["mean"] == pytest.approx(means[0] - means[1])
    assert f"joint, others: {runs / 'ood'} less {runs / 'control'}" in text


def read(run, name):
    return json.loads((run / "eval" / f"{name}.json").read_text())


def test_the_floor_is_of_other_instructions():
    """The true stories pass all checks, and next to none of other instructions."""
    facts = [instruct.StoryFacts(s.text, tuple(s.words)) for s in storybook.stories(40, seed=5)]
    records = [instruct.make_record(one, seed) for seed, one in enumerate(facts)]
    records = [record for record in records if record and record.has_fields(["words"])]
    stories = [[(record.story, True)] for record in records]
    measured = script.measure(records, stories, script.Settings())
    passed = {side: sum(counts["joint"][0]) for side, counts in measured.items()}
    assert passed["model"] == passed["true"] == len(records) > 15
    assert passed["shuffled"] < len(records) / 5


def records_of(count):
    facts = [instruct.StoryFacts(s.text, tuple(s.words)) for s in storybook.stories(count, seed=5)]
    made = (instruct.make_record(one, seed) for seed, one in enumerate(facts))
    return [record for record in made if record]


def test_a_story_is_preferred_after_its_own_instruction_where_it_is_likelier(runs):
    """By the model's loss on the story's tokens alone, one story at a time."""
    [loaded] = harness.open_models(script.Settings(out_dir=str(runs / "control")), {})
    loaded.model.double()  # so that rounding decides nothing
    records, settings = records_of(12), script.Settings()
    right, scored = script.prefers_own(loaded, records, settings)
    shift, expected = script.shift_of(records, settings), []
    for i, record in enumerate(records):
        story, losses = loaded.tokenizer.encode(record.story), []
        for other in (record, records[(i + shift) % len(records)]):
            prompt = loaded.encode_prompt(other.prompt())
            tokens = torch.tensor([prompt + story])
            logits = loaded.model(tokens[:, :-1])[0, len(prompt) - 1 :]
            losses.append(F.cross_entropy(logits, tokens[0, len(prompt) :], reduction="sum").item())
        expected.append(losses[0] < losses[1])
    assert right.tolist() == expected and scored.all() and 0 < sum(expected) < len(records)


def test_a_story_that_fits_only_one_of_the_instructions_is_not_asked(runs):
    [loaded] = harness.open_models(script.Settings(out_dir=str(runs / "control")), {})
    records = records_of(6)
    long = "He was so happy. " * (loaded.model.config.block_size // 4)
    records[2] = instruct.Record((("words", "dog"),), long.strip())
    right, scored = script.prefers_own(loaded, records, script.Settings())
    assert scored.tolist() == [1, 1, 0, 1, 1, 1][: len(records)] and right[2] == 0
    by_side = script.by_instruction({"model": {"own": np.array([right, scored])}}, "own")
    assert by_side["model"][2] is None and None not in by_side["model"][3:]


def test_met_is_the_mean_of_the_requirements():
    record = instruct.make_instruction(words="dog, cat", features="Dialogue")
    counts = script.count_checks([record], [[("The dog ran.", True)]], "words+features")
    assert counts["met"].tolist() == [[0.25], [1]]  # half of the words, nobody speaks
    assert counts["met, words+features"].tolist() == [[0.25], [1]]
    assert counts["met, others"].tolist() == [[0], [0]]


@pytest.mark.parametrize("fields", [{"features": "Twist"}, {"words": "3"}, {"features": ""}])
def test_an_instruction_that_no_program_can_check_does_not_count(fields):
    records = [instruct.make_instruction(**fields), instruct.make_instruction(words="dog")]
    stories = [[("The dog ran.", True)]] * 2
    counts = script.count_checks(records, stories, "words+features")
    assert counts["met"].tolist() == counts["joint"].tolist() == [[0, 1], [0, 1]]
    assert counts["ended"].tolist() == [[1, 1], [1, 1]]
    by_side = script.by_instruction({"model": counts}, "joint")
    assert by_side["model"] == [None, 1.0]


def test_prompts_without_stories(runs, tmp_path, capsys, monkeypatch):
    """Real prompts come without their story: then there is no ceiling."""
    prompts = [
        f"Words: dog, run\nFeatures: Dialogue\nSummary: Number {i}.\nStory: " for i in range(9)
    ]
    path = tmp_path / "instruct_prompts.json"
    path.write_text(json.dumps(prompts))
    text = main(capsys, monkeypatch, runs / "ood", f"--source={path}", "--max_new_tokens=5")
    assert "9 instructions" in text and "true story" not in text and "shuffled stories" in text
    assert set(read(runs / "ood", "instruct-instruct_prompts")["checks"]["joint"]) == {
        "model", "shuffled",
    }  # fmt: skip


def test_a_summary_after_the_story_is_no_part_of_it():
    class Loaded:
        class tokenizer:
            @staticmethod
            def decode(ids):
                return " He ran.\nSummary: He ran."

    assert harness.story_of(Loaded, Completion([], ended=False)) == ("He ran.", True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts=1"], "prompts must be at least 2"),
        (["--weights=foo"], "weights must be auto, float32, bfloat16 or int8, not 'foo'"),
        (["--pair=words"], "pair takes two of words, sentence, features, summary"),
        (["--temperature=nan"], "temperature must be 0 or more"),
        (["--top_p=0"], "top_p must be above 0"),
        (["--pair=words+plot"], "pair takes two of words, sentence, features, summary"),
        (["--source=storybook"], "'storybook' has no Instruct record with an instruction"),
        (["--dataset=data/nowhere"], "no data in 'data/nowhere'"),
        (["--beside=out/nowhere"], "out/nowhere"),
    ],
)
def test_errors(runs, capsys, monkeypatch, arguments, message):
    before = sorted(runs.rglob("*"))
    with pytest.raises(UserError) as error:
        main(capsys, monkeypatch, runs / "ood", *arguments)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(runs.rglob("*")) == before
