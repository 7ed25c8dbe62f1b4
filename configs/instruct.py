"""Following instructions, on a CPU: a small model of storybook's stories, each with an instruction.

python prepare.py configs/instruct.py && python train.py configs/instruct.py
python sample.py --words "kite, river" --features dialogue
python -m eval.instruct out/instruct
"""

source = "instruct:storybook"  # 98,000 stories to learn from, each with an instruction
tokenizer = "bpe"
vocab_size = 2048
stories = 100_000  # a quarter of an hour sees each once or twice
val_fraction = 0.02

loss_on = "all"  # on the story alone, the model did not learn in 12 minutes to use the rarer words
block_size = 384
n_layer = 2
n_head = 2
n_embd = 128
positions = "rope"
gelu = "erf"

batch_size = 1
row_tokens = 2048
optimizer = "muon"
learning_rate = 1.5e-2
muon_lr_scale = 0.5
muon_momentum = 0.9
beta2 = 0.99
schedule = "linear"
warmup_iters = 30
max_minutes = 14.5
eval_interval = 500

temperature = 0.8
