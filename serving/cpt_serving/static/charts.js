// Line charts of the last minute, drawn as SVG.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 120;
const LEFT = 54;
const BOTTOM = 22;
const TOP = 8;

function node(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Return the smallest round number (1, 2 or 5 times a power of ten) that is not below a value. */
export function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((candidate) => candidate >= value * 0.999999);
}

/** Split a series at its gaps and return a line through each stretch; a point between two gaps is a dot. */
function marks(values, x, y, name) {
  const stretches = [];
  let open = false;
  values.forEach((value, index) => {
    if (value !== null) {
      if (!open) stretches.push([]);
      stretches[stretches.length - 1].push([x(index).toFixed(1), y(value).toFixed(1)]);
    }
    open = value !== null;
  });
  return stretches.map((points) => {
    const [[cx, cy]] = points;
    if (points.length === 1) return node("circle", { class: `dot ${name}`, cx, cy, r: 2.5 });
    return node("path", { class: `line ${name}`, d: `M${points.map((point) => point.join(" ")).join("L")}` });
  });
}

/**
 * Draw series of equal length into an element.
 *
 * @param {HTMLElement} target where to draw
 * @param {(number|null)[][]} series values from the oldest to the newest; null is a gap
 * @param {object} options `label` describes the chart in words, `format` writes the numbers of its axis
 */
export function drawLines(target, series, { label, format }) {
  const width = target.clientWidth || 480;
  const length = series[0].length;
  const top = ceiling(Math.max(0, ...series.flat().filter((value) => value !== null)));
  const x = (index) => LEFT + (index / (length - 1)) * (width - LEFT - 6);
  const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP);
  const svg = node("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const value of [0, top / 2, top]) {
    svg.append(node("line", { class: "rule", x1: LEFT, x2: width - 6, y1: y(value), y2: y(value) }));
    if (value !== top / 2) svg.append(node("text", { class: "tick end", x: LEFT - 6, y: y(value) + 4 }, format(value)));
  }
  svg.append(node("text", { class: "tick", x: LEFT, y: HEIGHT - 5 }, `${length - 1} s ago`));
  svg.append(node("text", { class: "tick end", x: width - 6, y: HEIGHT - 5 }, "now"));
  series.forEach((values, number) => {
    svg.append(...marks(values, x, y, `line-${number + 1}`));
  });
  target.replaceChildren(svg);
}
