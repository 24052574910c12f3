// Renders emoji artwork: node render.mjs <folder with node_modules> <list.json> <pictures.bin>
// list.json: [[pack, icon], ...] -> pictures.bin: one picture after the other, 64 x 64 x 3 bytes RGB, on white.
import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";

const SIZE = 64;
const [folder, list, out] = process.argv.slice(2);
const require = createRequire(folder + "/package.json");
const { Resvg } = require("@resvg/resvg-js");
const packs = {};

function svg(pack, name) {
  packs[pack] ??= JSON.parse(readFileSync(require.resolve(`@iconify-json/${pack}/icons.json`)));
  const { icons, width, height } = packs[pack];
  const icon = icons[name];
  const [w, h] = [icon.width ?? width ?? 16, icon.height ?? height ?? 16];
  const side = Math.max(w, h);
  const box = [(icon.left ?? 0) - (side - w) / 2, (icon.top ?? 0) - (side - h) / 2, side, side];
  return `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="${box.join(" ")}">${icon.body}</svg>`;
}

function rgb(pack, name) {
  const { pixels, width, height } = new Resvg(svg(pack, name), {
    fitTo: { mode: "width", value: SIZE }, background: "white",
  }).render();
  if (width !== SIZE || height !== SIZE) throw new Error(`${pack}/${name} is not square: ${width} x ${height}`);
  return Buffer.from(pixels.filter((_, i) => i % 4 !== 3));
}

writeFileSync(out, Buffer.concat(JSON.parse(readFileSync(list)).map(([pack, name]) => rgb(pack, name))));
