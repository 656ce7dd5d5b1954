/** One picture's place in the results: empty, being drawn, done or given up; its size never changes. */

import { fileName } from "./keep.js";

const template = document.querySelector("#tile");

export class Tile {
  element = template.content.firstElementChild.cloneNode(true);
  #preview = this.element.querySelector(".preview");
  #bar = this.element.querySelector(".bar");
  #name = this.element.querySelector(".tile-name");
  #note = this.element.querySelector(".tile-note");
  #url = null;
  progress = 0;

  get empty() {
    return this.element.dataset.state === "empty";
  }

  get done() {
    return this.element.dataset.state === "done";
  }

  wait(name) {
    this.#name.textContent = name;
    this.#note.textContent = "waiting";
    this.element.dataset.state = "drawing";
  }

  /** @param {{step: number, steps: number}} at */
  step({ step, steps }) {
    if (this.done) return;
    this.progress = step / steps;
    this.#bar.style.transform = `scaleX(${this.progress})`;
    this.#note.textContent = `step ${step} of ${steps}`;
  }

  /** Paints a preview; drawn on a canvas so that one preview follows another without a flicker. */
  async preview(blob) {
    const bitmap = await createImageBitmap(blob);
    this.#preview.width = bitmap.width;
    this.#preview.height = bitmap.height;
    this.#preview.getContext("2d").drawImage(bitmap, 0, 0);
    this.#preview.hidden = false;
    bitmap.close();
  }

  /**
   * Shows the finished picture.
   * @param {{blob: Blob, name: string, seed: bigint}} picture
   * @param {{onSeed: () => void, onInspect: () => void}} actions
   */
  finish({ blob, name, seed }, { onSeed, onInspect }) {
    this.progress = 1;
    this.#url = URL.createObjectURL(blob);
    const image = new Image();
    image.src = this.#url;
    image.alt = `${name}, seed ${seed}`;
    const open = this.#button(".tile-open", onInspect);
    open.append(image);
    open.hidden = false;
    label(open, `Look inside ${image.alt}`);
    this.#name.textContent = this.#name.title = name;
    this.#note.textContent = this.#note.title = `seed ${seed}`;
    const save = this.element.querySelector(".tile-save");
    save.href = this.#url;
    save.download = `${fileName(`${name} ${seed}`)}.png`;
    label(save, `Save ${image.alt}`);
    label(this.#button(".tile-seed", onSeed), `Use the seed of ${image.alt} again`);
    label(this.#button(".tile-inspect", onInspect), `Look inside ${image.alt}`);
    this.element.dataset.state = "done";
  }

  /** Leaves an unfinished picture as it stands. */
  giveUp(note) {
    if (this.element.dataset.state !== "drawing") return;
    this.element.dataset.state = "stopped";
    this.#note.textContent = note;
  }

  /** Frees the picture's memory; the tile is not used afterwards. */
  release() {
    if (this.#url) URL.revokeObjectURL(this.#url);
  }

  #button(selector, onClick) {
    const button = this.element.querySelector(selector);
    button.addEventListener("click", onClick);
    return button;
  }
}

function label(element, text) {
  element.setAttribute("aria-label", text);
}
