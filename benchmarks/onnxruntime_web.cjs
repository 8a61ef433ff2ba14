// Runs an ONNX classifier in onnxruntime-web (WebAssembly, one thread) for other_engines.py.
//
//   node onnxruntime_web.cjs FOLDER_WITH_NODE_MODULES model.onnx
//
// Reads one JSON object a line from stdin and answers each with one: {feed: file, shape: [N, C, H, W]} takes float32
// inputs, {run: true} computes the logits, {save: file} writes them as float32. The first line written is the version.

const fs = require("node:fs");
const path = require("node:path");
const readline = require("node:readline");
const { createRequire } = require("node:module");

const [folder, model] = process.argv.slice(2);
const ort = createRequire(path.resolve(folder, "package.json"))("onnxruntime-web");

function answer(content) {
  process.stdout.write(JSON.stringify(content) + "\n");
}

function floats(file) {
  const bytes = fs.readFileSync(file);
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
}

async function main() {
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(fs.readFileSync(model), { executionProviders: ["wasm"] });
  answer({ version: ort.env.versions.web, node: process.version });
  let input = null;
  let logits = null;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    if (request.feed) input = new ort.Tensor("float32", floats(request.feed), request.shape);
    if (request.run) logits = (await session.run({ image: input })).logits;
    if (request.save) fs.writeFileSync(request.save, Buffer.from(logits.data.buffer, logits.data.byteOffset, logits.data.byteLength));
    answer({ shape: logits && logits.dims });
  }
}

main();
