// Renders emoji artwork: node render.mjs <folder with node_modules> <list.json> <pictures.bin>
// list.json: [[pack, icon, change], ...] -> pictures.bin: one picture after the other, 64 x 64 x 3 bytes RGB, on white.
// change, if any: {head: {...}} or {wears: {...}}, see heads.mjs.
import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";
import { onHead, wearing } from "./heads.mjs";

const SIZE = 64;
const NO_FONTS = { font: { loadSystemFonts: false } };
const [folder, list, out] = process.argv.slice(2);
const require = createRequire(folder + "/package.json");
const { Resvg } = require("@resvg/resvg-js");
const packs = {};

function artwork(pack, name) {
  packs[pack] ??= JSON.parse(readFileSync(require.resolve(`@iconify-json/${pack}/icons.json`)));
  const { icons, width, height } = packs[pack];
  const icon = icons[name];
  const [w, h] = [icon.width ?? width ?? 16, icon.height ?? height ?? 16];
  const side = Math.max(w, h);
  return { body: icon.body, box: [(icon.left ?? 0) - (side - w) / 2, (icon.top ?? 0) - (side - h) / 2, side, side] };
}

function svg({ body, box }) {
  return `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="${box.join(" ")}">${body}</svg>`;
}

function changed(pack, name, { head, wears }) {
  const shown = artwork(pack, name);
  if (head) return { ...shown, body: onHead(shown, head, (part) => new Resvg(svg({ ...shown, body: part }), NO_FONTS).getBBox()) };
  return { ...shown, body: shown.body + wearing(artwork(pack, wears.icon), wears) };
}

function rgb(pack, name, change) {
  const { pixels, width, height } = new Resvg(svg(change ? changed(pack, name, change) : artwork(pack, name)), {
    fitTo: { mode: "width", value: SIZE }, background: "white", ...NO_FONTS,
  }).render();
  if (width !== SIZE || height !== SIZE) throw new Error(`${pack}/${name} is not square: ${width} x ${height}`);
  return Buffer.from(pixels.filter((_, i) => i % 4 !== 3));
}

writeFileSync(out, Buffer.concat(JSON.parse(readFileSync(list)).map((entry) => rgb(...entry))));
