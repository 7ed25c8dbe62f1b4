"""The student report's recipe: AdamW, 32 stories of up to 512 tokens a batch, lr 1e-4, one epoch.

The model is 512-12-4 (width-layers-heads), the report's largest. A batch is 7 rows of 1,024 tokens,
about 32 stories of 220 tokens: our rows are packed, the report's were padded.
"""

source = "tinystories"
tokenizer = "gpt2"

n_embd = 512
n_layer = 12
n_head = 4
block_size = 512

batch_size = 7
row_tokens = 1024

learning_rate = 1e-4
schedule = "constant"
warmup_iters = 1000
weight_decay = 0.01
beta2 = 0.999  # torch's default; the report names none
