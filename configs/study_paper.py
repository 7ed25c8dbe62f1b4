"""The paper's whole study on a GPU: its 26 sizes, the student report's 7, heads, Instruct, Syn,
Reward, GPT-2.

    python -m eval.study configs/study_paper.py --judge=gpt-4o      # its key: $JUDGE_API_KEY
    python -m eval.study configs/study_paper.py --minutes=25        # as far as 25 minutes go
    python -m eval.study configs/study_paper.py --stage=released    # the first part of it

Each model trains for one epoch of TinyStories, as in the student report; the paper's train for
about twenty. Every size is trained on Instruct too, for the Instruct column of the table.
"""

source = "tinystories"
instruct_source = "tinystories-instruct"
tokenizer = "gpt2"

# The paper's table: widths 64 to 512 with 2 to 12 layers, 768 and 1024 with 1 to 12. All with 16
# heads, as the models that its authors published.
_PAPER = [f"{width}-{layers}-16" for width in (64, 128, 256, 512) for layers in (2, 4, 8, 12)]
_PAPER += [f"{width}-{layers}-16" for width in (768, 1024) for layers in (1, 2, 4, 8, 12)]
_REPORT = "64-4-2, 128-8-4, 128-12-4, 256-8-4, 256-12-4, 512-8-4, 512-12-4"
models = ", ".join([*_PAPER, _REPORT])
seeds = 1
heads = "768-2-2, 768-2-4, 768-2-8, 768-1-2, 768-1-4, 768-1-8"
instruct = ", ".join([*_PAPER, _REPORT])
syn = _REPORT
reward = "512-12-4"
diversity = "512-8-16, 768-4-16"
interpret = "1024-1-16, 64-8-16"
baselines = "gpt2, gpt2-medium, gpt2-large, gpt2-xl, EleutherAI/gpt-neo-125M"
# Each width has the learning rate of ts_1m.py, ts_8m.py, ts_28m.py or ts_33m.py; 128 and 1,024, of
# which there is none, one between these and one below. The report's models have its own recipe.
options = """
eval.judge prompts: --beams=5
reward.py: configs/reward_cat.py
train.py 64: --learning_rate=3e-3
train.py 128: --learning_rate=2.5e-3
train.py 256: --learning_rate=2e-3
train.py 1024: --learning_rate=8e-4
"""
_TABLE_1 = (  # of eval/published.toml
    "--batch_size=7 --gradient_accumulation_steps=1 --learning_rate=1e-4 --schedule=constant "
    "--warmup_iters=1000 --weight_decay=0.01 --beta2=0.999"
)
options += "\n".join(f"train.py {size}: {_TABLE_1}" for size in _REPORT.split(", "))

# What a reader of the paper asks first comes first: the sizes that its authors released, width at 8
# layers, depth at width 256, heads. Each stage has at most 25 minutes of an H100 by estimate, but
# the three largest trainings, which have a stage each: `--dry_run` prints it, docs/study_gpu.md has
# a table. A stage on Instruct stories comes before the reward, which is compared with it.
stages = """
released models: 64-8-16, 128-8-16, 256-8-16
released-large models: 512-8-16, 768-4-16
released-instruct instruct: 128-8-16, 768-4-16
released-instruct-2 instruct: 64-8-16, 256-8-16, 512-8-16
released-details diversity: 512-8-16, 768-4-16
released-details interpret: 64-8-16
width models: 768-8-16
width-1024 models: 1024-8-16
depth models: 256-2-16, 256-4-16, 256-12-16
heads heads: 768-2-2, 768-2-8
heads-1-layer heads: 768-1-2, 768-1-8
heads-4 heads: 768-2-4, 768-1-4
heads-16 models: 768-2-16, 768-1-16
grid-64 models: 64-2-16, 64-4-16, 64-12-16
grid-128 models: 128-2-16, 128-4-16, 128-12-16
grid-512 models: 512-2-16, 512-4-16
grid-512-12 models: 512-12-16
grid-768-12 models: 768-12-16
grid-1024 models: 1024-1-16, 1024-2-16
grid-1024-4 models: 1024-4-16
grid-1024-4 interpret: 1024-1-16
grid-1024-12 models: 1024-12-16
instruct-64 instruct: 64-2-16, 64-4-16, 64-12-16
instruct-128 instruct: 128-2-16, 128-4-16, 128-12-16
instruct-256 instruct: 256-2-16, 256-4-16, 256-12-16
instruct-512 instruct: 512-2-16, 512-4-16
instruct-512-12 instruct: 512-12-16
instruct-768 instruct: 768-1-16, 768-2-16
instruct-768-8 instruct: 768-8-16
instruct-768-12 instruct: 768-12-16
instruct-1024-1 instruct: 1024-1-16
instruct-1024-2 instruct: 1024-2-16
instruct-1024-4 instruct: 1024-4-16
instruct-1024-8 instruct: 1024-8-16
instruct-1024-12 instruct: 1024-12-16
report models: 64-4-2, 128-8-4
report-128-12 models: 128-12-4
report-256 models: 256-8-4, 256-12-4
report-512-8 models: 512-8-4
report-512-12 models: 512-12-4
report-instruct instruct: 64-4-2, 128-8-4
report-instruct-2 instruct: 128-12-4, 256-8-4
report-instruct-256-12 instruct: 256-12-4
report-instruct-512-8 instruct: 512-8-4
report-instruct-512-12 instruct: 512-12-4
syn syn: 64-4-2, 128-8-4
syn-2 syn: 128-12-4, 256-8-4
syn-256-12 syn: 256-12-4
syn-512-8 syn: 512-8-4
syn-512-12 syn: 512-12-4
reward reward: 512-12-4
gpt2 baselines: gpt2, gpt2-medium, gpt2-large, gpt2-xl, EleutherAI/gpt-neo-125M
"""

# The recipe of ts_28m.py and, for widths 512 and 768, its learning rate.
block_size = 512
batch_size = 32
row_tokens = 1024
gradient_accumulation_steps = 2
learning_rate = 1e-3
warmup_iters = 400
weight_decay = 0.1
eval_interval = 1000
