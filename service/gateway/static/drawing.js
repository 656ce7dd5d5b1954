/** Drawing: sends the settings, shows each picture as it forms, and keeps the finished ones. */

import { decodePicture, detokenize, generate } from "./api.js";
import { spaced } from "./classes.js";
import { copyText } from "./clipboard.js";
import { Message } from "./message.js";
import { scrollToTop } from "./scroll.js";
import { Tile } from "./tile.js";

const PREVIEWS = 8;

export class Drawing {
  #picker;
  #settings;
  #onInspect;
  #form = document.querySelector("#form");
  #results = document.querySelector("#results");
  #status = document.querySelector("#draw-status");
  #bar = document.querySelector("#draw-progress");
  #drawButton = document.querySelector("#draw");
  #cancelButton = document.querySelector("#cancel");
  #shareButton = document.querySelector("#share");
  #message = new Message("#draw-message");
  #tiles = [];
  #abort = null;

  /**
   * @param {import("./classes.js").ClassPicker} picker
   * @param {import("./settings.js").Settings} settings
   * @param {(drawn: {tokens: string[][], picture: Blob, classId: number}, name: string) => void} onInspect
   */
  constructor(picker, settings, onInspect) {
    this.#picker = picker;
    this.#settings = settings;
    this.#onInspect = onInspect;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.draw();
    });
    this.#cancelButton.addEventListener("click", () => this.stop());
    this.#shareButton.addEventListener("click", () => this.#share());
  }

  stop() {
    this.#abort?.abort();
  }

  /** Shows as many empty places as pictures are asked for, unless there are pictures to keep. */
  prepare() {
    const { count } = this.#settings;
    if (count !== null && this.#tiles.every((tile) => tile.empty)) this.#lay(count);
  }

  /** Begins with another model: empties the places, whose pictures were the former one's. */
  open() {
    this.stop();
    this.#drawButton.disabled = this.#abort !== null;
    this.#lay(this.#settings.count ?? 1);
    this.#shareButton.hidden = true;
    this.say("Nothing drawn yet.");
  }

  say(text) {
    this.#status.textContent = text;
  }

  complain(text) {
    this.#message.say(text);
  }

  async draw() {
    if (this.#abort || this.#picker.value === null) return;
    this.#message.clear();
    const wanted = this.#settings.read();
    this.#settings.writeLink(String(wanted.seed));
    this.#begin(wanted.n);
    try {
      await this.#follow(wanted);
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#end();
    }
  }

  #begin(count) {
    this.#abort = new AbortController();
    this.#lay(count);
    for (const tile of this.#tiles) tile.wait(this.#picker.name);
    this.say(`Drawing ${count === 1 ? "one picture" : `${count} pictures`}: ${this.#picker.name}`);
    this.#turn(true);
    this.#reveal();
  }

  /** Where the results begin below the screen (a phone), scrolls until they and Cancel are both in view. */
  #reveal() {
    const { top } = this.#results.getBoundingClientRect();
    if (top > innerHeight * 0.6) scrollToTop(this.#cancelButton.parentElement);
  }

  async #follow(wanted) {
    // Tokens are asked for, since the inspector needs those of the picture itself; its file comes after them.
    const order = { ...wanted, format: "tokens", preview_every: this.#settings.previewEvery(PREVIEWS) };
    const images = [];
    let usage = null;
    for await (const { event, data } of generate(order, this.#abort.signal)) {
      if (event === "queued" && data.position > 0) this.say(`Waiting: ${data.position} in front`);
      if (event === "progress") this.#step(data);
      if (event === "image") images.push(data);
      if (event === "done") ({ usage } = data);
      this.#bar.value = this.#tiles.reduce((sum, tile) => sum + tile.progress, 0) / this.#tiles.length;
    }
    await Promise.all(images.map((image) => this.#finish(image, wanted)));
    this.say(report(this.#tiles.length, usage));
    this.#shareButton.hidden = false;
  }

  #step(data) {
    const tile = this.#tiles[data.image];
    tile.step(data);
    if (data.preview) tile.preview(decodePicture(data.preview));
  }

  async #finish({ index, class_id, class_name, tokens }, wanted) {
    const tile = this.#tiles[index];
    // Image k of a class uses seed+k; counted here since JSON numbers above 2^53 arrive rounded.
    const seed = wanted.seed + BigInt(index);
    const name = spaced(class_name);
    const picture = await detokenize(tokens, wanted.model, this.#abort.signal);
    tile.finish(
      { blob: picture, name, seed },
      {
        onSeed: () => {
          this.#settings.repeat({ class_id, seed });
          this.say(`Seed ${seed} is set: Draw repeats this picture.`);
          this.#drawButton.focus();
        },
        onInspect: () => this.#onInspect({ tokens, picture, classId: class_id }, `${name}, seed ${seed}`),
      },
    );
  }

  #fail(error) {
    const cancelled = error.name === "AbortError";
    this.stop();
    for (const tile of this.#tiles) tile.giveUp(cancelled ? "cancelled" : "not drawn");
    this.say(cancelled ? "Cancelled." : "Stopped.");
    if (!cancelled) this.#message.error(error, () => this.#form.requestSubmit());
  }

  #end() {
    this.#abort = null;
    this.#turn(false);
  }

  /** Cancel stands in for Draw while there is work, and takes the focus over. */
  #turn(running) {
    const focused = [this.#drawButton, this.#cancelButton].includes(document.activeElement);
    this.#drawButton.disabled = running;
    this.#cancelButton.hidden = !running;
    this.#bar.value = 0;
    this.#bar.classList.toggle("running", running);
    if (focused) (running ? this.#cancelButton : this.#drawButton).focus({ preventScroll: true });
  }

  async #share() {
    const copied = await copyText(location.href);
    this.say(
      copied
        ? "The link is on the clipboard. Whoever opens it sees these pictures drawn again."
        : "The browser did not allow copying: the link is in the address bar.",
    );
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
