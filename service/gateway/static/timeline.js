/** What was done to the tokens of one picture, with undo and redo. */

const MAX_OPERATIONS = 64;

export class Timeline {
  #states;
  #at = 0;

  /**
   * @param {string[][]} tokens
   * @param {Blob | null} picture what they decode to, null where that is not known yet
   */
  constructor(tokens, picture) {
    this.#states = [{ tokens, picture }];
  }

  get first() {
    return this.#states[0];
  }

  get current() {
    return this.#states[this.#at];
  }

  get canUndo() {
    return this.#at > 0;
  }

  get canRedo() {
    return this.#at < this.#states.length - 1;
  }

  /** Goes on from the current state; what was undone is forgotten. @param {{tokens, operation?, picture?}} state */
  push(state) {
    this.#states.length = ++this.#at;
    this.#states.push({ picture: null, ...state });
  }

  undo() {
    this.#at = Math.max(0, this.#at - 1);
  }

  redo() {
    this.#at = Math.min(this.#states.length - 1, this.#at + 1);
  }

  /** Back to the beginning; redo leads forth again. */
  reset() {
    this.#at = 0;
  }

  /**
   * The way from the last state that has a picture towards the current one, as far as one request goes:
   * its tokens, the operations to send, and the state that they lead to.
   */
  way() {
    let from = this.#at;
    while (from > 0 && !this.#states[from].picture) from--;
    const steps = this.#states.slice(from + 1, this.#at + 1).slice(0, MAX_OPERATIONS);
    return {
      tokens: this.#states[from].tokens,
      operations: steps.map((state) => state.operation),
      state: steps.at(-1) ?? this.current,
    };
  }
}
