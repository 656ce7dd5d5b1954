/** NumPy's file format, version 1.0, for a grid of token indices. */

/** @param {number[][]} rows whole numbers below 2^31 @returns {Blob} an int32 array of shape (h, w) */
export function npy(rows) {
  const shape = `(${rows.length}, ${rows[0].length})`;
  const about = `{'descr': '<i4', 'fortran_order': False, 'shape': ${shape}, }`;
  // Ten bytes go before the description; it ends in a line feed at a multiple of 64 bytes.
  const header = about.padEnd(Math.ceil((about.length + 11) / 64) * 64 - 11) + "\n";
  const length = new Uint8Array(new Uint16Array([header.length]).buffer);
  const start = Uint8Array.of(0x93, ...new TextEncoder().encode("NUMPY"), 1, 0, ...length);
  return new Blob([start, header, Int32Array.from(rows.flat())]);
}
