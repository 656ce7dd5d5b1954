/** The bits of the tokens: which plane is shown, the bits of the chosen token, and changes of whole planes. */

import { indexOf } from "./bits.js";

const byId = (id) => document.getElementById(id);

export class Planes {
  plane = null;
  #cells;
  #operate;
  #onPlane;
  #options = byId("plane-options");
  #readout = byId("readout");
  #bits = byId("token-bits");
  #where = byId("plane-where");
  #tokens = null;

  /**
   * @param {import("./cells.js").Cells} cells
   * @param {(operation: object) => void} operate changes the tokens
   * @param {() => void} onPlane called when another plane is shown
   */
  constructor(cells, operate, onPlane) {
    this.#cells = cells;
    this.#operate = operate;
    this.#onPlane = onPlane;
    this.#options.addEventListener("change", ({ target }) => {
      this.plane = target.value === "all" ? null : Number(target.value);
      onPlane();
    });
    this.#bits.addEventListener("click", ({ target }) => this.#toggle(target.closest("button")));
    for (const button of document.querySelectorAll("[data-op]")) {
      button.addEventListener("click", () => this.#everywhere(button.dataset.op));
    }
    byId("deselect").addEventListener("click", () => cells.deselect());
  }

  /** Makes room for tokens of so many bits. */
  fit(bits) {
    this.plane = null;
    const planes = Array.from({ length: bits }, (_, k) => planeOption(k, k, false));
    this.#options.replaceChildren(planeOption("all", "all bits", true), ...planes);
    this.#bits.replaceChildren(...Array.from({ length: bits }, (_, k) => bitButton(k)));
  }

  /** A cell was pressed: where one plane is shown, its bit flips. */
  press([row, column]) {
    if (this.plane === null) return;
    this.#operate({ op: "flip", bits: [this.plane], box: [row, column, row + 1, column + 1] });
  }

  /** Shows the bits of the cell that is pointed at or chosen. @param {string[][]} tokens */
  show(tokens) {
    this.#tokens = tokens;
    const { cursor, hovered, box } = this.#cells;
    const [bit, place] = [this.plane === null ? "all bits" : `bit ${this.plane}`, inWords(box)];
    for (const button of document.querySelectorAll("[data-op]")) {
      button.querySelector("span").textContent = bit;
    }
    this.#where.textContent = place;
    byId("deselect").hidden = !box;
    this.#read(hovered ?? cursor);
    this.#showBits(cursor);
  }

  #read(cell) {
    if (!cell) {
      this.#readout.textContent = "No token chosen";
      return;
    }
    const [row, column] = cell;
    const token = this.#tokens[row][column];
    const bit = this.plane === null ? "" : `, bit ${this.plane} is ${token[this.plane] === "1" ? "on" : "off"}`;
    this.#readout.textContent = `Row ${row + 1}, column ${column + 1}: token ${indexOf(token)}${bit}`;
  }

  #showBits(cell) {
    const token = cell && this.#tokens[cell[0]][cell[1]];
    for (const [k, button] of [...this.#bits.children].entries()) {
      button.disabled = !cell;
      button.setAttribute("aria-pressed", String(token?.[k] === "1"));
      button.querySelector("b").textContent = token?.[k] ?? "–";
      button.classList.toggle("shown", k === this.plane);
    }
  }

  #toggle(button) {
    if (!button) return;
    const [row, column] = this.#cells.cursor;
    this.#operate({ op: "flip", bits: [Number(button.dataset.bit)], box: [row, column, row + 1, column + 1] });
  }

  #everywhere(op) {
    const all = this.#tokens[0][0].length;
    const bits = this.plane === null ? Array.from({ length: all }, (_, k) => k) : [this.plane];
    this.#operate({ op, bits, ...(this.#cells.box && { box: this.#cells.box }) });
  }
}

function inWords(box) {
  if (!box) return "in every token";
  const [top, left, bottom, right] = box;
  return `in the ${bottom - top} × ${right - left} tokens selected`;
}

function planeOption(value, text, checked) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "plane", value, checked });
  const face = Object.assign(document.createElement("span"), { textContent: text });
  if (value !== "all") input.setAttribute("aria-label", `bit ${value}`);
  label.append(input, face);
  return label;
}

function bitButton(k) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "bit" });
  button.dataset.bit = String(k);
  button.setAttribute("aria-label", `Bit ${k} of the token`);
  const number = Object.assign(document.createElement("small"), { textContent: k });
  button.append(document.createElement("b"), number);
  return button;
}
