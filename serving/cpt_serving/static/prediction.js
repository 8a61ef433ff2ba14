// Send an image to the server and show its classes and timings.

import { byId, describe, make, milliseconds, percent } from "./dom.js";
import { fetchJson } from "./requests.js";

const PARTS = [
  ["preprocess_ms", "Decode and prepare"],
  ["queue_ms", "Queue"],
  ["inference_ms", "Inference"],
];

let running = null;

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
        : `Computed in one batch of ${rows} images, together with other requests.`;
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
 * Ask for the classes of an image and show them; a newer image replaces one in progress.
 *
 * @param {Blob} image
 * @param {string} name name of the image in errors
 * @param {string} model
 */
export async function classify(image, name, model) {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const answer = byId("answer");
  answer.ariaBusy = "true";
  const body = new FormData();
  body.append("file", image, name);
  try {
    const started = performance.now();
    const result = await fetchJson(`predict?top_k=5&model=${encodeURIComponent(model)}`, { method: "POST", body, signal });
    const roundTrip = performance.now() - started;
    byId("problem").replaceChildren();
    byId("empty").hidden = true;
    const [classes] = result.predictions;
    showClasses(classes);
    showTimings(result.timings, roundTrip);
    showBatch(result.batch_rows);
    byId("prediction").hidden = false;
    reveal(byId("prediction"));
    byId("status").textContent = `${name}: ${classes[0].label}, ${percent(classes[0].probability)}`;
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("status").textContent = "";
    showProblem(error);
  }
  answer.ariaBusy = "false";
}
