"""The first run: a small model on storybook.py's made-up stories, minutes on a laptop's two cores.

Made and trained by `make story`, or: python prepare.py configs/storybook.py, then train.py.
"""

source = "storybook"
tokenizer = "bpe"
vocab_size = 2048
stories = 32000  # about as many as three minutes take
val_fraction = 0.02

block_size = 256
n_layer = 2  # the fewest that can copy a name from earlier in the story
n_head = 2  # with four, narrower ones, 172 of 200 stories kept their facts; with two, 186 to 198
n_embd = 128
positions = "rope"
gelu = "erf"

batch_size = 1
row_tokens = 2048  # long rows pad least, and cost a CPU nothing
optimizer = "muon"
learning_rate = 1.5e-2
muon_lr_scale = 0.5
muon_momentum = 0.9
beta2 = 0.99
schedule = "linear"
warmup_iters = 30
max_minutes = 3.0  # the schedule ends then, however fast the machine
eval_interval = 500

temperature = 0.8
