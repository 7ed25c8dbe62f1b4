// The model itself, in the page: what model.py and nanostories/inference compute, one token at a
// time. Matrices have 8 bits a weight and a scale for each row, all else is float32.

const { config, max_length, bos_ids, tensors, tokens, pattern } = defaults;
const weights = {}; // {name: Int8Array of a matrix, or Float32Array}, filled by `load`
const cache = []; // of each layer the keys and values, (max_length, C) each

// ---- loading ------------------------------------------------------------------------------------

// Read the weights, base64 in script elements. A page that comes over a network arrives in pieces:
// show(text) says how far it is. Throws an Error to show.
async function load(show) {
  const parts = () => [...document.querySelectorAll("script.weights")];
  while (document.readyState === "loading") {
    show(`loading the model, ${Math.floor((100 * parts().length) / defaults.parts)} % …`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  // The last part is empty: where it is, the others are complete.
  if (parts().length < defaults.parts) throw new Error("The file is incomplete: load it again.");
  const bytes = new Uint8Array(defaults.bytes);
  let filled = 0;
  for (const [i, part] of parts().entries()) {
    const data = toBytes(atob(part.textContent));
    bytes.set(data, filled);
    filled += data.length;
    part.remove(); // its text is not needed again
    show(`reading the model, ${Math.floor((100 * i) / defaults.parts)} % …`);
    await pause();
  }
  for (const [name, { offset, shape }] of Object.entries(tensors)) {
    const ArrayType = shape.length === 2 ? Int8Array : Float32Array;
    weights[name] = new ArrayType(bytes.buffer, offset, shape.reduce((a, b) => a * b));
  }
  for (let layer = 0; layer < config.n_layer; layer++) {
    const empty = () => new Float32Array(max_length * config.n_embd);
    cache.push({ keys: empty(), values: empty() });
  }
}

// A string with a character for each byte, as bytes.
const toBytes = (text) => Uint8Array.from(text, (character) => character.charCodeAt(0));

// Let the page draw itself and react, if it has not for a while: a step blocks it otherwise.
const channel = new MessageChannel(); // setTimeout would wait for 4 ms
let lastPause = 0;
async function pause() {
  if (performance.now() - lastPause < 12) return;
  await new Promise((resolve) => {
    channel.port1.onmessage = resolve;
    channel.port2.postMessage(null);
  });
  lastPause = performance.now();
}

// ---- the transformer: C channels, H heads of D ---------------------------------------------------
//
// The functions are those of model.py; `hidden` and `logits` are decoder.py's, of one token.

// Row i of a matrix (rows, C), as float32.
function row(name, i) {
  const C = config.n_embd;
  const scale = weights[`${name}.scale`][i];
  return Float32Array.from(weights[name].subarray(i * C, (i + 1) * C), (w) => w * scale);
}

// x (in) -> W x + b (out)
function linear(name, x) {
  const [W, scale, bias] = ["weight", "weight.scale", "bias"].map((s) => weights[`${name}.${s}`]);
  const out = new Float32Array(scale.length);
  for (let o = 0, w = 0; o < out.length; o++) {
    let sum = 0;
    for (let i = 0; i < x.length; i++, w++) sum += W[w] * x[i];
    out[o] = sum * scale[o] + (bias ? bias[o] : 0);
  }
  return out;
}

function layerNorm(name, x) {
  const [gain, bias] = [weights[`${name}.weight`], weights[`${name}.bias`]];
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
  const factor = 1 / Math.sqrt(variance + 1e-5);
  return x.map((value, i) => (value - mean) * factor * gain[i] + bias[i]);
}

// The GELU: x times the probability that a normal number is below x; or GPT-2's approximation.
function gelu(x) {
  if (config.gelu === "tanh") {
    return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
  }
  if (Math.abs(x) > 6) return Math.max(x, 0);
  // The probability is 1/2 + density(x) (x + x^3 / 3 + x^5 / (3 5) + ...).
  let term = x;
  let sum = x;
  for (let n = 3; Math.abs(term) > 1e-9 * Math.abs(sum); n += 2) sum += term *= (x * x) / n;
  return x * (0.5 + (Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI)) * sum);
}

// Rotary positions: turn the queries and keys of qkv (3, H, D), in place, as model.py's `rotate`.
function rotate(qkv, position) {
  const D = config.n_embd / config.n_head;
  for (let head = 0; head < 2 * config.n_head; head++) {
    for (let c = 0; c < D / 2; c++) {
      const angle = position * 10000 ** ((-2 * c) / D);
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      const [i, j] = [head * D + c, head * D + c + D / 2];
      const [x, y] = [qkv[i], qkv[j]];
      qkv[i] = x * cos - y * sin;
      qkv[j] = y * cos + x * sin;
    }
  }
}

// qkv (3, H, D) of the token at `position` -> the attention's output (C). Caches keys and values.
function attention(qkv, layer, position) {
  const [C, H] = [config.n_embd, config.n_head];
  const D = C / H;
  const { keys, values } = cache[layer];
  keys.set(qkv.subarray(C, 2 * C), position * C);
  values.set(qkv.subarray(2 * C), position * C);
  const scale = config.scale_attention ? 1 / Math.sqrt(D) : 1;
  const window = layer % 2 && config.window ? config.window : max_length;
  const start = Math.max(0, position - window + 1); // the first key that the query attends to
  const out = new Float32Array(C);
  for (let first = 0; first < C; first += D) { // a head's first channel
    const scores = new Float32Array(position - start + 1);
    for (let t = start; t <= position; t++) {
      let sum = 0;
      for (let c = first; c < first + D; c++) sum += qkv[c] * keys[t * C + c];
      scores[t - start] = sum * scale;
    }
    const p = softmax(scores);
    for (let t = start; t <= position; t++) {
      for (let c = first; c < first + D; c++) out[c] += p[t - start] * values[t * C + c];
    }
  }
  return out;
}

function logSoftmax(scores) {
  const highest = scores.reduce((a, b) => Math.max(a, b));
  const total = scores.reduce((sum, score) => sum + Math.exp(score - highest), 0);
  return scores.map((score) => score - highest - Math.log(total));
}

function softmax(scores) {
  const highest = scores.reduce((a, b) => Math.max(a, b));
  const p = scores.map((score) => Math.exp(score - highest));
  const total = p.reduce((a, b) => a + b);
  return p.map((value) => value / total);
}

// What the last layer gives for a token, (C). The tokens before `position` must be cached.
function hidden(token, position) {
  let x = row("wte.weight", token);
  const add = (y) => { x = x.map((value, i) => value + y[i]); };
  const learned = "wpe.weight" in weights;
  if (learned) add(row("wpe.weight", position));
  for (let layer = 0; layer < config.n_layer; layer++) {
    const h = `h.${layer}`;
    const qkv = linear(`${h}.attn.c_attn`, layerNorm(`${h}.ln_1`, x));
    if (!learned) rotate(qkv, position);
    add(linear(`${h}.attn.c_proj`, attention(qkv, layer, position)));
    add(linear(`${h}.mlp.c_proj`, linear(`${h}.mlp.c_fc`, layerNorm(`${h}.ln_2`, x)).map(gelu)));
  }
  return x;
}

// (C) -> logits (vocab_size): the head is the embedding.
const logits = (x) => linear("wte", layerNorm("ln_f", x));

// ---- text and tokens: nanostories/dataset/tokenizer.py ------------------------------------------

// A token is a string with a character for each of its bytes; its id, its place in `tokens`, is
// also its rank: BPE merges the pair that makes the token of the lowest rank.
const ranks = new Map(tokens.map((token, id) => [token, id]));
const eot = tokens.length; // the id of <|endoftext|>
const bytesOf = (text) => String.fromCharCode(...new TextEncoder().encode(text));
const isBlank = (text) => /^\p{White_Space}+$/u.test(text);

function encode(text) {
  return Array.from(text.matchAll(new RegExp(pattern, "gu")), ([word]) => merge(bytesOf(word))).flat();
}

function merge(word) {
  const parts = [...word];
  for (;;) {
    let [lowest, at] = [Infinity, -1];
    for (let i = 0; i + 1 < parts.length; i++) {
      const rank = ranks.get(parts[i] + parts[i + 1]) ?? Infinity;
      if (rank < lowest) [lowest, at] = [rank, i];
    }
    if (at < 0) return parts.map((part) => ranks.get(part));
    parts.splice(at, 2, parts[at] + parts[at + 1]);
  }
}

// The ids of a text that a story continues: blanks at its end as before a word.
function encodePrompt(text) {
  const last = text.at(-1) ?? "";
  if (isBlank(last)) {
    const ids = encode(`${text}A`);
    const end = tokens[ids.pop()];
    if (end === "A") return ids;
    if (end === bytesOf(`${last}A`)) return [...ids, ...encode(last)];
  }
  return encode(text);
}

// ---- sampling -----------------------------------------------------------------------------------

// A function that returns numbers in [0, 1): xorshift with 128 bits of state (Marsaglia 2003).
function randomNumbers(seed) {
  const state = new Uint32Array([seed, seed / 2 ** 32, 0x9e3779b9, 0x243f6a88]);
  const next = () => {
    let t = state[0] ^ (state[0] << 11);
    t ^= t >>> 8;
    state.set([state[1], state[2], state[3], state[3] ^ (state[3] >>> 19) ^ t]);
    return state[3] / 2 ** 32;
  };
  for (let i = 0; i < 20; i++) next(); // small seeds differ in a few bits only, at first
  return next;
}

// The index of one of `scores`, logits, as sampling.py's `sample_token` draws it.
function sample(scores, { temperature, top_p }, random) {
  if (temperature < 1e-5) return likeliest(scores, 1)[0];
  const p = softmax(scores.map((score) => score / temperature));
  let candidates = [...p.keys()];
  if (top_p < 1) {
    // All tokens below this limit together hold less than what top_p cuts off: no need to sort them.
    candidates = candidates.filter((i) => p[i] >= (1 - top_p) / p.length);
    candidates.sort((a, b) => p[b] - p[a]);
    let [kept, held] = [0, 0]; // a token stays if those before it hold less than top_p
    while (kept < candidates.length && held < top_p) held += p[candidates[kept++]];
    candidates.length = kept;
  }
  let left = random() * candidates.reduce((sum, i) => sum + p[i], 0);
  for (const i of candidates) {
    left -= p[i];
    if (left < 0) return i;
  }
  return candidates.at(-1); // by rounding
}

// The indices of the `count` largest of p, the largest first.
function likeliest(p, count) {
  const best = [];
  for (let i = 0; i < p.length; i++) {
    if (best.length === count && p[i] <= p[best.at(-1)]) continue;
    const place = best.findIndex((j) => p[i] > p[j]);
    best.splice(place < 0 ? best.length : place, 0, i);
    best.length = Math.min(best.length, count);
  }
  return best;
}

// Token healing (healing.py): where a prompt ends in a blank or within a word, the tokens that spell
// its end and more compete with its last tokens. Changes `ids`; returns the choice's probability.
// after[i]: `hidden` of ids[i].
const WINDOW = 8; // the last tokens of a prompt, of which some may be exchanged
const WHOLE_WORD = 0.01; // a word stays as typed if that is as likely as this, of all it may become
function heal(ids, after, settings, random) {
  let [place, more, tail] = [-1, [], ""];
  for (let i = ids.length - 1; i > Math.max(0, ids.length - 1 - WINDOW); i--) {
    tail = tokens[ids[i]] + tail;
    const longer = [...tokens.keys()].filter((id) => tokens[id] !== tail && tokens[id].startsWith(tail));
    if (longer.length && !tail.endsWith("\n")) [place, more] = [i, longer];
  }
  if (place < 0) return 1;
  const logP = ids.slice(place).map((_, i) => logSoftmax(logits(after[place - 1 + i])));
  const asTyped = ids.slice(place).reduce((sum, id, i) => sum + logP[i][id], 0);
  const scores = Float32Array.from([asTyped, ...more.map((id) => logP[0][id])]);
  const inWord = !/[\t-\r ]$/.test(tokens[ids.at(-1)]);
  if (inWord && logSoftmax(scores)[0] > Math.log(WHOLE_WORD)) return 1;
  const choice = sample(scores, settings, random);
  if (choice > 0) ids.splice(place, ids.length, more[choice - 1]);
  return softmax(scores)[choice];
}

// ---- a story ------------------------------------------------------------------------------------

// The objects that server.py's answer has in its lines. Throws an Error to show.
async function* story(request, signal) {
  const { prompt, max_new_tokens, seed = Math.floor(Math.random() * 2 ** 32) } = request;
  const ids = [...bos_ids, ...encodePrompt(prompt)];
  if (!ids.length) ids.push(eot); // a model without a token before the text
  const bytesIn = (some) => some.map((id) => tokens[id] ?? "").join("");
  const typedLength = bytesIn(ids).length;
  if (ids.length >= max_length) {
    throw new Error(`the prompt has ${ids.length} tokens, but the model ends at ${max_length}`);
  }
  const steps = Math.min(max_new_tokens, max_length - ids.length);
  const random = randomNumbers(seed);
  const characters = new TextDecoder(); // a token may end inside a character: its bytes wait
  const decode = (text) => characters.decode(toBytes(text), { stream: true });
  yield { seed, prompt };

  // 1. The prompt, without its last token.
  const after = [];
  for (const [position, id] of ids.slice(0, -1).entries()) {
    after.push(hidden(id, position));
    await pause();
    signal.throwIfAborted();
  }
  const healedP = heal(ids, after, request, random);
  const healed = bytesIn(ids).slice(typedLength);
  if (healed) yield { text: decode(healed), p: healedP, others: [] };

  // 2. Token after token.
  for (let step = 0; step < steps; step++) {
    const scores = logits(hidden(ids.at(-1), ids.length - 1));
    const token = sample(scores, request, random);
    if (token === eot) return yield { end: "finished" };
    const p = softmax(scores);
    const others = likeliest(p, 5).map((id) => [textOf(id), p[id]]);
    yield { text: decode(tokens[token]), p: p[token], others };
    ids.push(token);
    await pause();
    signal.throwIfAborted();
  }
  yield { end: "max_length" };
}

const textOf = (id) =>
  id === eot ? "<|endoftext|>" : new TextDecoder().decode(toBytes(tokens[id]));
