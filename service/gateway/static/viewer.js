/** The picture in the inspector: as it is now, as it was, how they differ, or the photograph that came in. */

import { difference } from "./difference.js";

const SAID = {
  now: "The picture of the tokens",
  before: "The picture before the changes",
  difference: "What differs between now and before, brightened: black is the same",
  photo: "The photograph, centre-cropped as the model saw it",
};

export class Viewer {
  #image = document.querySelector("#picture");
  #options = document.querySelector("#view-options");
  #pictures = { now: null, before: null, photo: null };
  #turn = 0;

  constructor() {
    this.#options.addEventListener("change", () => this.#show());
  }

  get #view() {
    return this.#options.querySelector(":checked").value;
  }

  /** Begins with another picture; `photo` is what came in, null for a drawn one. */
  open(picture, photo) {
    this.#pictures = { now: picture, before: picture, photo };
    this.#options.querySelector("[value=photo]").closest("label").hidden = !photo;
    this.#options.querySelector("[value=now]").checked = true;
    return this.#show();
  }

  /** Shows another picture as the present one; a preview leaves the choice of view alone. */
  update(picture) {
    this.#pictures.now = picture;
    return this.#show();
  }

  async #show() {
    const turn = ++this.#turn;
    const { now, before } = this.#pictures;
    const view = this.#view;
    const blob = view === "difference" ? await difference(now, before) : this.#pictures[view];
    const next = new Image();
    next.src = URL.createObjectURL(blob);
    // Decoded before it is shown, so that nothing flickers; a later picture may have come meanwhile.
    await next.decode();
    if (turn !== this.#turn) {
      URL.revokeObjectURL(next.src);
      return;
    }
    if (this.#image.src) URL.revokeObjectURL(this.#image.src);
    this.#image.src = next.src;
    this.#image.alt = SAID[view];
  }
}
