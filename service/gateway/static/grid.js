/** The token grid: every token a cell, coloured by its bits, read by pointer or arrow keys. */

const CANVAS_PX = 768;
const ARROWS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
const PLANE_COLOURS = { 0: "#27413b", 1: "#f2c14e" };
const GOLDEN_ANGLE = Math.PI * (3 - Math.sqrt(5));

export class TokenGrid {
  #canvas = document.querySelector("#grid");
  #patches = [...document.querySelectorAll("#views .patch")];
  #readout = document.querySelector("#readout");
  #tokens = [];
  #indices = [];
  #at = null;
  #plane = null;

  constructor() {
    this.#canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.#canvas.addEventListener("pointerdown", (event) => this.#point(event));
    this.#canvas.addEventListener("focus", () => this.#read(this.#at ?? [0, 0]));
    this.#canvas.addEventListener("keydown", (event) => this.#move(event));
  }

  /**
   * @param {string[][]} tokens bit strings [h][w], least significant bit first
   * @param {number[][]} indices [h][w]
   */
  show(tokens, indices) {
    this.#tokens = tokens;
    this.#indices = indices;
    this.#at = null;
    for (const patch of this.#patches) patch.hidden = true;
    this.#readout.textContent = "Point at a token to read its bits.";
    this.#canvas.tabIndex = 0;
    this.#canvas.hidden = false;
    this.#paint();
  }

  clear() {
    this.#canvas.hidden = true;
    for (const patch of this.#patches) patch.hidden = true;
  }

  /** Shows one bit of every token, or all of them when `plane` is null. */
  setPlane(plane) {
    this.#plane = plane;
    this.#paint();
    if (this.#at) this.#read(this.#at);
  }

  #paint() {
    const [rows, columns] = [this.#tokens.length, this.#tokens[0]?.length ?? 0];
    if (!columns) return;
    const cell = Math.max(4, Math.floor(CANVAS_PX / Math.max(rows, columns)));
    const gap = Math.max(1, Math.round(cell / 16));
    this.#canvas.width = columns * cell;
    this.#canvas.height = rows * cell;
    const context = this.#canvas.getContext("2d");
    for (const [row, line] of this.#tokens.entries()) {
      for (const [column, bits] of line.entries()) {
        context.fillStyle = this.#plane === null ? colourOf(bits) : PLANE_COLOURS[bits[this.#plane]];
        context.fillRect(column * cell, row * cell, cell - gap, cell - gap);
      }
    }
  }

  #point(event) {
    const box = this.#canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * this.#tokens.length);
    const column = Math.floor(((event.clientX - box.left) / box.width) * this.#tokens[0].length);
    if (this.#tokens[row]?.[column] !== undefined) this.#read([row, column]);
  }

  #move(event) {
    const arrow = ARROWS[event.key];
    if (!arrow) return;
    event.preventDefault();
    const [row, column] = this.#at ?? [0, 0];
    this.#read([
      Math.min(this.#tokens.length - 1, Math.max(0, row + arrow[0])),
      Math.min(this.#tokens[0].length - 1, Math.max(0, column + arrow[1])),
    ]);
  }

  #read([row, column]) {
    this.#at = [row, column];
    const bits = this.#tokens[row][column];
    const shown = [...bits].map((bit, k) => {
      const element = document.createElement(k === this.#plane ? "mark" : "span");
      element.textContent = bit;
      return element;
    });
    const code = document.createElement("code");
    code.append(...shown);
    const index = this.#indices[row][column];
    this.#readout.replaceChildren(`Row ${row + 1}, column ${column + 1} · index ${index} · bits `, code);
    for (const patch of this.#patches) this.#place(patch, row, column);
  }

  /** Marks the token's square in each of the three pictures. */
  #place(patch, row, column) {
    const [rows, columns] = [this.#tokens.length, this.#tokens[0].length];
    Object.assign(patch.style, {
      left: `${(column / columns) * 100}%`,
      top: `${(row / rows) * 100}%`,
      width: `${100 / columns}%`,
      height: `${100 / rows}%`,
    });
    patch.hidden = false;
  }
}

/**
 * A colour in which every bit has its say: each pulls hue (in OKLab) and lightness in a direction of its
 * own, so tokens that share many bits look alike.
 * @param {string} bits
 */
export function colourOf(bits) {
  let [light, a, b] = [0, 0, 0];
  for (const [k, bit] of [...bits].entries()) {
    const sign = bit === "1" ? 1 : -1;
    a += sign * Math.cos(k * GOLDEN_ANGLE);
    b += sign * Math.sin(k * GOLDEN_ANGLE);
    light += sign * Math.cos(k * 2);
  }
  const scale = Math.sqrt(bits.length / 2);
  const soft = (sum, reach) => reach * Math.tanh(sum / scale);
  return `oklab(${0.68 + soft(light, 0.17)} ${soft(a, 0.12)} ${soft(b, 0.12)})`;
}
