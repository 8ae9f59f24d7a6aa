"use strict";
// Photo, depth map, ruler and 3D view of one depth map. `makeView().show(data)` fills view.html; data:
//   depth Float32Array (width * height, 0: no value), width, height; full [W, H]: the photo's own size, of which columns
//   and rows may be left out; rays [x, y], Float32Arrays: where each pixel looks at a depth of 1; camera: who stated it; photo: something a canvas can draw, or null; palette
//   Uint8Array (256 * 3) from near to far; range [low, high] of its ends; kind "metric", "relative" or "disparity";
//   system; about: pairs of words. The 3D view is space.js, files are files.js.
function makeView() {
  const find = (id) => document.getElementById(id);
  const stages = ["photo", "depth"].map((id) => makeStage(find(id).querySelector(".stage")));
  const space = makeSpace(find("space").querySelector(".stage"), drawRuler);
  let data = null, cross = null, ruler = [], held = null, dragged = false;

  function makeStage(box) {
    box.innerHTML = `<canvas></canvas><svg aria-hidden="true"><line style="display:none"></line></svg><b class="span" aria-hidden="true" hidden></b>
      <div class="cross" aria-hidden="true" hidden><b></b></div>`;
    const canvas = box.querySelector("canvas");
    const stage = { box, canvas, context: canvas.getContext("2d"), cross: box.querySelector(".cross") };
    const pixel = (event) => {
      const place = box.getBoundingClientRect();
      const along = (at, side) => Math.min(side - 1, Math.max(0, Math.floor(at * side)));
      return [along((event.clientX - place.left) / place.width, data.width),
        along((event.clientY - place.top) / place.height, data.height)];
    };
    box.addEventListener("pointermove", (event) => {
      if (!data) return;
      if (held !== null) ruler[held] = pixel(event);
      moveTo(pixel(event));
    });
    box.addEventListener("pointerleave", () => { if (held === null && document.activeElement !== box) moveTo(null); });
    box.addEventListener("pointerdown", (event) => {
      dragged = false;
      if (!event.target.matches(".mark")) return;
      held = Number(event.target.dataset.point);
      box.setPointerCapture(event.pointerId);
      box.focus();
      event.preventDefault();
    });
    for (const name of ["pointerup", "pointercancel"]) box.addEventListener(name, () => {
      dragged = held !== null;
      held = null;
    });
    box.addEventListener("click", (event) => { if (data && !dragged) setPoint(pixel(event)); });
    box.addEventListener("focus", () => { if (!cross && data) moveTo([data.width >> 1, data.height >> 1]); });
    box.addEventListener("blur", () => moveTo(null));
    box.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 10 : 1, move = arrow(event.key);
      if (!data || event.ctrlKey || event.metaKey || event.altKey) return;
      const at = cross || [data.width >> 1, data.height >> 1];
      if (move) {
        const inside = (value, side) => Math.min(side - 1, Math.max(0, value));
        moveTo([inside(at[0] + move[0] * step, data.width), inside(at[1] + move[1] * step, data.height)]);
      } else if (event.key === "Enter" || event.key === " ") setPoint(at);
      else if (event.key === "Escape") clear();
      else return;
      event.preventDefault();
    });
    return stage;
  }

  const index = ([x, y]) => y * data.width + x;
  // The pixel of the photo that a pixel of the page shows.
  const own = ([x, y]) => [[x, 0], [y, 1]].map(([at, axis]) =>
    Math.floor((2 * at + 1) * data.full[axis] / (2 * [data.width, data.height][axis])));
  // Camera.unproject of it.
  function point(at) {
    const i = index(at), z = data.depth[i];
    return [z * data.rays[0][i], z * data.rays[1][i], z];
  }
  const number = (value) => value && value < .01 ? value.toPrecision(2) : value.toFixed(value < 10 ? 3 : value < 100 ? 2 : 1);
  const unit = () => data.kind === "metric" ? " m" : "";
  const value = (at) => data.depth[index(at)] > 0 ? number(data.depth[index(at)]) + unit() : "no value";

  function moveTo(at) {
    cross = at;
    if (!data) return;
    const [x, y] = at ? own(at) : [];
    find("readout").innerHTML = at ? `x ${x}, y ${y}: <b>${value(at)}</b>` : "";
    for (const stage of stages) {
      stage.cross.hidden = !at;
      if (!at) continue;
      const left = (at[0] + .5) / data.width, top = (at[1] + .5) / data.height;
      Object.assign(stage.cross.style, { left: `${100 * left}%`, top: `${100 * top}%` });
      stage.cross.className = `cross ${left > .7 ? "left" : ""} ${top < .15 ? "low" : ""}`;
      stage.cross.firstChild.textContent = value(at);
    }
    const marker = find("legend").querySelector("i"), depth = at ? data.depth[index(at)] : 0;
    marker.hidden = !(depth > 0);
    marker.style.left = `${100 * Math.min(1, Math.max(0, level(depth)))}%`;
    drawRuler();
  }

  function setPoint(at) {
    ruler = ruler.length === 2 ? [at] : [...ruler, at];
    moveTo(at);
  }

  function clear() {
    ruler = [];
    drawRuler();
  }

  function drawRuler() {
    if (!data) return;
    const flat = ruler.map(([x, y]) => [(x + .5) / data.width, (y + .5) / data.height]);
    const points = ruler.map(point), known = points.map((one) => one[2] > 0 && one.every(Number.isFinite));
    const apart = data.kind === "metric" && points.length === 2 && !known.includes(false) ? distance(points) : 0;
    for (const stage of stages) mark(stage.box, flat, apart);
    mark(space.box, points.map((one, i) => known[i] ? space.project(one) : null), apart);
    find("clear").disabled = !ruler.length;
    find("ruler").innerHTML = measured(points, known);
    find("points").hidden = !ruler.length || data.kind !== "metric";
    find("points").tBodies[0].innerHTML = points.map((one, i) => `<tr><th scope="row">${"AB"[i]}</th>
      <td>${own(ruler[i]).join(", ")}</td>${known[i] ? one.map((v) => `<td>${v.toFixed(3)}</td>`).join("")
        : '<td colspan="3">no value</td>'}</tr>`).join("");
  }

  const distance = ([one, other]) => Math.hypot(...one.map((v, axis) => v - other[axis]));

  function measured(points, known) {
    if (data.kind !== "metric") return "The ruler needs metres, which this depth map does not have.";
    if (known.includes(false)) return "There is no depth at a point; set another.";
    if (points.length < 2) return points.length ? "Set the second point." : "No points yet.";
    const guessed = data.camera === "guess" ? " (the camera is a guess)" : "";
    return `<b data-metres="${distance(points)}">${number(distance(points))} m</b> from A to B${guessed}`;
  }

  // Marks and the line between them, at places from 0 to 1 in a stage; null where a point is not to be seen. `apart`:
  // metres, 0 where they are not known.
  function mark(box, places, apart) {
    for (const i of [0, 1]) {
      let one = box.querySelector(`.mark[data-point="${i}"]`);
      if (!one) {
        one = document.createElement("span");
        Object.assign(one, { className: "mark", textContent: "AB"[i] });
        one.dataset.point = i;
        one.setAttribute("aria-hidden", "true");
        box.append(one);
      }
      one.hidden = !places[i];
      if (places[i]) Object.assign(one.style, { left: `${100 * places[i][0]}%`, top: `${100 * places[i][1]}%` });
    }
    const line = box.querySelector("line"), both = Boolean(places[0] && places[1]);
    line.style.display = both ? "" : "none";
    const label = box.querySelector(".span");
    label.hidden = !both || !apart;
    label.textContent = `${number(apart)} m`;
    if (both) Object.assign(label.style, { left: `${50 * (places[0][0] + places[1][0])}%`, top: `${50 * (places[0][1] + places[1][1])}%` });
    if (both) places.forEach(([x, y], i) => {
      line.setAttribute(`x${i + 1}`, `${100 * x}%`);
      line.setAttribute(`y${i + 1}`, `${100 * y}%`);
    });
  }

  const level = (depth) => (depth - data.range[0]) / (data.range[1] - data.range[0]);

  function drawDepth(context) {
    const pixels = context.createImageData(data.width, data.height);
    for (let i = 0; i < data.depth.length; i++) {
      const known = data.depth[i] > 0;
      const at = 3 * Math.min(255, Math.max(0, Math.floor(256 * level(data.depth[i]))));
      for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = known ? data.palette[at + c] : 128;
      pixels.data[4 * i + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
  }

  function drawLegend() {
    const context = find("legend").querySelector("canvas").getContext("2d"), row = context.createImageData(256, 1);
    for (let i = 0; i < 256; i++) row.data.set([...data.palette.subarray(3 * i, 3 * i + 3), 255], 4 * i);
    context.putImageData(row, 0, 0);
    const [low, high] = data.range, most = Math.max(2, Math.min(7, find("legend").clientWidth / 70)); // room of labels
    const power = 10 ** Math.floor(Math.log10((high - low) / most));
    const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power * most * 1.0001 >= high - low);
    const digits = Math.max(0, [0, 1, 2, 3, 4, 5, 6, 7, 8].find((n) => n === 8 || Math.abs(step * 10 ** n % 1) < 1e-6));
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-6); i * step <= high + 1e-6 * step; i++) ticks.push(i * step);
    find("legend").querySelector("div").innerHTML = ticks.map((tick) => {
      const at = level(tick), end = at < .04 ? "first" : at > .95 ? "last" : "";
      return `<span class="${end}" style="left:${100 * at}%">${tick.toFixed(digits)}${unit()}</span>`;
    }).join("");
    find("legend").setAttribute("aria-label", `Colors from ${number(low)}${unit()} to ${number(high)}${unit()}`);
  }

  function show(given) {
    const other = !data || data.width !== given.width || data.height !== given.height || data.photo !== given.photo;
    data = given;
    if (other) { ruler = []; cross = null; }
    find("what").textContent = data.kind === "disparity" ? "Disparity, 1 / depth up to a factor and a shift"
      : data.kind === "relative" ? "Depth, without a unit" : "Depth in metres";
    find("photo").hidden = !data.photo;
    for (const stage of stages) {
      stage.box.style.setProperty("--ratio", data.width / data.height);
      [stage.canvas.width, stage.canvas.height] = [data.width, data.height];
    }
    if (data.photo) stages[0].context.drawImage(data.photo, 0, 0, data.width, data.height);
    drawDepth(stages[1].context);
    drawLegend();
    find("space").hidden = data.kind === "disparity";
    if (data.kind !== "disparity") space.show(data, point, stages.map((stage) => stage.canvas), other);
    const whole = data.full[0] === data.width && data.full[1] === data.height;
    find("size").textContent = whole ? `${data.width} x ${data.height} pixels, as the photo has.` :
      `This page holds ${data.width} x ${data.height} of the ${data.full[0]} x ${data.full[1]} pixels; ` +
      "--save depth16 or npz keeps all of them.";
    find("about").replaceChildren(...data.about.flatMap(([name, text]) => [["dt", name], ["dd", text]]).map(([kind, text]) =>
      Object.assign(document.createElement(kind), { textContent: text })));
    moveTo(cross);
  }

  find("clear").addEventListener("click", clear);
  find("as-png").addEventListener("click", () => savePng(data));
  find("as-npy").addEventListener("click", () => saveNpy(data));
  return { show };
}

function arrow(key) {
  return { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
}

function complain(text) {
  const notice = document.getElementById("notice");
  notice.textContent = text;
  notice.hidden = !text;
}
