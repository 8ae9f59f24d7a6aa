// The page docs/try: `tiny` in the browser. Nothing is sent; the model, its words and this page come from one folder.
const find = (id) => document.getElementById(id);
const MOST_PIXELS = 1000000, FIRST_TOKEN = 2, UNKNOWN = 1;
addEventListener("unhandledrejection", (event) => say(`The model cannot be loaded: ${event.reason?.message || event.reason}`));
const facts = await (await fetch("tiny.json")).json();
const ort = await import(`./${facts.runtime}/ort.wasm.min.mjs`);
ort.env.wasm.wasmPaths = new URL(`${facts.runtime}/`, location.href).href;
ort.env.wasm.numThreads = 1; // more would need headers that a plain server does not send
const [model, reader] = await Promise.all(["tiny.onnx", "tiny-words.onnx"].map((file) =>
  ort.InferenceSession.create(file, { executionProviders: ["wasm"] })));
const view = makeView(), tokens = new Map(facts.vocabulary.map((word, i) => [word, FIRST_TOKEN + i]));
const palette = Uint8Array.from(facts.palette);
let photo = null, plain = null, running = false, again = false;

// The photo as bytes, as `langdepth predict` reads it: upright, its own numbers, white where it is transparent.
async function take(file) {
  try {
    const image = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
    const factor = Math.max(1, Math.sqrt(image.width * image.height / MOST_PIXELS));
    const [width, height] = [image.width, image.height].map((side) => Math.floor(side / factor));
    if (Math.min(width, height) < 32) throw new Error(`it has ${image.width} x ${image.height} pixels, and 32 x 32 are the least`);
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(image, 0, 0, width, height);
    const colors = context.getImageData(0, 0, width, height).data, bytes = new Uint8Array(3 * width * height);
    for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) bytes[3 * i + c] = colors[4 * i + c];
    photo = { canvas, width, height, bytes, name: (file.name || "photo").replace(/\.[^.]*$/, ""), made: `${image.width} x ${image.height}`, factor };
    plain = null;
    await predict();
  } catch (error) {
    say(`${file.name || "This"} cannot be used: ${error.message}`);
  }
}

function say(text) {
  find("state").textContent = text;
  find("state").hidden = !text;
}

// The feature of a sentence, or null without one that the model knows.
async function feature(sentence) {
  const words = sentence.toLowerCase().match(/[a-z]+/g) || [], unknown = [...new Set(words.filter((word) => !tokens.has(word)))];
  const known = words.some((word) => tokens.has(word) && !facts.function_words.includes(word));
  find("unknown").textContent = !words.length ? "In plain English; without words the photo alone decides."
    : !known ? "None of these words is known; try a room and the things in it."
      : unknown.length ? `Unknown words, ignored: ${unknown.join(", ")}` : "All of these words are known";
  if (words.length > facts.max_words) find("unknown").textContent += `; ${words.length} words, of which the first ${facts.max_words} are taken`;
  if (!known) return null;
  const numbers = words.map((word) => tokens.get(word) ?? UNKNOWN).slice(0, facts.max_words);
  const given = new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
  return (await reader.run({ tokens: given })).features;
}

async function depthOf(text, scene) {
  const { width, height, bytes } = photo;
  const found = await model.run({
    image: new ort.Tensor("uint8", bytes, [1, height, width, 3]),
    text: text || new ort.Tensor("float32", new Float32Array(facts.features), [1, facts.features]),
    scene: new ort.Tensor("int64", BigInt64Array.of(BigInt(scene)), [1]),
  });
  return { depth: found.depth.data, scenes: found.scene_probs.data };
}

// Nearest, median and farthest of a map, and the range that its colors show.
function spread(depth) {
  const sorted = Float32Array.from(depth).sort(), at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  return { least: sorted[0], low: at(.02), median: at(.5), high: at(.98), most: at(1) };
}

