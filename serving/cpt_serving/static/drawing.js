// A canvas to draw on, and its content as an image in the style of the model's training images.

/**
 * Let people draw on a canvas.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {(image: Blob) => void} onDrawn called with a PNG after a stroke
 * @returns {{clear: () => void, setStyle: (style: object) => void}} in a style, `ground` is "dark" or "light", `fill`
 *   is the share of the side that the ink of a sample spans, `stroke` is the width of a line as a share of the side
 */
export function createSketchpad(canvas, onDrawn) {
  const context = canvas.getContext("2d");
  let style = { ground: "dark", fill: 1, stroke: 0.1 };
  let strokes = [];
  let current = null;
  let timer = 0;

  const paint = (target, transform) => {
    const side = target.canvas.width;
    const [ground, ink] = style.ground === "dark" ? ["#000", "#fff"] : ["#fff", "#000"];
    target.setTransform(1, 0, 0, 1, 0, 0);
    target.fillStyle = ground;
    target.fillRect(0, 0, side, side);
    target.strokeStyle = ink;
    target.lineWidth = style.stroke * side;
    target.lineCap = target.lineJoin = "round";
    for (const stroke of strokes) {
      target.beginPath();
      stroke.forEach((point, index) => {
        const [x, y] = transform(point);
        if (index === 0) target.moveTo(x, y);
        target.lineTo(x, y);
      });
      target.stroke();
    }
  };

  const render = () => paint(context, (point) => point);

  /** Centre the drawing and scale it to the span of the samples; the width of its lines stays. */
  const toImage = () => {
    const side = canvas.width;
    const all = strokes.flat();
    const [left, top] = [0, 1].map((axis) => Math.min(...all.map((point) => point[axis])));
    const [right, bottom] = [0, 1].map((axis) => Math.max(...all.map((point) => point[axis])));
    const longest = Math.max(right - left, bottom - top);
    const scale = longest < 1 ? 1 : Math.max(1, (style.fill - style.stroke) * side) / longest;
    const fitted = document.createElement("canvas");
    fitted.width = fitted.height = side;
    paint(fitted.getContext("2d"), ([x, y]) => [
      side / 2 + (x - (left + right) / 2) * scale,
      side / 2 + (y - (top + bottom) / 2) * scale,
    ]);
    fitted.toBlob(onDrawn, "image/png");
  };

  const position = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };

  canvas.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    clearTimeout(timer);
    current = [position(event)];
    strokes.push(current);
    render();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!current) return;
    current.push(position(event));
    render();
  });
  const finish = () => {
    if (!current) return;
    current = null;
    timer = setTimeout(toImage, 350);
  };
  canvas.addEventListener("pointerup", finish);
  canvas.addEventListener("pointercancel", finish);

  const clear = () => {
    clearTimeout(timer);
    strokes = [];
    render();
  };
  const setStyle = (chosen) => {
    style = chosen;
    clear();
  };
  clear();
  return { clear, setStyle };
}
