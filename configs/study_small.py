"""The study on two CPU cores, in one to two hours: eight models, 2 M tokens each, three seeds.

    python -m eval.study configs/study_small.py

Width 32 to 256 and 1 to 4 layers, so that each claim has models that differ in one thing: depth at
widths 64 and 128, width at two layers. A vocabulary of 2,048 halves the output layer of such small
models, at 8 % more tokens per story. Their training is short; where it cannot decide a claim, the
report says "not decided".
"""

source = "tinystories"
tokenizer = "bpe"
vocab_size = 2048

models = "32-2-2, 64-1-4, 64-2-4, 64-4-4, 128-1-4, 128-2-4, 128-4-4, 256-2-4"
seeds = 3
heads = "64-1-2, 64-1-8, 64-2-2, 64-2-8"
syn = "64-2-4, 128-2-4"
instruct = "64-1-4, 64-2-4, 128-1-4, 128-2-4"
ood = "128-2-4"
table1 = "64-2-4"
reward = "128-2-4"
diversity = "64-2-4, 256-2-4"
interpret = "64-4-4"
options = """
eval.instruct: --prompts=150 --max_new_tokens=300
eval.diversity: --num_prompts=50 --temperatures=1 --max_new_tokens=300
eval.interpret: --stories=500 --head_stories=16
eval.vocabulary: --num_samples=2
reward.py: configs/reward_cat.py --max_iters=60 --max_similarity=0.55
eval.reward: --stories=100
"""

# Positions are learned, as in the paper, and the schedule falls from the start.
block_size = 512
batch_size = 2
row_tokens = 1024
max_iters = 1010
optimizer = "muon"
learning_rate = 1.5e-2
schedule = "linear"
warmup_iters = 40
eval_interval = 125
eval_stories = 256
