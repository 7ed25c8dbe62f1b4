// Stories from the server that sent this page. server.py says what it takes and answers.

async function load() {} // the model is loaded already

// The answer's lines, as objects, each as soon as it comes. Throws an Error to show.
async function* story(request, signal) {
  const gone = new Error("The server does not answer. Is it still running?");
  try {
    const headers = { "Content-Type": "application/json" };
    const options = { method: "POST", headers, body: JSON.stringify(request), signal };
    const answer = await fetch("story", options);
    if (!answer.ok) { // a proxy's own answer is no JSON
      const { error } = await answer.json().catch(() => ({}));
      throw new Error(error ?? `The server or its proxy answers ${answer.status}.`);
    }
    for await (const line of lines(answer.body)) {
      yield line;
      if ("end" in line) return;
    }
  } catch (error) { // fetch throws a TypeError when the connection is lost
    throw error.name === "TypeError" ? gone : error;
  }
  throw gone;
}

// The JSON objects of a stream of lines. A chunk ends anywhere, even within a character.
async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts.map((part) => JSON.parse(part));
  }
}
