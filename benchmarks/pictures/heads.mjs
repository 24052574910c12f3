// Artwork taken apart: what a yellow face shows, on another head; what it wears, on another animal.

const ELEMENT = /<(path|circle|ellipse)\b[^>]*?\/>/g;
const YELLOW = ["#ffcc4d", "#ffcb4c", "#ffb02e", "#eb8f00"];
const fill = (element) => /fill="([^"]+)"/.exec(element)?.[1];

/** Gradients of Noto's heads, by id. */
function heads(body) {
  return [...body.matchAll(/<radialGradient id="([^"]+)".*?<\/radialGradient>/gs)]
    .filter(([text]) => text.includes("#fde030")).map(([, id]) => `url(#${id})`);
}

/**
 * The body of a yellow face with its head drawn anew: {shape, colour, top, tip}. Throws if it has no yellow head.
 * boxOf: a part of the body -> its {x, y, width, height}.
 */
export function onHead({ body, box }, { shape, colour, top, tip }, boxOf) {
  const yellow = [...YELLOW, ...heads(body)];
  const defs = (body.match(/<defs>.*?<\/defs>/gs) ?? []).join("");
  let drawn = false;
  const face = body.replace(ELEMENT, (element) => {
    if (!yellow.includes(fill(element))) return element;
    if (drawn) return "";
    drawn = true;
    const place = boxOf(defs + element);
    return tops[top](place, colour, tip) + shapes[shape](place, colour);
  });
  if (!drawn) throw new Error("no yellow head");
  if (top === "none") return face;
  const [x, y, side] = box;
  return `<g transform="translate(${x + 0.11 * side} ${y + 0.21 * side}) scale(0.78) translate(${-x} ${-y})">${face}</g>`;
}

/** The parts of a face with these fills, moved and scaled from the face's eyes to the animal's: {fills, scale, eyes, to}. */
export function wearing({ body, box }, { fills, scale, eyes, to }) {
  const [x, y, side] = box;
  const gradients = (body.match(/<defs>.*?<\/defs>/gs) ?? []).join("");
  const worn = (body.match(ELEMENT) ?? []).filter((element) => fills.some((each) => fill(element)?.startsWith(each))
    && !heads(body).includes(fill(element)));
  if (!worn.length) throw new Error(`nothing with ${fills}`);
  return `${gradients}<g transform="translate(${x + side / 2} ${y + to * side}) scale(${scale}) ` +
    `translate(${-(x + side / 2)} ${-(y + eyes * side)})">${worn.join("")}</g>`;
}

const ellipse = (cx, cy, rx, ry, colour) => `<ellipse cx="${cx}" cy="${cy}" rx="${rx}" ry="${ry}" fill="${colour}"/>`;
const polygon = (points, colour, stroke) => `<polygon points="${points.map((p) => p.join(",")).join(" ")}" ` +
  `fill="${colour}" stroke="${colour}" stroke-width="${stroke}" stroke-linejoin="round"/>`;
const mirrored = (cx, draw) => [-1, 1].map((side) => draw((offset) => cx + side * offset)).join("");

const shapes = {
  round: ({ x, y, width: w, height: h }, colour) => ellipse(x + w / 2, y + h / 2, w / 2, h / 2, colour),
  square: ({ x, y, width: w, height: h }, colour) =>
    `<rect x="${x + 0.03 * w}" y="${y + 0.03 * h}" width="${0.94 * w}" height="${0.94 * h}" rx="${0.14 * w}" fill="${colour}"/>`,
  flower: ({ x, y, width: w, height: h }, colour) => [0, 1, 2, 3, 4, 5, 6, 7].map((k) => ellipse(
    x + w / 2 + 0.35 * w * Math.cos(k * Math.PI / 4), y + h / 2 + 0.35 * h * Math.sin(k * Math.PI / 4), 0.17 * w, 0.17 * h,
    colour)).join("") + ellipse(x + w / 2, y + h / 2, 0.38 * w, 0.38 * h, colour),
  hexagon: ({ x, y, width: w, height: h }, colour) => polygon([0, 1, 2, 3, 4, 5].map((k) => [
    x + w / 2 + 0.46 * w * Math.cos(k * Math.PI / 3), y + h / 2 + 0.48 * h * Math.sin(k * Math.PI / 3)]), colour, 0.08 * w),
};

const tops = {
  none: () => "",
  antennae: ({ x, y, width: w, height: h }, colour, tip) => mirrored(x + w / 2, (at) =>
    `<path d="M${at(0.14 * w)} ${y + 0.12 * h}L${at(0.27 * w)} ${y - 0.12 * h}" stroke="${colour}" stroke-width="${0.07 * w}"/>` +
    ellipse(at(0.27 * w), y - 0.14 * h, 0.09 * w, 0.09 * h, tip)),
  ears: ({ x, y, width: w, height: h }, colour, tip) => mirrored(x + w / 2, (at) =>
    ellipse(at(0.36 * w), y + 0.07 * h, 0.2 * w, 0.2 * h, colour) + ellipse(at(0.36 * w), y + 0.07 * h, 0.11 * w, 0.11 * h, tip)),
  horns: ({ x, y, width: w, height: h }, colour, tip) => mirrored(x + w / 2, (at) => polygon(
    [[at(0.1 * w), y + 0.12 * h], [at(0.38 * w), y + 0.2 * h], [at(0.36 * w), y - 0.18 * h]], tip, 0.02 * w)),
  hair: ({ x, y, width: w, height: h }, colour, tip) => polygon([-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3].map((t, k) => [
    x + w * (0.5 + t), y + h * (k % 2 ? -0.17 : 0.12)]), tip, 0.03 * w),
};
