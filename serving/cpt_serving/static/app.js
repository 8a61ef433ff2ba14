// The page: images are chosen, dropped, pasted, drawn, or taken from the bundle's samples; text and rows are typed.

import { createSketchpad } from "./drawing.js";
import { byId, make } from "./dom.js";
import { showEvidence } from "./evidence.js";
import { watch } from "./live.js";
import { classify, clearPrediction, predictRows, showProblem } from "./prediction.js";
import { fetchBlob, fetchJson, useKey } from "./requests.js";
import { clearText, listenForText } from "./text.js";

const SMALL = 96;

let model = "";
let form = "";

/** Return a path with the chosen model in its query. */
const ofModel = (path) => `${path}?model=${encodeURIComponent(model)}`;

function preview(image, name) {
  const shown = byId("preview");
  if (shown.src) URL.revokeObjectURL(shown.src);
  shown.onload = () => {
    shown.hidden = false;
    shown.classList.toggle("pixels", shown.naturalWidth <= SMALL);
    byId("drop-text").classList.add("unseen");
  };
  // The server reads more formats than the browser can show.
  shown.onerror = () => {
    shown.hidden = true;
    byId("drop-text").classList.remove("unseen");
  };
  shown.alt = `The image ${name}`;
  shown.src = URL.createObjectURL(image);
  byId("file-name").textContent = name;
}

function take(image, name) {
  if (form !== "image") return undefined;
  setMode("image");
  preview(image, name);
  return classify(image, name, model);
}

function setMode(mode) {
  byId("image-mode").hidden = mode !== "image";
  byId("draw-mode").hidden = mode !== "draw";
  document.querySelector(`input[name=mode][value=${mode}]`).checked = true;
}

function listenForFiles() {
  const input = byId("file");
  input.addEventListener("change", () => {
    const [file] = input.files;
    if (file) take(file, file.name);
    input.value = "";
  });
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) take(file, file.name || "pasted image");
  });
  let depth = 0;
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    byId("drop").classList.toggle("over", depth > 0);
  };
  document.addEventListener("dragenter", () => mark(1));
  document.addEventListener("dragleave", () => mark(-1));
  // A file dropped next to the box must not replace the page.
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(-depth);
    const [file] = event.dataTransfer.files;
    if (file) take(file, file.name);
  });
}

function offerSamples(samples) {
  byId("samples").hidden = samples.length === 0;
  for (const image of byId("sample-list").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  byId("sample-list").replaceChildren(
    ...samples.map(({ index, label }) => {
      const path = ofModel(`samples/${index}.png`);
      const name = `sample ${index + 1}`;
      const image = make("img", { alt: "", width: 56, height: 56, className: "pixels" });
      const button = make("button", { type: "button", title: `${name}: expected ${label}`, ariaLabel: `${name}, expected ${label}` }, image);
      // An image element could not send the API key.
      const content = fetchBlob(path);
      content.then((blob) => {
        image.src = URL.createObjectURL(blob);
      }, showProblem);
      button.addEventListener("click", () =>
        content.then((blob) => take(blob, `${name}, expected ${label}`), showProblem),
      );
      return make("li", {}, button);
    }),
  );
}

const pad = createSketchpad(byId("canvas"), (image) => classify(image, "drawing", model));

function offerDrawing(style) {
  byId("modes").hidden = !style;
  if (style) pad.setStyle(style);
  else setMode("image");
}

async function choose(name) {
  model = name;
  clearPrediction();
  clearText();
  try {
    const facts = await fetchJson(ofModel("evidence"));
    form = facts.form;
    byId("try-text").hidden = form !== "text";
    byId("try-input").hidden = form === "text";
    byId("image-form").hidden = form !== "image";
    byId("rows-form").hidden = form === "image";
    showEvidence(facts);
    if (form === "text") return;
    const offered = await fetchJson(ofModel("samples"));
    offerSamples(offered.samples);
    offerDrawing(offered.drawing);
    byId("rows").value = offered.rows ? JSON.stringify({ inputs: offered.rows }) : "";
  } catch (error) {
    showProblem(error);
  }
}

function offerModels(models) {
  const select = byId("models");
  byId("choice").hidden = models.length < 2;
  select.replaceChildren(...models.map(({ name }) => make("option", { value: name }, name)));
}

async function open() {
  try {
    const { models } = await fetchJson("models");
    offerModels(models);
    if (models.length) await choose(models[0].name);
  } catch (error) {
    showProblem(error);
  }
}

function listenForKey() {
  const form = byId("key-form");
  document.addEventListener("key-needed", () => {
    form.hidden = false;
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(byId("key").value.trim());
    byId("key").value = "";
    form.hidden = true;
    clearPrediction();
    open();
  });
}

async function start() {
  listenForKey();
  listenForFiles();
  listenForText(() => model);
  byId("rows-form").addEventListener("submit", (event) => {
    event.preventDefault();
    predictRows(byId("rows").value, model);
  });
  byId("models").addEventListener("change", (event) => choose(event.target.value));
  watch();
  byId("clear").addEventListener("click", pad.clear);
  for (const mode of document.querySelectorAll("input[name=mode]")) {
    mode.addEventListener("change", () => setMode(mode.value));
  }
  await open();
}

start();
