"""The paper's whole study on a GPU: its 26 sizes, the student report's 7, heads, Instruct, Syn,
Reward, GPT-2.

    python -m eval.study configs/study_paper.py --judge=gpt-4o      # its key: $JUDGE_API_KEY
    python -m eval.study configs/study_paper.py --models=64-2-16,128-2-16    # a part of it

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

# The recipe of ts_28m.py and, for widths 512 and 768, its learning rate.
block_size = 512
batch_size = 32
row_tokens = 1024
gradient_accumulation_steps = 2
learning_rate = 1e-3
warmup_iters = 400
weight_decay = 0.1
eval_interval = 1000
