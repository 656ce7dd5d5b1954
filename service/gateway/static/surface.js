/** The layer over a picture or a token grid: takes pointer and keys, shows cursor, selection and mask. */

const LAYER_PX = 768;
const ARROWS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };

export class Surface {
  #canvas;
  #cells;

  /** @param {HTMLCanvasElement} canvas @param {import("./cells.js").Cells} cells */
  constructor(canvas, cells) {
    this.#canvas = canvas;
    this.#cells = cells;
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", () => cells.release());
    canvas.addEventListener("pointercancel", () => cells.abandon());
    canvas.addEventListener("pointerleave", () => cells.hover(null));
    canvas.addEventListener("focus", () => cells.enter());
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  paint() {
    const { rows, columns, mask, veiled, box, cursor, hovered, tool } = this.#cells;
    if (!columns) return;
    const cell = Math.max(4, Math.floor(LAYER_PX / Math.max(rows, columns)));
    this.#canvas.width = columns * cell;
    this.#canvas.height = rows * cell;
    this.#canvas.dataset.tool = tool;
    const context = this.#canvas.getContext("2d");
    if (tool === "mask") {
      if (veiled) veil(context, mask, cell);
      outline(context, mask, cell);
    }
    if (box) frame(context, box, cell, 6);
    if (hovered) frame(context, around(hovered), cell, 3);
    if (cursor && (veiled || tool === "bits")) frame(context, around(cursor), cell, 6);
  }

  #press(event) {
    if (event.button !== 0) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#cells.press(this.#cellAt(event));
  }

  #move(event) {
    if (this.#canvas.hasPointerCapture(event.pointerId)) this.#cells.drag(this.#cellAt(event));
    else if (event.pointerType === "mouse") this.#cells.hover(this.#cellAt(event));
  }

  #cellAt({ clientX, clientY }) {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    const { rows, columns } = this.#cells;
    const at = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    return [at((clientY - top) / height, rows), at((clientX - left) / width, columns)];
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (ARROWS[event.key]) this.#cells.move(...ARROWS[event.key], event.shiftKey);
    else if (event.key === " " || event.key === "Enter") this.#cells.act();
    else if (event.key === "Escape" && this.#cells.box) this.#cells.deselect();
    else return;
    event.preventDefault();
  }
}

const around = ([row, column]) => [row, column, row + 1, column + 1];

/** A light line in a dark one, to be seen on any picture. */
function frame(context, [top, left, bottom, right], cell, width) {
  const inset = width / 2 + 1;
  const box = [left * cell + inset, top * cell + inset];
  const size = [(right - left) * cell - 2 * inset, (bottom - top) * cell - 2 * inset];
  for (const [colour, line] of [["#111", width + 3], ["#fff", width]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.strokeRect(...box, ...size);
  }
}

/** Covers the marked cells so that what is below still shows. */
function veil(context, mask, cell) {
  for (const [row, line] of mask.entries()) {
    for (const [column, covered] of line.entries()) {
      if (covered) hatch(context, column * cell, row * cell, cell);
    }
  }
}

/** Draws the edge between marked and unmarked cells. */
function outline(context, mask, cell) {
  context.beginPath();
  for (const [row, line] of mask.entries()) {
    for (const [column, covered] of line.entries()) {
      const [x, y] = [column * cell, row * cell];
      if (covered !== Boolean(mask[row - 1]?.[column])) segment(context, x, y, x + cell, y);
      if (covered !== Boolean(line[column - 1])) segment(context, x, y, x, y + cell);
    }
  }
  for (const [colour, width] of [["#fff", 5], ["#a3341f", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
  }
}

function segment(context, fromX, fromY, toX, toY) {
  context.moveTo(fromX, fromY);
  context.lineTo(toX, toY);
}

function hatch(context, x, y, cell) {
  context.fillStyle = "rgb(255 255 255 / 72%)";
  context.fillRect(x, y, cell, cell);
  context.strokeStyle = "#a3341f";
  context.lineWidth = 2;
  context.beginPath();
  for (const shift of [0.25, 0.5, 0.75, 1]) {
    context.moveTo(x, y + shift * cell);
    context.lineTo(x + shift * cell, y);
    context.moveTo(x + shift * cell, y + cell);
    context.lineTo(x + cell, y + shift * cell);
  }
  context.stroke();
}
