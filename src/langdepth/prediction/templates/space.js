"use strict";
// A depth map as a surface to turn, in WebGL. Its frame is the camera's: x right, y down, z forward.
const MOST_VERTICES = 250000;
const STEEPEST = 25; // rise of a surface over its width across the line of sight, beyond which it is torn
const FIELD = 0.9; // radians, of the view's smaller side

function makeSpace(box, moved) {
  const canvas = box.querySelector("canvas");
  canvas.insertAdjacentHTML("afterend", '<svg aria-hidden="true"><line style="display:none"></line></svg><b class="span" aria-hidden="true" hidden></b>');
  const gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
  const find = (id) => document.getElementById(id);
  let pivot = [0, 0, 1], home = 1, view = null, count = 0, vertices = 0, sources = [], waiting = false;
  const start = () => ({ yaw: -.35, pitch: .2, distance: 1.15 * home, right: 0, up: 0 });

  if (!gl) {
    box.replaceChildren(Object.assign(document.createElement("p"), { className: "hint", textContent: "This browser has no WebGL 2." }));
    return { box, show() {}, project: () => null };
  }
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, `#version 300 es
    in vec3 place; in vec2 texel; uniform mat4 view; out vec2 at;
    void main() { gl_Position = view * vec4(place, 1.0); gl_PointSize = 2.0; at = texel; }`],
  [gl.FRAGMENT_SHADER, `#version 300 es
    precision mediump float; in vec2 at; uniform sampler2D photo; out vec4 color;
    void main() { color = texture(photo, at); }`]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  gl.useProgram(program);
  gl.enable(gl.DEPTH_TEST);
  ["place", "texel"].forEach((name, i) => {
    const at = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, 3 - i, gl.FLOAT, false, 0, 0);
  });
  const buffers = ["place", "texel"].map((name) =>
    gl.getVertexAttrib(gl.getAttribLocation(program, name), gl.VERTEX_ATTRIB_ARRAY_BUFFER_BINDING));
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  for (const [name, value] of [[gl.TEXTURE_MIN_FILTER, gl.LINEAR], [gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE],
    [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE]]) gl.texParameteri(gl.TEXTURE_2D, name, value);

  // From the camera's frame to clip space, columns one after the other.
  function matrix() {
    const { yaw, pitch, distance, right, up } = view;
    const [s, c, sp, cp] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
    // Rows of the turn, with y and z pointing up and back; then the move away from the eye.
    const rows = [[c, 0, -s], [sp * s, -cp, sp * c], [-cp * s, -sp, -cp * c]];
    const shift = rows.map((row, i) => [right, up, -distance][i] - row[0] * pivot[0] - row[1] * pivot[1] - row[2] * pivot[2]);
    const wide = canvas.width / canvas.height, focal = 1 / Math.tan(FIELD / 2);
    const [fx, fy] = wide > 1 ? [focal / wide, focal] : [focal, focal * wide];
    const near = Math.max(.01 * distance, distance - 4 * home), far = distance + 60 * home;
    const z = (near + far) / (near - far), w = 2 * near * far / (near - far);
    const [x, y, back] = rows.map((row, i) => [...row, shift[i]]);
    return new Float32Array([0, 1, 2, 3].flatMap((i) => [fx * x[i], fy * y[i], z * back[i] + (i === 3 ? w : 0), -back[i]]));
  }

  function draw() {
    waiting = false;
    if (!count && !vertices) return;
    const scale = Math.min(2, window.devicePixelRatio || 1);
    const size = [Math.round(box.clientWidth * scale), Math.round(box.clientHeight * scale)];
    if (!size[0] || !size[1]) return;
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    gl.viewport(0, 0, ...size);
    gl.clearColor(.05, .055, .065, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniformMatrix4fv(gl.getUniformLocation(program, "view"), false, matrix());
    if (find("as-points").checked) gl.drawArrays(gl.POINTS, 0, vertices);
    else gl.drawElements(gl.TRIANGLES, count, gl.UNSIGNED_INT, 0);
    moved();
  }

  function redraw() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  function paint() {
    const source = find("by-depth").checked || !sources[0] ? sources[1] : sources[0];
    if (source) gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, source);
    redraw();
  }

  // `point` gives the place of a pixel of the map, `canvases` are its photo and its colors.
  function show(data, point, canvases, again) {
    const { width, height, depth } = data;
    const step = Math.max(1, Math.ceil(Math.sqrt(width * height / MOST_VERTICES)));
    const columns = Math.ceil(width / step), rows = Math.ceil(height / step), numbers = new Int32Array(columns * rows).fill(-1);
    const places = [], texels = [], indices = [], depths = [];
    for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
      const at = [Math.min(width - 1, column * step), Math.min(height - 1, row * step)], one = point(at);
      if (!(one[2] > 0) || !one.every(Number.isFinite)) continue;
      numbers[row * columns + column] = depths.length;
      depths.push(one[2]);
      places.push(...one);
      texels.push((at[0] + .5) / width, (at[1] + .5) / height);
    }
    const middle = (height >> 1) * width + (width >> 1), [across, down] = data.rays;
    const most = 1 + STEEPEST * step * Math.abs(across[middle] - across[middle - 1] || .002);
    const add = (...corners) => {
      const at = corners.map((i) => numbers[i]);
      if (at.includes(-1)) return;
      const z = at.map((i) => depths[i]);
      if (Math.max(...z) <= most * Math.min(...z)) indices.push(...at);
    };
    for (let row = 0; row + 1 < rows; row++) for (let i = row * columns; i + 1 < (row + 1) * columns; i++) {
      add(i, i + 1, i + columns);
      add(i + 1, i + columns + 1, i + columns);
    }
    [places, texels].forEach((values, i) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffers[i]);
      gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(values), gl.STATIC_DRAW);
    });
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, new Uint32Array(indices), gl.STATIC_DRAW);
    [count, vertices] = [indices.length, depths.length];
    sources = data.photo ? canvases : [null, canvases[1]];
    find("by-depth").parentElement.hidden = !data.photo;
    if (again || !view) {
      depths.sort((one, other) => one - other);
      home = depths[depths.length >> 1] || 1;
      pivot = [home * across[middle], home * down[middle], home];
      view = start();
    }
    paint();
  }

  // Where a point is in the view, from 0 to 1; null behind the eye.
  function project(place) {
    const m = matrix();
    const [x, y, , w] = [0, 1, 2, 3].map((row) => m[row] * place[0] + m[4 + row] * place[1] + m[8 + row] * place[2] + m[12 + row]);
    return w > 0 ? [(x / w + 1) / 2, (1 - y / w) / 2] : null;
  }

  function turn(right, down) {
    view.yaw += right;
    view.pitch = Math.min(1.5, Math.max(-1.5, view.pitch + down));
    redraw();
  }
  function move(right, down) {
    view.right += right * view.distance;
    view.up -= down * view.distance;
    redraw();
  }
  function zoom(factor) {
    view.distance = Math.min(20 * home, Math.max(.02 * home, view.distance * factor));
    redraw();
  }
  function reset() {
    view = start();
    redraw();
  }

  const fingers = new Map();
  box.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event);
    box.setPointerCapture(event.pointerId);
  });
  box.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before || !view) return;
    const across = [event.clientX - before.clientX, event.clientY - before.clientY].map((d) => d / box.clientHeight);
    const other = [...fingers.values()].find((one) => one.pointerId !== event.pointerId);
    if (other) {
      const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
      zoom(apart(before) / apart(event));
      move(across[0] / 2, across[1] / 2);
    } else if (event.shiftKey || event.buttons & 6) move(...across);
    else turn(2.5 * across[0], 2.5 * across[1]);
    fingers.set(event.pointerId, event);
  });
  for (const name of ["pointerup", "pointercancel"]) box.addEventListener(name, (event) => fingers.delete(event.pointerId));
  box.addEventListener("contextmenu", (event) => event.preventDefault());
  box.addEventListener("wheel", (event) => {
    if (!view || (document.activeElement !== box && !event.ctrlKey)) return; // the page scrolls until the view was chosen
    zoom(Math.exp(.0015 * event.deltaY));
    event.preventDefault();
  }, { passive: false });
  box.addEventListener("keydown", (event) => {
    const way = arrow(event.key);
    if (!view || event.ctrlKey || event.metaKey || event.altKey) return;
    if (way) (event.shiftKey ? move : turn)(...way.map((one) => .06 * one));
    else if (event.key === "+" || event.key === "=") zoom(1 / 1.1);
    else if (event.key === "-") zoom(1.1);
    else if (event.key === "0") reset();
    else return;
    event.preventDefault();
  });
  find("reset").addEventListener("click", () => { if (view) reset(); });
  find("by-depth").addEventListener("change", paint);
  find("as-points").addEventListener("change", redraw);
  canvas.addEventListener("webglcontextlost", () => complain("The 3D view was lost; load the page again."));
  new ResizeObserver(redraw).observe(box);
  return { box, show, project };
}
