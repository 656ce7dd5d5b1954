/** The colours of tokens and bits. */

const GOLDEN_ANGLE = Math.PI * (3 - Math.sqrt(5));

/** Of one bit, off and on. */
export const BIT_COLOURS = { 0: "#27413b", 1: "#f2c14e" };

/**
 * A colour in which every bit has its say: each pulls hue (in OKLab) and lightness in a direction of its
 * own, so tokens that share many bits look alike.
 * @param {string} token
 */
export function colourOf(token) {
  let [light, a, b] = [0, 0, 0];
  for (const [k, bit] of [...token].entries()) {
    const sign = bit === "1" ? 1 : -1;
    a += sign * Math.cos(k * GOLDEN_ANGLE);
    b += sign * Math.sin(k * GOLDEN_ANGLE);
    light += sign * Math.cos(k * 2);
  }
  const scale = Math.sqrt(token.length / 2);
  const soft = (sum, reach) => reach * Math.tanh(sum / scale);
  return `oklab(${0.68 + soft(light, 0.17)} ${soft(a, 0.12)} ${soft(b, 0.12)})`;
}
