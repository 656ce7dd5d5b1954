/** Tokenizing: a photograph in; what the model saw, its tokens and its reconstruction out. */

import { detokenize, tokenize } from "./api.js";
import { TokenGrid } from "./grid.js";
import { clearMessage, showError, showText } from "./message.js";

const byId = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en");

export class Tokens {
  #grid = new TokenGrid();
  #status = byId("tokens-status");
  #photo = byId("photo");
  #reconstruction = byId("reconstruction");
  #planes = byId("planes");
  #buttons = [byId("copy-bits"), byId("save-json")];
  #imageSize = 64;
  #uploadBytes = Infinity;
  #answer = null;
  #abort = null;

  constructor() {
    byId("file").addEventListener("change", ({ target }) => {
      if (target.files.length) this.show(target.files[0], target.files[0].name);
      target.value = "";
    });
    byId("copy-bits").addEventListener("click", () => this.#copy());
    byId("save-json").addEventListener("click", () => save(this.#answer, "tokens.json"));
    byId("plane-options").addEventListener("change", ({ target }) => {
      this.#grid.setPlane(target.value === "all" ? null : Number(target.value));
    });
    listenForPictures((file) => this.show(file, file.name));
  }

  /** Takes sizes and limits from the answer of /info. */
  configure({ image_size, bits, limits }) {
    this.#imageSize = image_size;
    this.#uploadBytes = limits.upload_bytes;
    byId("upload-hint").textContent = `PNG, JPEG, WebP or GIF, up to ${megabytes(limits.upload_bytes)}`;
    const planes = Array.from({ length: bits }, (_, k) => planeOption(k, k, false));
    byId("plane-options").replaceChildren(planeOption("all", "all bits", true), ...planes);
  }

  /** Shows a picture's tokens; a picture still in work gives way to the new one. */
  async show(blob, name) {
    this.#abort?.abort();
    clearMessage();
    if (blob.size > this.#uploadBytes) {
      showText(`${name} has ${megabytes(blob.size)}; the server takes up to ${megabytes(this.#uploadBytes)}.`);
      return;
    }
    const abort = (this.#abort = new AbortController());
    this.#clear();
    this.#status.textContent = `Reading ${name} …`;
    try {
      await this.#work(blob, name, abort.signal);
    } catch (error) {
      if (abort.signal.aborted) return;
      this.#status.textContent = `${name} could not be read.`;
      showError(error, () => this.show(blob, name));
    }
  }

  async #work(blob, name, signal) {
    const [seen, answer] = await Promise.all([crop(blob, this.#imageSize), tokenize(blob, signal)]);
    signal.throwIfAborted();
    this.#answer = answer;
    if (seen) display(this.#photo, seen);
    this.#grid.show(answer.tokens, answer.indices);
    this.#report(answer, blob.size);
    this.#planes.disabled = false;
    for (const button of this.#buttons) button.disabled = false;
    const picture = await detokenize(answer.indices, signal);
    signal.throwIfAborted();
    display(this.#reconstruction, picture);
    this.#status.textContent = `Done: ${name}`;
  }

  #clear() {
    this.#answer = null;
    this.#grid.clear();
    this.#photo.hidden = this.#reconstruction.hidden = true;
    this.#planes.disabled = true;
    for (const button of this.#buttons) button.disabled = true;
    for (const id of ["tokens", "bits", "file", "ratio"]) byId(`fact-${id}`).textContent = "–";
  }

  #report({ grid: [rows, columns], bits_per_token }, fileBytes) {
    const bits = rows * columns * bits_per_token;
    byId("fact-tokens").textContent = `${rows} × ${columns}, ${bits_per_token} bits each`;
    byId("fact-bits").textContent = `${count(bits)} = ${count(Math.ceil(bits / 8))} bytes`;
    byId("fact-file").textContent = `${count(fileBytes)} bytes`;
    byId("fact-ratio").textContent = `${count(Number(((fileBytes * 8) / bits).toPrecision(2)))} times`;
  }

  async #copy() {
    const copied = await copyText(this.#answer.tokens.map((row) => row.join(" ")).join("\n"));
    if (copied) this.#status.textContent = "The bits are on the clipboard, one row a line.";
    else showText("The browser did not allow copying. Save JSON has the same bits.");
  }
}

/** Pictures dropped or pasted anywhere on the page. */
function listenForPictures(onPicture) {
  const drop = byId("drop");
  const take = (event, files) => {
    if (!files?.length) return;
    event.preventDefault();
    onPicture(files[0]);
  };
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
async function crop(blob, size) {
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

function display(image, blob) {
  if (image.src) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  image.hidden = false;
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

/** The clipboard API exists on secure origins only; a LAN address over http needs the old way. */
async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const area = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}

function save(value, name) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(value)], { type: "application/json" }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  URL.revokeObjectURL(url);
}

const megabytes = (bytes) => `${Number((bytes / 2 ** 20).toPrecision(2))} MiB`;
