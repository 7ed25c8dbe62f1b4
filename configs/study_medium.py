"""The study of more sizes and narrower intervals: four hours on two CPU cores without bfloat16.

    python -m eval.study configs/study_medium.py

Widths 32 to 256 with 1 to 8 layers, twice the tokens of study_small.py. docs/study.md says how
the sizes, seeds and questions were chosen, from what the small study could not tell.
"""

source = "tinystories"
tokenizer = "bpe"
vocab_size = 2048

models = (
    "32-1-2, 32-2-2, 32-4-2, 32-8-2, 64-1-4, 64-2-4, 64-4-4, 64-8-4, "
    "128-1-4, 128-2-4, 128-4-4, 128-8-4, 256-1-4, 256-2-4"
)
seeds = 2
heads = "64-1-2, 64-1-8, 64-2-2, 64-2-8"
syn = "64-2-4"
instruct = "64-1-4, 64-2-4, 64-4-4, 128-1-4, 128-2-4"
ood = "128-2-4"
hold_out = "words+features"  # records made from stories have no summary
architectures = "64-2-4"
corpora = "64-2-4"
table1 = "64-2-4"
reward = "128-2-4"
diversity = "64-2-4, 256-2-4"
interpret = "64-4-4"

# Muon's learning rates follow 1 / sqrt(width), see docs/fast.md. V1 and V2 are compared on 8,500
# stories; 14,500 make one epoch of nearly as many tokens as the runs have, half of them two.
options = """
eval.skills: --first_step=32
eval.loss: --stories=3000
eval.fluency: --stories=100
eval.fluency steps: --stories=50
eval.instruct: --prompts=1000 --max_new_tokens=300
eval.diversity: --num_prompts=50 --temperatures=1 --max_new_tokens=300
eval.interpret: --stories=500 --head_stories=16
eval.vocabulary: --num_samples=2
reward.py: configs/reward_cat.py --max_iters=60 --max_similarity=0.55
eval.reward: --stories=100
train.py 32: --muon_lr_scale=1.22
train.py 64: --muon_lr_scale=0.87
train.py 128: --muon_lr_scale=0.61
train.py 256: --muon_lr_scale=0.43
prepare.py v1: --max_stories=8500
train.py v1: --max_iters=960
prepare.py v2: --max_stories=8500
train.py v2: --max_iters=960
prepare.py storybook: --stories=46000
prepare.py once: --max_stories=14500
train.py once: --max_iters=0
prepare.py twice: --max_stories=7250
"""

# Positions are learned, as in the paper, and the schedule falls from the start.
block_size = 512
batch_size = 2
row_tokens = 1024
max_iters = 1540
optimizer = "muon"
learning_rate = 1.5e-2
muon_momentum = 0.9
beta2 = 0.99
schedule = "linear"
warmup_iters = 40
eval_interval = 154
eval_stories = 512
