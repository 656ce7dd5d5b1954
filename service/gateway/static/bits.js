/** Token grids as rows of bit strings, bit 0 first, and operations as `POST /edit` means them. */

const RESULT = {
  flip: (bit) => (bit === "1" ? "0" : "1"),
  set: () => "1",
  clear: () => "0",
};

/**
 * @param {string[][]} tokens
 * @param {{op: "flip" | "set" | "clear", bits: number[], box?: number[]}} operation `box` is top, left,
 *   bottom and right in tokens, ends excluded; everywhere if absent
 */
export function operate(tokens, { op, bits, box = [0, 0, Infinity, Infinity] }) {
  const [top, left, bottom, right] = box;
  const inside = (row, column) => row >= top && row < bottom && column >= left && column < right;
  const change = (token) => [...token].map((bit, k) => (bits.includes(k) ? RESULT[op](bit) : bit)).join("");
  return tokens.map((line, row) => line.map((token, column) => (inside(row, column) ? change(token) : token)));
}

/** The index of a token; no bit operators, which end at 32 bits. */
export const indexOf = (token) => [...token].reduceRight((sum, bit) => sum * 2 + Number(bit), 0);

export const indicesOf = (tokens) => tokens.map((line) => line.map(indexOf));

export const bitsIn = (tokens) => tokens.length * tokens[0].length * tokens[0][0].length;

/** In how many bits two grids differ. */
export function distance(one, other) {
  const [a, b] = [one.flat().join(""), other.flat().join("")];
  return [...a].filter((bit, k) => bit !== b[k]).length;
}

/** The smallest box that holds two cells [row, column]. */
export function span([row, column], [otherRow, otherColumn]) {
  return [
    Math.min(row, otherRow),
    Math.min(column, otherColumn),
    Math.max(row, otherRow) + 1,
    Math.max(column, otherColumn) + 1,
  ];
}
