/** Pictures that the user brings: chosen, dropped or pasted anywhere on the page. */

/** Calls `onPicture(file)` for each. */
export function listenForPictures(onPicture) {
  const input = document.querySelector("#file");
  const drop = document.querySelector("#drop");
  const take = (event, files) => {
    if (!files?.length) return;
    event.preventDefault();
    onPicture(files[0]);
  };
  input.addEventListener("change", () => {
    if (input.files.length) onPicture(input.files[0]);
    input.value = "";
  });
  document.addEventListener("paste", (event) => take(event, event.clipboardData.files));
  document.addEventListener("drop", (event) => {
    drop.classList.remove("over");
    take(event, event.dataTransfer.files);
  });
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => {
    if (relatedTarget === null) drop.classList.remove("over");
  });
}

/** The centre square at the model's size, on white; null where the browser cannot read the format. */
export async function crop(blob, size) {
  const bitmap = await createImageBitmap(blob).catch(() => null);
  if (!bitmap) return null;
  const side = Math.min(bitmap.width, bitmap.height);
  const [x, y] = [Math.floor((bitmap.width - side) / 2), Math.floor((bitmap.height - side) / 2)];
  const shrink = { resizeWidth: size, resizeHeight: size, resizeQuality: "high" };
  const square = await createImageBitmap(bitmap, x, y, side, side, shrink);
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, size, size);
  context.drawImage(square, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve));
}

export const megabytes = (bytes) => `${Number((bytes / 2 ** 20).toPrecision(2))} MiB`;