async function predict() {
  if (!photo) return;
  if (running) { again = true; return; }
  running = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    const of = photo, scene = find("scene").selectedIndex - 1, text = scene < 0 ? await feature(find("words").value) : null;
    if (!plain) plain = await depthOf(null, -1);
    plain.spread ??= spread(plain.depth);
    const steered = text || scene >= 0, found = steered ? await depthOf(text, scene) : plain;
    if (of === photo) show(found, steered, scene);
    say("");
  } catch (error) {
    say(`The model cannot be computed: ${error.message}`);
  }
  running = false;
  document.body.removeAttribute("aria-busy");
  if (again) { again = false; await predict(); }
}

function show(found, steered, scene) {
  const { width, height } = photo, fixed = find("fixed").checked;
  const stated = find("fov").valueAsNumber, known = stated >= 2 && stated <= 150;
  const side = Math.sqrt(width * height);
  // As `InputSpec.focal` has it: what a longer lens sees is farther away. The depth of a photo whose camera nobody
  // states is that of the camera of this focal length.
  const focal = known ? Math.max(width, height) / 2 / Math.tan(stated * Math.PI / 360) : facts.focal * side;
  const factor = focal / side / facts.focal;
  const depth = found.depth.map((one) => one * factor), numbers = spread(depth);
  const rays = [new Float32Array(width * height), new Float32Array(width * height)];
  for (let i = 0; i < width * height; i++) {
    rays[0][i] = (i % width - (width - 1) / 2) / focal;
    rays[1][i] = (Math.floor(i / width) - (height - 1) / 2) / focal;
  }
  const best = found.scenes.indexOf(Math.max(...found.scenes)), metres = (value) => `${value.toFixed(2)} m`;
  find("result").hidden = false;
  find("median").innerHTML = `Median depth <b>${metres(numbers.median)}</b>` +
    (steered ? `, without words ${metres(factor * plain.spread.median)}` : "");
  view.show({
    name: photo.name, width, height, full: [width, height], depth, rays, photo: photo.canvas, palette, kind: "metric",
    unit: "metre", system: "tiny", camera: known ? "user" : "guess",
    range: fixed ? [factor * plain.spread.low / 1.5, factor * plain.spread.high * 1.5] : [numbers.low, Math.max(numbers.high, numbers.low * 1.01)],
    about: [["min / median / max", [numbers.least, numbers.median, numbers.most].map(metres).join(" / ")],
      ["scene in the photo", `${facts.scenes[best]}, ${Math.round(100 * found.scenes[best])}%`],
      ...(facts.scenes[best] === "street" ? [["sky", "has no depth; `langdepth predict` leaves it out, this page does not"]] : []),
      ["words", scene >= 0 ? facts.scenes[scene] : steered ? find("words").value : "none"],
      ["photo", `${photo.made} pixels`], ["system", `tiny, langdepth ${facts.version}`], ["licence of its weights", facts.licence]],
  });
  document.documentElement.dataset.shown = String(Number(document.documentElement.dataset.shown || 0) + 1);
}

find("scene").append(...facts.scenes.map((name) => new Option(name)));
let waiting = 0;
find("words").addEventListener("input", () => {
  find("scene").selectedIndex = 0;
  clearTimeout(waiting);
  waiting = setTimeout(predict, 250);
});
for (const id of ["scene", "fixed", "fov"]) find(id).addEventListener("change", predict);
find("ask").addEventListener("submit", (event) => { event.preventDefault(); predict(); });
find("file").addEventListener("change", (event) => { if (event.target.files[0]) take(event.target.files[0]); });
find("example").addEventListener("click", async () => take(new File([await (await fetch("desk.jpg")).blob()], "desk.jpg")));
for (const [name, on] of [["dragover", true], ["dragleave", false], ["drop", false]]) document.addEventListener(name, (event) => {
  document.body.classList.toggle("dropping", on);
  event.preventDefault();
  if (name === "drop" && event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => { if (event.clipboardData.files[0]) take(event.clipboardData.files[0]); });
say("");
document.documentElement.dataset.ready = "yes";
