// Send a text to a language model, which continues it token by token or scores the probability of each token.

import { byId, count, describe, make, milliseconds, significant } from "./dom.js";
import { fetchEvents, fetchJson } from "./requests.js";

let running = null;

function body(content) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content), signal: running.signal };
}

function showNothing() {
  byId("text-problem").replaceChildren();
  byId("text-facts").replaceChildren();
  byId("text-empty").hidden = true;
  byId("written").hidden = false;
  byId("written").replaceChildren();
}

/** Remove the last answer. */
export function clearText() {
  running?.abort();
  showNothing();
  byId("text-empty").hidden = false;
  byId("written").hidden = true;
}

function showProblem(error) {
  const reference = error.requestId ? make("span", { className: "muted small" }, `request ${error.requestId}`) : "";
  byId("text-problem").replaceChildren(make("p", { className: "problem" }, error.message, reference));
  if (!byId("written").textContent) byId("written").hidden = true;
}

async function generate(model) {
  const prompt = byId("prompt").value;
  const seed = byId("seed").value;
  const wanted = {
    prompt,
    max_tokens: byId("max-tokens").valueAsNumber,
    temperature: byId("temperature").valueAsNumber,
    stream: true,
    ...(seed === "" ? {} : { seed: Number(seed) }),
  };
  byId("written").append(make("span", { className: "muted" }, prompt));
  for await (const event of fetchEvents(`generate?model=${encodeURIComponent(model)}`, body(wanted))) {
    if (event.error) throw Object.assign(new Error(event.error), { requestId: event.request_id });
    byId("written").append(event.text);
    if (!event.timings) continue;
    describe(byId("text-facts"), [
      ["Tokens", count(event.usage.generated_tokens)],
      ["Ended by", event.finish_reason === "stop" ? "the end of the text" : "the number of tokens"],
      ["First token", milliseconds(event.timings.first_token_ms)],
      ["Tokens per second", event.timings.tokens_per_s && significant(event.timings.tokens_per_s)],
      ["Seed", String(event.seed)],
    ]);
  }
}

async function score(model) {
  const scored = await fetchJson(`score?model=${encodeURIComponent(model)}`, body({ text: byId("prompt").value, logprobs: 3 }));
  byId("written").append(
    ...scored.tokens.map(({ text, logprob, top }) => {
      const likely = top.map((each) => `${JSON.stringify(each.text)} ${significant(Math.exp(each.logprob) * 100)} %`).join(", ");
      const title = logprob === null ? "the first token" : `${significant(Math.exp(logprob) * 100)} %; most probable: ${likely}`;
      const token = make("span", { className: "token", title }, text);
      // From expected to surprising tokens.
      token.dataset.surprise = logprob === null ? "" : String(Math.min(4, Math.floor(-logprob / 2)));
      return token;
    }),
  );
  describe(byId("text-facts"), [
    ["Perplexity", scored.perplexity === null ? null : significant(scored.perplexity)],
    ["Log-probability", scored.scored_tokens ? scored.logprob.toFixed(2) : null],
    ["Scored tokens", count(scored.scored_tokens)],
  ]);
}

async function run(task, model) {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  showNothing();
  byId("stop").disabled = false;
  try {
    await task(model);
  } catch (error) {
    if (error.name !== "AbortError") showProblem(error);
  }
  if (running === mine) byId("stop").disabled = true;
}

/** Listen to the form; `chosen` returns the name of the model. */
export function listenForText(chosen) {
  byId("text-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run(generate, chosen());
  });
  byId("score").addEventListener("click", () => run(score, chosen()));
  byId("stop").addEventListener("click", () => running?.abort());
}
