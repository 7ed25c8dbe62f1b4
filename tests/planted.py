"""A GPT whose weights are set by hand: heads and neurons that do one known thing."""

import torch

from model import GPT, GPTConfig

VOCAB, LENGTH = 9, 24  # tokens 0 to 8, 0 is <|endoftext|>; positions
EOT, WORD, NEXT = 0, 2, 3  # the neuron fires at WORD and predicts NEXT
DISTANCE, PREVIOUS, CONTENT, DUPLICATE = range(4)  # its heads
KEY_TOKEN = 5  # the token that all queries of the content head attend to
NEURON = 7
AGAIN = VOCAB + LENGTH


def model():
    """One layer, four heads. Embeddings are one-hot: token t in channel t and, for the MLP, in
    channel AGAIN + t, position p in channel VOCAB + p; a layer norm only scales that and moves it.
    Head PREVIOUS outputs the token before, the other heads nothing; of the neurons, NEURON fires at
    WORD and makes NEXT likely, and each of the others fires at some position.
    """
    config = GPTConfig(VOCAB, LENGTH, n_layer=1, n_head=4, n_embd=4 * 36)
    net, size = GPT(config).eval(), 36
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
        for norm in (net.h[0].ln_1, net.h[0].ln_2, net.ln_f):
            norm.weight.fill_(1)
        net.wte.weight[:VOCAB, :VOCAB] = torch.eye(VOCAB)
        net.wte.weight[:VOCAB, AGAIN : AGAIN + VOCAB] = torch.eye(VOCAB)
        net.wpe.weight[:, VOCAB : VOCAB + LENGTH] = torch.eye(LENGTH)
        places = slice(VOCAB, VOCAB + LENGTH)
        query, key, value = net.h[0].attn.c_attn.weight.view(3, 4, size, -1)
        shifts = {DISTANCE: 3, PREVIOUS: 1}
        for head, shift in shifts.items():  # the query of position i is the key of i - shift
            query[head, : LENGTH - shift, VOCAB + shift : VOCAB + LENGTH] = torch.eye(
                LENGTH - shift
            )
            key[head, :LENGTH, places] = torch.eye(LENGTH)
        net.h[0].attn.c_attn.bias.view(3, 4, size)[0, CONTENT, 0] = 12.0
        key[CONTENT, 0, KEY_TOKEN] = 1.0
        query[DUPLICATE, :VOCAB, :VOCAB] = key[DUPLICATE, :VOCAB, :VOCAB] = torch.eye(VOCAB)
        # Not itself: against its own position.
        query[DUPLICATE, VOCAB : VOCAB + LENGTH, places] = -torch.eye(LENGTH)
        key[DUPLICATE, VOCAB : VOCAB + LENGTH, places] = torch.eye(LENGTH)
        value[PREVIOUS, :VOCAB, :VOCAB] = torch.eye(VOCAB)
        output = net.h[0].attn.c_proj.weight.view(-1, 4, size)
        output[:VOCAB, PREVIOUS, :VOCAB] = 10 * torch.eye(VOCAB)
        fires = net.h[0].mlp.c_fc.weight
        for neuron in range(len(fires)):
            fires[neuron, VOCAB + neuron % LENGTH] = 3.0
        fires[NEURON] = 0
        fires[NEURON, AGAIN + WORD] = 3.0
        net.h[0].mlp.c_proj.weight[NEXT, NEURON] = 30.0
    return net
