"""The paper's TinyStories-Instruct, on one GPU: the 28M shape on the real records, loss on all
tokens.

    python prepare.py configs/ts_instruct.py && python train.py configs/ts_instruct.py
    python sample.py --words "come, road, sad" --features dialogue
"""

source = "tinystories-instruct"
tokenizer = "gpt2"

n_layer = 8
n_head = 16
n_embd = 512
block_size = 512

batch_size = 32  # rows of 1,024 tokens: 32,768 tokens a pass, about 130 records
row_tokens = 1024
gradient_accumulation_steps = 2  # 65,536 tokens a step

learning_rate = 1e-3
warmup_iters = 400
weight_decay = 0.1
eval_interval = 1000
