/** How two pictures of one size differ. */

const GAIN = 4;

/** The absolute difference of two pictures, brightened, as a PNG. @param {Blob} one @param {Blob} other */
export async function difference(one, other) {
  const [a, b] = await Promise.all([pixels(one), pixels(other)]);
  for (let k = 0; k < a.data.length; k++) {
    a.data[k] = k % 4 === 3 ? 255 : GAIN * Math.abs(a.data[k] - b.data[k]);
  }
  const canvas = canvasOf(a.width, a.height);
  canvas.getContext("2d").putImageData(a, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve));
}

async function pixels(blob) {
  const bitmap = await createImageBitmap(blob);
  const context = canvasOf(bitmap.width, bitmap.height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

function canvasOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}
