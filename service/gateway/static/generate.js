/** Drawing: sends the settings, shows progress and previews, and keeps the finished pictures. */

import { decodePicture, generate } from "./api.js";
import { spaced } from "./classes.js";
import { clearMessage, showError } from "./message.js";
import { scrollToTop } from "./scroll.js";
import { Tile } from "./tile.js";

const PREVIEWS = 4;

export class Drawing {
  #picker;
  #settings;
  #onTokens;
  #form = document.querySelector("#form");
  #results = document.querySelector("#results");
  #status = document.querySelector("#draw-status");
  #bar = document.querySelector("#draw-progress");
  #drawButton = document.querySelector("#draw");
  #cancelButton = document.querySelector("#cancel");
  #tiles = [];
  #abort = null;

  /**
   * @param {import("./classes.js").ClassPicker} picker
   * @param {import("./settings.js").Settings} settings
   * @param {(blob: Blob, name: string) => void} onTokens called to show a picture's tokens
   */
  constructor(picker, settings, onTokens) {
    this.#picker = picker;
    this.#settings = settings;
    this.#onTokens = onTokens;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.draw();
    });
    this.#cancelButton.addEventListener("click", () => this.#abort?.abort());
  }

  /** Shows as many empty places as pictures are asked for, unless there are pictures to keep. */
  prepare() {
    const { count } = this.#settings;
    if (count !== null && this.#tiles.every((tile) => tile.empty)) this.#lay(count);
  }

  say(text) {
    this.#status.textContent = text;
  }

  async draw() {
    if (this.#abort || this.#picker.value === null) return;
    clearMessage();
    const wanted = this.#settings.read();
    this.#settings.writeLink(String(wanted.seed));
    this.#begin(wanted.n);
    try {
      await this.#follow(wanted);
    } catch (error) {
      this.#stop(error);
    } finally {
      this.#end();
    }
  }

  #begin(count) {
    this.#abort = new AbortController();
    this.#lay(count);
    for (const tile of this.#tiles) tile.wait(this.#picker.name);
    this.say(`Drawing ${count === 1 ? "one picture" : `${count} pictures`}: ${this.#picker.name}`);
    this.#drawButton.disabled = true;
    this.#cancelButton.hidden = false;
    this.#bar.value = 0;
    this.#bar.classList.add("running");
    this.#cancelButton.focus({ preventScroll: true });
    this.#reveal();
  }

  /** Where the results begin below the screen (a phone), scrolls until they and Cancel are both in view. */
  #reveal() {
    const { top } = this.#results.getBoundingClientRect();
    if (top > innerHeight * 0.6) scrollToTop(this.#cancelButton.parentElement);
  }

  async #follow(wanted) {
    const preview_every = Math.ceil(wanted.steps / PREVIEWS);
    const body = { ...wanted, stream: true, preview_every };
    for await (const { event, data } of generate(body, this.#abort.signal)) {
      if (event === "queued" && data.position > 1) this.say(`Waiting: number ${data.position} in the queue`);
      if (event === "progress") this.#step(data);
      if (event === "image") this.#finish(data, wanted);
      if (event === "done") this.say(report(this.#tiles.length, data.usage));
      this.#bar.value = this.#tiles.reduce((sum, tile) => sum + tile.progress, 0) / this.#tiles.length;
    }
  }

  #step(data) {
    const tile = this.#tiles[data.image];
    tile.step(data);
    if (data.preview) tile.preview(decodePicture(data.preview, "png"));
  }

  #finish({ index, class_id, class_name, b64, format }, wanted) {
    // Image k of a class uses seed+k; counted here since JSON numbers above 2^53 arrive rounded.
    const seed = wanted.seed + BigInt(index);
    const name = spaced(class_name);
    const blob = decodePicture(b64, format);
    this.#tiles[index].finish(
      { blob, format, name, seed },
      {
        onSeed: () => {
          this.#settings.repeat({ ...wanted, class_id, seed });
          this.say(`Seed ${seed} is set: Draw repeats this picture.`);
          this.#drawButton.focus();
        },
        onTokens: () => this.#onTokens(blob, `${name}, seed ${seed}`),
      },
    );
    const done = this.#tiles.filter((tile) => tile.done).length;
    if (done < this.#tiles.length) this.say(`${done} of ${this.#tiles.length} done`);
  }

  #stop(error) {
    const cancelled = error.name === "AbortError";
    for (const tile of this.#tiles) tile.giveUp(cancelled ? "cancelled" : "not drawn");
    this.say(cancelled ? "Cancelled." : "Stopped.");
    if (!cancelled) showError(error, () => this.#form.requestSubmit());
  }

  #end() {
    this.#abort = null;
    const hadFocus = document.activeElement === this.#cancelButton;
    this.#drawButton.disabled = false;
    this.#cancelButton.hidden = true;
    this.#bar.classList.remove("running");
    if (hadFocus) this.#drawButton.focus({ preventScroll: true });
  }

  #lay(count) {
    for (const tile of this.#tiles) tile.release();
    this.#tiles = Array.from({ length: count }, () => new Tile());
    this.#results.parentElement.dataset.columns = String(Math.min(4, Math.ceil(Math.sqrt(count))));
    this.#results.replaceChildren(...this.#tiles.map((tile) => tile.element));
  }
}

function report(count, { queue_ms, compute_ms }) {
  const pictures = count === 1 ? "One picture" : `${count} pictures`;
  const waited = queue_ms >= 100 ? `, after waiting ${seconds(queue_ms)}` : "";
  return `${pictures} in ${seconds(compute_ms)}${waited}.`;
}

const seconds = (ms) => `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
