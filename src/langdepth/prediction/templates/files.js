"use strict";
// The files that a page gives, the same as those of `langdepth predict`, and what it holds itself.
const through = async (kind, bytes) => new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(kind)).arrayBuffer());
const fromBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const ascii = (text) => Uint8Array.from(text, (letter) => letter.charCodeAt(0));

// Differences of neighbours' bits, along columns of differences along rows, each byte of them in a plane of its own.
async function unpacked(text, width, height) {
  const planes = await through(new DecompressionStream("deflate"), fromBase64(text));
  const bits = new Uint32Array(width * height), count = bits.length;
  for (let i = 0; i < count; i++) {
    bits[i] = planes[i] | planes[count + i] << 8 | planes[2 * count + i] << 16 | planes[3 * count + i] << 24;
    if (i >= width) bits[i] += bits[i - width];
  }
  for (let i = 0; i < count; i++) if (i % width) bits[i] += bits[i - 1];
  return new Float32Array(bits.buffer);
}

function save(parts, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// As --save depth16: units of `scale` from 1 to 65535, 0 where there is no value.
async function savePng(data) {
  const { width, height, depth, kind, system } = data;
  const farthest = depth.reduce((most, one) => Math.max(most, one), 0);
  const base = kind === "metric" || !farthest ? .001 : farthest / 65535;
  const scale = base * Math.max(1, Math.ceil(farthest / base / 65535 - 1e-6));
  const rows = new DataView(new ArrayBuffer(height * (2 * width + 1)));
  for (let i = 0; i < depth.length; i++) {
    const exact = Math.fround(depth[i] / Math.fround(scale)), near = Math.round(exact); // as NumPy: halves to even
    const units = depth[i] > 0 ? Math.min(65535, Math.max(1, near - exact === .5 ? near - near % 2 : near)) : 0;
    rows.setUint16(Math.floor(i / width) * (2 * width + 1) + 1 + i % width * 2, units);
  }
  const head = new DataView(new ArrayBuffer(13));
  head.setUint32(0, width);
  head.setUint32(4, height);
  head.setUint8(8, 16); // bits, of grey
  const tag = { unit: data.unit, scale, scale_kind: kind, system, no_value: 0 };
  const text = JSON.stringify(tag).replace(/[^ -~]/g, (letter) => "\\u" + letter.charCodeAt(0).toString(16).padStart(4, "0"));
  const pixels = await through(new CompressionStream("deflate"), rows.buffer);
  save([new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), ...chunk("IHDR", new Uint8Array(head.buffer)),
    ...chunk("tEXt", ascii("langdepth\0" + text)), ...chunk("IDAT", pixels), ...chunk("IEND", new Uint8Array())],
  `${data.name}_depth.png`, "image/png");
}

function chunk(name, content) {
  const body = new Uint8Array(4 + content.length), [length, check] = [0, 0].map(() => new DataView(new ArrayBuffer(4)));
  body.set(ascii(name));
  body.set(content, 4);
  let sum = -1;
  for (const byte of body) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = sum & 1 ? sum >>> 1 ^ 0xedb88320 : sum >>> 1;
  }
  length.setUint32(0, content.length);
  check.setUint32(0, ~sum >>> 0);
  return [length, body, check];
}

function saveNpy(data) {
  const head = `{'descr': '<f4', 'fortran_order': False, 'shape': (${data.height}, ${data.width}), }`.padEnd(245) + "\n";
  save([new Uint8Array([0x93]), ascii("NUMPY\x01\x00\xf6\x00" + head), data.depth], `${data.name}.npy`, "application/octet-stream");
}
