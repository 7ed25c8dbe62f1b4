"""The paper's model for looking at neurons: 64 wide, 8 layers, 1.07 M parameters.

It has the 10,000 most frequent of GPT-2's tokens, as in the paper, so its neurons compare with
GPT-2's. Sized for an hour or less on a CPU. On a GPU, one epoch of all of TinyStories:
python train.py configs/interpret_neurons.py --max_minutes=0 --batch_size=32
"""

source = "tinystories"
tokenizer = "gpt2-10k"

block_size = 512
n_layer = 8
n_head = 16
n_embd = 64

batch_size = 2  # 2,048 tokens a step
row_tokens = 1024
optimizer = "muon"
learning_rate = 1.5e-2
schedule = "linear"
warmup_iters = 40
max_minutes = 45.0
eval_interval = 1000
