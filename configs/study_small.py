"""The study on two CPU cores, in an hour: eight models, 1.5 M tokens each, two seeds.

    python -m eval.study configs/study_small.py

Width 32 to 256 and 1 to 4 layers, so that each claim has models that differ in one thing: depth at
widths 64 and 128, width at two layers. A vocabulary of 2,048 halves the output layer of such small
models, at 8 % more tokens per story. study_medium.py has more sizes and tokens.
"""

source = "tinystories"
tokenizer = "bpe"
vocab_size = 2048

models = "32-2-2, 64-1-4, 64-2-4, 64-4-4, 128-1-4, 128-2-4, 128-4-4, 256-2-4"
seeds = 2
heads = "64-1-2, 64-1-8, 64-2-2, 64-2-8"
syn = "64-2-4"
instruct = "64-1-4, 64-2-4, 128-1-4, 128-2-4"
ood = "128-2-4"
hold_out = "words+features"  # records that are made from stories have no summary
architectures = "64-2-4"
corpora = "64-2-4"
table1 = "64-2-4"
reward = "128-2-4"
diversity = "64-2-4, 256-2-4"
interpret = "64-4-4"

# Muon's learning rates follow 1 / sqrt(width), see docs/fast.md. 7,250 stories make one epoch of as
# many tokens as all the runs have, half of them two.
options = """
eval.skills: --first_step=32
eval.loss: --stories=3000
eval.fluency: --stories=100
eval.fluency steps: --stories=50
eval.instruct: --prompts=500 --max_new_tokens=200
eval.diversity: --num_prompts=50 --temperatures=1 --max_new_tokens=300
eval.interpret: --stories=500 --head_stories=16
eval.vocabulary: --num_samples=2
reward.py: configs/reward_cat.py --max_iters=60 --max_similarity=0.55
eval.reward: --stories=100
train.py 32: --muon_lr_scale=1.22
train.py 64: --muon_lr_scale=0.87
train.py 128: --muon_lr_scale=0.61
train.py 256: --muon_lr_scale=0.43
prepare.py v1: --max_stories=7250
prepare.py v2: --max_stories=7250
prepare.py storybook: --stories=23000
prepare.py once: --max_stories=7250
train.py once: --max_iters=0
prepare.py twice: --max_stories=3625
"""

# Positions are learned, as in the paper, and the schedule falls from the start.
block_size = 512
batch_size = 2
row_tokens = 1024
max_iters = 770
optimizer = "muon"
learning_rate = 1.5e-2
muon_momentum = 0.9
beta2 = 0.99
schedule = "linear"
warmup_iters = 40
eval_interval = 77
eval_stories = 256
