// The identity of the model and its figures from `cpt validate`.

import { byId, bytes, count, describe, make, percent } from "./dom.js";

function figure(value, name, note) {
  return make(
    "div",
    {},
    make("dt", {}, name),
    make("dd", {}, make("span", { className: "value" }, value), make("span", { className: "note muted" }, note)),
  );
}

/** Write a value of a metric. */
const written = (metric, value) => (metric.percent ? percent(value, 2) : value.toFixed(2));

function quality(validation) {
  if (typeof validation?.value !== "number") return figure("–", "Quality", "not measured: cpt validate measures it");
  const { metric, value, trained_value: trained, interval_95: interval } = validation;
  const name = metric.name.replaceAll("_", " ");
  const note = interval
    ? `95 % interval ${written(metric, interval[0])} to ${written(metric, interval[1])}`
    : typeof trained === "number" ? `${written(metric, trained)} before export` : "";
  return figure(written(metric, value), `${name[0].toUpperCase()}${name.slice(1)} as served`, note);
}

function exactness(validation) {
  const { compared_integers: compared, mismatching_integers: mismatching } = validation ?? {};
  if (typeof compared !== "number") return figure("–", "Exactness", "not measured: cpt validate measures it");
  return figure(count(mismatching), "Integers that differ", `of ${count(compared)} compared with the exact executor`);
}

function precision(facts) {
  const { weight_bits: weights, activation_bits: activations, trained_bits: trainedBits } = facts;
  if (!weights) return figure("–", "Precision", "not recorded");
  const trained = trainedBits ? `trained at ${trainedBits[0]} to ${trainedBits[1]} bits` : `activations ${activations} bits`;
  return figure(`${weights} bits`, "Precision", trained);
}

function size(facts) {
  const integer = facts.validation?.float_operators === 0 ? "no float layer left in the graph" : "model.onnx";
  return figure(facts.size_bytes === null ? "–" : bytes(facts.size_bytes), "Size", integer);
}

function verdict(validation, bare) {
  const shown = byId("verdict");
  const [state, text] = !validation
    ? ["unknown", bare ? "ONNX file without evidence" : "never validated"]
    : !validation.of_this_model
      ? ["failed", "changed after the report"]
      : validation.passed
        ? ["passed", validation.verdict === "passed" ? "validation passed" : `validation ${validation.verdict}`]
        : ["failed", `validation ${validation.verdict}`];
  shown.dataset.state = state;
  shown.textContent = text;
}

/** Say what the model takes and answers. */
function described(facts) {
  const known = Object.entries(facts).filter(([, value]) => value !== null);
  return known.map(([name, value]) => `${name} ${typeof value === "number" ? count(value) : value}`).join(" · ");
}

/** Show the answer of /evidence. */
export function showEvidence(facts) {
  document.title = `${facts.model} · cpt-deploy`;
  byId("model").textContent = facts.model;
  byId("model-facts").textContent = `version ${facts.version} · ${described(facts.facts)}`;
  byId("server").textContent = `cpt-deploy ${facts.server_version}`;
  byId("docs-link").hidden = !facts.docs;
  const { validation } = facts;
  verdict(validation, facts.bare);
  byId("figures").replaceChildren(quality(validation), exactness(validation), precision(facts), size(facts));
  describe(byId("details"), [
    ["Measured on", validation && `${validation.dataset}, ${count(validation.samples)} ${validation.split ?? ""} ${validation.unit}`],
    ["Before export", typeof validation?.trained_value === "number" ? `${written(validation.metric, validation.trained_value)} in training precision` : null],
    ["Runtime", validation?.runtime && `onnxruntime ${validation.runtime}`],
    ["Processor", validation?.cpu],
    ["Validated", validation?.validated_at && new Date(validation.validated_at).toLocaleDateString("en-GB", { dateStyle: "long" })],
    ["SHA-256", make("code", { title: facts.sha256 }, `${facts.sha256.slice(0, 12)}…`)],
  ]);
}
