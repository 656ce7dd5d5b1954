/** The cells of a token grid under the hand: which one is chosen, which box is selected, what the mask covers. */

import { span } from "./bits.js";

/** What a hand does to the cells: "bits" chooses and selects them, "mask" paints on them. */
export class Cells {
  rows = 0;
  columns = 0;
  tool = "bits";
  brush = 3;
  erasing = false;
  cursor = null;
  hovered = null;
  box = null;
  mask = [];
  /** Whether the mask covers what it marks; once that is drawn anew, only its edge is shown. */
  veiled = true;
  #anchor = null;
  #dragged = false;
  #onChange;
  #onPress;

  /**
   * @param {() => void} onChange called after every change
   * @param {(cell: [number, number]) => void} onPress called when a cell is pressed with the tool "bits"
   */
  constructor(onChange, onPress) {
    this.#onChange = onChange;
    this.#onPress = onPress;
  }

  /** Begins anew on a grid of this size. */
  fit(rows, columns) {
    Object.assign(this, { rows, columns, cursor: null, hovered: null, box: null });
    this.cover(() => false);
  }

  /** Covers the cells for which `wanted(row, column)` is true. */
  cover(wanted) {
    this.mask = Array.from({ length: this.rows }, (_, row) =>
      Array.from({ length: this.columns }, (_, column) => Boolean(wanted(row, column))),
    );
    this.veiled = true;
    this.#onChange();
  }

  get covered() {
    return this.mask.flat().filter(Boolean).length;
  }

  use(tool) {
    Object.assign(this, { tool, box: null });
    this.#onChange();
  }

  unveil() {
    this.veiled = false;
    this.#onChange();
  }

  deselect() {
    this.box = null;
    this.#onChange();
  }

  hover(cell) {
    if (String(cell) === String(this.hovered)) return;
    this.hovered = cell;
    this.#onChange();
  }

  press(cell) {
    this.#anchor = this.cursor = cell;
    this.hovered = null;
    this.#dragged = false;
    if (this.tool === "mask") this.#paint(cell, !this.erasing);
    this.#onChange();
  }

  drag(cell) {
    if (!this.#anchor || String(cell) === String(this.cursor)) return;
    if (this.tool === "mask") for (const one of line(this.cursor, cell)) this.#paint(one, !this.erasing);
    else this.box = span(this.#anchor, cell);
    this.#dragged = true;
    this.cursor = cell;
    this.#onChange();
  }

  /** The hand is lifted: a press that was no drag chooses the cell, or ends a selection. */
  release() {
    const pressed = this.#anchor && !this.#dragged && this.tool === "bits";
    this.#anchor = null;
    if (pressed) this.#choose();
  }

  /** The gesture became something else, as a scroll does. */
  abandon() {
    this.#anchor = null;
  }

  /** The keyboard has come here. */
  enter() {
    this.cursor ??= [0, 0];
    this.#onChange();
  }

  /** Moves the cursor by keyboard; `extend` selects or paints on the way. */
  move(down, right, extend) {
    const from = this.cursor ?? [0, 0];
    this.cursor = [clamp(from[0] + down, this.rows), clamp(from[1] + right, this.columns)];
    if (this.tool === "bits") {
      this.#anchor = extend ? (this.#anchor ?? from) : null;
      this.box = extend ? span(this.#anchor, this.cursor) : this.box;
    } else if (extend) {
      this.#paint(this.cursor, !this.erasing);
    }
    this.#onChange();
  }

  /** Space or Enter on the cell of the cursor. */
  act() {
    this.cursor ??= [0, 0];
    const [row, column] = this.cursor;
    this.#anchor = null;
    if (this.tool === "bits") this.#choose();
    else this.#paint(this.cursor, !this.mask[row][column]);
    this.#onChange();
  }

  #choose() {
    if (this.box) this.deselect();
    else this.#onPress(this.cursor);
  }

  #paint([row, column], value) {
    this.veiled = true;
    const before = (this.brush - 1) >> 1;
    const inside = (at, from) => at >= from - before && at < from - before + this.brush;
    for (const [r, line] of this.mask.entries()) {
      for (const c of line.keys()) if (inside(r, row) && inside(c, column)) line[c] = value;
    }
  }
}

const clamp = (at, count) => Math.min(count - 1, Math.max(0, at));

/** The cells between two, so that a quick stroke leaves no holes. */
function line([row, column], [toRow, toColumn]) {
  const steps = Math.max(Math.abs(toRow - row), Math.abs(toColumn - column));
  return Array.from({ length: steps }, (_, k) => [
    Math.round(row + ((toRow - row) * (k + 1)) / steps),
    Math.round(column + ((toColumn - column) * (k + 1)) / steps),
  ]);
}
