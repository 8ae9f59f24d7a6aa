"use strict";
// What `--save html` writes: the view of what is in the page.
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!window.DecompressionStream) return complain("This browser is too old for the page: it needs Chrome 80, Firefox 113 or Safari 16.4.");
  const photo = data.photo && Object.assign(new Image(), { src: data.photo });
  if (photo) await photo.decode();
  const [depth, ...rays] = await Promise.all([data.depth, ...data.rays].map((map) => unpacked(map, data.width, data.height)));
  makeView().show({ ...data, depth, rays, photo, palette: fromBase64(data.palette) });
  document.documentElement.dataset.ready = "yes";
})().catch((error) => complain(`The page cannot be shown: ${error.message}`));
