// Send an image or rows of tensors to the server, and show the classes or the outputs, and the timings.

import { byId, describe, make, milliseconds, percent } from "./dom.js";
import { fetchJson } from "./requests.js";

const PARTS = [
  ["preprocess_ms", "Decode and prepare"],
  ["queue_ms", "Queue"],
  ["inference_ms", "Inference"],
];

let running = null;

/** Show the prediction of a row: classes, or outputs by name. Returns it as a sentence. */
function show(prediction) {
  const outputs = !Array.isArray(prediction);
  byId("best").hidden = outputs;
  byId("classes").hidden = outputs;
  describe(
    byId("outputs"),
    outputs ? Object.entries(prediction).map(([name, value]) => [name, make("code", {}, JSON.stringify(value))]) : [],
  );
  if (outputs) return "predicted";
  showClasses(prediction);
  return `${prediction[0].label}, ${percent(prediction[0].probability)}`;
}

function showClasses(classes) {
  const [best] = classes;
  byId("best-label").textContent = best.label;
  byId("best-probability").textContent = percent(best.probability);
  byId("classes").replaceChildren(
    ...classes.map(({ label, probability }) => {
      const fill = make("span", { className: "fill" });
      fill.style.width = `${probability * 100}%`;
      return make(
        "li",
        {},
        make("span", { className: "name" }, label),
        make("span", { className: "bar", ariaHidden: "true" }, fill),
        make("span", { className: "share" }, percent(probability)),
      );
    }),
  );
}

function showTimings(timings, roundTrip) {
  const inside = PARTS.filter(([name]) => timings[name] !== undefined).map(([name, text]) => [text, timings[name]]);
  const known = inside.reduce((sum, [, value]) => sum + value, 0);
  const parts = [
    ...inside,
    ["Rest of the server", Math.max(0, timings.total_ms - known)],
    ["Network and browser", Math.max(0, roundTrip - timings.total_ms)],
  ];
  byId("split").replaceChildren(
    ...parts.map(([, value], index) => {
      const part = make("span", { className: `part part-${index + 1}` });
      part.style.flexGrow = value;
      return part;
    }),
  );
  describe(byId("timings"), [
    ...parts.map(([text, value], index) => [make("span", { className: `key part-${index + 1}` }, text), milliseconds(value)]),
    ["Round trip", milliseconds(roundTrip)],
  ]);
}

function showBatch(rows) {
  byId("batch").textContent =
    rows === undefined || rows === null
      ? ""
      : rows === 1
        ? "Computed alone."
        : `Computed in one batch of ${rows} rows.`;
}

/** On a narrow screen the answer may be below what is visible. */
function reveal(element) {
  if (element.getBoundingClientRect().top > window.innerHeight - 120) byId("answer").scrollIntoView();
}

/** Remove the last answer. */
export function clearPrediction() {
  running?.abort();
  byId("problem").replaceChildren();
  byId("prediction").hidden = true;
  byId("empty").hidden = false;
}

/** Show an error in the place of the answer. */
export function showProblem(error) {
  byId("prediction").hidden = true;
  byId("empty").hidden = true;
  const reference = error.requestId ? make("span", { className: "muted small" }, `request ${error.requestId}`) : "";
  byId("problem").replaceChildren(make("p", { className: "problem" }, error.message, reference));
  reveal(byId("problem"));
}

/**
 * Ask for the classes of an image and show them; a newer request replaces one in progress.
 *
 * @param {Blob} image
 * @param {string} name name of the image in errors
 * @param {string} model
 */
export function classify(image, name, model) {
  const body = new FormData();
  body.append("file", image, name);
  return predict({ body }, name, model);
}

/** Ask for the outputs of rows, JSON as `/predict` takes it, and show those of the first row. */
export function predictRows(rows, model) {
  return predict({ body: rows, headers: { "Content-Type": "application/json" } }, "rows", model);
}

async function predict(request, name, model) {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const answer = byId("answer");
  answer.ariaBusy = "true";
  try {
    const started = performance.now();
    const path = `predict?top_k=5&model=${encodeURIComponent(model)}`;
    const result = await fetchJson(path, { method: "POST", signal, ...request });
    const roundTrip = performance.now() - started;
    byId("problem").replaceChildren();
    byId("empty").hidden = true;
    const said = show(result.predictions[0]);
    showTimings(result.timings, roundTrip);
    showBatch(result.batch_rows);
    byId("prediction").hidden = false;
    reveal(byId("prediction"));
    byId("status").textContent = `${name}: ${said}`;
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("status").textContent = "";
    showProblem(error);
  }
  answer.ariaBusy = "false";
}
