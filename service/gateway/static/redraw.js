/** Drawing a part of a picture anew: the mask's tools, the class, and the work itself. */

import { decodePicture, detokenize, generate } from "./api.js";
import { spaced } from "./classes.js";

const PREVIEWS = 8;
const byId = (id) => document.getElementById(id);

export class Redraw {
  #cells;
  #inspector;
  #settings;
  #class = byId("redraw-class");
  #button = byId("redraw");
  #cancel = byId("redraw-cancel");
  #bar = byId("redraw-progress");
  #abort = null;

  /**
   * @param {import("./cells.js").Cells} cells
   * @param {import("./settings.js").Settings} settings steps and guidance come from there
   * @param {{tokens: string[][], model: string, preview: (picture: Blob) => void, done: (change: object) => void,
   *   failed: (error: Error | null) => void, say: (text: string) => void, working: () => void}} inspector
   */
  constructor(cells, settings, inspector) {
    this.#cells = cells;
    this.#settings = settings;
    this.#inspector = inspector;
    byId("brush-options").addEventListener("change", ({ target }) => (cells.brush = Number(target.value)));
    byId("erase").addEventListener("change", ({ target }) => (cells.erasing = target.checked));
    byId("mask-all").addEventListener("click", () => cells.cover(() => true));
    byId("mask-none").addEventListener("click", () => cells.cover(() => false));
    byId("mask-invert").addEventListener("click", () => cells.cover((row, column) => !cells.mask[row][column]));
    this.#button.addEventListener("click", () => this.draw());
    this.#cancel.addEventListener("click", () => this.#abort?.abort());
  }

  /** @param {{id: number, name: string}[]} classes */
  fill(classes) {
    this.#class.replaceChildren(...classes.map(({ id, name }) => new Option(spaced(name), id)));
  }

  choose(classId) {
    this.#class.value = String(classId);
  }

  get running() {
    return this.#abort !== null;
  }

  /** Gives up what is in work, without a word: another picture was opened. */
  drop() {
    this.#abort?.abort();
    if (this.running) this.#end();
  }

  /** Tells how much is marked; the button waits for a mark. */
  show() {
    const { covered, rows, columns } = this.#cells;
    byId("mask-said").textContent = `${covered} of ${rows * columns} tokens marked`;
    this.#button.disabled = covered === 0 || this.running;
  }

  async draw() {
    if (this.running) return;
    const abort = (this.#abort = new AbortController());
    const order = this.#order();
    this.#cells.unveil();
    this.#turn(true);
    try {
      const tokens = await this.#follow(order, abort.signal);
      const picture = await detokenize(tokens, order.model, abort.signal);
      const name = this.#class.selectedOptions[0].text;
      this.#end();
      this.#inspector.done({ tokens, picture }, `Drawn anew as ${name}, seed ${order.seed}.`);
    } catch (error) {
      if (this.#abort === abort) this.#inspector.failed(abort.signal.aborted ? null : error);
    } finally {
      if (this.#abort === abort) this.#end();
    }
  }

  #order() {
    const { tokens, model } = this.#inspector;
    return {
      ...this.#settings.sampling(),
      model,
      class_id: Number(this.#class.value),
      seed: this.#settings.newSeed(),
      mask: this.#cells.mask.map((row) => row.map(Number)),
      tokens,
      format: "tokens",
      preview_every: this.#settings.previewEvery(PREVIEWS),
    };
  }

  async #follow(order, signal) {
    let tokens = null;
    for await (const { event, data } of generate(order, signal)) {
      if (event === "queued" && data.position > 0) this.#inspector.say(`Waiting: ${data.position} in front`);
      if (event === "progress") this.#bar.value = data.step / data.steps;
      if (data.preview) this.#inspector.preview(decodePicture(data.preview));
      if (event === "image") tokens = data.tokens;
    }
    return tokens;
  }

  #end() {
    this.#abort = null;
    this.#turn(false);
  }

  #turn(running) {
    const focused = [this.#button, this.#cancel].includes(document.activeElement);
    this.#cancel.hidden = !running;
    this.#bar.value = 0;
    this.#bar.classList.toggle("running", running);
    this.show();
    if (running) this.#inspector.say("Drawing the marked part anew …");
    this.#inspector.working();
    if (focused) (running ? this.#cancel : this.#button).focus({ preventScroll: true });
  }
}
