// Shows what the grids say at the sliders' positions. Text goes in as text, never as HTML.

/** The numbers in base64 of little-endian bytes. */
function unpack(base64, Kind) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return new Kind(bytes.buffer);
}

function draw(canvas, rgba, side) {
  canvas.width = side;
  canvas.height = side;
  canvas.classList.toggle("tiny", side < 100);
  canvas.getContext("2d").putImageData(new ImageData(rgba, side, side), 0, 0);
}

const percent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(1)}\u00a0%` : "–");
const length = (share) => `${Number.isFinite(share) ? 100 * Math.min(share, 1) : 0}%`;

/** One image's grid of one model. */
class Answers {
  constructor(grid, names, combinations, unchanged) {
    this.names = names;
    this.top = unpack(grid.top, Uint16Array);
    this.confidence = unpack(grid.confidence, Float32Array);
    this.ds = unpack(grid.ds, Float32Array);
    this.rows = this.top.length / combinations;
    this.unchanged = unchanged;
  }

  /** The class at a rank, from 0. */
  name(at, rank = 0) {
    return this.names[this.top[at * this.rows + rank]];
  }

  flipped(at) {
    return this.top[at * this.rows] !== this.top[this.unchanged * this.rows];
  }

  verdict(at) {
    if (at === this.unchanged) return `Prediction: ${this.name(at)}`;
    if (!this.flipped(at)) return `✓ Same prediction: ${this.name(at)}`;
    return `⇄ Flipped: ${this.name(this.unchanged)} → ${this.name(at)}`;
  }
}

function showAnswers(panel, answers, at, farthest) {
  const verdict = panel.querySelector(".sliders-verdict");
  verdict.textContent = answers.verdict(at);
  verdict.classList.toggle("sliders-flipped", answers.flipped(at));
  panel.querySelectorAll("li").forEach((row, rank) => {
    const confidence = answers.confidence[at * answers.rows + rank];
    row.querySelector(".sliders-name").textContent = answers.name(at, rank);
    row.querySelector(".sliders-number").textContent = percent(confidence);
    row.querySelector(".sliders-bar > span").style.width = length(confidence);
  });
  const ds = answers.ds[at];
  const line = panel.querySelector(".sliders-ds");
  line.querySelector(".sliders-number").textContent = Number.isFinite(ds) ? ds.toFixed(3) : "–";
  line.querySelector(".sliders-bar > span").style.width = length(ds / farthest);
  line.querySelector(".sliders-bar > b").style.left = length(1 / farthest);
}

/** How much of the whole grid flips. */
function showCount(panel, answers) {
  const all = answers.ds.length;
  let flips = 0;
  for (let at = 0; at < all; at++) flips += answers.flipped(at) ? 1 : 0;
  const share = flips && flips < all ? ` (${percent(flips / all)})` : "";
  panel.querySelector(".sliders-count").textContent =
    `Flipped at ${flips.toLocaleString("en")} of all ${all.toLocaleString("en")} combinations${share}`;
}

function start(root) {
  const data = JSON.parse(root.querySelector(".sliders-data").textContent);
  const find = (selector) => root.querySelector(selector);
  const inputs = [...root.querySelectorAll("input[type=range]")];
  const outputs = [...root.querySelectorAll("output")];
  const choices = [...root.querySelectorAll("input[type=radio]")];
  const panels = [...root.querySelectorAll(".sliders-model")];
  const sides = data.positions.map((values) => values.length);
  const place = (steps) => steps.reduce((at, step, kind) => at * sides[kind] + step, 0);
  const combinations = sides.reduce((a, b) => a * b, 1);
  const pictures = data.images.map((image) => unpack(image.rgb, Uint8ClampedArray));
  const original = [1, 1, 1, 0];
  let chosen = 0;
  let answers = [];

  function show() {
    const steps = inputs.map((input) => Number(input.value));
    inputs.forEach((input, kind) => {
      const text = data.labels[kind][steps[kind]];
      input.setAttribute("aria-valuetext", text);
      outputs[kind].textContent = text;
    });
    const factors = steps.map((step, kind) => data.positions[kind][step]);
    const side = data.images[chosen].side;
    draw(find(".sliders-recolored"), recolor(pictures[chosen], factors), side);
    panels.forEach((panel, m) => showAnswers(panel, answers[m], place(steps), data.farthest));
  }

  /** For those who do not see: once a movement is over. */
  function tell() {
    const at = place(inputs.map((input) => Number(input.value)));
    const lines = answers.map((one, m) => {
      const confidence = percent(one.confidence[at * one.rows]);
      return `${data.models[m].name}: ${one.verdict(at)}, ${confidence}.`;
    });
    find(".sliders-status").textContent = lines.join(" ");
  }

  function choose(number) {
    chosen = number;
    const { caption, side } = data.images[chosen];
    const unchanged = place(data.unchanged);
    answers = data.models.map(
      (model) => new Answers(model.grids[chosen], model.names, combinations, unchanged),
    );
    draw(find(".sliders-unchanged"), recolor(pictures[chosen], original), side);
    find(".sliders-unchanged").setAttribute("aria-label", `${caption}, unchanged`);
    find(".sliders-recolored").setAttribute("aria-label", `${caption}, in the sliders' colors`);
    find(".sliders-caption").textContent = caption;
    panels.forEach((panel, m) => showCount(panel, answers[m]));
    show();
  }

  function reset() {
    inputs.forEach((input, kind) => {
      input.value = data.unchanged[kind];
    });
    show();
  }

  inputs.forEach((input) => {
    input.addEventListener("input", show);
    input.addEventListener("change", tell);
  });
  choices.forEach((choice, number) => {
    const { side } = data.images[number];
    draw(choice.parentElement.querySelector("canvas"), recolor(pictures[number], original), side);
    choice.addEventListener("change", () => {
      choose(number);
      tell();
    });
  });
  find(".sliders-reset").addEventListener("click", () => {
    reset();
    tell();
  });
  choices[0].checked = true;
  choose(0);
  reset();
}

function startAll() {
  document.querySelectorAll(".sliders").forEach(start);
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
else startAll();
