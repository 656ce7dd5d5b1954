/** Paints a token grid: each token a cell, coloured by all of its bits or by one. */

import { BIT_COLOURS, colourOf } from "./palette.js";

const CANVAS_PX = 768;

/**
 * @param {HTMLCanvasElement} canvas
 * @param {string[][]} tokens
 * @param {number | null} plane the bit to show, null for all
 */
export function paintTokens(canvas, tokens, plane) {
  const [rows, columns] = [tokens.length, tokens[0].length];
  const cell = Math.max(4, Math.floor(CANVAS_PX / Math.max(rows, columns)));
  const gap = Math.max(1, Math.round(cell / 16));
  canvas.width = columns * cell;
  canvas.height = rows * cell;
  const context = canvas.getContext("2d");
  for (const [row, line] of tokens.entries()) {
    for (const [column, token] of line.entries()) {
      context.fillStyle = plane === null ? colourOf(token) : BIT_COLOURS[token[plane]];
      context.fillRect(column * cell, row * cell, cell - gap, cell - gap);
    }
  }
}
