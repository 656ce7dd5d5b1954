/** The room "Look inside": one picture beside its tokens, which can be changed and drawn anew. */

import { edit, reconstruct } from "./api.js";
import { bitsIn, distance, operate } from "./bits.js";
import { Cells } from "./cells.js";
import { Keep } from "./keep.js";
import { Message } from "./message.js";
import { paintTokens } from "./mosaic.js";
import { Planes } from "./planes.js";
import { Redraw } from "./redraw.js";
import { Surface } from "./surface.js";
import { Timeline } from "./timeline.js";
import { crop, listenForPictures, megabytes } from "./upload.js";
import { Viewer } from "./viewer.js";

const SETTLE_MS = 120;
const byId = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en");

export class Inspector {
  #cells = new Cells(
    () => this.#show(),
    (cell) => this.#planes.press(cell),
  );
  #surfaces = ["picture-cells", "grid-cells"].map((id) => new Surface(byId(id), this.#cells));
  #planes = new Planes(
    this.#cells,
    (operation) => this.#operate(operation),
    () => this.#repaint(),
  );
  #viewer = new Viewer();
  #keep = new Keep(() => ({ name: this.#name, ...this.#timeline.current }), (text) => this.#say(text));
  #uploadMessage = new Message("#upload-message");
  #message = new Message("#inspect-message");
  #redraw;
  #info = null;
  #name = "";
  #timeline = null;
  #loading = null;
  #early = null;
  #refreshing = null;

  /** @param {import("./settings.js").Settings} settings */
  constructor(settings) {
    this.#redraw = new Redraw(this.#cells, settings, this);
    this.#keep.enabled = false;
    listenForPictures((file) => this.read(file, file.name));
    byId("tool-options").addEventListener("change", ({ target }) => this.#use(target.value));
    byId("undo").addEventListener("click", () => this.#travel("undo"));
    byId("redo").addEventListener("click", () => this.#travel("redo"));
    byId("reset").addEventListener("click", () => this.#travel("reset"));
    byId("inspect-section").addEventListener("keydown", (event) => this.#shortcut(event));
  }

  /** Takes sizes and limits from the answer of /info, and the classes that can be drawn. */
  configure(info, classes) {
    this.#close();
    this.#info = info;
    this.#redraw.fill(classes);
    byId("upload-hint").textContent = `PNG, JPEG, WebP or GIF, up to ${megabytes(info.limits.upload_bytes)}`;
    byId("tools").hidden = !info.has_generator;
    this.#early?.();
    this.#early = null;
  }

  get tokens() {
    return this.#timeline.current.tokens;
  }

  get model() {
    return this.#info.model;
  }

  /** Opens a drawn picture. @param {{tokens: string[][], picture: Blob, classId: number}} drawn */
  open({ tokens, picture, classId }, name) {
    this.#close();
    this.#uploadMessage.clear();
    this.#redraw.choose(classId);
    this.#begin({ tokens, picture, photo: null, fileBytes: picture.size }, name);
  }

  /** Reads a photograph; one that is still in work gives way to the new one. */
  async read(blob, name) {
    if (!this.#info) {
      this.#early = () => this.read(blob, name);
      this.#say(`${name} waits for the server.`);
      return;
    }
    this.#uploadMessage.clear();
    const limit = this.#info.limits.upload_bytes;
    if (blob.size > limit) {
      this.#uploadMessage.say(`${name} has ${megabytes(blob.size)}; the server takes up to ${megabytes(limit)}.`);
      return;
    }
    this.#close();
    const loading = (this.#loading = new AbortController());
    this.#say(`Reading ${name} …`);
    try {
      const [photo, answer] = await Promise.all([
        crop(blob, this.#info.image_size),
        reconstruct(blob, this.model, loading.signal),
      ]);
      loading.signal.throwIfAborted();
      this.#begin({ ...answer, photo, fileBytes: blob.size }, name);
    } catch (error) {
      if (loading.signal.aborted) return;
      this.#say(`${name} could not be read.`);
      this.#uploadMessage.error(error, () => this.read(blob, name));
    }
  }

  #begin({ tokens, picture, photo, fileBytes, psnr }, name) {
    this.#name = name;
    this.#timeline = new Timeline(tokens, picture);
    this.#planes.fit(tokens[0][0].length);
    byId("workbench").hidden = false;
    byId("nothing-open").hidden = true;
    this.#keep.enabled = true;
    this.#viewer.open(picture, photo);
    this.#cells.fit(tokens.length, tokens[0].length);
    this.#use("bits");
    this.#facts(fileBytes, psnr);
    this.#say(name);
    this.#repaint();
  }

  #close() {
    this.#loading?.abort();
    this.#timeline = null;
    this.#redraw.drop();
    this.#message.clear();
    this.#keep.enabled = false;
    byId("workbench").hidden = true;
    byId("nothing-open").hidden = false;
    byId("facts").hidden = true;
    this.#say("");
  }

  #facts(fileBytes, psnr) {
    const { tokens } = this;
    const bits = bitsIn(tokens);
    byId("fact-tokens").textContent = `${tokens.length} × ${tokens[0].length}, ${tokens[0][0].length} bits each`;
    byId("fact-bits").textContent = `${count(bits)} = ${count(Math.ceil(bits / 8))} bytes`;
    byId("fact-file").textContent = `${count(fileBytes)} bytes`;
    byId("fact-ratio").textContent = `${count(Number(((fileBytes * 8) / bits).toPrecision(2)))} times`;
    byId("fact-psnr").textContent = psnr === null ? "exact" : `${psnr?.toFixed(1)} dB`;
    byId("fact-psnr").parentElement.hidden = psnr === undefined;
    byId("facts").hidden = false;
  }

  #use(tool) {
    for (const input of byId("tool-options").querySelectorAll("input")) input.checked = input.value === tool;
    byId("bits-tool").hidden = tool !== "bits";
    byId("redraw-tool").hidden = tool !== "mask";
    this.#cells.use(tool);
  }

  #operate(operation) {
    // A redraw in work keeps the tokens that it began with.
    if (this.#redraw.running) return;
    this.#timeline.push({ tokens: operate(this.tokens, operation), operation });
    this.#changed();
  }

  #travel(way) {
    if (!this.#timeline || this.#redraw.running) return;
    this.#timeline[way]();
    this.#changed();
  }

  #shortcut(event) {
    if (!(event.ctrlKey || event.metaKey) || event.altKey || event.target.matches("input[type=text]")) return;
    const way = { z: event.shiftKey ? "redo" : "undo", y: "redo" }[event.key.toLowerCase()];
    if (!way) return;
    event.preventDefault();
    this.#travel(way);
  }

  #changed() {
    this.#message.clear();
    this.#repaint();
    this.#refresh();
  }

  /** Brings the picture up to the tokens: one request at a time, each for all that was done meanwhile. */
  async #refresh() {
    const timeline = this.#timeline;
    if (this.#refreshing === timeline) return;
    this.#refreshing = timeline;
    byId("picture").classList.add("stale");
    try {
      while (!timeline.current.picture) {
        await pause(SETTLE_MS);
        if (timeline !== this.#timeline) return;
        const { tokens, operations, state } = timeline.way();
        if (!operations.length) continue;
        Object.assign(state, await edit(tokens, operations, this.model));
        if (timeline === this.#timeline) this.#viewer.update(state.picture);
      }
      if (timeline === this.#timeline) this.#settle();
    } catch (error) {
      if (timeline === this.#timeline) this.#message.error(error, () => this.#refresh());
    } finally {
      if (this.#refreshing === timeline) this.#refreshing = null;
    }
  }

  #settle() {
    this.#viewer.update(this.#timeline.current.picture);
    byId("picture").classList.remove("stale");
    const changed = distance(this.tokens, this.#timeline.first.tokens);
    const bits = `${count(changed)} of ${count(bitsIn(this.tokens))} bits`;
    this.#say(`${this.#name}: ${changed ? `${bits} changed` : "as it was"}`);
  }

  // -- what a redraw tells -----------------------------------------------------------------------------------

  preview(picture) {
    this.#viewer.update(picture);
  }

  done(state, text) {
    this.#timeline.push(state);
    this.#changed();
    this.#say(text);
  }

  failed(error) {
    if (this.#timeline.current.picture) this.#viewer.update(this.#timeline.current.picture);
    this.#say(error ? "Not drawn." : "Cancelled.");
    if (error) this.#message.error(error, () => this.#redraw.draw());
  }

  say(text) {
    this.#say(text);
  }

  /** It began or ended. */
  working() {
    if (this.#timeline) this.#repaint();
  }

  #say(text) {
    byId("inspect-status").textContent = text;
  }

  /** The tokens, or the way that they are shown, have changed. */
  #repaint() {
    paintTokens(byId("grid"), this.tokens, this.#planes.plane);
    const { running } = this.#redraw;
    byId("undo").disabled = byId("reset").disabled = running || !this.#timeline.canUndo;
    byId("redo").disabled = running || !this.#timeline.canRedo;
    this.#show();
  }

  /** What the hand points at has changed. */
  #show() {
    if (!this.#timeline) return;
    for (const surface of this.#surfaces) surface.paint();
    this.#planes.show(this.tokens);
    this.#redraw.show();
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
