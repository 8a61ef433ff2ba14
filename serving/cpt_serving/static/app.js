// The page: images come in by choosing, dropping, pasting, drawing, or from the bundle's samples.

import { createSketchpad } from "./drawing.js";
import { byId, fetchJson, make } from "./dom.js";
import { showEvidence } from "./evidence.js";
import { watch } from "./live.js";
import { classify } from "./prediction.js";

const SMALL = 96;

function preview(image, name) {
  const shown = byId("preview");
  if (shown.src) URL.revokeObjectURL(shown.src);
  shown.onload = () => {
    shown.hidden = false;
    shown.classList.toggle("pixels", shown.naturalWidth <= SMALL);
    byId("drop-text").classList.add("unseen");
  };
  // Not every format that the server reads is one that the browser shows.
  shown.onerror = () => {
    shown.hidden = true;
    byId("drop-text").classList.remove("unseen");
  };
  shown.alt = `The image ${name}`;
  shown.src = URL.createObjectURL(image);
  byId("file-name").textContent = name;
}

function take(image, name) {
  setMode("image");
  preview(image, name);
  return classify(image, name);
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
  // A file that misses the box must not replace the page.
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
  byId("sample-list").replaceChildren(
    ...samples.map(({ path, label }, index) => {
      const name = `sample ${index + 1}`;
      const image = make("img", { src: path, alt: "", width: 56, height: 56, className: "pixels" });
      const button = make("button", { type: "button", title: `${name}: expected ${label}`, ariaLabel: `${name}, expected ${label}` }, image);
      button.addEventListener("click", async () => {
        const response = await fetch(path);
        await take(await response.blob(), `${name}, expected ${label}`);
      });
      return make("li", {}, button);
    }),
  );
}

function offerDrawing(style) {
  if (!style) return;
  byId("modes").hidden = false;
  const pad = createSketchpad(byId("canvas"), style, (image) => classify(image, "drawing"));
  byId("clear").addEventListener("click", pad.clear);
  for (const choice of document.querySelectorAll("input[name=mode]")) {
    choice.addEventListener("change", () => setMode(choice.value));
  }
}

async function start() {
  listenForFiles();
  watch();
  const [facts, offered] = await Promise.all([fetchJson("evidence"), fetchJson("samples")]);
  showEvidence(facts);
  offerSamples(offered.samples);
  offerDrawing(offered.drawing);
}

start();
